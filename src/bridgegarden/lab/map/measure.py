r"""What students of a chain world do, exactly: every measure by dynamic programming over (last wording, last value).

For a stack of students at once and to float64 rounding what :func:`bridgegarden.exact.solve` says of one student and
one problem at a time. Losses in nats an answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from bridgegarden.exact.tasks.chain import ChainWorld, Expression
from bridgegarden.lab.map.students import Context, Problems, Weights, Worlds, features, hidden_states, logits_at


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


def _measure(worlds: Worlds, weights: Weights, problems: Problems) -> Measures:
    world, teacher = worlds.size, teacher_table(worlds, problems)

    def log_probs(place: int, context: Context) -> Tensor:
        inputs = features(world, _spread(problems), place, context)
        shape = inputs.shape[:-1]
        inputs = inputs.flatten(0, -2).expand(len(weights.first), -1, -1)
        hidden = hidden_states(weights, inputs)
        return logits_at(weights, ("wording", "value")[place % 2], hidden).double().log_softmax(-1).unflatten(2, shape)

    logq = _table(world, problems, log_probs)
    q = logq.map(torch.exp)
    loss = Steps(
        *([_divergence(p, lq) for p, lq in zip(*pair, strict=True)] for pair in zip(teacher, logq, strict=True))
    )
    by_teacher, by_student = visits(world, problems, teacher), visits(world, problems, q)
    caused = _caused(world, teacher, q, loss, by_student)
    cool = logq.map(lambda values: (2 * values).softmax(-1))
    greedy = logq.map(lambda values: torch.nn.functional.one_hot(values.argmax(-1), values.shape[-1]).double())
    entropy = [-(part * log).sum(-1) for part, log in zip(q.wordings, logq.wordings, strict=True)]
    most = [-torch.special.xlogy(part, part).sum(-1) for part in teacher.wordings]
    return Measures(
        teacher_loss=_charged(by_teacher, loss, "wordings") + _charged(by_teacher, loss, "values"),
        student_loss=_charged(by_student, loss, "wordings") + _charged(by_student, loss, "values"),
        teacher_loss_bridges=_charged(by_teacher, loss, "values"),
        student_loss_bridges=_charged(by_student, loss, "values"),
        drift_bridges=_charged(by_student, caused, "values"),
        drift_gardens=_charged(by_student, caused, "wordings"),
        right=chance_right(world, problems, q).mean(-1),
        right_cool=chance_right(world, problems, cool).mean(-1),
        right_greedy=chance_right(world, problems, greedy).mean(-1),
        variety=_charged(by_teacher, Steps(entropy, []), "wordings")
        / _charged(by_teacher, Steps(most, []), "wordings"),
    )


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
    return sum((where * what).sum((-1, -2)).mean(-1) for where, what in pairs)  # pyright: ignore[reportReturnType]


def _caused(world: ChainWorld, teacher: Steps, q: Steps, loss: Steps, at: Steps) -> Steps:
    r"""At each context :math:`\sum_a q(a|s) \kappa(a|s)`, kappa from what is still to be paid when the teacher goes
    on.
    """
    found = Steps([], [])
    after = torch.zeros_like(loss.values[0][..., :1, :].expand(*loss.values[0].shape[:-2], world.wordings, -1))
    for step in reversed(range(world.steps)):
        # What a value leads to is priced by wording and value; what a wording leads to, by last value and wording.
        after_value = after.unsqueeze(-2)
        found.values.insert(0, ((q.values[step] - teacher.values[step]) * after_value).sum(-1))
        to_pay = loss.values[step] + (teacher.values[step] * after_value).sum(-1)
        after_wording = to_pay.transpose(-1, -2).unsqueeze(-3)
        found.wordings.insert(0, ((q.wordings[step] - teacher.wordings[step]) * after_wording).sum(-1))
        after = (loss.wordings[step] + (teacher.wordings[step] * after_wording).sum(-1))[..., 1:, :]
    return found


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
