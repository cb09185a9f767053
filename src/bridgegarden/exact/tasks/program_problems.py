"""What the program world asks for: a specification in terms of variables and `it`, the value computed last."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

from bridgegarden.exact.problems import digits
from bridgegarden.exact.tasks.program_language import (
    COMMUTATIVE,
    COMPARATORS,
    OPERATORS,
    Assignment,
    Branch,
    Program,
)
from bridgegarden.exact.tasks.program_words import VARIABLES

IT = "it"
"""What a problem calls the value computed last."""

FORMS = tuple(
    (operator, swap) for operator in OPERATORS for swap in (False, True) if not (swap and operator in COMMUTATIVE)
)
"""Every operator with every order of its operands that makes a difference."""


class Computation(NamedTuple):
    """``first operator second``."""

    operator: str
    first: str
    second: str


class Condition(NamedTuple):
    """When `it` compares so with the constant, the value is returned."""

    comparator: str
    constant: int
    value: str


@dataclass(frozen=True, kw_only=True)
class Specification:
    """What a program has to do."""

    variables: tuple[str, str]
    """The two it is about."""

    computations: tuple[Computation, ...]
    """In order; all but the first use `it`."""

    tests: tuple[Condition, ...]
    """In order; the first that holds decides."""

    otherwise: str
    """What is returned when none holds."""

    def program(self) -> Program:
        """A program that does it."""
        names = [f"t{number}" for number in range(1, len(self.computations) + 1)]
        assignments = []
        for name, before, (operator, *operands) in zip(names, [IT, *names], self.computations, strict=False):
            first, second = (before if operand == IT else operand for operand in operands)
            assignments.append(Assignment(name, operator, first, second))
        last = names[-1]
        named = {IT: last} | {variable: variable for variable in self.variables}
        return Program(
            assignments=tuple(assignments),
            branches=tuple(Branch(last, test.comparator, test.constant, named[test.value]) for test in self.tests),
            otherwise=named[self.otherwise],
        )


@dataclass(frozen=True, kw_only=True)
class SpecificationSizes:
    """What decides how many specifications there are."""

    variables: int
    """Names to choose the two from."""

    assignments: int
    """Computations."""

    branches: int
    """Tests."""

    constants: int
    """Constants to compare with: 1 up to this."""

    def radices(self) -> list[int]:
        """One digit for the variables, then those of each computation, each test, and the last return."""
        pairs = len(_pairs(self.variables))
        computations = [len(FORMS), *[2, len(FORMS)] * (self.assignments - 1)]
        tests = [len(COMPARATORS), self.constants, 2] * self.branches
        return [pairs, *computations, *tests, 3]


def nth_specification(code: int, sizes: SpecificationSizes) -> Specification:
    """The `code`-th specification. No test returns what the next one, or the last return, does."""
    left = iter(digits(code, sizes.radices()))
    variables = _pairs(sizes.variables)[next(left)]
    computations = [_computation(variables, next(left))]
    for _ in range(sizes.assignments - 1):
        computations.append(_computation((IT, variables[next(left)]), next(left)))
    parts = [(COMPARATORS[next(left)], next(left) + 1, next(left) + 1) for _ in range(sizes.branches)]
    values = (*variables, IT)
    returned = next(left)
    otherwise = values[returned]
    tests: list[Condition] = []
    for comparator, constant, turn in reversed(parts):
        # Counted on from what is returned next, never all the way round.
        returned = (returned + turn) % len(values)
        tests.insert(0, Condition(comparator, constant, values[returned]))
    return Specification(variables=variables, computations=tuple(computations), tests=tuple(tests), otherwise=otherwise)


def _pairs(variables: int) -> Sequence[tuple[str, str]]:
    return list(combinations(VARIABLES[:variables], 2))


def _computation(operands: tuple[str, str], form: int) -> Computation:
    operator, swap = FORMS[form]
    return Computation(operator, *(reversed(operands) if swap else operands))
