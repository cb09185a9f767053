r"""What students of a chain world do, exactly: every measure by dynamic programming over (last wording, last value).

For a stack of students at once and to float64 rounding what :func:`bridgegarden.exact.solve` says of one student and
one problem at a time. Losses in nats an answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import reduce
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from bridgegarden.exact.tasks.chain import ChainWorld, Expression
from bridgegarden.lab.map.rows import Context, Problems, Rows, Worlds, features
from bridgegarden.lab.map.students import Weights, hidden_states, logits_at
from bridgegarden.statistics import spearman

VARIETY = 0.5
"""Where students are decoded to be equally varied: so much of the teacher's entropy at wordings, about what lies
between hard and soft labels."""
HOTTEST = 32.0
"""Temperatures are looked for from 1 / `HOTTEST` to `HOTTEST`."""
HALVINGS = 12
"""Of that range: to within 0.2 %."""


@dataclass(frozen=True, kw_only=True)
class Measures:
    """Means over problems, each ``(S, O)`` float64; of answers sampled at temperature 1 unless it says otherwise."""

    teacher_loss: Tensor
    """L_dT: KL from teacher to student, summed over the teacher's answer."""
    student_loss: Tensor
    """L_dtheta: the same over the student's own answer."""
    teacher_loss_bridges: Tensor
    """The part of L_dT that stands at values."""
    student_loss_bridges: Tensor
    """The part of L_dtheta that stands at values."""
    drift_bridges: Tensor
    """The part of the exposure bias that choices of values cause: the sum of kappa over them."""
    drift_gardens: Tensor
    """The part that choices of wordings cause."""
    right: Tensor
    """Probability of an answer with every value right."""
    right_cool: Tensor
    """The same at temperature 0.5."""
    right_greedy: Tensor
    """The share of problems whose likeliest tokens, one by one, are right."""
    right_as_varied: Tensor
    """Probability of an answer with every value right at the temperature that gives the student `VARIETY`."""
    variety: Tensor
    """The student's entropy over the teacher's, at the wordings of the teacher's answers."""

    @property
    def exposure_bias(self) -> Tensor:
        """L_dtheta - L_dT."""
        return self.student_loss - self.teacher_loss

    def of_arm(self, arm: int) -> "Measures":
        """Those of one arm, ``(S, 1)``."""
        return Measures(**{f.name: getattr(self, f.name)[:, arm : arm + 1] for f in fields(self)})

    @classmethod
    def joined(cls, parts: Sequence["Measures"]) -> "Measures":
        """Those of several sets of seeds, one after another."""
        return cls(**{f.name: torch.cat([getattr(part, f.name) for part in parts]) for f in fields(cls)})


class Steps(NamedTuple):
    """One policy at every context of every step, or one number there; wordings first.

    The contexts of a wording are ``(P, 1 + wordings, values)``: last wording (0 is none), last value. Those of a value
    are ``(P, wordings, values)``: the wording just written, last value. In front of P a stack's ``(S, O)``.
    """

    wordings: list[Tensor]
    values: list[Tensor]

    def map(self, function: Callable[[Tensor], Tensor]) -> "Steps":
        return Steps([function(part) for part in self.wordings], [function(part) for part in self.values])


def measure(worlds: Worlds, weights: Weights, problems: Sequence[Expression], *, seeds_at_once: int = 8) -> Measures:
    """Every student of a stack on every one of `problems`, against the teacher of its seed."""
    indices = Problems.of(problems)
    parts = [slice(start, start + seeds_at_once) for start in range(0, len(worlds), seeds_at_once)]
    return Measures.joined([_measure(worlds[part], Weights(*(w[part] for w in weights)), indices) for part in parts])


def held_out(worlds: Worlds, weights: Weights, problems: Sequence[Expression]) -> tuple[Tensor, Tensor]:
    """Of every student of a stack, `teacher_loss` and `right_greedy` of :class:`Measures`, and no more."""
    indices = Problems.of(problems)
    _, logq, _, loss, by_teacher = _solve(worlds, weights, indices)
    teacher_loss = _charged(by_teacher, loss, "wordings") + _charged(by_teacher, loss, "values")
    return teacher_loss, chance_right(worlds.size, indices, logq.map(_greedy)).mean(-1)


class _Solved(NamedTuple):
    """Students on problems: what everything is computed from."""

    teacher: Steps
    """Probabilities, ``(S, 1, P, ...)``."""
    logq: Steps
    """The students' log-probabilities, ``(S, O, P, ...)``."""
    q: Steps
    """Their probabilities."""
    loss: Steps
    """KL from teacher to student at each context."""
    by_teacher: Steps
    """How often a text of the teacher comes by each context."""


