r"""Many students of one chain world trained at once: seeds times arms, one stack of weights, exact measures after it.

A student is a network of two hidden layers over features of the prefix (:func:`~bridgegarden.lab.map.rows.features`).
All weights of a layer are one tensor ``(S, O, in, out)``: S seeds, O arms (an objective with its learning rate and
weight decay). The arms of a seed share first weights, rows and their order. What is minimised is
:class:`~bridgegarden.objective.hybrid.HybridObjective` with the forward KL, as cross-entropy against one mixed target,
and AdamW, clipping and schedule are the trainer's: one student alone, trained by the package's own trainer, comes out
the same but for rounding.

Logits are those of the tokens that can stand at a position (a wording, a value or the end), so nobody leaves the
script.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from bridgegarden.errors import ConfigError, NonFiniteError
from bridgegarden.exact.tasks.chain import ChainWorld, Expression
from bridgegarden.lab.map.rows import Context, Kind, Problems, Rows, Worlds, Writer, features, generators, kinds, write
from bridgegarden.objective.divergences import forward_kl
from bridgegarden.objective.hybrid import HybridObjective
from bridgegarden.objective.soft_weight import CurriculumWeight, StaticWeight, TrainProgress, ask
from bridgegarden.objective.support import TeacherSignal

BETAS = 0.9, 0.95
EPSILON = 1e-8
MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What the students of one column are trained with."""

    objective: HybridObjective
    """With the forward KL at temperature 1."""
    learning_rate: float
    """Peak of AdamW's rate: a linear rise over the first 5 % of the steps, then a cosine to zero."""
    weight_decay: float
    """Of all matrices, not of biases."""
    smoothing: float = 0.0
    """Share of the hard label that goes to all tokens that can stand there alike (label smoothing), in [0, 1]."""
    soft_weights: tuple[Tensor, Tensor] | None = field(default=None, repr=False)
    """At the wordings and at the values of all rows, ``(S, n, steps)`` each: in place of the objective's rule."""

    def __post_init__(self) -> None:
        if self.objective.divergence is not forward_kl or self.objective.temperature != 1.0:
            raise ConfigError("lab: students are trained together with the forward KL at temperature 1 alone.")
        if self.objective.position_weight is not None:
            raise ConfigError("lab: students are trained together with every position weighing the same.")


class Weights(NamedTuple):
    """A stack of students; matrices ``(S, O, in, out)``, biases ``(S, O, 1, out)``."""

    first: Tensor
    first_bias: Tensor
    second: Tensor
    second_bias: Tensor
    wording: Tensor
    wording_bias: Tensor
    value: Tensor
    value_bias: Tensor
    end: Tensor
    end_bias: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> "Weights":
        """The same with `function` applied to every tensor."""
        return Weights(*map(function, self))

    def head(self, name: str) -> tuple[Tensor, Tensor]:
        """Matrix and bias of the logits at one kind of positions."""
        return getattr(self, name), getattr(self, f"{name}_bias")


def new_weights(world: ChainWorld, hidden: int, seeds: Sequence[int], arms: int) -> Weights:
    """Untrained students: matrices normal with variance 1 / inputs, biases zero; the arms of a seed are alike."""
    any_problem = Problems.of([Expression(0, (0,) * world.steps, (1,) * world.steps)])
    wide = features(world, any_problem)(0, _nothing()).shape[-1]
    sizes = [(wide, hidden), (hidden, hidden), *((hidden, kind.width) for kind in kinds(world))]
    tensors = []
    for given, wanted in sizes:
        drawn = [
            torch.randn(given, wanted, generator=g)
            for g in generators([7919 * seed + given * wanted for seed in seeds], 2)
        ]
        tensors.append((torch.stack(drawn) / given**0.5).unsqueeze(1).repeat(1, arms, 1, 1))
        tensors.append(torch.zeros(len(seeds), arms, 1, wanted))
    return Weights(*tensors)


def _nothing() -> Context:
    return Context(torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long))


def hidden_states(weights: Weights, inputs: Tensor) -> Tensor:
    """``(S, O, N, hidden)`` from features ``(S, N, F)``, which all arms share, or ``(S, O, N, F)``."""
    inputs = inputs.to(weights.first.dtype)
    if inputs.ndim == 3:
        seeds, arms, given, hidden = weights.first.shape
        # One product for all arms of a seed.
        together = weights.first.transpose(1, 2).reshape(seeds, given, arms * hidden)
        first = torch.bmm(inputs, together).unflatten(-1, (arms, hidden)).transpose(1, 2)
    else:
        first = inputs @ weights.first
    return ((first + weights.first_bias).relu() @ weights.second + weights.second_bias).relu()


