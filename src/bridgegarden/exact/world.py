"""What all worlds share: problems in splits that have none in common, text as token ids, phrases to choose from."""

import hashlib
import random
import re
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from math import prod
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch

from bridgegarden.errors import ConfigError
from bridgegarden.exact.process import Process

PAD, UNKNOWN, USER, ASSISTANT, END = range(5)
"""Ids of the special tokens, the same in every world."""

SPECIAL_TOKENS = ("<|pad|>", "<|unknown|>", "<|user|>", "<|assistant|>", "<|end|>")

Phrases = Mapping[str, float]
"""Phrase to weight, the likeliest first."""

ProblemT = TypeVar("ProblemT")

Split = Literal["train", "validation", "test"]

SPLIT_SHARES: Mapping[Split, int] = {"train": 80, "validation": 10, "test": 10}
"""Per cent of all problems in each split."""

_WORD = re.compile(r"\w+|[^\w\s]")


class World(ABC, Generic[ProblemT]):
    """Problems of one family and size, and for each the exact process that answers it. All of it is text, as token ids.

    Everything the process depends on is in the prompt and in what has been written, so a student never has to guess.
    Problems are hashable, and belong to the world that made them.
    """

    name: ClassVar[str]
    """What the family is called."""

    prompt_wordings: int
    """Wordings of each part of a prompt; the likeliest are kept."""

    sizes: str
    """What decides how many problems there are, in words."""

    radices: Sequence[int]
    """How many values each choice has that a problem is made of; their product is the number of problems."""

    @abstractmethod
    def problem_of(self, choices: Sequence[int]) -> ProblemT:
        """The problem of these choices, each from 0 to below its radix; other choices give another problem."""

    @abstractmethod
    def spoken(self) -> tuple[Sequence[str], Iterable[str]]:
        """Words whose ids stand in this order, and phrases that hold all others."""

    @abstractmethod
    def prompt(self, problem: ProblemT, generator: torch.Generator) -> str:
        """`problem` in words, its wording drawn at random."""

    @abstractmethod
    def process(self, problem: ProblemT) -> Process[Any]:
        """The exact process that answers `problem`, the end token being the last of an answer."""

    @abstractmethod
    def succeeds(self, problem: ProblemT, tokens: Sequence[int]) -> bool:
        """Whether the answer `tokens` does what was asked."""

    def problems(self, n: int, seed: int, *, split: Split = "train") -> list[ProblemT]:
        """`n` distinct problems of one split, in random order. No problem is in two splits, whatever the seeds.

        Raises:
            ConfigError: when the split has fewer than `n` problems.
        """
        count = prod(self.radices)
        codes = random.Random(seed).sample(range(count), min(count, 150 * n // SPLIT_SHARES[split] + 1000))
        drawn = (self.problem_of(digits(code, self.radices)) for code in codes)
        problems = [problem for problem in drawn if split_of(problem) == split][:n]
        if len(problems) < n:
            raise ConfigError(
                f"{self.name}: asked for {n} {split} problems, but {self.sizes} give {len(problems)}. "
                "Ask for fewer, or raise one of the sizes."
            )
        return problems

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """Every token, the special ones first; its place is its id."""
        first, phrases = self.spoken()
        others = {word for phrase in phrases for word in split_words(phrase)}.difference(first)
        return (*SPECIAL_TOKENS, *first, *sorted(others))

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """Token to id."""
        return {word: index for index, word in enumerate(self.vocabulary)}

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text; a word outside the vocabulary becomes `UNKNOWN`."""
        return [self.ids.get(word, UNKNOWN) for word in split_words(text)]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`, special ones left out."""
        text = " ".join(self.vocabulary[token] for token in tokens if token >= len(SPECIAL_TOKENS))
        return re.sub(r" ([.,!?])", r"\1", text)

    def encode_phrases(self, phrases: Phrases) -> dict[tuple[int, ...], float]:
        """`phrases` with token ids for words."""
        return {tuple(self.encode(phrase)): weight for phrase, weight in phrases.items()}

    def prompt_ids(self, problem: ProblemT, generator: torch.Generator) -> list[int]:
        """The whole prompt as a student sees it, in a wording drawn at random; the answer starts right after it."""
        return ask(self.encode(self.prompt(problem, generator)))

    def _asked(self, table: Phrases, uniform: float) -> str:
        return phrase_at(first_phrases(table, self.prompt_wordings), uniform)

    def _check(self, sizes: Mapping[str, tuple[int, int]], rates: Sequence[str] = ("slip_rate",)) -> None:
        """Refuse fields of `sizes` that are no whole number from low to high, and rates outside [0, 1)."""
        for field, (low, high) in sizes.items():
            value = getattr(self, field)
            if not isinstance(value, int) or not low <= value <= high:
                raise ConfigError(f"{self.name}.{field} must be a whole number from {low} to {high}, got {value}.")
        for field in rates:
            if not 0 <= getattr(self, field) < 1:
                raise ConfigError(f"{self.name}.{field} must be >= 0 and < 1, got {getattr(self, field)}.")


def split_words(text: str) -> list[str]:
    """Words and punctuation marks of `text`, one token each."""
    return _WORD.findall(text)


def ask(prompt: Sequence[int]) -> list[int]:
    """The ids of a prompt as the chat template renders them, up to and including the assistant's mark."""
    return [USER, *prompt, END, ASSISTANT]


def first_phrases(table: Phrases, count: int) -> Phrases:
    """The `count` likeliest phrases of `table`."""
    return dict(list(table.items())[:count])


def phrase_at(table: Phrases, uniform: float) -> str:
    """The phrase at which the cumulative weight passes `uniform`, a number from 0 to below 1."""
    reached = list(accumulate(table.values()))
    return list(table)[bisect_right(reached, uniform * reached[-1])]


def split_of(problem: object) -> Split:
    """Where `problem` belongs, by its content alone (its `repr`): 80 % train, 10 % validation, 10 % test."""
    bucket = int.from_bytes(hashlib.sha256(repr(problem).encode()).digest()[:8]) % 100
    ends = accumulate(SPLIT_SHARES.values())
    return next(split for split, end in zip(SPLIT_SHARES, ends, strict=True) if bucket < end)


def digits(code: int, radices: Sequence[int]) -> list[int]:
    """`code`, from 0 to below the product of `radices`, in mixed radix, the fastest digit first."""
    if not 0 <= code < prod(radices):
        raise ConfigError(f"problem {code}: there are {prod(radices)}, numbered from 0. Ask for one of them.")
    found = []
    for radix in radices:
        code, digit = divmod(code, radix)
        found.append(digit)
    return found
