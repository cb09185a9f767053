"""Messages: whom to write to, what about and which day must be exact, greeting and wording are a matter of taste.

A problem names a sender, a recipient and a few things, each some days after or before another day. An answer greets
the recipient, says the day of each thing (worked out, not copied) and repeats at the end the day it said last. Each of
these is written wrong with probability `slip_rate`; a wrong last day is repeated as it was written. The sender is never
written: a student has to find out which of the two names is meant.
"""

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
    fixed,
    slipping,
    wording,
)

PEOPLE = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Hugo")

THINGS = ("meeting", "parcel", "lecture", "visit", "concert", "invoice", "report", "picnic")

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

DIRECTIONS = ("after", "before")

GREETING: Phrases = MappingProxyType({"Dear": 0.5, "Hello": 0.25, "Hi": 0.15, "Good morning": 0.1})
"""Opens a message, before the recipient."""

LINKING: Phrases = MappingProxyType({"is on": 0.5, "will be": 0.25, "comes next": 0.15, "falls on": 0.1})
"""Leads from a thing to its day."""

FAREWELL: Phrases = MappingProxyType({"See you": 0.5, "Until then": 0.25, "Please answer": 0.15, "Yours until": 0.1})
"""Opens the last sentence, before the day that was said last."""

PROMPT_START: Phrases = MappingProxyType({"From": 0.5, "Note from": 0.3, "Message from": 0.2})
"""Opens a problem, before the sender."""

PROMPT_LINKING: Phrases = MappingProxyType({"is": 0.5, "comes": 0.3, "falls": 0.2})
"""Leads from a thing to when it is."""


class Item(NamedTuple):
    """One thing to tell, and how to work out its day."""

    thing: int
    """Index into `THINGS`."""

    day: int
    """The day to count from, an index into `DAYS`."""

    offset: int
    """Days to count, from 1."""

    direction: int
    """Index into `DIRECTIONS`."""

    def falls_on(self, days: int) -> int:
        """Its day in a week of `days` days."""
        return (self.day + (self.offset if self.direction == 0 else -self.offset)) % days


@dataclass(frozen=True, kw_only=True)
class Message:
    """What is to be written, without its wording."""

    sender: int
    """Index into `PEOPLE`."""

    recipient: int
    """Another one."""

    items: tuple[Item, ...]
    """What to tell, in order."""


class Said(NamedTuple):
    """What an answer has said."""

    recipient: int = -1
    """Index of the person greeted, -1 before."""

    things: tuple[int, ...] = ()
    """The things told."""

    days: tuple[int, ...] = ()
    """Their days."""

    repeated: int = -1
    """The day said at the end, -1 before."""


