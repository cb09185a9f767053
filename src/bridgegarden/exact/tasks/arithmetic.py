"""Modular arithmetic in words: every value is a Bridge, every wording a Garden, and the truth is computable.

A problem is a starting value and a few operations modulo a small number. An answer narrates them step by step and
ends with the result. The world slips: each running value (the start, every result, the final answer) is written
wrong with probability `slip_rate`, evenly over the other values, and the narration goes on consistently from what was
written. What was written is in the prefix, so nothing is hidden from its reader.

Within one table of wordings no phrase begins another, and all have the same number of tokens, so that the distance
between what must be copied and where it is copied to does not vary and tiny models learn it in few steps. Few distinct
words, many choices: entropy rules divide by the logarithm of the vocabulary, and a real one is no wider than its
choices are many.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import ClassVar, NamedTuple

import torch

from bridgegarden.errors import ConfigError
from bridgegarden.exact.world import (
    Choices,
    Phrases,
    ScriptProcess,
    Slot,
    World,
    first_phrases,
    slipping,
    wording,
)

OPERATORS = ("plus", "minus", "times")

START: Phrases = MappingProxyType(
    {
        "We begin at": 0.24,
        "We start with": 0.18,
        "I begin with": 0.15,
        "First we have": 0.12,
        "I start at": 0.10,
        "Let us take": 0.08,
        "First comes just": 0.07,
        "Our number is": 0.06,
    }
)
"""Opens an answer, before the starting value."""

OPENING: Phrases = MappingProxyType(
    {
        "Then": 0.24,
        "Next": 0.18,
        "Now": 0.15,
        "So": 0.12,
        "And": 0.10,
        "Here": 0.08,
        "Again": 0.07,
        "Thus": 0.06,
    }
)
"""Opens a step, before its operator."""

LINKING: Phrases = MappingProxyType(
    {
        "gives": 0.24,
        "makes": 0.18,
        "is": 0.15,
        "leaves": 0.12,
        "equals": 0.10,
        "becomes": 0.08,
        "yields": 0.07,
        "means": 0.06,
    }
)
"""Leads from a step's operand to its result."""

CLOSING: Phrases = MappingProxyType({".": 0.45, ",": 0.3, "!": 0.25})
"""Ends a sentence."""

ANSWER: Phrases = MappingProxyType(
    {
        "The answer is": 0.24,
        "The result is": 0.18,
        "We end at": 0.15,
        "Our answer is": 0.12,
        "So we have": 0.10,
        "Our number becomes": 0.08,
        "The end is": 0.07,
        "I end with": 0.06,
    }
)
"""Opens the last sentence, before the final value. `check_answer` looks for one of these."""

PROMPT_START: Phrases = MappingProxyType({"Start with": 0.4, "Begin at": 0.3, "Take just": 0.2, "Begin with": 0.1})
"""Opens a problem, before the starting value."""

PROMPT_JOINING: Phrases = MappingProxyType({",": 0.4, "then": 0.3, "and": 0.2, "next": 0.1})
"""Stands before each operator of a problem."""

PROMPT_QUESTION: Phrases = MappingProxyType(
    {
        ". What is it modulo": 0.4,
        ". What have we modulo": 0.3,
        ". Where are we modulo": 0.2,
        ". What comes out modulo": 0.1,
    }
)
"""Ends a problem, before the modulus and a question mark."""

_FINAL = re.compile(r"\b(?:" + "|".join(ANSWER) + r") (\d+)\b")


