"""Programs: operators, operands, tests and returns must be exact; names, comments and commuted operands may vary.

A problem says in words what to compute and what to return when. An answer is a program in the language of
`program_language`, which can be run to see whether it does what was asked. Each operator, each order of operands that
matters, comparator, constant and returned name is written wrong with probability `slip_rate`. The same two tokens are
a Bridge after ``sub (`` and a Garden after ``add (``.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import ClassVar, NamedTuple

import torch

from bridgegarden.errors import ConfigError, DataError
from bridgegarden.exact.phrases import Phrases, first_phrases, phrase_at
from bridgegarden.exact.problems import Split, draw_problems
from bridgegarden.exact.script import Choices, ScriptProcess, Slot, fixed, slipping, weighted, wording
from bridgegarden.exact.tasks import program_words as words
from bridgegarden.exact.tasks.program_language import COMMUTATIVE, COMPARATORS, OPERATORS, parse, same_results
from bridgegarden.exact.tasks.program_problems import IT, Specification, SpecificationSizes, nth_specification
from bridgegarden.exact.vocabulary import END, SPECIAL_TOKENS, SpokenWorld


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
class ProgramWorld(SpokenWorld):
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
        phrases += [*words.ASKED_OPERATORS.values(), *words.ASKED_COMPARATORS.values()]
        phrases += first_phrases(words.SEPARATOR, self.wordings)
        for table in (words.PROMPT_START, words.PROMPT_TEST, words.PROMPT_OTHERWISE):
            phrases += first_phrases(table, self.prompt_wordings)
        temporaries = tuple(name for place in range(self.assignments) for name in self.temporaries(place))
        constants = tuple(str(constant + 1) for constant in range(self.constants))
        named = words.VARIABLES[: self.variables] + temporaries
        return named + constants + OPERATORS + COMPARATORS, phrases

    def temporaries(self, place: int) -> list[str]:
        """Names that the result of an assignment, counted from 0, may be given."""
        return [f"{name}{place + 1}" for name in first_phrases(words.TEMPORARIES, self.wordings)]

    def prompt(self, problem: Specification, generator: torch.Generator) -> str:
        """The problem in words, its wording drawn at random."""
        draws = iter(torch.rand(2 + len(problem.tests), generator=generator, dtype=torch.float64).tolist())
        start = self._asked(words.PROMPT_START, next(draws))
        computed = [f"{first} {words.ASKED_OPERATORS[name]} {second}" for name, first, second in problem.computations]
        sentences = [f"{start} {', then '.join(computed)}"]
        for comparator, constant, value in problem.tests:
            test = f"{self._asked(words.PROMPT_TEST, next(draws))} {words.ASKED_COMPARATORS[comparator]} {constant}"
            sentences.append(f"{test} return {value}")
        sentences.append(f"{self._asked(words.PROMPT_OTHERWISE, next(draws))} {problem.otherwise}")
        return self.decode(self.encode(". ".join(sentences) + "."))

    def _asked(self, table: Phrases, uniform: float) -> str:
        return phrase_at(first_phrases(table, self.prompt_wordings), uniform)

    def process(self, problem: Specification) -> "ProgramProcess":
        """The exact process that answers `problem`."""
        return ProgramProcess(self, problem)

    def succeeds(self, problem: Specification, tokens: Sequence[int]) -> bool:
        """Whether `tokens` is a finished program that returns what was asked for, found by running both.

        The variables take all whole numbers up to one beyond the largest constant, and their negatives. Two different
        programs that return the same for all of them both succeed: ``a * b < 1`` and ``a * b < 2`` differ only for
        a = b = 1 and a = b = -1, where it does not matter which of the two is returned.
        """
        if not tokens or tokens[-1] != END or any(token < len(SPECIAL_TOKENS) for token in tokens[:-1]):
            return False
        try:
            written = parse([self.vocabulary[token] for token in tokens[:-1]], problem.variables)
        except DataError:  # a text that is no program is a wrong answer
            return False
        inputs = range(-self.constants - 1, self.constants + 2)
        return same_results(written, problem.program(), problem.variables, inputs)

    def problems(self, n: int, seed: int, *, split: Split = "train") -> list[Specification]:
        """`n` distinct problems of one split, in random order. No problem is in two splits, whatever the seeds.

        Raises:
            ConfigError: when the split has fewer than `n` problems.
        """
        return draw_problems(
            n,
            seed,
            split=split,
            count=prod(self._sizes.radices()),
            nth=lambda code: nth_specification(code, self._sizes),
            world=self.name,
            sizes=f"{self.variables} variables, {self.assignments} assignments, {self.branches} branches and "
            f"{self.constants} constants",
        )

    @cached_property
    def _sizes(self) -> SpecificationSizes:
        return SpecificationSizes(
            variables=self.variables, assignments=self.assignments, branches=self.branches, constants=self.constants
        )

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """What an answer is made of, in order."""
        slots: list[Slot] = []
        for place in range(self.assignments):
            slots += [Slot("name", place), fixed(self, "="), Slot("operator", place), fixed(self, "(")]
            slots += [Slot("first", place), fixed(self, ","), Slot("second", place), fixed(self, ")")]
            slots.append(wording(self, first_phrases(words.SEPARATOR, self.wordings)))
        for place in range(self.branches):
            slots += [fixed(self, "if"), Slot("tested", place), Slot("comparator", place), Slot("constant", place)]
            slots += [fixed(self, ": return"), Slot("value", place), fixed(self, ";")]
        return (*slots, fixed(self, "return"), Slot("value", self.branches))


class ProgramProcess(ScriptProcess[Draft]):
    """The answers to one problem."""

    def __init__(self, world: ProgramWorld, problem: Specification):
        fits = (
            (len(problem.computations), len(problem.tests)) == (world.assignments, world.branches)
            and set(problem.variables) <= set(words.VARIABLES[: world.variables])
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
            return weighted(names, tuple(words.TEMPORARIES.values())[: len(names)], vocab_size=self.vocab_size)
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
            return weighted((first, second), (words.IN_ORDER, 1 - words.IN_ORDER), vocab_size=self.vocab_size)
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
