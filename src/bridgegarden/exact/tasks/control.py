"""The negative control: small talk without a single Bridge.

A problem asks for a few words in some tone. An answer is made of wordings alone: nothing it says can be wrong, so no
rule that is exact where it matters has anything to gain. The tone decides which wordings are likely, so there is
something to learn; whom to tell, about what and when changes nothing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import ClassVar

import torch

from bridgegarden.errors import ConfigError
from bridgegarden.exact.world import Phrases, ScriptProcess, Slot, World, first_phrases, fixed, wording

PEOPLE = ("Ida", "Jan", "Klara", "Leo", "Mina", "Nils", "Olga", "Paul")

TOPICS = ("weather", "garden", "market", "music", "river", "library", "harbour", "forest")

TONES = ("kindly", "calmly", "warmly", "plainly")

OPENING: Phrases = MappingProxyType({"Well": 0.5, "Oh": 0.25, "Now": 0.15, "Indeed": 0.1})
"""Opens a sentence."""

SUBJECT: Phrases = MappingProxyType({"it was": 0.5, "that seemed": 0.25, "all felt": 0.15, "this looked": 0.1})
"""Says what the sentence is about, which is anything."""

DEGREE: Phrases = MappingProxyType({"rather": 0.5, "quite": 0.25, "very": 0.15, "fairly": 0.1})
"""Says how much."""

QUALITY: Phrases = MappingProxyType({"nice": 0.5, "fine": 0.25, "good": 0.15, "lovely": 0.1})
"""Says what it was like."""

TIME: Phrases = MappingProxyType({"today": 0.5, "again": 0.25, "lately": 0.15, "overall": 0.1})
"""Ends a sentence, before the full stop."""

SENTENCE = (OPENING, SUBJECT, DEGREE, QUALITY, TIME)
"""The wordings of a sentence, in order."""

PROMPT_START: Phrases = MappingProxyType({"Tell": 0.5, "Answer": 0.3, "Write to": 0.2})
"""Opens a problem, before whom to tell."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be said, without its wording: indices into the tables of `control_words`, and an hour from 1."""

    person: int
    """Whom to tell."""

    topic: int
    """What about."""

    tone: int
    """How: decides which wordings are likely."""

    hour: int
    """When."""


@dataclass(frozen=True, kw_only=True)
class ControlWorld(World[Request]):
    """The vocabulary and wordings shared by all requests of one size."""

    name: ClassVar[str] = "control"

    people: int = 8
    """Names, from 1 to 8."""

    topics: int = 8
    """What may be talked of, from 1 to 8."""

    tones: int = 4
    """Tones, from 1 to 4."""

    hours: int = 12
    """Hours of the day, from 1 to 24."""

    sentences: int = 2
    """Sentences of an answer, from 1 to 6."""

    wordings: int = 4
    """Wordings of one Garden, from 1 to 4; the likeliest are kept."""

    prompt_wordings: int = 3
    """Ways to begin a prompt, from 1 to 3."""

    def __post_init__(self) -> None:
        sizes = {"people": (1, 8), "topics": (1, 8), "tones": (1, 4), "hours": (1, 24), "sentences": (1, 6)}
        self._check(sizes | {"wordings": (1, 4), "prompt_wordings": (1, 3)}, rates=())

    def spoken(self) -> tuple[Sequence[str], Iterable[str]]:
        """Names, topics, tones and hours, and the phrases of prompts and answers."""
        phrases = [", . at about the", *first_phrases(PROMPT_START, self.prompt_wordings)]
        for table in SENTENCE:
            phrases += first_phrases(table, self.wordings)
        hours = tuple(str(hour + 1) for hour in range(self.hours))
        named = PEOPLE[: self.people] + TOPICS[: self.topics] + TONES[: self.tones]
        return named + hours, phrases

    def prompt(self, problem: Request, generator: torch.Generator) -> str:
        uniform = torch.rand(1, generator=generator, dtype=torch.float64).item()
        start = self._asked(PROMPT_START, uniform)
        person, topic, tone = PEOPLE[problem.person], TOPICS[problem.topic], TONES[problem.tone]
        return self.decode(self.encode(f"{start} {person} {tone} at {problem.hour} about the {topic}."))

    def process(self, problem: Request) -> "ControlProcess":
        return ControlProcess(self, problem)

    def succeeds(self, problem: Request, tokens: Sequence[int]) -> bool:
        """Whether `tokens` is a whole text on script: there is no other way to fail."""
        return self.process(problem).read(tokens) is not None

    @property
    def sizes(self) -> str:
        return f"{self.people} people, {self.topics} topics, {self.tones} tones and {self.hours} hours"

    @property
    def radices(self) -> Sequence[int]:
        return self.people, self.topics, self.tones, self.hours

    def problem_of(self, choices: Sequence[int]) -> Request:
        person, topic, tone, hour = choices
        return Request(person=person, topic=topic, tone=tone, hour=hour + 1)

    @cached_property
    def slots(self) -> tuple[tuple[Slot, ...], ...]:
        """For each tone, what an answer is made of, in order."""
        sentences = [self._sentence(tone) for tone in range(self.tones)]
        return tuple(sentence * self.sentences for sentence in sentences)

    def _sentence(self, tone: int) -> tuple[Slot, ...]:
        opening, *rest = [wording(self, self._in_tone(table, tone)) for table in SENTENCE]
        return (opening, fixed(self, ","), *rest, fixed(self, "."))

    def _in_tone(self, table: Phrases, tone: int) -> Phrases:
        """The wordings of `table`, their weights moved on by one place for each tone."""
        kept = first_phrases(table, self.wordings)
        weights = list(kept.values())
        return {phrase: weights[(place - tone) % len(weights)] for place, phrase in enumerate(kept)}


class ControlProcess(ScriptProcess[tuple[()]]):
    """The answers to one problem. Every slot is a Garden, and there is nothing to remember."""

    def __init__(self, world: ControlWorld, problem: Request):
        indices = (problem.person, problem.topic, problem.tone, problem.hour - 1)
        sizes = (world.people, world.topics, world.tones, world.hours)
        if any(not 0 <= index < size for index, size in zip(indices, sizes, strict=True)):
            raise ConfigError(f"control: {problem} does not fit {world}. Make the problem with world.problems(...).")
        super().__init__(world.slots[problem.tone], memory=(), vocab_size=len(world.vocabulary))
        self.world = world
        self.problem = problem
