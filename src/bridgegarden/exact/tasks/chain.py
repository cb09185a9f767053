"""Sums in a chain, word by word: a wording, a value, a wording, a value; the smallest world with everything in it.

A problem is a number and a few operations modulo `modulus`. An answer says each intermediate value, a wording before
it. Wordings depend on the operation, its operand, the last value and the last wording; a value depends on the
operation, the operand and the value *written* before it, so a wrong one is carried on. What a teacher says at values is
one of :data:`TEACHERS`: a teacher that is wrong is wrong in a way, not at random.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from bridgegarden.errors import ConfigError, lookup
from bridgegarden.exact.world import Choices, ScriptProcess, Slot, World

OPERATIONS: Mapping[str, Callable[[int, int], int]] = MappingProxyType(
    {"plus": lambda a, b: a + b, "minus": lambda a, b: a - b, "times": lambda a, b: a * b}
)
WORDINGS = ("so", "then", "thus", "hence", "now", "next")
WORDING_SPREAD = 0.7
"""Standard deviation of each part of a wording's logit: operation, operand, last value, last wording."""
WORDING_NOISE = 0.5
"""Standard deviation of what these parts together do not explain: a small student cannot fit it."""


class Expression(NamedTuple):
    """A problem: a number, then operations from left to right."""

    start: int
    """From 0 to below the modulus."""

    operations: tuple[int, ...]
    """Indices into `OPERATIONS`."""

    operands: tuple[int, ...]
    """From 1 to below the modulus."""


class Written(NamedTuple):
    """What an answer has said."""

    value: int
    """The last value, at first the start."""

    wording: int = -1
    """Index into `WORDINGS` of the last wording, -1 before."""

    right: bool = True
    """Whether every value so far was right."""


def _perfect(right: Tensor, wrong_in: Tensor) -> Tensor:
    return right


def _unsure(right: Tensor, wrong_in: Tensor) -> Tensor:
    return 0.6 * right + 0.3 * right.roll(1, -1) + 0.1 * right.roll(-1, -1)


def _slips(right: Tensor, wrong_in: Tensor) -> Tensor:
    return 0.7 * right + 0.3 * (1 - right) / (right.shape[-1] - 1)


def _wrong_in_places(right: Tensor, wrong_in: Tensor) -> Tensor:
    usually = 0.9 * right + 0.1 * (1 - right) / (right.shape[-1] - 1)
    wrong = right.roll(2, -1)
    there = 0.4 * right + 0.5 * wrong + 0.1 * (1 - right - wrong) / (right.shape[-1] - 2)
    return torch.where(wrong_in.unsqueeze(-1), there, usually)


TEACHERS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {"perfect": _perfect, "unsure": _unsure, "slips": _slips, "wrong_in_places": _wrong_in_places}
)
"""From the right value, one-hot ``(..., V)``, and where this teacher would be wrong, ``(...)``, to its probabilities:
always right; right at 0.6 and a neighbour else; right at 0.7 and anything else; sure of a wrong value in a quarter of
all cases (0.5 against 0.4 for the right one) and right at 0.9 elsewhere."""