@dataclass(frozen=True, kw_only=True)
class DialogueWorld(World[Message]):
    """The vocabulary, wordings and slips shared by all messages of one size."""

    name: ClassVar[str] = "dialogue"

    people: int = 8
    """Names, from 2 to 8."""

    things: int = 8
    """What may be told of, from 2 to 8."""

    days: int = 7
    """Days of the week, from 2 to 7; the day after the last is the first."""

    items: int = 1
    """Things told in a message, from 1 to 4."""

    wordings: int = 4
    """Wordings of one Garden, from 1 to 4; the likeliest are kept."""

    prompt_wordings: int = 3
    """Wordings of each part of a prompt, from 1 to 3."""

    slip_rate: float = 0.1
    """Probability that a name, thing or day is written wrong, from 0 to below 1."""

    def __post_init__(self) -> None:
        sizes = {"people": (2, 8), "things": (2, 8), "days": (2, 7), "items": (1, 4), "wordings": (1, 4)}
        self._check(sizes | {"prompt_wordings": (1, 3)})

    def spoken(self) -> tuple[Sequence[str], Iterable[str]]:
        """Names, things, days and numbers, and the phrases of prompts and answers."""
        phrases = [", . : the day", "days" if self.days > 2 else "", "and" if self.items > 1 else "", *DIRECTIONS]
        for table in (GREETING, LINKING, FAREWELL):
            phrases += first_phrases(table, self.wordings)
        for table in (PROMPT_START, PROMPT_LINKING):
            phrases += first_phrases(table, self.prompt_wordings)
        numbers = tuple(str(offset) for offset in range(1, self.days))
        named = PEOPLE[: self.people] + THINGS[: self.things] + DAYS[: self.days]
        return named + numbers + ("to",), phrases

    def prompt(self, problem: Message, generator: torch.Generator) -> str:
        draws = iter(torch.rand(1 + len(problem.items), generator=generator, dtype=torch.float64).tolist())
        start = self._asked(PROMPT_START, next(draws))
        clauses = []
        for item in problem.items:
            link, unit = self._asked(PROMPT_LINKING, next(draws)), "day" if item.offset == 1 else "days"
            when = f"{item.offset} {unit} {DIRECTIONS[item.direction]} {DAYS[item.day]}"
            clauses.append(f"the {THINGS[item.thing]} {link} {when}")
        text = f"{start} {PEOPLE[problem.sender]} to {PEOPLE[problem.recipient]}: {' and '.join(clauses)}."
        return self.decode(self.encode(text))

    def process(self, problem: Message) -> "DialogueProcess":
        return DialogueProcess(self, problem)

    def succeeds(self, problem: Message, tokens: Sequence[int]) -> bool:
        """Whether `tokens` is a whole message on script, to the right person, all it tells being right."""
        process = self.process(problem)
        return process.read(tokens) == process.right

    @property
    def sizes(self) -> str:
        return f"{self.people} people, {self.things} things, {self.days} days and {self.items} items"

    @property
    def radices(self) -> Sequence[int]:
        item = (self.things, self.days, self.days - 1, len(DIRECTIONS))
        return self.people, self.people - 1, *item * self.items

    def problem_of(self, choices: Sequence[int]) -> Message:
        recipient, other, *parts = choices
        items = tuple(
            Item(thing=parts[at], day=parts[at + 1], offset=parts[at + 2] + 1, direction=parts[at + 3])
            for at in range(0, len(parts), 4)
        )
        # The sender is one of the others: counted on from the recipient, never all the way round.
        return Message(sender=(recipient + 1 + other) % self.people, recipient=recipient, items=items)

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """What an answer is made of, in order."""
        slots = [self._wording(GREETING), Slot("recipient"), fixed(self, ",")]
        for item in range(self.items):
            slots += [fixed(self, "the"), Slot("thing", item), self._wording(LINKING), Slot("day", item)]
            slots.append(fixed(self, "."))
        return (*slots, self._wording(FAREWELL), Slot("last day"), fixed(self, "."))

    def _wording(self, table: Phrases) -> Slot:
        return wording(self, first_phrases(table, self.wordings))

    @cached_property
    def named_ids(self) -> dict[str, range]:
        """Ids of what may be written at each choice, by the name of its slot."""
        days = range(self.ids[DAYS[0]], self.ids[DAYS[0]] + self.days)
        return {
            "recipient": range(self.ids[PEOPLE[0]], self.ids[PEOPLE[0]] + self.people),
            "thing": range(self.ids[THINGS[0]], self.ids[THINGS[0]] + self.things),
            "day": days,
            "last day": days,
        }


class DialogueProcess(ScriptProcess[Said]):
    """The answers to one problem."""

    def __init__(self, world: DialogueWorld, problem: Message):
        largest = [max(problem.sender, problem.recipient), *(max(part) for part in zip(*problem.items, strict=True))]
        sizes = [world.people, world.things, world.days, world.days, len(DIRECTIONS)]
        if len(problem.items) != world.items or any(part >= size for part, size in zip(largest, sizes, strict=True)):
            raise ConfigError(f"dialogue: {problem} does not fit {world}. Make the problem with world.problems(...).")
        super().__init__(world.slots, memory=Said(), vocab_size=len(world.vocabulary))
        self.world = world
        self.problem = problem

    @cached_property
    def right(self) -> Said:
        """What is remembered of an answer without a slip."""
        things = tuple(item.thing for item in self.problem.items)
        days = tuple(item.falls_on(self.world.days) for item in self.problem.items)
        return Said(recipient=self.problem.recipient, things=things, days=days, repeated=days[-1])

    def choices(self, slot: Slot, memory: Said) -> Choices:
        """All names, all things or all days."""
        tokens = self.world.named_ids[slot.name]
        right = tokens[self._right(slot, memory)]
        return slipping(tokens, right, slip_rate=self.world.slip_rate, vocab_size=self.vocab_size)

    def _right(self, slot: Slot, memory: Said) -> int:
        if slot.name == "recipient":
            return self.right.recipient
        if slot.name == "thing":
            return self.right.things[slot.index]
        return self.right.days[slot.index] if slot.name == "day" else memory.days[-1]

    def remember(self, slot: Slot, memory: Said, token: int) -> Said:
        """Everything said."""
        written = token - self.world.named_ids[slot.name].start
        if slot.name == "thing":
            return memory._replace(things=(*memory.things, written))
        if slot.name == "day":
            return memory._replace(days=(*memory.days, written))
        return memory._replace(**{"recipient" if slot.name == "recipient" else "repeated": written})
