r"""What must hold of every exact solution, tried on random processes and on the shipped worlds.

Beside the identities that is what can be proved for a finite process of which labels are better where, theorem 4.4 of
the paper:

Fix a process and any losses :math:`\ell \ge 0`, say those of some student. At a node s let a* = argmax p. The
*hard-label optimum* puts all mass on a* (the minimiser of :math:`-\log q(a^*)`), the *soft-label optimum* is q = p (the
minimiser of :math:`D(p \| q)`, for any divergence that is zero only between equals). Compared is what writing by one or
the other does to the text, with the losses of all other nodes as they are.

1. **Drift.** One visit of the hard optimum adds :math:`\kappa(a^*|s)` to exposure bias, one of the soft optimum adds 0,
   since :math:`\sum_a p(a|s) \kappa(a|s) = 0`. So as to exposure bias the hard optimum is the better one at s exactly
   where :math:`\kappa(a^*|s) < 0`.
2. **Bridges.** If a* is the safest token, :math:`Q(s,a^*) \le Q(s,a)` wherever p(a) > 0, then
   :math:`\kappa(a^*|s) = -\sum_a p(a) [Q(s,a) - Q(s,a^*)] \le 0`: hard is never worse, and better by the teacher's
   expected slip unless Q is constant on the teacher's support.
3. **Gardens.** :math:`|\kappa(a^*|s)| \le (1 - p(a^*)) (\max Q - \min Q)` over the teacher's support. Where Q is
   constant there, neither drifts, but the soft optimum has no loss and the entropy of the teacher, the hard one a
   positive loss and no entropy (unless p is certain): soft is better.
4. **Both.** Under a bounded divergence the hard optimum costs less in all, :math:`D(p \| q) + \sum_a q(a) Q(s,a)`,
   exactly where :math:`-\kappa(a^*|s) > D(p \| \mathrm{onehot}(a^*))`.
5. **A hybrid has both.** A writer that takes a* on a set B of nodes with :math:`\kappa(a^*|s) < 0` and samples from p
   elsewhere loses :math:`L_d - L_{d_T} = \sum_{s \in B} d(s) \, \kappa(a^*|s) \le 0`, d being its own visitation, and
   strictly less than the teacher if it ever comes to B.

What is **not** true is that hard labels are better wherever :math:`\kappa(s) = \sum_a \kappa(a|s)` is high. With two
tokens it is: :math:`\kappa(s) = (2 p(a^*) - 1) [Q(s,a) - Q(s,a^*)]` is positive exactly where :math:`\kappa(a^*|s)` is
negative (unless p is even). With three it is not: p = (0.50, 0.49, 0.01) and Q = (1, 0, 10) give
:math:`\kappa(s) = 9.2` but :math:`\kappa(a^*|s) = 0.4`: a rare disaster makes the sum high while the likeliest token is
not the safest. So the sign of :math:`\kappa(a^*|s)` decides, and that is what is computed here.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bridgegarden.errors import NonFiniteError
from bridgegarden.exact.dynamic_programming import visitation
from bridgegarden.exact.process import EndsOffScript, Role, TablePolicy
from bridgegarden.exact.solution import ExactSolution, solve
from bridgegarden.exact.tabular import TabularProcess, tabulate
from bridgegarden.exact.tasks import WORLDS
from bridgegarden.exact.world import World

TOLERANCE = 1e-10
"""Largest error, in nats, that rounding in float64 may leave."""

NODES = 200_000
"""Room for every world that is checked."""

SIZES = (2, 8), (2, 4), (1, 6)
"""States, tokens and horizon of a random process: from the first, to below the second."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One statement, and how it fared."""

    name: str
    """What must hold."""

    cases: int
    """Processes it was tried on."""

    worst: float
    """Largest error over all of them, nats."""

    passed: bool
    """Whether `worst` is at most `TOLERANCE`."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A process, a student, and its solution."""

    process: TabularProcess
    """The world."""

    student: Tensor
    """``(S, V)`` log-probabilities."""

    solution: ExactSolution
    """What the solver says."""


class LabelDrift(NamedTuple):
    """What the two optima do at each node, ``(N,)`` each; see the module's docstring."""

    hard: Tensor
    """kappa(a*|s), nats: exposure bias that a visit of the hard-label optimum adds. The soft one adds none."""

    spread: Tensor
    """Largest minus smallest Q(s,a) over the teacher's support, nats: zero in an ideal Garden."""

    safest: Tensor
    """bool: no token of the teacher's support has a lower Q than a*."""


