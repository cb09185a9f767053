"""What all worlds share about text: five special tokens, one way to split words, a prompt as a student sees it."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch

from bridgegarden.errors import ConfigError
from bridgegarden.exact.phrases import Phrases

PAD, UNKNOWN, USER, ASSISTANT, END = range(5)
"""Ids of the special tokens, the same in every world."""

SPECIAL_TOKENS = ("<|pad|>", "<|unknown|>", "<|user|>", "<|assistant|>", "<|end|>")

_WORD = re.compile(r"\w+|[^\w\s]")


def split_words(text: str) -> list[str]:
    """Words and punctuation marks of `text`, one token each."""
    return _WORD.findall(text)


class SpokenWorld(ABC):
    """A world's text as token ids. The id of a token is its place in `vocabulary`."""

    name: ClassVar[str]
    """What the family of worlds is called."""

    @abstractmethod
    def spoken(self) -> tuple[Sequence[str], Iterable[str]]:
        """Words whose ids stand in this order, and phrases that hold all others."""

    @abstractmethod
    def prompt(self, problem: Any, generator: torch.Generator) -> str:
        """`problem` in words, its wording drawn at random."""

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Every token, the special ones first."""
        return self._vocabulary

    @cached_property
    def _vocabulary(self) -> tuple[str, ...]:
        first, phrases = self.spoken()
        others = {word for phrase in phrases for word in split_words(phrase)}.difference(first)
        return (*SPECIAL_TOKENS, *first, *sorted(others))

    @property
    def ids(self) -> Mapping[str, int]:
        """Token to id."""
        return self._ids

    @cached_property
    def _ids(self) -> Mapping[str, int]:
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

    def prompt_ids(self, problem: Any, generator: torch.Generator) -> list[int]:
        """The ids that an answer to `problem` follows: all that a student sees of it."""
        return ask(self.encode(self.prompt(problem, generator)))

    def _check(self, sizes: Mapping[str, tuple[int, int]], rates: Sequence[str] = ("slip_rate",)) -> None:
        """Refuse fields of `sizes` that are no whole number from low to high, and rates outside [0, 1)."""
        for field, (low, high) in sizes.items():
            value = getattr(self, field)
            if not isinstance(value, int) or not low <= value <= high:
                raise ConfigError(f"{self.name}.{field} must be a whole number from {low} to {high}, got {value}.")
        for field in rates:
            if not 0 <= getattr(self, field) < 1:
                raise ConfigError(f"{self.name}.{field} must be >= 0 and < 1, got {getattr(self, field)}.")


def ask(prompt: Sequence[int]) -> list[int]:
    """The ids of a prompt as the chat template renders them, up to and including the assistant's mark."""
    return [USER, *prompt, END, ASSISTANT]
