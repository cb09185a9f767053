"""A tiny language: assignments, then tests that return early, then a return. Programs are read, run and compared.

    t1 = sub ( a , b ) ; if t1 > 2 : return a ; return t1

Statements are separated by ``;``. Words from ``#`` up to the next ``;`` are a comment.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from types import MappingProxyType
from typing import NamedTuple

from bridgegarden.errors import DataError

OPERATORS = ("add", "mul", "sub")

COMMUTATIVE = frozenset({"add", "mul"})
"""Operators whose operands may change places."""

COMPARATORS = (">", "<")


class Assignment(NamedTuple):
    """``target = operator ( first , second )``."""

    target: str
    operator: str
    first: str
    second: str


class Branch(NamedTuple):
    """``if name comparator constant : return value``."""

    name: str
    comparator: str
    constant: int
    value: str


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program that every run ends with a number."""

    assignments: tuple[Assignment, ...]
    """Done in order."""

    branches: tuple[Branch, ...]
    """The first that holds decides."""

    otherwise: str
    """The name whose value is returned when none holds."""


def parse(words: Sequence[str], arguments: Sequence[str]) -> Program:
    """The program that `words` spell, over the names `arguments`.

    Raises:
        DataError: `words` are not a program, or use a name that has no value.
    """
    known = set(arguments)
    assignments: list[Assignment] = []
    branches: list[Branch] = []
    statements = _statements(words)
    for place, statement in enumerate(statements):
        last = place == len(statements) - 1
        match statement:
            case [target, "=", operator, "(", first, ",", second, ")"] if not (branches or last):
                _check(operator in OPERATORS, statement, f"an operator, one of {', '.join(OPERATORS)}")
                _check({first, second} <= known, statement, f"names with a value, of {', '.join(sorted(known))}")
                known.add(target)
                assignments.append(Assignment(target, operator, first, second))
            case ["if", name, comparator, constant, ":", "return", value] if not last:
                _check(comparator in COMPARATORS, statement, f"a comparator, one of {', '.join(COMPARATORS)}")
                _check(constant.isdecimal(), statement, "a whole number to compare with")
                _check({name, value} <= known, statement, f"names with a value, of {', '.join(sorted(known))}")
                branches.append(Branch(name, comparator, int(constant), value))
            case ["return", value] if last:
                _check(value in known, statement, f"a name with a value, of {', '.join(sorted(known))}")
                return Program(assignments=tuple(assignments), branches=tuple(branches), otherwise=value)
            case _:
                _check(False, statement, "assignments, then tests, then one return at the end")
    raise DataError("program: got no statement. End it with a return.")


def run(program: Program, arguments: Mapping[str, int]) -> int:
    """What `program` returns."""
    values = dict(arguments)
    for target, operator, first, second in program.assignments:
        left, right = values[first], values[second]
        values[target] = {"add": left + right, "mul": left * right, "sub": left - right}[operator]
    for name, comparator, constant, value in program.branches:
        if values[name] > constant if comparator == ">" else values[name] < constant:
            return values[value]
    return values[program.otherwise]


def same_results(program: Program, other: Program, arguments: Sequence[str], inputs: range) -> bool:
    """Whether both return the same for all `inputs` of the `arguments`, tried one by one."""
    tried = (MappingProxyType(dict(zip(arguments, values, strict=True))) for values in _inputs(arguments, inputs))
    return all(run(program, given) == run(other, given) for given in tried)


def _inputs(arguments: Sequence[str], inputs: range) -> product:
    return product(inputs, repeat=len(arguments))


def _statements(words: Sequence[str]) -> list[list[str]]:
    statements: list[list[str]] = [[]]
    comment = False
    for word in words:
        if word == ";":
            statements.append([])
            comment = False
        elif word == "#" or comment:
            comment = True
        else:
            statements[-1].append(word)
    return statements


def _check(holds: bool, statement: Sequence[str], expected: str) -> None:
    if not holds:
        raise DataError(f"program: '{' '.join(statement)}': expected {expected}. Mend the statement.")
