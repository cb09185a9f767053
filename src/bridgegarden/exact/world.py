"""What a study needs of a world, and the four that are shipped, at sizes that can be solved exactly in seconds."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch

from bridgegarden.exact.problems import Split
from bridgegarden.exact.process import Process
from bridgegarden.exact.tasks.arithmetic import ArithmeticWorld
from bridgegarden.exact.tasks.control import ControlWorld
from bridgegarden.exact.tasks.dialogue import DialogueWorld
from bridgegarden.exact.tasks.program import ProgramWorld


@runtime_checkable
class World(Protocol):
    """Problems of one family and size, and for each the exact process that answers it.

    Everything the process depends on is in the prompt and in what has been written, so a student never has to guess.
    Problems are hashable, and belong to the world that made them.
    """

    name: ClassVar[str]
    """What the family is called."""

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Every token; its place is its id. The special tokens of `bridgegarden.exact.vocabulary` come first."""
        ...

    @property
    def ids(self) -> Mapping[str, int]:
        """Token to id."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text; a word outside the vocabulary becomes `UNKNOWN`."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`, special ones left out."""
        ...

    def problems(self, n: int, seed: int, *, split: Split = "train") -> list[Any]:
        """`n` distinct problems of one split, in random order. No problem is in two splits, whatever the seeds.

        Raises:
            ConfigError: when the split has fewer than `n` problems.
        """
        ...

    def prompt(self, problem: Any, generator: torch.Generator) -> str:
        """`problem` in words, its wording drawn at random."""
        ...

    def prompt_ids(self, problem: Any, generator: torch.Generator) -> list[int]:
        """The whole prompt as a student sees it, in a wording drawn at random; the answer starts right after it."""
        ...

    def process(self, problem: Any) -> Process[Any]:
        """The exact process that answers `problem`, the end token being the last of an answer."""
        ...

    def succeeds(self, problem: Any, tokens: Sequence[int]) -> bool:
        """Whether the answer `tokens` does what was asked."""
        ...


WORLDS: Mapping[str, Callable[..., World]] = MappingProxyType(
    {
        "dialogue": partial(DialogueWorld, people=3, things=3, days=4, wordings=2, prompt_wordings=2),
        "arithmetic": partial(
            ArithmeticWorld, modulus=5, steps=2, wordings=2, closings=1, prompt_wordings=1, restate=False
        ),
        "program": partial(ProgramWorld, variables=3, constants=3, wordings=2, prompt_wordings=1),
        "control": partial(ControlWorld, people=6, topics=6, tones=4, hours=4, wordings=2, prompt_wordings=1),
    }
)
"""Each family at the size of the lab; fields given to an entry override its sizes."""
