"""Chain worlds of several seeds at once: problems, the teachers' answers to them, and what a student sees of a prefix.

Everything is indices and tables, ``(S, ...)`` with one world for each of S seeds; randomness is each seed's own.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from bridgegarden.exact.tasks.chain import OPERATIONS, ChainWorld, Expression

PROMPT_SCALE = 0.4
"""Of the features of the whole prompt: a student attends to them less than to the present operation."""


class Problems(NamedTuple):
    """P problems as indices."""

    start: Tensor
    """``(*P,)`` first values."""
    operations: Tensor
    """``(*P, steps)``."""
    operands: Tensor
    """``(*P, steps)``, from 0."""

    @classmethod
    def of(cls, problems: Sequence[Expression]) -> "Problems":
        """`problems` as indices."""
        start, operations, operands = zip(*problems, strict=True)
        return cls(torch.tensor(start), torch.tensor(operations), torch.tensor(operands) - 1)


class Context(NamedTuple):
    """What a position depends on beside its problem and its place: each ``(*N,)``, or broadcast to it."""

    value: Tensor
    """The last value."""
    wording: Tensor
    """The last wording, 0 for none, then 1 and on."""


Writer = Callable[[int, Context], Tensor]
"""From a place and its context to the probabilities of the tokens that can stand there, ``(*N, width)``."""


@dataclass(frozen=True, kw_only=True)
class Worlds:
    """One world for each of S seeds, all of one size: what their teachers say, ``(S, ...)``."""

    size: ChainWorld
    """One of them, for what they share: sizes, vocabulary, right values."""
    wording_probs: Tensor
    """See `ChainWorld.wording_probs`."""
    value_probs: Tensor
    """See `ChainWorld.value_probs`."""

    @classmethod
    def of(cls, worlds: Sequence[ChainWorld]) -> "Worlds":
        """`worlds`, which differ in their seed and teacher alone."""
        return cls(
            size=worlds[0],
            wording_probs=torch.stack([world.wording_probs for world in worlds]),
            value_probs=torch.stack([world.value_probs for world in worlds]),
        )

    def __len__(self) -> int:
        return len(self.value_probs)

    def __getitem__(self, seeds: slice) -> "Worlds":
        """Those of some of the seeds."""
        return replace(self, wording_probs=self.wording_probs[seeds], value_probs=self.value_probs[seeds])

    def teacher(self, problems: Problems) -> Writer:
        """The teachers on ``(S, ...)`` problems, float64."""
        seed = torch.arange(len(self)).reshape(-1, *[1] * (problems.start.ndim - 1))

        def probabilities(place: int, context: Context) -> Tensor:
            operation, operand = problems.operations[..., place // 2], problems.operands[..., place // 2]
            if place % 2:
                return self.value_probs[seed, operation, operand, context.value]
            return self.wording_probs[seed, operation, operand, context.value, context.wording]

        return probabilities


class Kind(NamedTuple):
    """One of the three sorts of positions: which of them there are, and the logits that stand there."""

    name: str
    first: int
    """The first position of this kind; then every second one."""
    count: int
    """Positions."""
    width: int
    """Tokens that can stand there."""


def kinds(world: ChainWorld) -> tuple[Kind, Kind, Kind]:
    """Wordings, values and the end of a world's answers."""
    return (
        Kind("wording", 0, world.steps, world.wordings),
        Kind("value", 1, world.steps, world.modulus),
        Kind("end", 2 * world.steps, 1, 1),
    )


def features(world: ChainWorld, problems: Problems) -> Callable[[int, Context], Tensor]:
    """What a student sees of a prefix, by its place and context: ``(*N, F)``.

    Place, present operation and operand, last value and wording; the whole prompt, scaled down. The shapes of
    `problems` (less their last dimension) and of a context are broadcast to N.
    """
    names, operands = _one_hot(problems.operations, len(OPERATIONS)), _one_hot(problems.operands, world.modulus - 1)
    steps = torch.cat([names, operands], -1)
    # The prompt is looked up once for all places, of which there are many.
    prompt = PROMPT_SCALE * torch.cat([_one_hot(problems.start, world.modulus), steps.flatten(-2)], -1)

    def seen(place: int, context: Context) -> Tensor:
        shape = torch.broadcast_shapes(problems.start.shape, context.value.shape, context.wording.shape)
        step = place // 2
        parts = (
            _one_hot(torch.tensor(place), 2 * world.steps + 1),
            steps[..., step, :] if step < world.steps else torch.zeros(steps.shape[-1]),
            _one_hot(context.value, world.modulus),
            _one_hot(context.wording, 1 + world.wordings),
            prompt,
        )
        return torch.cat([part.expand(*shape, -1) for part in parts], -1)

    return seen