def logits_at(weights: Weights, name: str, hidden: Tensor) -> Tensor:
    """``(S, O, N, width)`` logits at positions of one kind."""
    matrix, bias = weights.head(name)
    return hidden @ matrix + bias


class Aims(NamedTuple):
    """What an objective asks for at the positions of one kind; all ``(..., positions, width)``."""

    soft: Tensor
    """The soft target."""
    hard: Tensor
    """The hard label, one-hot or smoothed."""
    weight: Tensor
    """The soft weight, ``(..., positions, 1)``."""
    label: Tensor
    """The hard label, one-hot, where the text goes on with it; zero elsewhere."""


def aims(arm: Arm, world: ChainWorld, kind: Kind, prob: Tensor, data: Tensor, progress: TrainProgress) -> Aims:
    """What `arm` asks for, read with the package's own rules off the teacher's rows over the whole vocabulary.

    Args:
        arm: objective and smoothing.
        world: whose vocabulary.
        kind: of positions.
        prob: ``(..., width)`` the teacher there, float64.
        data: ``(...)`` indices of the tokens written.
        progress: of the training.
    """
    rest = torch.zeros(*prob.shape[:-1], len(world.vocabulary) - kind.width, dtype=prob.dtype)
    signal = TeacherSignal.from_logits(torch.cat([prob, rest], -1).log())
    objective = arm.objective
    soft = signal.cells(1.0 / objective.sharpening).exp()[..., : kind.width]
    label = torch.nn.functional.one_hot(objective.hard_ids(signal, data), kind.width).to(prob.dtype)
    goes_on = (label.argmax(-1) == data).unsqueeze(-1)
    smoothed = (1 - arm.smoothing) * label + arm.smoothing / kind.width
    if arm.soft_weights is None:
        weight = ask(objective.soft_weight, signal, progress=progress).unsqueeze(-1)
    else:
        weight = arm.soft_weights[kinds(world).index(kind)].unsqueeze(-1)
    return Aims(soft, smoothed, weight, label * goes_on)


class _Asked(NamedTuple):
    """What the arms ask for at the positions of one kind; ``(S, O, B, positions, ...)``."""

    target: Tensor
    """``(..., width)``: what the cross-entropy is against."""
    label: Tensor
    """``(..., width)``; see :class:`Aims`."""
    risk: Tensor
    """``(...)``: what half the squared value gap is multiplied with."""


def _ask(arms: Sequence[Arm], worlds: Worlds, rows: Rows, progress: TrainProgress, dtype: torch.dtype) -> list[_Asked]:
    """Of every arm at the wordings and values of `rows`: ``(S, B)``, shared by all arms, or ``(S, O, B)``."""
    contexts, world = rows.contexts(), worlds.size
    own_texts = rows.values.ndim == 4
    asked = []
    for kind, written in zip(kinds(world), (rows.wordings, rows.values), strict=False):
        writer, places = worlds.teacher(rows.problems), range(kind.first, 2 * world.steps, 2)
        prob = torch.stack([writer(place, contexts[place]) for place in places], -2)
        columns: dict[int, _Asked] = {}
        for alike in _asking_alike(arms):
            here = (prob[:, alike], written[:, alike]) if own_texts else (prob, written)
            found = _asked(arms[alike[0]], world, kind, *here, progress)
            for number, arm in enumerate(alike):
                columns[arm] = _Asked(*(part[:, number] for part in found)) if own_texts else found
        in_order = [columns[arm] for arm in range(len(arms))]
        asked.append(_Asked(*(torch.stack(part, 1).to(dtype) for part in zip(*in_order, strict=True))))
    return asked


def _asking_alike(arms: Sequence[Arm]) -> list[list[int]]:
    """The numbers of arms that differ in rate and decay alone, and so ask for the same."""
    groups: list[list[int]] = []
    for number, arm in enumerate(arms):
        for group in groups:
            other = arms[group[0]]
            what, theirs = ((one.objective, one.smoothing) for one in (arm, other))
            if what == theirs and arm.soft_weights is other.soft_weights:
                group.append(number)
                break
        else:
            groups.append([number])
    return groups


def _asked(arm: Arm, world: ChainWorld, kind: Kind, prob: Tensor, data: Tensor, progress: TrainProgress) -> _Asked:
    found = aims(arm, world, kind, prob, data, progress)
    objective, hard_weight = arm.objective, 1 - found.weight
    target = found.weight * found.soft + hard_weight * found.hard
    owner = 1.0 if objective.risk_weight == "own" else hard_weight.squeeze(-1)
    return _Asked(target, found.label, 0.5 * objective.risk_alpha * owner * found.label.sum(-1))


class _Batch(NamedTuple):
    """What one step needs."""

    inputs: Tensor
    """Features ``(S, B positions, F)``, or ``(S, O, B positions, F)``."""
    asked: list[_Asked]
    """At wordings and at values."""


