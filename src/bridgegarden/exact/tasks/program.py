"""Programs: operators, operands, tests and returns must be exact; names, comments and commuted operands may vary.

A problem says in words what to compute and what to return when. An answer is a program in a tiny language: assignments,
then tests that return early, then a return. It can be run to see whether it does what was asked.

    t1 = sub ( a , b ) ; if t1 > 2 : return a ; return t1

Statements are separated by ``;``. Words from ``#`` up to the next ``;`` are a comment. Each operator, each order of
operands that matters, comparator, constant and returned name is written wrong with probability `slip_rate`. The same
two tokens are a Bridge after ``sub (`` and a Garden after ``add (``.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from types import MappingProxyType
from typing import ClassVar, NamedTuple

import torch

from bridgegarden.errors import ConfigError, DataError
from bridgegarden.exact.world import (
    END,
    Choices,
    Phrases,
    ScriptProcess,
    Slot,
    World,
    first_phrases,
    fixed,
    slipping,
    weighted,
    wording,
)

OPERATORS = ("add", "mul", "sub")

COMMUTATIVE = frozenset({"add", "mul"})
"""Operators whose operands may change places."""

COMPARATORS = (">", "<")

VARIABLES = ("a", "b", "c", "d", "e", "f")

ASKED_OPERATORS = MappingProxyType({"add": "plus", "mul": "times", "sub": "minus"})
"""What a prompt calls an operator."""

ASKED_COMPARATORS = MappingProxyType({">": "over", "<": "under"})
"""What a prompt calls a comparator."""

TEMPORARIES: Phrases = MappingProxyType({"t": 0.5, "u": 0.25, "v": 0.15, "w": 0.1})
"""Names of a temporary; the number of its assignment is put behind."""

SEPARATOR: Phrases = MappingProxyType({";": 0.5, "# so ;": 0.25, "# then ;": 0.15, "# next ;": 0.1})
"""Ends an assignment, with or without a comment."""

IN_ORDER = 0.6
"""Probability that the operands of a commutative operator stand in the order of the prompt."""

PROMPT_START: Phrases = MappingProxyType({"Take": 0.5, "Compute": 0.3, "Start from": 0.2})
"""Opens a problem, before the first operation."""

PROMPT_TEST: Phrases = MappingProxyType({"If it is": 0.5, "When it is": 0.3, "Where it is": 0.2})
"""Opens a test, before its comparator."""

PROMPT_OTHERWISE: Phrases = MappingProxyType({"Otherwise return": 0.5, "Else return": 0.3, "If not return": 0.2})
"""Opens the last sentence of a problem."""

IT = "it"
"""What a problem calls the value computed last."""

FORMS = tuple(
    (operator, swap) for operator in OPERATORS for swap in (False, True) if not (swap and operator in COMMUTATIVE)
)
"""Every operator with every order of its operands that makes a difference."""


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


class Draft(NamedTuple):
    """What a program has said."""

    said: tuple[int, ...] = ()
    """What its results depend on, in order: token ids, or places among operands and values that can be returned."""

    names: tuple[int, ...] = ()
    """Ids of the temporaries named."""

    operator: int = -1
    """Id of the operator whose operands are being written, -1 outside."""

    first: int = -1
    """Id of the operand written while the other one is pending, -1 outside."""


@dataclass(frozen=True, kw_only=True)
class ProgramWorld(World[Specification]):
    """The vocabulary, wordings and slips shared by all programs of one size."""

    name: ClassVar[str] = "program"

    variables: int = 6
    """Variables that the two of a problem are chosen from, from 2 to 6."""

    assignments: int = 1
    """Values that a program computes, from 1 to 4."""

    branches: int = 1
    """Tests that return early, from 1 to 4. With several a later one can be out of reach."""

    constants: int = 4
    """Tests compare with 1 up to this constant, from 2 to 9."""

    wordings: int = 4
    """Most names of a temporary, and ways to end an assignment, from 1 to 4; the likeliest are kept."""

    prompt_wordings: int = 3
    """Wordings of each part of a prompt, from 1 to 3."""

    slip_rate: float = 0.1
    """Probability that something is written wrong where it matters, from 0 to below 1."""

    def __post_init__(self) -> None:
        sizes = {"variables": (2, 6), "assignments": (1, 4), "branches": (1, 4), "constants": (2, 9)}
        self._check(sizes | {"wordings": (1, 4), "prompt_wordings": (1, 3)})

    def spoken(self) -> tuple[Sequence[str], Iterable[str]]:
        """Names, constants, operators and comparators, and the phrases of prompts and answers."""
        phrases = [f"= ( ) , : . return if {IT}", "then" if self.assignments > 1 else ""]
        phrases += [*ASKED_OPERATORS.values(), *ASKED_COMPARATORS.values()]
        phrases += first_phrases(SEPARATOR, self.wordings)
        for table in (PROMPT_START, PROMPT_TEST, PROMPT_OTHERWISE):
            phrases += first_phrases(table, self.prompt_wordings)
        temporaries = tuple(name for place in range(self.assignments) for name in self.temporaries(place))
        constants = tuple(str(constant + 1) for constant in range(self.constants))
        named = VARIABLES[: self.variables] + temporaries
        return named + constants + OPERATORS + COMPARATORS, phrases

    def temporaries(self, place: int) -> list[str]:
        """Names that the result of an assignment, counted from 0, may be given."""
        return [f"{name}{place + 1}" for name in first_phrases(TEMPORARIES, self.wordings)]

    def prompt(self, problem: Specification, generator: torch.Generator) -> str:
        draws = iter(torch.rand(2 + len(problem.tests), generator=generator, dtype=torch.float64).tolist())
        start = self._asked(PROMPT_START, next(draws))
        computed = [f"{first} {ASKED_OPERATORS[name]} {second}" for name, first, second in problem.computations]
        sentences = [f"{start} {', then '.join(computed)}"]
        for comparator, constant, value in problem.tests:
            test = f"{self._asked(PROMPT_TEST, next(draws))} {ASKED_COMPARATORS[comparator]} {constant}"
            sentences.append(f"{test} return {value}")
        sentences.append(f"{self._asked(PROMPT_OTHERWISE, next(draws))} {problem.otherwise}")
        return self.decode(self.encode(". ".join(sentences) + "."))

    def process(self, problem: Specification) -> "ProgramProcess":
        return ProgramProcess(self, problem)

    def succeeds(self, problem: Specification, tokens: Sequence[int]) -> bool:
        """Whether `tokens` is a finished program that returns what was asked for, found by running both.

        The variables take all whole numbers up to one beyond the largest constant, and their negatives. Two different
        programs that return the same for all of them both succeed: ``a * b < 1`` and ``a * b < 2`` differ only for
        a = b = 1 and a = b = -1, where it does not matter which of the two is returned.
        """
        if not tokens or tokens[-1] != END:
            return False
        try:
            written = parse([self.vocabulary[token] for token in tokens[:-1]], problem.variables)
        except DataError:  # a text that is no program is a wrong answer
            return False
        inputs = range(-self.constants - 1, self.constants + 2)
        return same_results(written, problem.program(), problem.variables, inputs)

    @property
    def sizes(self) -> str:
        numbers = f"{self.variables} variables, {self.assignments} assignments, {self.branches} branches"
        return f"{numbers} and {self.constants} constants"

    @property
    def radices(self) -> Sequence[int]:
        """One digit for the variables, then those of each computation, each test, and the last return."""
        computations = [len(FORMS), *[2, len(FORMS)] * (self.assignments - 1)]
        tests = [len(COMPARATORS), self.constants, 2] * self.branches
        return [len(self._pairs), *computations, *tests, 3]

    @property
    def _pairs(self) -> list[tuple[str, str]]:
        return list(combinations(VARIABLES[: self.variables], 2))

    def problem_of(self, choices: Sequence[int]) -> Specification:
        """No test returns what the next one, or the last return, does."""
        left = iter(choices)
        variables = self._pairs[next(left)]
        computations = [_computation(variables, next(left))]
        for _ in range(self.assignments - 1):
            computations.append(_computation((IT, variables[next(left)]), next(left)))
        parts = [(COMPARATORS[next(left)], next(left) + 1, next(left) + 1) for _ in range(self.branches)]
        values = (*variables, IT)
        returned = next(left)
        otherwise = values[returned]
        tests: list[Condition] = []
        for comparator, constant, turn in reversed(parts):
            # Counted on from what is returned next, never all the way round.
            returned = (returned + turn) % len(values)
            tests.insert(0, Condition(comparator, constant, values[returned]))
        return Specification(
            variables=variables, computations=tuple(computations), tests=tuple(tests), otherwise=otherwise
        )

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """What an answer is made of, in order."""
        slots: list[Slot] = []
        for place in range(self.assignments):
            slots += [Slot("name", place), fixed(self, "="), Slot("operator", place), fixed(self, "(")]
            slots += [Slot("first", place), fixed(self, ","), Slot("second", place), fixed(self, ")")]
            slots.append(wording(self, first_phrases(SEPARATOR, self.wordings)))
        for place in range(self.branches):
            slots += [fixed(self, "if"), Slot("tested", place), Slot("comparator", place), Slot("constant", place)]
            slots += [fixed(self, ": return"), Slot("value", place), fixed(self, ";")]
        return (*slots, fixed(self, "return"), Slot("value", self.branches))


class ProgramProcess(ScriptProcess[Draft]):
    """The answers to one problem."""

    def __init__(self, world: ProgramWorld, problem: Specification):
        fits = (
            (len(problem.computations), len(problem.tests)) == (world.assignments, world.branches)
            and set(problem.variables) <= set(VARIABLES[: world.variables])
            and max(test.constant for test in problem.tests) <= world.constants
        )
        if not fits:
            raise ConfigError(f"program: {problem} does not fit {world}. Make the problem with world.problems(...).")
        super().__init__(world.slots, memory=Draft(), vocab_size=len(world.vocabulary))
        self.world = world
        self.problem = problem

    def matters(self, memory: Draft) -> Hashable:
        """Everything but the names, and the operand of a commutative operator that happens to stand first."""
        return memory.said

    def choices(self, slot: Slot, memory: Draft) -> Choices:
        """What keeps a program well-formed: a name has to have a value, and both operands have to be used."""
        ids = self.world.ids
        if slot.name == "name":
            names = tuple(ids[name] for name in self.world.temporaries(slot.index))
            return weighted(names, tuple(TEMPORARIES.values())[: len(names)], vocab_size=self.vocab_size)
        if slot.name == "tested":
            return weighted(memory.names[-1:], (1.0,), vocab_size=self.vocab_size)
        if slot.name == "operator":
            return self._slipping(self._tokens(OPERATORS), ids[self.problem.computations[slot.index].operator])
        if slot.name in ("first", "second"):
            return self._operands(slot, memory)
        if slot.name == "comparator":
            return self._slipping(self._tokens(COMPARATORS), ids[self.problem.tests[slot.index].comparator])
        if slot.name == "constant":
            constants = range(ids["1"], ids["1"] + self.world.constants)
            return self._slipping(constants, ids[str(self.problem.tests[slot.index].constant)])
        asked = [*(test.value for test in self.problem.tests), self.problem.otherwise][slot.index]
        return self._slipping(self._values(memory), self._values(memory)[self._asked_values.index(asked)])

    def remember(self, slot: Slot, memory: Draft, token: int) -> Draft:
        """Names, what was said, and of operands only what still matters."""
        if slot.name == "name":
            return memory._replace(names=(*memory.names, token))
        if slot.name == "tested":
            return memory
        if slot.name == "first":
            ordered = self._operator(memory) not in COMMUTATIVE
            place = self._pair(slot, memory).index(token)
            return memory._replace(first=token, said=(*memory.said, place) if ordered else memory.said)
        if slot.name == "second":
            return memory._replace(operator=-1, first=-1)
        said = self._values(memory).index(token) if slot.name == "value" else token
        operator = token if slot.name == "operator" else -1
        return memory._replace(said=(*memory.said, said), operator=operator)

    def _operands(self, slot: Slot, memory: Draft) -> Choices:
        first, second = self._pair(slot, memory)
        if slot.name == "second":
            return weighted((second if memory.first == first else first,), (1.0,), vocab_size=self.vocab_size)
        if self._operator(memory) in COMMUTATIVE:
            return weighted((first, second), (IN_ORDER, 1 - IN_ORDER), vocab_size=self.vocab_size)
        return self._slipping((first, second), first)

    def _pair(self, slot: Slot, memory: Draft) -> tuple[int, int]:
        """Ids of the operands in the order asked for; `it` is the temporary before the one being computed."""
        asked = self.problem.computations[slot.index]
        before = memory.names[slot.index - 1]
        first, second = (before if name == IT else self.world.ids[name] for name in (asked.first, asked.second))
        return first, second

    def _operator(self, memory: Draft) -> str:
        return self.world.vocabulary[memory.operator]

    @property
    def _asked_values(self) -> tuple[str, ...]:
        return (*self.problem.variables, IT)

    def _values(self, memory: Draft) -> tuple[int, ...]:
        """Ids of what can be returned, in the order of `_asked_values`."""
        return (*self._tokens(self.problem.variables), memory.names[-1])

    def _tokens(self, spelled: Sequence[str]) -> tuple[int, ...]:
        return tuple(self.world.ids[word] for word in spelled)

    def _slipping(self, tokens: Sequence[int], right: int) -> Choices:
        return slipping(tokens, right, slip_rate=self.world.slip_rate, vocab_size=self.vocab_size)


def _computation(operands: tuple[str, str], form: int) -> Computation:
    operator, swap = FORMS[form]
    return Computation(operator, *(reversed(operands) if swap else operands))
