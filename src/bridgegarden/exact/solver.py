"""From a world and a student to the exact solution: the steps in order."""

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from bridgegarden.errors import ConfigError, ModelError
from bridgegarden.exact.exposure_bias import visitation
from bridgegarden.exact.kappa import cost_to_go, longest_texts, merge, q_rows
from bridgegarden.exact.prefix_tree import unroll_policy
from bridgegarden.exact.process import Process
from bridgegarden.exact.rows import expectation
from bridgegarden.exact.solution import ActionSet, ExactSolution
from bridgegarden.exact.tabular import Tabulated, tabulate
from bridgegarden.exact.unroll import Unrolled, unroll_table
from bridgegarden.objective.divergences import Divergence, forward_kl
from bridgegarden.policy import Policy


def solve(
    process: Process | Tabulated,
    student: object,
    *,
    prompt: Sequence[int] = (),
    divergence: Divergence = forward_kl,
    actions: ActionSet = "continuations",
    max_nodes: int = 200_000,
) -> ExactSolution:
    """Q, kappa, visitation, losses and exposure bias of a student on a world, exactly.

    A text stops where the process is terminal and at `process.horizon` tokens. Rows are normalised in float64, so that
    the identity closes to rounding even for a student that computes in float32.

    Args:
        process: the world, and the teacher; or the same from `tabulate`, so that many students can share it.
        student: a `bridgegarden.policy.Policy`, which sees the prefix; or log-probabilities by state: a mapping, a
            function, or an ``(S, V)`` tensor where states are integers.
        prompt: token ids that a policy reads before the text.
        divergence: the loss at a state.
        actions: the tokens that kappa(s) sums over. By default those that keep the text on script: the sum over all V
            grows with words that nobody would write, and the teacher's support leaves out its possible mistakes.
        max_nodes: most states of the process, or distinct prefixes of a policy.

    Raises:
        ConfigError: too many states or prefixes; an unknown action set; a prompt for a table.
        DataError: a row that is missing, has the wrong shape, NaN, or does not sum to one.
        ModelError: a policy whose vocabulary or end is not the process's.
        NonFiniteError: the divergence is not a number.
    """
    if actions not in get_args(ActionSet):
        raise ConfigError(f"exact.actions: unknown set {actions!r}. Known: {', '.join(get_args(ActionSet))}.")
    if isinstance(student, torch.nn.Module):
        raise ModelError("exact: got a model, expected a policy. Wrap a causal language model: CausalLMPolicy(model).")
    world = process if isinstance(process, Tabulated) else tabulate(process, max_nodes)
    if not isinstance(student, Tensor) and isinstance(student, Policy):
        unrolled = unroll_policy(world, student, prompt, divergence, max_nodes)
    elif len(prompt):
        raise ConfigError("exact.prompt: a student given by state reads no prompt. Leave it out, or pass a policy.")
    else:
        unrolled = unroll_table(world, student, divergence)
    longest = longest_texts(unrolled)
    nodes = merge(unrolled, longest)
    cost = cost_to_go(unrolled, nodes, longest)
    q_bar, state_kappa, student_kappa = torch.zeros(3, len(nodes.row), dtype=torch.float64)
    for where, q in q_rows(unrolled, nodes, cost, torch.arange(len(nodes.row))):
        rows = nodes.row[where]
        q_bar[where] = expectation(unrolled.teacher[rows], q, cost.finite)
        kappa = q - q_bar[where].unsqueeze(-1)
        student_kappa[where] = expectation(unrolled.student[rows], kappa, cost.finite)
        state_kappa[where] = kappa.masked_fill(~_chosen(unrolled, rows, actions), 0.0).sum(-1)
    return ExactSolution(
        unrolled=unrolled,
        nodes=nodes,
        cost=cost,
        actions=actions,
        loss=unrolled.loss[nodes.row],
        q_bar=q_bar,
        state_kappa=state_kappa,
        student_kappa=student_kappa,
        teacher=visitation(unrolled, unrolled.teacher),
        student=visitation(unrolled, unrolled.student),
    )


def _chosen(unrolled: Unrolled, rows: Tensor, actions: ActionSet) -> Tensor:
    match actions:
        case "continuations":
            return unrolled.world.process.on_script[unrolled.state[rows]]
        case "teacher_support":
            return unrolled.teacher[rows] > 0
        case "all":
            return torch.ones_like(unrolled.teacher[rows], dtype=torch.bool)
