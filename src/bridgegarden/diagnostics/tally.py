"""How much work policies do: a wrapper that counts tokens on their way through, for progress and for the bill."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from bridgegarden.policy import Decoding, Policy


class Tally:
    """What one policy has done so far."""

    def __init__(self, on_tokens: Callable[[int], None] = lambda count: None) -> None:
        """
        Args:
            on_tokens: called with the number of texts each time that texts grow by a token.
        """
        self._on_tokens = on_tokens
        self.read = 0
        """Tokens of prefixes that were read before anything was written."""
        self.stepped = 0
        """Tokens that were fed one at a time; each gives a next-token distribution."""

    def add_prefixes(self, prefixes: Sequence[Sequence[int]]) -> None:
        """Prefixes are read."""
        self.read += sum(map(len, prefixes))

    def add_step(self, count: int) -> None:
        """`count` texts grow by a token."""
        self.stepped += count
        self._on_tokens(count)


@dataclass(frozen=True)
class TalliedPolicy:
    """A :class:`~bridgegarden.policy.Policy` that does what `policy` does, and counts it."""

    policy: Policy
    tally: Tally

    @property
    def vocab_size(self) -> int:
        """Of `policy`."""
        return self.policy.vocab_size

    def start(self, prefixes: Sequence[Sequence[int]]) -> "TalliedDecoding":
        """As `policy` does."""
        decoding = self.policy.start(prefixes)
        self.tally.add_prefixes(prefixes)
        return TalliedDecoding(decoding, self.tally)


@dataclass(frozen=True)
class TalliedDecoding:
    """A :class:`~bridgegarden.policy.Decoding` that counts."""

    decoding: Decoding
    tally: Tally

    def log_probs(self) -> Tensor:
        """As `decoding` gives them."""
        return self.decoding.log_probs()

    def ended(self) -> Tensor:
        """As `decoding` has it."""
        return self.decoding.ended()

    def extend(self, rows: Tensor, tokens: Tensor) -> "TalliedDecoding":
        """As `decoding` does, counted."""
        decoding = self.decoding.extend(rows, tokens)
        self.tally.add_step(len(rows))
        return TalliedDecoding(decoding, self.tally)