def _solve(worlds: Worlds, weights: Weights, problems: Problems) -> _Solved:
    world, teacher = worlds.size, teacher_table(worlds, problems)
    seen = features(world, _spread(problems))

    def log_probs(place: int, context: Context) -> Tensor:
        inputs = seen(place, context)
        shape = inputs.shape[:-1]
        inputs = inputs.flatten(0, -2).expand(len(weights.first), -1, -1)
        hidden = hidden_states(weights, inputs)
        # To the last bit as torch has it: an oracle ranks places by kappa, and rounding would order equal ones anew.
        return logits_at(weights, ("wording", "value")[place % 2], hidden).double().log_softmax(-1).unflatten(2, shape)

    logq = _table(world, problems, log_probs)
    pairs = zip(teacher, logq, strict=True)
    loss = Steps(*([_divergence(p, lq) for p, lq in zip(*pair, strict=True)] for pair in pairs))
    return _Solved(teacher, logq, logq.map(torch.exp), loss, visits(world, problems, teacher))


def _measure(worlds: Worlds, weights: Weights, problems: Problems) -> Measures:
    world = worlds.size
    teacher, logq, q, loss, by_teacher = _solve(worlds, weights, problems)
    by_student = visits(world, problems, q)
    caused = _caused(teacher, q, prices(world, teacher, loss))
    cool = logq.map(lambda values: _log_softmax(2 * values).exp())
    sharper = _inverse_temperature(by_teacher, teacher, logq)
    as_varied = logq.map(lambda values: _log_softmax(sharper * values).exp())
    return Measures(
        teacher_loss=_charged(by_teacher, loss, "wordings") + _charged(by_teacher, loss, "values"),
        student_loss=_charged(by_student, loss, "wordings") + _charged(by_student, loss, "values"),
        teacher_loss_bridges=_charged(by_teacher, loss, "values"),
        student_loss_bridges=_charged(by_student, loss, "values"),
        drift_bridges=_charged(by_student, caused, "values"),
        drift_gardens=_charged(by_student, caused, "wordings"),
        right=chance_right(world, problems, q).mean(-1),
        right_cool=chance_right(world, problems, cool).mean(-1),
        right_greedy=chance_right(world, problems, logq.map(_greedy)).mean(-1),
        right_as_varied=chance_right(world, problems, as_varied).mean(-1),
        variety=_variety(by_teacher, teacher, logq),
    )


def _log_softmax(values: Tensor) -> Tensor:
    # torch's own takes twice as long for rows this short, and its softmax three times.
    return values - values.logsumexp(-1, keepdim=True)