_ANY_SIGNAL = TeacherSignal.from_logits(torch.zeros(1, 2))
"""A curriculum does not look at the teacher."""


@dataclass(frozen=True, kw_only=True)
class _FixedData:
    """Batches of answers that are there before."""

    worlds: Worlds
    rows: Rows
    arms: Sequence[Arm]
    order: Tensor
    inputs: Tensor
    asked: list[_Asked]
    curricula: Mapping[int, list[tuple[_Asked, ...]]]
    """What an arm whose weight changes asks for at weight 1 and at weight 0, by the number of the arm."""

    @classmethod
    def of(cls, worlds: Worlds, rows: Rows, arms: Sequence[Arm], order: Tensor, dtype: torch.dtype) -> "_FixedData":
        inputs = _inputs(worlds.size, rows).to(dtype)
        asked = _ask(arms, worlds, rows, TrainProgress(0, order.shape[1]), dtype)
        # Rows before arms: then a batch is one look-up.
        asked = [_Asked(*(part.transpose(1, 2).contiguous() for part in kind)) for kind in asked]
        curricula = {}
        for place, arm in enumerate(arms):
            if isinstance(arm.objective.soft_weight, CurriculumWeight):
                pure = [
                    replace(arm, objective=replace(arm.objective, soft_weight=StaticWeight(weight)))
                    for weight in (1.0, 0.0)
                ]
                asked_by_both = _ask(pure, worlds, rows, TrainProgress(0, 1), dtype)
                curricula[place] = [
                    tuple(_Asked(*(part[:, number] for part in kind)) for number in (0, 1)) for kind in asked_by_both
                ]
        return cls(worlds=worlds, rows=rows, arms=arms, order=order, inputs=inputs, asked=asked, curricula=curricula)

    def batch(self, step: int, weights: Weights) -> _Batch:
        index = torch.arange(len(self.order)).unsqueeze(-1), self.order[:, step]
        asked = [_Asked(*(part[index].transpose(1, 2) for part in kind)) for kind in self.asked]
        for place, ends in self.curricula.items():
            rule, progress = self.arms[place].objective.soft_weight, TrainProgress(step, self.order.shape[1])
            weight = float(ask(rule, _ANY_SIGNAL, progress=progress))
            for kind, (soft, hard) in zip(asked, ends, strict=True):
                kind.target[:, place] = weight * soft.target[index] + (1 - weight) * hard.target[index]
                kind.risk[:, place] = weight * soft.risk[index] + (1 - weight) * hard.risk[index]
        return _Batch(self.inputs[index].flatten(1, 2), asked)


@dataclass(frozen=True, kw_only=True)
class _OwnTexts:
    """Batches of answers that each student writes anew to the problems of the rows."""

    worlds: Worlds
    rows: Rows
    arms: Sequence[Arm]
    order: Tensor
    uniform: Tensor

    def batch(self, step: int, weights: Weights) -> _Batch:
        arms = len(self.arms)
        shared = self.rows.at(self.order[:, step]).problems
        problems = Problems(*(part.unsqueeze(1).expand(-1, arms, *part.shape[1:]) for part in shared))
        uniform = self.uniform[:, step].unsqueeze(1).expand(-1, arms, -1, -1)
        with torch.no_grad():
            written = write(self.worlds.size, problems, uniform, student_writes(self.worlds.size, problems, weights))
        progress = TrainProgress(step, self.order.shape[1])
        asked = _ask(self.arms, self.worlds, written, progress, weights.first.dtype)
        return _Batch(_inputs(self.worlds.size, written).flatten(2, 3), asked)


def student_writes(world: ChainWorld, problems: Problems, weights: Weights) -> Writer:
    """Each student of a stack on ``(S, O, B)`` problems, float64."""

    seen = features(world, problems)

    def probabilities(place: int, context: Context) -> Tensor:
        hidden = hidden_states(weights, seen(place, context))
        return logits_at(weights, ("wording", "value")[place % 2], hidden).double().softmax(-1)

    return probabilities


def _inputs(world: ChainWorld, rows: Rows) -> Tensor:
    """``(..., B, positions, F)``."""
    seen = features(world, rows.problems)
    return torch.stack([seen(place, context) for place, context in enumerate(rows.contexts())], -2)


