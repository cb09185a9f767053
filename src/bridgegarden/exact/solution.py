"""From a world and a student to the exact solution: the steps in order, and everything they lead to."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from bridgegarden.errors import ConfigError, DataError, ModelError, NonFiniteError
from bridgegarden.exact.dynamic_programming import (
    CostToGo,
    Nodes,
    Visitation,
    cost_to_go,
    longest_texts,
    merge,
    q_rows,
    visitation,
    weighted,
)
from bridgegarden.exact.process import Process, Role
from bridgegarden.exact.tabular import Tabulated, expectation, tabulate
from bridgegarden.exact.unroll import Unrolled, unroll_policy, unroll_table
from bridgegarden.objective.divergences import Divergence, forward_kl
from bridgegarden.policy import Policy

ActionSet = Literal["continuations", "teacher_support", "all"]
"""Tokens that kappa(s) sums over: those that keep the text on script, those that the teacher may write, or all V."""


class PerPosition(NamedTuple):
    """What happens at each position, ``(T,)`` each, nats."""

    teacher_mass: Tensor
    """Probability that the teacher's text is still going on."""
    student_mass: Tensor
    """The same for the student's text."""
    teacher_loss: Tensor
    """Expected loss there on the teacher's text; sums to `teacher_loss`."""
    student_loss: Tensor
    """Expected loss there on the student's text; sums to `student_loss`."""
    contribution: Tensor
    """Exposure bias that the student's choice *there* causes, wherever it is paid; sums to `exposure_bias`."""