def _one_hot(index: Tensor, size: int) -> Tensor:
    # A look-up takes a third of the time of torch's one_hot, which counts in whole numbers.
    return torch.nn.functional.embedding(index, torch.eye(size))


class Rows(NamedTuple):
    """n answers of each of S seeds to problems of their own."""

    problems: Problems
    """``(S, n)``."""
    wordings: Tensor
    """``(S, n, steps)`` indices of the wordings written."""
    values: Tensor
    """``(S, n, steps)`` values written."""

    def at(self, order: Tensor) -> "Rows":
        """Of each seed the rows ``order[s]``, ``(S, B)``."""

        def take(values: Tensor) -> Tensor:
            index = order.reshape(*order.shape, *[1] * (values.ndim - 2)).expand(*order.shape, *values.shape[2:])
            return values.gather(1, index)

        problems = Problems(*(take(part) for part in self.problems))
        return Rows(problems, take(self.wordings), take(self.values))

    def contexts(self) -> list[Context]:
        """What each position of the answers depends on, in their order."""
        steps = self.values.shape[-1]
        values = [self.problems.start, *(self.values[..., step] for step in range(steps))]
        wordings = [torch.zeros_like(self.problems.start), *(self.wordings[..., step] + 1 for step in range(steps))]
        within = [Context(values[step], wordings[step + late]) for step in range(steps) for late in (0, 1)]
        return [*within, Context(values[-1], wordings[-1])]


def write(world: ChainWorld, problems: Problems, uniform: Tensor, writer: Writer) -> Rows:
    """Answers to `problems`, ``(*N,)``, token by token: ``uniform`` ``(*N, 2 steps)`` in [0, 1) decides them."""
    context = Context(problems.start, torch.zeros_like(problems.start))
    values, wordings = [], []
    for step in range(world.steps):
        wording = _drawn(writer(2 * step, context), uniform[..., 2 * step])
        context = context._replace(wording=wording + 1)
        value = _drawn(writer(2 * step + 1, context), uniform[..., 2 * step + 1])
        context = context._replace(value=value)
        wordings.append(wording)
        values.append(value)
    return Rows(problems, torch.stack(wordings, -1), torch.stack(values, -1))


def _drawn(prob: Tensor, uniform: Tensor) -> Tensor:
    cumulative = prob.cumsum(-1)
    found = torch.searchsorted(cumulative, uniform.unsqueeze(-1) * cumulative[..., -1:], right=True).squeeze(-1)
    return found.clamp(max=prob.shape[-1] - 1)


def draw_rows(worlds: Worlds, seeds: Sequence[int], count: int) -> Rows:
    """`count` answers of its teacher for each seed, each to another training problem."""
    drawn = [Problems.of(worlds.size.problems(count, seed, split="train")) for seed in seeds]
    problems = Problems(*(torch.stack(part) for part in zip(*drawn, strict=True)))
    uniform = draw_uniform(seeds, 0, count, 2 * worlds.size.steps)
    return write(worlds.size, problems, uniform, worlds.teacher(problems))


def draw_order(seeds: Sequence[int], rows: int, steps: int, batch: int) -> Tensor:
    """``(S, steps, batch)`` indices of rows: whole passes, each in another random order."""
    passes = math.ceil(steps * batch / rows)
    orders = [torch.stack([torch.randperm(rows, generator=g) for _ in range(passes)]) for g in generators(seeds, 1)]
    return torch.stack(orders).reshape(len(seeds), -1)[:, : steps * batch].reshape(len(seeds), steps, batch)


def draw_uniform(seeds: Sequence[int], stream: int, *shape: int) -> Tensor:
    """``(S, *shape)`` float64 in [0, 1), of each seed by itself."""
    return torch.stack([torch.rand(*shape, generator=g, dtype=torch.float64) for g in generators(seeds, stream)])


def generators(seeds: Sequence[int], stream: int) -> list[torch.Generator]:
    """One for each seed and use."""
    return [torch.Generator().manual_seed(4 * seed + stream) for seed in seeds]
