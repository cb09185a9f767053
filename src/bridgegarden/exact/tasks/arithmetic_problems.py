"""The problems of the arithmetic world: what is asked, which split it belongs to, and what counts as right."""

import re
from dataclasses import dataclass
from typing import NamedTuple

from bridgegarden.exact.problems import Split, digits, split_of
from bridgegarden.exact.tasks import arithmetic_words as words

_FINAL = re.compile(r"\b(?:" + "|".join(words.ANSWER) + r") (\d+)\b")


class Operation(NamedTuple):
    """One step of a problem."""

    operator: str
    """One of `arithmetic_words.OPERATORS`."""

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

    @property
    def split(self) -> Split:
        """Where the problem belongs, by its content alone: 80 % train, 10 % validation, 10 % test."""
        return split_of(self)


def nth_problem(code: int, modulus: int, steps: int) -> Problem:
    """The `code`-th of the modulus * (3 * (modulus - 1))^steps problems: a number written in mixed radix."""
    start, *steps_taken = digits(code, [modulus] + [modulus - 1, len(words.OPERATORS)] * steps)
    pairs = zip(steps_taken[::2], steps_taken[1::2], strict=True)
    operations = tuple(Operation(words.OPERATORS[operator], operand + 1) for operand, operator in pairs)
    return Problem(modulus=modulus, start=start, operations=operations)


def check_answer(problem: Problem, text: str) -> bool:
    """Whether `text` states the right result: the last "the answer is 7", in any wording of the world, decides."""
    stated = _FINAL.findall(text)
    return bool(stated) and int(stated[-1]) == problem.result