def run_checks(cases: int = 200, seed: int = 0, progress: Callable[[str], None] = lambda name: None) -> list[Check]:
    """Every check; those on random processes on `cases` of them. `progress` is told the name of each one done."""
    random = [random_case(seed + index) for index in range(cases)]
    checks = []
    for name, error in {**IDENTITIES, **THEOREM}.items():
        checks.append(_check(name, [error(case) for case in random]))
        progress(name)
    for world, make in WORLDS.items():
        checks.append(_check(f"{world} world: the same identities hold", list(_world_errors(make(), seed))))
        progress(checks[-1].name)
    bridges = [float(share.by_role[Role.BRIDGE].nodes) for share in _solutions(WORLDS["control"](), seed)]
    return [*checks, _check("control world: no position is a Bridge", bridges)]


def random_case(seed: int) -> Case:
    """A small random process, cyclic or not; the teacher never writes some tokens, the student may write all."""
    generator = torch.Generator().manual_seed(seed)
    states, tokens, horizon = (int(torch.randint(low, high, (), generator=generator)) for low, high in SIZES)
    following = torch.randint(0, states, (states, tokens), generator=generator)
    if seed % 2:
        following = torch.maximum(following, 1 + torch.arange(states).unsqueeze(1)).clamp(max=states - 1)
    terminal = torch.rand(states, generator=generator) < 0.2
    terminal[0], terminal[-1] = False, True
    logits = 1.5 * torch.randn(2, states, tokens, generator=generator, dtype=torch.float64)
    never = torch.rand(states, tokens, generator=generator) < 0.3
    never[torch.arange(states), logits[0].argmax(-1)] = False
    teacher = logits[0].masked_fill(never, -torch.inf).log_softmax(-1)
    process = TabularProcess(teacher, following, terminal, horizon=horizon)
    student = logits[1].log_softmax(-1)
    return Case(process=process, student=student, solution=solve(process, student))