class RoleShare(NamedTuple):
    """What happens at the nodes of one role, nats."""

    nodes: int
    """Number of nodes."""
    teacher_visits: float
    """Expected number of tokens of the teacher's text that are chosen there."""
    student_visits: float
    """The same for the student's text."""
    teacher_loss: float
    """Expected loss there on the teacher's text; the roles sum to `teacher_loss`."""
    student_loss: float
    """Expected loss there on the student's text; the roles sum to `student_loss`."""
    contribution: float
    """Exposure bias that the student's choices there cause; the roles sum to `exposure_bias`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ExactSolution:
    """Everything is float64; losses, Q and kappa are in nats (in the divergence's unit). N nodes, V tokens.

    A node is a state of the process (for a policy: a prefix) and, where the horizon can cut a text off, the number of
    tokens left. Losses are infinite where they truly are (q = 0 where p > 0, under the forward KL divergence).
    """

    unrolled: Unrolled = field(repr=False)
    """World and student on common rows."""

    nodes: Nodes = field(repr=False)
    """The nodes, and which of them a text is at, by position."""

    cost: CostToGo = field(repr=False)
    """Expected loss still to come, by row."""

    actions: ActionSet
    """The tokens that `state_kappa` sums over."""

    loss: Tensor = field(repr=False)
    r"""``(N,)``: :math:`\ell(s)`, the divergence of the student from the teacher."""

    q_bar: Tensor = field(repr=False)
    r"""``(N,)``: :math:`\bar Q(s) = \sum_a p(a|s) Q(s,a)`, expected loss after s when the teacher writes."""

    state_kappa: Tensor = field(repr=False)
    r"""``(N,)``: :math:`\kappa(s) = \sum_a \kappa(a|s)` over `actions`. High: a Bridge. Low: a Garden."""

    student_kappa: Tensor = field(repr=False)
    r"""``(N,)``: :math:`\sum_a q(a|s) \kappa(a|s)`, what one visit of the student adds to its exposure bias."""

    exit_kappa: Tensor = field(repr=False)
    """``(N,)``: of that, what tokens add that leave the script. Where they end the text it is at most zero: the rest
    of the text's bill is not paid."""

    teacher: Visitation = field(repr=False)
    """Where the teacher's texts go."""

    student: Visitation = field(repr=False)
    """Where the student's texts go."""

    @cached_property
    def q(self) -> Tensor:
        """``(N, V)``: Q(s,a). Zero where the text is over after a. Made when asked for: use `q_at` for a few nodes."""
        return self.q_at(torch.arange(len(self)))

    @cached_property
    def kappa(self) -> Tensor:
        """``(N, V)``: kappa(a|s) of every token. NaN only where Q and Q-bar are both infinite: then it is undefined."""
        return self.kappa_at(torch.arange(len(self)))

    def __len__(self) -> int:
        """Number of nodes."""
        return len(self.nodes.row)

    def q_at(self, nodes: Tensor) -> Tensor:
        """``(n, V)``: Q(s,a) at some nodes."""
        table = torch.empty(len(nodes), self.unrolled.following.shape[1], dtype=torch.float64)
        for where, q in q_rows(self.unrolled, self.nodes, self.cost, nodes):
            table[where] = q
        return table

    def kappa_at(self, nodes: Tensor) -> Tensor:
        """``(n, V)``: kappa(a|s) at some nodes; NaN as in `kappa`."""
        return self.q_at(nodes) - self.q_bar[nodes].unsqueeze(-1)

    @cached_property
    def teacher_visitation(self) -> Tensor:
        """``(N,)``: probability that the teacher's text comes to the node (expected visits, if it can come back)."""
        return self._per_node(self.teacher.visits)

    @cached_property
    def student_visitation(self) -> Tensor:
        """``(N,)``: the same for the student's text."""
        return self._per_node(self.student.visits)

    @cached_property
    def teacher_loss(self) -> float:
        """L_dT, summed over a text of the teacher."""
        return weighted(self.teacher_visitation, self.loss).sum().item()

    @cached_property
    def student_loss(self) -> float:
        """L_dtheta, summed over a text of the student: its inference error."""
        return weighted(self.student_visitation, self.loss).sum().item()

    @property
    def teacher_length(self) -> float:
        """Expected number of tokens of the teacher's text."""
        return self.teacher.visits.sum().item()

    @property
    def student_length(self) -> float:
        """Expected number of tokens of the student's text."""
        return self.student.visits.sum().item()

    @property
    def teacher_loss_per_token(self) -> float:
        """Expected summed loss over expected length, on the teacher's texts."""
        return self.teacher_loss / self.teacher_length

    @property
    def student_loss_per_token(self) -> float:
        """Expected summed loss over expected length, on the student's texts."""
        return self.student_loss / self.student_length

    @property
    def exposure_bias(self) -> float:
        """L_dtheta - L_dT, summed losses.

        Raises:
            NonFiniteError: both are infinite.
        """
        return self._defined(self.student_loss - self.teacher_loss)

    @property
    def exposure_bias_per_token(self) -> float:
        """Difference of the two losses per token. The identity holds for `exposure_bias`, not for this.

        Raises:
            NonFiniteError: both are infinite.
        """
        return self._defined(self.student_loss_per_token - self.teacher_loss_per_token)

    @cached_property
    def contribution(self) -> Tensor:
        """``(N,)``: d_theta(s) times `student_kappa`; sums to `exposure_bias`.

        Raises:
            NonFiniteError: undefined at a node that the student visits.
        """
        contribution = weighted(self.student_visitation, self.student_kappa)
        self._defined(contribution.sum().item())
        return contribution

    @cached_property
    def exit_contribution(self) -> float:
        r"""Exposure bias that leaving the script causes, nats.

        .. math:: \sum_s d_\theta(s) \sum_{a \notin \mathrm{script}(s)} q(a|s) \, \kappa(a|s)

        A text that ends where it leaves pays no more, and so lowers the exposure bias of a student that fails; the
        rest, ``exposure_bias - exit_contribution``, is what its choices on the script cause.

        Raises:
            NonFiniteError: undefined at a node that the student visits.
        """
        return self._defined(weighted(self.student_visitation, self.exit_kappa).sum().item())

    @property
    def identity_applies(self) -> bool:
        """Whether all losses that either side of the identity needs are finite."""
        charged = weighted(self.student_visitation, self.student_kappa).sum().item()
        return all(map(math.isfinite, (charged, self.teacher_loss, self.student_loss)))

    @property
    def identity_error(self) -> float | None:
        """How far the contributions' sum is from `exposure_bias`, >= 0; None where the identity does not apply."""
        if not self.identity_applies:
            return None
        return abs(self.contribution.sum().item() - self.exposure_bias)

    @cached_property
    def roles(self) -> tuple[Role, ...]:
        """What the choice at each node decides."""
        process = self.unrolled.world.process
        states, where = self.unrolled.state[self.nodes.row].unique(return_inverse=True)
        roles = process.roles(states)
        return tuple(roles[index] for index in where.tolist())

    @cached_property
    def by_position(self) -> PerPosition:
        """The shares of each position."""
        rows, nodes = self.nodes.visit_row, self.nodes.visit_node
        loss = self.unrolled.loss[rows]
        return PerPosition(
            self._per_position(self.teacher.visits),
            self._per_position(self.student.visits),
            self._per_position(weighted(self.teacher.visits, loss)),
            self._per_position(weighted(self.student.visits, loss)),
            self._per_position(weighted(self.student.visits, self.student_kappa[nodes])),
        )

    @cached_property
    def by_role(self) -> Mapping[Role, RoleShare]:
        """The shares of Bridges, Gardens and forced positions."""
        shares = {}
        for role in Role:
            here = torch.tensor([r == role for r in self.roles])
            teacher, student, loss = (x[here] for x in (self.teacher_visitation, self.student_visitation, self.loss))
            shares[role] = RoleShare(
                int(here.sum()),
                teacher.sum().item(),
                student.sum().item(),
                weighted(teacher, loss).sum().item(),
                weighted(student, loss).sum().item(),
                self.contribution[here].sum().item(),
            )
        return shares

    @cached_property
    def violation_rate(self) -> float:
        """Probability that the student's text takes, anywhere, a token that is no continuation: leaves the script."""
        allowed = self.unrolled.world.process.on_script
        on_script = visitation(self.unrolled, self.unrolled.student, allowed).endings.sum().item()
        return max(0.0, 1.0 - on_script)

    @property
    def student_entropy(self) -> float:
        """Entropy of the student's texts, nats: their diversity."""
        return (self.student_visitation * self.unrolled.student_entropy[self.nodes.row]).sum().item()

    @property
    def teacher_entropy(self) -> float:
        """Entropy of the teacher's texts, nats."""
        return (self.teacher_visitation * self.unrolled.teacher_entropy[self.nodes.row]).sum().item()

    def student_probability(self, event: Callable[[Hashable], bool]) -> float:
        """Probability that the student's text stops in a state where `event` holds.

        A text cut at the horizon stops in a state that is not terminal.
        """
        return self._probability(self.student.endings, event)

    def teacher_probability(self, event: Callable[[Hashable], bool]) -> float:
        """The same for the teacher's text."""
        return self._probability(self.teacher.endings, event)

    def state(self, node: int) -> Hashable:
        """State of the process at a node."""
        return self.unrolled.world.states[int(self.unrolled.state[self.nodes.row[node]])]

    def prefix(self, node: int) -> tuple[int, ...] | None:
        """The tokens before a node, the prompt left out; None for a table, where many texts come to one state."""
        return self.unrolled.prefix(int(self.nodes.row[node]))

    def node_of(self, tokens: Sequence[int]) -> int:
        """The node that a text has come to after `tokens`.

        Raises:
            DataError: the text is over before the last of them, or after it.
        """
        row = int(self.unrolled.layers[0])
        for position, token in enumerate(tokens):
            row = int(self.unrolled.following[row, token])
            if self.unrolled.over[row] or position + 1 >= len(self.unrolled.layers):
                raise DataError(
                    f"exact: the text is over after token {position} (id {token}) of {list(tokens)}; a node is a place "
                    "where it goes on. Give fewer tokens."
                )
        here = (self.nodes.visit_position == len(tokens)) & (self.nodes.visit_row == row)
        return int(self.nodes.visit_node[here])

    def _per_node(self, visits: Tensor) -> Tensor:
        return torch.bincount(self.nodes.visit_node, visits, minlength=len(self))

    def _per_position(self, values: Tensor) -> Tensor:
        return torch.bincount(self.nodes.visit_position, values, minlength=len(self.unrolled.layers))

    def _probability(self, endings: Tensor, event: Callable[[Hashable], bool]) -> float:
        states = self.unrolled.world.states
        mass = torch.bincount(self.unrolled.state, endings, minlength=len(states))
        return sum(mass[i].item() for i in mass.nonzero().squeeze(-1).tolist() if event(states[i]))

    def _defined(self, value: float) -> float:
        if not math.isnan(value):
            return value
        infinite = self.nodes.row[(self.loss == torch.inf) & ((self.teacher_visitation + self.student_visitation) > 0)]
        raise NonFiniteError(
            f"exact: exposure bias is infinity minus infinity: the loss is infinite at "
            f"{self.unrolled.name(int(infinite[0]))} and perhaps elsewhere, on texts of both. Give the student some "
            "mass on every token, or use a bounded divergence such as total_variation or jensen_shannon."
        )


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
    q_bar, state_kappa, student_kappa, exit_kappa = _values(unrolled, nodes, cost, actions)
    return ExactSolution(
        unrolled=unrolled,
        nodes=nodes,
        cost=cost,
        actions=actions,
        loss=unrolled.loss[nodes.row],
        q_bar=q_bar,
        state_kappa=state_kappa,
        student_kappa=student_kappa,
        exit_kappa=exit_kappa,
        teacher=visitation(unrolled, unrolled.teacher),
        student=visitation(unrolled, unrolled.student),
    )


def _values(unrolled: Unrolled, nodes: Nodes, cost: CostToGo, actions: ActionSet) -> Tensor:
    """By node the teacher's mean Q, kappa summed over `actions`, the student's mean kappa, and of that the tokens' off
    the script: ``(4, nodes)``."""
    values = torch.zeros(4, len(nodes.row), dtype=torch.float64)
    q_bar, state_kappa, student_kappa, exit_kappa = values
    for where, q in q_rows(unrolled, nodes, cost, torch.arange(len(nodes.row))):
        rows = nodes.row[where]
        q_bar[where] = expectation(unrolled.teacher[rows], q, cost.finite)
        kappa = q - q_bar[where].unsqueeze(-1)
        student_kappa[where] = expectation(unrolled.student[rows], kappa, cost.finite)
        leaving = unrolled.student[rows].masked_fill(_chosen(unrolled, rows, "continuations"), 0.0)
        exit_kappa[where] = expectation(leaving, kappa, cost.finite)
        state_kappa[where] = kappa.masked_fill(~_chosen(unrolled, rows, actions), 0.0).sum(-1)
    return values


def _chosen(unrolled: Unrolled, rows: Tensor, actions: ActionSet) -> Tensor:
    match actions:
        case "continuations":
            return unrolled.world.process.on_script[unrolled.state[rows]]
        case "teacher_support":
            return unrolled.teacher[rows] > 0
        case "all":
            return torch.ones_like(unrolled.teacher[rows], dtype=torch.bool)