class Operation(NamedTuple):
    """One step of a problem."""

    operator: str
    """One of `OPERATORS`."""

    operand: int
    """From 1 to modulus - 1."""

    def apply(self, value: int, modulus: int) -> int:
        """`value` after this step."""
        if self.operator == "plus":
            return (value + self.operand) % modulus
        if self.operator == "minus":
            return (value - self.operand) % modulus
        return (value * self.operand) % modulus


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is asked, without its wording."""

    modulus: int
    """Values are 0 to modulus - 1."""

    start: int
    """The value before the first step."""

    operations: tuple[Operation, ...]
    """The steps, in order."""

    @property
    def result(self) -> int:
        """The right final value."""
        value = self.start
        for operation in self.operations:
            value = operation.apply(value, self.modulus)
        return value


class Written(NamedTuple):
    """What a narration has said that its continuation depends on."""

    value: int = -1
    """The running value last written, -1 before the first."""

    operator: int = -1
    """Operator written in this step, -1 outside one."""

    operand: int = -1
    """Operand written in this step, -1 outside one."""


@dataclass(frozen=True, kw_only=True)
class ArithmeticWorld(World[Problem]):
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
        tables = (OPENING, ANSWER)
        if self.restate:
            tables += (START, LINKING)
        prompts = (PROMPT_START, PROMPT_JOINING, PROMPT_QUESTION)
        phrases = ["?", *first_phrases(CLOSING, min(self.closings, self.wordings))]
        phrases += [phrase for table in tables for phrase in first_phrases(table, self.wordings)]
        phrases += [phrase for table in prompts for phrase in first_phrases(table, self.prompt_wordings)]
        numbers = tuple(str(value) for value in range(self.modulus + 1))
        return numbers + OPERATORS, phrases

    def process(self, problem: Problem) -> "ArithmeticProcess":
        return ArithmeticProcess(self, problem)

    @property
    def sizes(self) -> str:
        return f"modulus {self.modulus} and {self.steps} steps"

    @property
    def radices(self) -> Sequence[int]:
        return self.modulus, *(self.modulus - 1, len(OPERATORS)) * self.steps

    def problem_of(self, choices: Sequence[int]) -> Problem:
        start, *steps = choices
        pairs = zip(steps[::2], steps[1::2], strict=True)
        operations = tuple(Operation(OPERATORS[operator], operand + 1) for operand, operator in pairs)
        return Problem(modulus=self.modulus, start=start, operations=operations)

    def succeeds(self, problem: Problem, tokens: Sequence[int]) -> bool:
        """Whether the answer `tokens` states the right result."""
        return check_answer(problem, self.decode(tokens))

    def prompt(self, problem: Problem, generator: torch.Generator) -> str:
        count = 2 + len(problem.operations)
        draws = iter(torch.rand(count, generator=generator, dtype=torch.float64).tolist())
        text = f"{self._asked(PROMPT_START, next(draws))} {problem.start}"
        for operator, operand in problem.operations:
            text += f" {self._asked(PROMPT_JOINING, next(draws))} {operator} {operand}"
        text += f" {self._asked(PROMPT_QUESTION, next(draws))} {problem.modulus}?"
        return self.decode(self.encode(text))

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """What an answer is made of, in order."""
        closing = wording(self, first_phrases(CLOSING, min(self.closings, self.wordings)))
        slots = [self._wording(START), Slot("start"), closing] if self.restate else []
        for step in range(self.steps):
            slots.append(self._wording(OPENING))
            if self.restate:
                slots += [Slot("operator", step), Slot("operand", step), self._wording(LINKING)]
            slots += [Slot("result", step), closing]
        return (*slots, self._wording(ANSWER), Slot("answer"), closing)

    def _wording(self, table: Phrases) -> Slot:
        return wording(self, first_phrases(table, self.wordings))

    @cached_property
    def value_ids(self) -> range:
        """Ids of the values 0 to modulus - 1, in order."""
        return range(self.ids["0"], self.ids["0"] + self.modulus)

    @cached_property
    def operator_ids(self) -> range:
        """Ids of the operators, in the order of `OPERATORS`."""
        return range(self.ids[OPERATORS[0]], self.ids[OPERATORS[0]] + len(OPERATORS))


class ArithmeticProcess(ScriptProcess[Written]):
    """The answers to one problem."""

    def __init__(self, world: ArithmeticWorld, problem: Problem):
        if (problem.modulus, len(problem.operations)) != (world.modulus, world.steps):
            raise ConfigError(
                f"arithmetic: the problem has modulus {problem.modulus} and {len(problem.operations)} steps, the world "
                f"{world.modulus} and {world.steps}. Make the problem with world.problems(...)."
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
            return OPERATORS.index(asked.operator)
        if slot.name == "operand":
            return asked.operand
        done = Operation(OPERATORS[memory.operator], memory.operand) if self.world.restate else asked
        return done.apply(memory.value, self.world.modulus)

    def remember(self, slot: Slot, memory: Written, token: int) -> Written:
        """The operation until its result is written, then the result alone."""
        if slot.name == "operator":
            return memory._replace(operator=token - self.world.operator_ids.start)
        value = token - self.world.value_ids.start
        return memory._replace(operand=value) if slot.name == "operand" else Written(value=value)


def check_answer(problem: Problem, text: str) -> bool:
    """Whether `text` states the right result: the last "the answer is 7", in any wording of the world, decides."""
    stated = _FINAL.findall(text)
    return bool(stated) and int(stated[-1]) == problem.result