def label_drift(solution: ExactSolution) -> LabelDrift:
    """Where the hard-label optimum drifts less than the soft-label optimum (`hard` < 0), and by how much.

    Among equally likely tokens a* is the one with the smallest id.

    Raises:
        NonFiniteError: a Q is infinite.
    """
    if not solution.cost.finite:
        raise NonFiniteError("exact: a loss is infinite, so drifts are not comparable. Use a bounded divergence.")
    nodes = torch.arange(len(solution))
    columns: list[tuple[Tensor, Tensor, Tensor]] = []
    for piece in nodes.split(max(1, (1 << 20) // solution.unrolled.following.shape[1])):
        q = solution.q_at(piece)
        teacher = solution.unrolled.teacher[solution.nodes.row[piece]]
        chosen = q.gather(1, teacher.argmax(-1, keepdim=True)).squeeze(1)
        lowest = q.masked_fill(teacher == 0, torch.inf).amin(-1)
        highest = q.masked_fill(teacher == 0, -torch.inf).amax(-1)
        columns.append((chosen - solution.q_bar[piece], highest - lowest, chosen <= lowest))
    hard, spread, safest = (torch.cat(column) for column in zip(*columns, strict=True))
    return LabelDrift(hard, spread, safest)


def _identity(case: Case) -> float:
    error = case.solution.identity_error
    return float("inf") if error is None else error


def _mean_kappa(case: Case) -> float:
    teacher = case.solution.unrolled.teacher[case.solution.nodes.row]
    return _largest((teacher * case.solution.kappa).sum(-1))


def _merging(case: Case) -> float:
    """Every prefix on its own, through the path that language models take."""
    by_prefix = solve(case.process, TablePolicy(case.process, case.student), max_nodes=NODES)
    worst = abs(by_prefix.exposure_bias - case.solution.exposure_bias)
    if len(by_prefix) > 400:
        return worst
    merged = [case.solution.node_of(by_prefix.prefix(node) or ()) for node in range(len(by_prefix))]
    return max(worst, _largest(by_prefix.kappa - case.solution.kappa[merged]))


def _override(case: Case) -> float:
    """The paper's definition: one token at the start, then the teacher, all texts written out."""
    process, solution = case.process, case.solution
    as_taught = _written_out(case, process.initial, process.horizon)
    start = solution.node_of(())
    errors = [abs(as_taught - solution.teacher_loss)]
    for token in range(process.vocab_size):
        after = _written_out(case, process.step(process.initial, token), process.horizon - 1)
        overridden = solution.loss[start].item() + after
        errors.append(abs(overridden - as_taught - solution.kappa[start, token].item()))
    return max(errors)


def _written_out(case: Case, state: int, left: int) -> float:
    """Expected loss of the teacher's texts from `state` on, one text at a time."""
    if not left or case.process.is_terminal(state):
        return 0.0
    p = case.process.log_probs(state)
    loss = sum(x.exp().item() * (x - y).item() for x, y in zip(p, case.student[state], strict=True) if x > -torch.inf)
    return loss + sum(
        chance * _written_out(case, case.process.step(state, token), left - 1)
        for token, chance in enumerate(p.exp().tolist())
        if chance > 0
    )


def _safest(case: Case) -> float:
    """How far above zero the drift of hard labels is where the likeliest token is the safest."""
    drift = label_drift(case.solution)
    return max(0.0, drift.hard[drift.safest].max().item()) if drift.safest.any() else 0.0


def _bounded(case: Case) -> float:
    drift = label_drift(case.solution)
    certainty = case.solution.unrolled.teacher[case.solution.nodes.row].amax(-1)
    return max(0.0, (drift.hard.abs() - (1 - certainty) * drift.spread).max().item())


def _hybrid(case: Case) -> float:
    """Hard labels at every state where they drift less for any number of tokens left, the teacher elsewhere."""
    solution, unrolled = case.solution, case.solution.unrolled
    drift = label_drift(solution).hard
    worst = torch.full((len(unrolled.loss),), -torch.inf, dtype=torch.float64)
    worst.scatter_reduce_(0, solution.nodes.row, drift, "amax")
    hard = (worst < 0) & (worst > -torch.inf)
    onehot = torch.zeros_like(unrolled.teacher).scatter_(1, unrolled.teacher.argmax(-1, keepdim=True), 1.0)
    visits = visitation(unrolled, torch.where(hard.unsqueeze(1), onehot, unrolled.teacher)).visits
    rows, nodes = solution.nodes.visit_row, solution.nodes.visit_node
    change = (visits * unrolled.loss[rows]).sum().item() - solution.teacher_loss
    promised = (visits * drift[nodes] * hard[rows]).sum().item()
    return max(abs(change - promised), change)


def _world_errors(world: World, seed: int) -> Iterator[float]:
    for solution in _solutions(world, seed):
        process, student = solution.unrolled.world.process, solution.unrolled.student.log()
        case = Case(process=process, student=student, solution=solution)
        yield max(error(case) for error in (_identity, _mean_kappa, _merging, _bounded, _hybrid))


def _solutions(world: World, seed: int) -> Iterator[ExactSolution]:
    """A student that is a fifth noise, on two problems."""
    generator = torch.Generator().manual_seed(seed)
    for problem in world.problems(2, seed):
        process = tabulate(EndsOffScript(world.process(problem)), NODES).process
        noise = torch.rand(process.table.shape, generator=generator, dtype=torch.float64)
        student = 0.8 * process.table.exp() + 0.2 * noise / noise.sum(-1, keepdim=True)
        student[process.terminal] = 1 / process.vocab_size
        yield solve(process, student.log())


def _check(name: str, errors: list[float]) -> Check:
    # max() of a list with NaN depends on the order; a tensor's maximum is NaN, which passes nothing.
    worst = torch.tensor(errors, dtype=torch.float64).max().item()
    return Check(name=name, cases=len(errors), worst=worst, passed=worst <= TOLERANCE)


def _largest(values: Tensor) -> float:
    return values.abs().max().item()


IDENTITIES: dict[str, Callable[[Case], float]] = {
    "the contributions sum to exposure bias": _identity,
    "kappa has mean zero under the teacher": _mean_kappa,
    "merging positions and prefixes changes nothing": _merging,
    "writing one token once costs its kappa, all texts written out": _override,
}
"""Error of each identity on a case."""

THEOREM: dict[str, Callable[[Case], float]] = {
    "hard labels do not drift where the likeliest token is the safest": _safest,
    "the drift of hard labels is bounded by how much the choice matters": _bounded,
    "hard where that drifts less, soft elsewhere: loses no more than the teacher": _hybrid,
}
"""How far each part of theorem 4.4, as stated above, is from holding on a case."""