@dataclass(frozen=True, kw_only=True)
class ChainWorld(World[Expression]):
    """Numbers, wordings and the teacher's tables, shared by all problems of one size."""

    name: ClassVar[str] = "chain"
    prompt_wordings = 1

    modulus: int = 5
    """Values, from 3 to 10."""

    steps: int = 3
    """Operations of a problem, from 1 to 4."""

    wordings: int = 6
    """Wordings, from 2 to 6."""

    teacher: str = "perfect"
    """Key of `TEACHERS`."""

    seed: int = 0
    """Decides how wordings are preferred, and where a teacher that is wrong in places is wrong."""

    def __post_init__(self) -> None:
        self._check({"modulus": (3, 10), "steps": (1, 4), "wordings": (2, len(WORDINGS))}, rates=())
        lookup(TEACHERS, self.teacher, field="chain.teacher")

    def spoken(self) -> tuple[Sequence[str], Iterable[str]]:
        """Numbers, wordings and operations."""
        return (*map(str, range(self.modulus)), *WORDINGS[: self.wordings], *OPERATIONS), ()

    @property
    def first_value(self) -> int:
        """Token id of the value 0; the others follow."""
        return self.ids["0"]

    @property
    def first_wording(self) -> int:
        """Token id of the first wording; the others follow."""
        return self.ids[WORDINGS[0]]

    def prompt(self, problem: Expression, generator: torch.Generator) -> str:
        names = list(OPERATIONS)
        steps = zip(problem.operations, problem.operands, strict=True)
        return " ".join([str(problem.start), *(f"{names[operation]} {operand}" for operation, operand in steps)])

    def process(self, problem: Expression) -> "ChainProcess":
        return ChainProcess(self, problem)

    def succeeds(self, problem: Expression, tokens: Sequence[int]) -> bool:
        """Whether `tokens` is a whole text on script with every value right."""
        said = self.process(problem).read(tokens)
        return said is not None and said.right

    @property
    def sizes(self) -> str:
        return f"{self.modulus} values and {self.steps} steps"

    @property
    def radices(self) -> Sequence[int]:
        return self.modulus, *[len(OPERATIONS), self.modulus - 1] * self.steps

    def problem_of(self, choices: Sequence[int]) -> Expression:
        start, *rest = choices
        return Expression(start, tuple(rest[0::2]), tuple(operand + 1 for operand in rest[1::2]))

    @cached_property
    def right(self) -> Tensor:
        """``(operations, operands, values)`` integers: the right value after each operation on each value."""
        values = [
            [[apply(value, operand) % self.modulus for value in range(self.modulus)] for operand in self._operands]
            for apply in OPERATIONS.values()
        ]
        return torch.tensor(values)

    @cached_property
    def value_probs(self) -> Tensor:
        """``(operations, operands, values, values)`` float64: the teacher's next value, given the last one."""
        one_hot = torch.nn.functional.one_hot(self.right, self.modulus).double()
        wrong_in = torch.rand(self.right.shape, generator=self._generator(1), dtype=torch.float64) < 0.25
        return TEACHERS[self.teacher](one_hot, wrong_in)

    @cached_property
    def wording_probs(self) -> Tensor:
        """``(operations, operands, values, 1 + wordings, wordings)`` float64: the next wording; last wording 0 is
        none.
        """
        sizes = (len(OPERATIONS), self.modulus - 1, self.modulus, 1 + self.wordings, self.wordings)
        generator = self._generator(0)
        logits = WORDING_NOISE * torch.randn(sizes, generator=generator, dtype=torch.float64)
        for axis, size in enumerate(sizes[:-1]):
            shape = [1] * 4 + [self.wordings]
            shape[axis] = size
            logits = logits + WORDING_SPREAD * torch.randn(shape, generator=generator, dtype=torch.float64)
        return logits.softmax(-1)

    @property
    def _operands(self) -> range:
        return range(1, self.modulus)

    def _generator(self, stream: int) -> torch.Generator:
        return torch.Generator().manual_seed(2 * self.seed + stream)


class ChainProcess(ScriptProcess[Written]):
    """The answers to one problem."""

    def __init__(self, world: ChainWorld, problem: Expression):
        fits = (
            0 <= problem.start < world.modulus
            and len(problem.operations) == len(problem.operands) == world.steps
            and all(0 <= operation < len(OPERATIONS) for operation in problem.operations)
            and all(0 < operand < world.modulus for operand in problem.operands)
        )
        if not fits:
            raise ConfigError(f"chain: {problem} does not fit {world}. Make the problem with world.problems(...).")
        slots = [Slot(name, index=step) for step in range(world.steps) for name in ("wording", "value")]
        super().__init__(slots, memory=Written(problem.start), vocab_size=len(world.vocabulary))
        self.world = world
        self.problem = problem

    def choices(self, slot: Slot, memory: Written) -> Choices:
        """Any wording, or any value."""
        cell = self.problem.operations[slot.index], self.problem.operands[slot.index] - 1, memory.value
        if slot.name == "wording":
            first, row = self.world.first_wording, self.world.wording_probs[cell][memory.wording + 1]
        else:
            first, row = self.world.first_value, self.world.value_probs[cell]
        log_probs = torch.full((self.vocab_size,), -math.inf, dtype=torch.float64)
        log_probs[first : first + len(row)] = row.log()
        return Choices(range(first, first + len(row)), log_probs)

    def remember(self, slot: Slot, memory: Written, token: int) -> Written:
        """The wording, or the value and whether it is right."""
        if slot.name == "wording":
            return memory._replace(wording=token - self.world.first_wording)
        value = token - self.world.first_value
        expected = self.world.right[self.problem.operations[slot.index], self.problem.operands[slot.index] - 1]
        return memory._replace(value=value, right=memory.right and value == int(expected[memory.value]))

    def matters(self, memory: Written) -> tuple[int, bool]:
        """The value, and whether all were right."""
        return memory.value, memory.right
