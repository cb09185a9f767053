"""Modular arithmetic in words: every value is a Bridge, every wording a Garden, and the truth is computable.

A problem is a starting value and a few operations modulo a small number. An answer narrates them step by step and
ends with the result. The world slips: each running value (the start, every result, the final answer) is written
wrong with probability `slip_rate`, evenly over the other values, and the narration goes on consistently from what was
written. What was written is in the prefix, so nothing is hidden from its reader.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

import torch

from bridgegarden.errors import ConfigError
from bridgegarden.exact.phrases import Phrases, first_phrases, phrase_at
from bridgegarden.exact.problems import Split, draw_problems
from bridgegarden.exact.process import sample
from bridgegarden.exact.script import LOST, Choices, ScriptProcess, Slot, State, slipping, wording
from bridgegarden.exact.tasks import arithmetic_words as words
from bridgegarden.exact.tasks.arithmetic_problems import Operation, Problem, check_answer, nth_problem
from bridgegarden.exact.vocabulary import ASSISTANT, END, PAD, SPECIAL_TOKENS, UNKNOWN, USER, SpokenWorld

__all__ = [
    "ASSISTANT",
    "END",
    "LOST",
    "PAD",
    "SPECIAL_TOKENS",
    "UNKNOWN",
    "USER",
    "ArithmeticProcess",
    "ArithmeticWorld",
    "Operation",
    "Problem",
    "Split",
    "State",
    "Written",
    "check_answer",
    "make_problems",
]


class Written(NamedTuple):
    """What a narration has said that its continuation depends on."""

    value: int = -1
    """The running value last written, -1 before the first."""

    operator: int = -1
    """Operator written in this step, -1 outside one."""

    operand: int = -1
    """Operand written in this step, -1 outside one."""


@dataclass(frozen=True, kw_only=True)
class ArithmeticWorld(SpokenWorld):
    """The vocabulary, wordings and slips shared by all problems of one size."""

    name: ClassVar[str] = "arithmetic"

    modulus: int = 7
    """Values are 0 to modulus - 1; from 3 to 97. A prime makes every step invertible: one slip spoils the result."""

    steps: int = 3
    """Operations in a problem, from 1 to 8."""

    wordings: int = 8
    """Most wordings of one Garden, from 1 to 8; the likeliest are kept."""

    closings: int = 3
    """Most ways to end a sentence, from 1 to 3, and no more than `wordings`."""

    prompt_wordings: int = 4
    """Wordings of each part of a prompt, from 1 to 4."""

    restate: bool = True
    """Whether an answer repeats the start and every operation. Without, it gives the results alone."""

    slip_rate: float = 0.1
    """Probability that a running value is written wrong, from 0 to below 1."""

    def __post_init__(self) -> None:
        sizes = {"modulus": (3, 97), "steps": (1, 8), "wordings": (1, 8), "closings": (1, 3), "prompt_wordings": (1, 4)}
        self._check(sizes)

    def spoken(self) -> tuple[Sequence[str], Iterable[str]]:
        """Numbers and operators, and the phrases of prompts and answers."""
        tables = (words.OPENING, words.ANSWER)
        if self.restate:
            tables += (words.START, words.LINKING)
        prompts = (words.PROMPT_START, words.PROMPT_JOINING, words.PROMPT_QUESTION)
        phrases = ["?", *first_phrases(words.CLOSING, min(self.closings, self.wordings))]
        phrases += [phrase for table in tables for phrase in first_phrases(table, self.wordings)]
        phrases += [phrase for table in prompts for phrase in first_phrases(table, self.prompt_wordings)]
        numbers = tuple(str(value) for value in range(self.modulus + 1))
        return numbers + words.OPERATORS, phrases

    def process(self, problem: Problem) -> "ArithmeticProcess":
        """The exact process that answers `problem`."""
        return ArithmeticProcess(self, problem)

    def problems(self, n: int, seed: int, *, split: Split = "train") -> list[Problem]:
        """`n` distinct problems of one split; see `make_problems`."""
        return make_problems(n, seed, split=split, world=self)

    def succeeds(self, problem: Problem, tokens: Sequence[int]) -> bool:
        """Whether the answer `tokens` states the right result."""
        return check_answer(problem, self.decode(tokens))

    def answer(self, problem: Problem, generator: torch.Generator) -> str:
        """One answer drawn from the process, slips included."""
        return self.decode(sample(self.process(problem), generator))

    def prompt(self, problem: Problem, generator: torch.Generator) -> str:
        """The problem in words, its wording drawn at random."""
        count = 2 + len(problem.operations)
        draws = iter(torch.rand(count, generator=generator, dtype=torch.float64).tolist())
        text = f"{self._asked(words.PROMPT_START, next(draws))} {problem.start}"
        for operator, operand in problem.operations:
            text += f" {self._asked(words.PROMPT_JOINING, next(draws))} {operator} {operand}"
        text += f" {self._asked(words.PROMPT_QUESTION, next(draws))} {problem.modulus}?"
        return self.decode(self.encode(text))

    def _asked(self, table: Phrases, uniform: float) -> str:
        return phrase_at(first_phrases(table, self.prompt_wordings), uniform)

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """What an answer is made of, in order."""
        closing = wording(self, first_phrases(words.CLOSING, min(self.closings, self.wordings)))
        slots = [self._wording(words.START), Slot("start"), closing] if self.restate else []
        for step in range(self.steps):
            slots.append(self._wording(words.OPENING))
            if self.restate:
                slots += [Slot("operator", step), Slot("operand", step), self._wording(words.LINKING)]
            slots += [Slot("result", step), closing]
        return (*slots, self._wording(words.ANSWER), Slot("answer"), closing)

    def _wording(self, table: Phrases) -> Slot:
        return wording(self, first_phrases(table, self.wordings))

    @cached_property
    def value_ids(self) -> range:
        """Ids of the values 0 to modulus - 1, in order."""
        return range(self.ids["0"], self.ids["0"] + self.modulus)

    @cached_property
    def operator_ids(self) -> range:
        """Ids of the operators, in the order of `arithmetic_words.OPERATORS`."""
        return range(self.ids[words.OPERATORS[0]], self.ids[words.OPERATORS[0]] + len(words.OPERATORS))


class ArithmeticProcess(ScriptProcess[Written]):
    """The answers to one problem."""

    def __init__(self, world: ArithmeticWorld, problem: Problem):
        if (problem.modulus, len(problem.operations)) != (world.modulus, world.steps):
            raise ConfigError(
                f"arithmetic: the problem has modulus {problem.modulus} and {len(problem.operations)} steps, the world "
                f"{world.modulus} and {world.steps}. Make the problem with make_problems(..., world=world)."
            )
        known = Written() if world.restate else Written(value=problem.start)
        super().__init__(world.slots, memory=known, vocab_size=len(world.vocabulary))
        self.world = world
        self.problem = problem

    def choices(self, slot: Slot, memory: Written) -> Choices:
        """All values, or all operators. Operators and operands are copied from the problem without a slip."""
        operator = slot.name == "operator"
        tokens = self.world.operator_ids if operator else self.world.value_ids
        slips = 0.0 if operator or slot.name == "operand" else self.world.slip_rate
        right = tokens[self._right(slot, memory)]
        return slipping(tokens, right, slip_rate=slips, vocab_size=self.vocab_size)

    def _right(self, slot: Slot, memory: Written) -> int:
        if slot.name == "start":
            return self.problem.start
        if slot.name == "answer":
            return memory.value
        asked = self.problem.operations[slot.index]
        if slot.name == "operator":
            return words.OPERATORS.index(asked.operator)
        if slot.name == "operand":
            return asked.operand
        done = Operation(words.OPERATORS[memory.operator], memory.operand) if self.world.restate else asked
        return done.apply(memory.value, self.world.modulus)

    def remember(self, slot: Slot, memory: Written, token: int) -> Written:
        """The operation until its result is written, then the result alone."""
        if slot.name == "operator":
            return memory._replace(operator=token - self.world.operator_ids.start)
        value = token - self.world.value_ids.start
        return memory._replace(operand=value) if slot.name == "operand" else Written(value=value)


def make_problems(n: int, seed: int, *, split: Split = "train", world: ArithmeticWorld | None = None) -> list[Problem]:
    """`n` distinct problems of one split, in random order. No problem is in two splits, whatever the seeds.

    Raises:
        ConfigError: when the split has fewer than `n` problems.
    """
    world = world or ArithmeticWorld()
    return draw_problems(
        n,
        seed,
        split=split,
        count=world.modulus * (len(words.OPERATORS) * (world.modulus - 1)) ** world.steps,
        nth=lambda code: nth_problem(code, world.modulus, world.steps),
        world="arithmetic",
        sizes=f"modulus {world.modulus} and {world.steps} steps",
    )