def train(
    worlds: Worlds,
    rows: Rows,
    arms: Sequence[Arm],
    weights: Weights,
    order: Tensor,
    *,
    uniform: Tensor | None = None,
    keep: Sequence[int] = (),
    on_step: Callable[[int], None] = lambda step: None,
) -> dict[int, Weights]:
    """Students after the steps `keep`, and after the last one.

    Args:
        worlds: whose teachers the students learn from.
        rows: ``(S, n)`` answers.
        arms: O of them.
        weights: of untrained students; left as they are.
        order: ``(S, steps, B)`` the rows of each step.
        uniform: ``(S, steps, B, tokens)`` in [0, 1): students write the answers themselves, decided by these. By
            default they learn from the answers in `rows`.
        keep: further steps after which the students are wanted.
        on_step: called with the number of steps done.

    Raises:
        NonFiniteError: a student's loss is not a number.
    """
    total = order.shape[1]
    data = (
        _FixedData.of(worlds, rows, arms, order, weights.first.dtype)
        if uniform is None
        else _OwnTexts(worlds=worlds, rows=rows, arms=arms, order=order, uniform=uniform)
    )
    learner = _Learner(weights, arms, total)
    found = {}
    for step in range(total):
        batch = data.batch(step, learner.weights)
        loss = _loss(worlds.size, learner.weights, batch)
        if not bool(loss.isfinite().all()):
            seed, arm = (~loss.isfinite()).nonzero()[0].tolist()
            raise NonFiniteError(
                f"lab: the loss of {arms[arm]} is {loss[seed, arm].item()} at step {step + 1} (seed number {seed}). "
                "Lower its learning rate."
            )
        learner.step(loss)
        on_step(step + 1)
        if step + 1 in keep or step + 1 == total:
            found[step + 1] = learner.weights.map(lambda tensor: tensor.detach().clone())
    return found


def _loss(world: ChainWorld, weights: Weights, batch: _Batch) -> Tensor:
    """``(S, O)``: the objective of each student, summed over a batch and divided by its positions, the end included."""
    hidden = hidden_states(weights, batch.inputs)
    places = 2 * world.steps + 1
    hidden = hidden.unflatten(2, (-1, places))
    total, normalisers, chosen = hidden.new_zeros(()), [], []
    for kind, asked in zip(kinds(world), batch.asked, strict=False):
        logits = logits_at(weights, kind.name, hidden[:, :, :, kind.first : 2 * world.steps : 2].flatten(2, 3))
        logits = logits.unflatten(2, (-1, kind.count))
        normaliser = logits.logsumexp(-1)
        total = total + (normaliser - (asked.target * logits).sum(-1)).sum((2, 3))
        normalisers.append(normaliser)
        chosen.append((asked.label * logits).sum(-1))
    if any(bool(asked.risk.any()) for asked in batch.asked):
        end = logits_at(weights, "end", hidden[:, :, :, -1]).logsumexp(-1, keepdim=True)
        wordings, values = normalisers
        following = [values, torch.cat([wordings[..., 1:], end], -1)]
        for asked, after, here in zip(batch.asked, following, chosen, strict=True):
            total = total + (0.5 * asked.risk * (after - here).square()).sum((2, 3))
    return total / (hidden.shape[2] * places)


class _Learner:
    """AdamW with clipped gradients for every student of a stack, each with its own rate and decay."""

    def __init__(self, weights: Weights, arms: Sequence[Arm], steps: int) -> None:
        self.weights = weights.map(lambda tensor: tensor.clone().requires_grad_())
        self._mean, self._square = (weights.map(torch.zeros_like) for _ in range(2))
        self._rate = torch.tensor([arm.learning_rate for arm in arms]).reshape(1, -1, 1, 1)
        self._decay = torch.tensor([arm.weight_decay for arm in arms]).reshape(1, -1, 1, 1)
        self._steps, self._done = steps, 0

    def step(self, loss: Tensor) -> None:
        """One step down `loss`, ``(S, O)``; no student's touches another's weights."""
        gradients = torch.autograd.grad(loss.sum(), self.weights, allow_unused=True)
        gradients = [torch.zeros_like(w) if g is None else g for w, g in zip(self.weights, gradients, strict=True)]
        norm = sum(gradient.square().sum((2, 3), keepdim=True) for gradient in gradients)
        clip = (MAX_GRADIENT_NORM / (torch.as_tensor(norm).sqrt() + 1e-6)).clamp(max=1.0)
        rate = self._rate * _schedule(self._done, self._steps)
        self._done += 1
        corrections = [1 - beta**self._done for beta in BETAS]
        with torch.no_grad():
            for name, weight, gradient, mean, square in zip(
                Weights._fields, self.weights, gradients, self._mean, self._square, strict=True
            ):
                gradient = gradient * clip
                if not name.endswith("bias"):
                    weight.mul_(1 - rate * self._decay)
                mean.lerp_(gradient, 1 - BETAS[0])
                square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
                weight.sub_(rate / corrections[0] * mean / ((square / corrections[1]).sqrt() + EPSILON))


def _schedule(step: int, steps: int) -> float:
    """The share of the peak rate at a step, from 0: a linear rise, then half a cosine to zero."""
    rising = max(1, steps // 20)
    if step < rising:
        return step / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