def _greedy(values: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(values.argmax(-1), values.shape[-1]).double()


def _variety(by_teacher: Steps, teacher: Steps, logq: Steps, inverse_temperature: Tensor | float = 1.0) -> Tensor:
    """``(S, O)``: the entropy of students at a temperature over the teacher's, at the wordings of its answers."""
    logs = [_log_softmax(inverse_temperature * part) for part in logq.wordings]
    entropy = [-(log.exp() * log).sum(-1) for log in logs]
    most = [-torch.special.xlogy(part, part).sum(-1) for part in teacher.wordings]
    return _charged(by_teacher, Steps(entropy, []), "wordings") / _charged(by_teacher, Steps(most, []), "wordings")


def _inverse_temperature(by_teacher: Steps, teacher: Steps, logq: Steps) -> Tensor:
    """``(S, O, 1, 1, 1, 1)``: one over the temperature at which each student has `VARIETY`, found by halving."""
    # Every fourth problem tells the temperature as well as all of them, within what matters.
    at, theirs, ours = (steps.map(lambda part: part[:, :, ::4]) for steps in (by_teacher, teacher, logq))
    shape = *logq.wordings[0].shape[:2], 1, 1, 1, 1
    low, high = (torch.full(shape, end, dtype=torch.float64) for end in (1 / HOTTEST, HOTTEST))
    for _ in range(HALVINGS):
        middle = (low * high).sqrt()
        varied = _variety(at, theirs, ours, middle).reshape(shape)
        low, high = torch.where(varied > VARIETY, middle, low), torch.where(varied > VARIETY, high, middle)
    return (low * high).sqrt()


PREDICTORS = ("confidence", "low entropy")
"""Of the teacher, at a position: its highest probability, and minus its entropy."""
READINGS = ("every token", "the teacher's tokens", "the student's tokens", "every token, the end included")
"""Which tokens kappa(s) sums over: those that can stand there, those that the teacher could write, those that can stand
there by the student's probabilities; and the first with the end of an answer, where only one can and kappa is 0."""


def predicted_kappa(worlds: Worlds, weights: Weights, problems: Sequence[Expression]) -> dict[tuple[str, str], Tensor]:
    r"""How well the teacher's distribution tells where kappa(s) is high: Spearman's correlation over all positions.

    Positions are weighed by how often the teacher's texts come by them.

    Returns:
        ``(S,)`` by predictor and reading, for the first arm of the stack.
    """
    indices = Problems.of(problems)
    found: dict[tuple[str, str], list[Tensor]] = {pair: [] for pair in product(PREDICTORS, READINGS)}
    for seed in range(len(worlds)):
        one = slice(seed, seed + 1)
        solved = _solve(worlds[one], Weights(*(part[one, :1] for part in weights)), indices)
        predictors, kappas, weight = _kappa_columns(solved, prices(worlds.size, solved.teacher, solved.loss))
        # An answer ends once; there the teacher is sure, and nothing is at stake.
        end = torch.tensor([float(len(problems))], dtype=torch.float64)
        for (name, column), (reading, kappa) in product(predictors.items(), kappas.items()):
            found[name, reading].append(spearman(column, kappa, weight))
            if reading == READINGS[0]:
                sure = torch.tensor([1.0 if name == PREDICTORS[0] else 0.0], dtype=torch.float64)
                with_end = torch.cat([column, sure]), torch.cat([kappa, torch.zeros_like(sure)])
                found[name, READINGS[3]].append(spearman(*with_end, torch.cat([weight, end])))
    return {pair: torch.stack(values) for pair, values in found.items()}


def kappa_of_rows(worlds: Worlds, weights: Weights, rows: Rows) -> tuple[Tensor, Tensor]:
    """kappa(s), over every token that can stand there, at the wordings and the values of each row, ``(S, n, steps)``.

    Of the first arm of the stack.
    """
    found: list[tuple[Tensor, Tensor]] = []
    for seed in range(len(worlds)):
        one = slice(seed, seed + 1)
        problems = Problems(*(part[seed] for part in rows.problems))
        solved = _solve(worlds[one], Weights(*(part[one, :1] for part in weights)), problems)
        price = prices(worlds.size, solved.teacher, solved.loss)
        index, contexts = torch.arange(len(problems.start)), rows.contexts()
        columns: list[Tensor] = []
        for place in range(2 * worlds.size.steps):
            teacher, cost, student = (part[place % 2][place // 2] for part in (solved.teacher, price, solved.q))
            kappa = _kappa(teacher.expand_as(student), cost).expand_as(student).sum(-1)
            # Where a value stands, there is a wording: its table begins with the first one.
            value, wording = contexts[place].value[seed], contexts[place].wording[seed] - place % 2
            columns.append(kappa[0, 0, index, wording, value])
        found.append((torch.stack(columns[0::2], -1), torch.stack(columns[1::2], -1)))
    wordings, values = zip(*found, strict=True)
    return torch.stack(wordings), torch.stack(values)


def _kappa_columns(solved: _Solved, price: Steps) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Predictors, readings of kappa, and weight, of one student: one row for each context of each position."""
    rows: list[tuple[Tensor, ...]] = []
    for teacher, student, cost, visited in zip(
        *(part.wordings + part.values for part in (solved.teacher, solved.q, price, solved.by_teacher)), strict=True
    ):
        # A teacher's values do not depend on the wording, nor a wording's price on the last one.
        teacher = teacher.expand_as(student)
        kappa = _kappa(teacher, cost).expand_as(student)
        kappas = kappa, kappa * (teacher > 0), kappa * student
        predictors = teacher.amax(-1), torch.special.xlogy(teacher, teacher).sum(-1)
        rows.append(tuple(part.flatten() for part in (*predictors, *(each.sum(-1) for each in kappas), visited)))
    *columns, weight = (torch.cat(column) for column in zip(*rows, strict=True))
    seen = weight > 0
    columns = [column[seen] for column in columns]
    return dict(zip(PREDICTORS, columns[:2], strict=True)), dict(zip(READINGS, columns[2:], strict=False)), weight[seen]


def _spread(problems: Problems) -> Problems:
    """With two dimensions behind P for the contexts."""
    return Problems(
        problems.start[:, None, None], problems.operations[:, None, None, :], problems.operands[:, None, None, :]
    )


def _table(world: ChainWorld, problems: Problems, policy: Callable[[int, Context], Tensor]) -> Steps:
    """`policy` at every context of every step."""
    values = torch.arange(world.modulus).expand(len(problems.start), 1, -1)
    last = torch.arange(1 + world.wordings)[None, :, None]
    places = range(world.steps)
    return Steps(
        [policy(2 * step, Context(values, last)) for step in places],
        [policy(2 * step + 1, Context(values, last[:, 1:])) for step in places],
    )


def teacher_table(worlds: Worlds, problems: Problems) -> Steps:
    """Each seed's teacher at every context of every step, ``(S, 1, P, ...)``."""
    here = Problems(*(part.expand(len(worlds), *part.shape) for part in _spread(problems)))
    return _table(worlds.size, problems, worlds.teacher(here)).map(lambda part: part.unsqueeze(1))


def _divergence(p: Tensor, logq: Tensor) -> Tensor:
    return torch.special.xlogy(p, p).sum(-1) - (p * logq).sum(-1)


def visits(world: ChainWorld, problems: Problems, policy: Steps) -> Steps:
    """Probability that a text of `policy` comes by each context."""
    lead = policy.wordings[0].shape[:-3]
    here = torch.zeros(*lead, 1 + world.wordings, world.modulus, dtype=torch.float64)
    here[..., torch.arange(len(problems.start)), 0, problems.start] = 1.0
    at = Steps([], [])
    for wording, value in zip(*policy, strict=True):
        at.wordings.append(here)
        before_value = torch.einsum("...wv,...wvn->...nv", here, wording)
        at.values.append(before_value)
        here = torch.nn.functional.pad(torch.einsum("...nv,...nvu->...nu", before_value, value), (0, 0, 1, 0))
    return at


def _charged(at: Steps, price: Steps, name: str) -> Tensor:
    """``(S, O)``: the sum of `price` over the contexts that texts come by, mean over problems."""
    pairs = zip(getattr(at, name), getattr(price, name), strict=True)
    return reduce(torch.add, ((where * what).sum((-1, -2)).mean(-1) for where, what in pairs))


def _kappa(teacher: Tensor, price: Tensor) -> Tensor:
    """Of every token: its price less the teacher's mean price."""
    return price - (teacher * price).sum(-1, keepdim=True)


def prices(world: ChainWorld, teacher: Steps, loss: Steps) -> Steps:
    """Of every token at every context, what is still to be paid when the teacher goes on; sizes of 1 broadcast.

    A token's price minus the teacher's mean price is its kappa.
    """
    found = Steps([], [])
    after = torch.zeros_like(loss.values[0][..., :1, :].expand(*loss.values[0].shape[:-2], world.wordings, -1))
    for step in reversed(range(world.steps)):
        # What a value leads to is priced by wording and value; what a wording leads to, by last value and wording.
        found.values.insert(0, after.unsqueeze(-2))
        to_pay = loss.values[step] + (teacher.values[step] * found.values[0]).sum(-1)
        found.wordings.insert(0, to_pay.transpose(-1, -2).unsqueeze(-3))
        after = (loss.wordings[step] + (teacher.wordings[step] * found.wordings[0]).sum(-1))[..., 1:, :]
    return found


def _caused(teacher: Steps, q: Steps, price: Steps) -> Steps:
    r"""At each context :math:`\sum_a q(a|s) \kappa(a|s)`."""
    return Steps(
        *(
            [((mine - theirs) * cost).sum(-1) for theirs, mine, cost in zip(*parts, strict=True)]
            for parts in zip(teacher, q, price, strict=True)
        )
    )


def chance_right(world: ChainWorld, problems: Problems, policy: Steps) -> Tensor:
    """``(..., P)``: probability that every value of a text of `policy` is right."""
    index = torch.arange(len(problems.start))
    value = problems.start
    here = torch.zeros(*policy.wordings[0].shape[:-3], 1 + world.wordings, dtype=torch.float64)
    here[..., 0] = 1.0
    for step, (wording, values) in enumerate(zip(*policy, strict=True)):
        following = world.right[problems.operations[:, step], problems.operands[:, step], value]
        written = torch.einsum("...w,...wn->...n", here, wording[..., index, :, value, :].movedim(0, -3))
        right = values[..., index, :, value, following].movedim(0, -2)
        here, value = torch.nn.functional.pad(written * right, (1, 0)), following
    return here.sum(-1)
