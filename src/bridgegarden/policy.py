"""A next-token distribution that can be followed token by token: a finite-state process, a table, a language model.

Everything that rolls out or scores is written against these two protocols, so that the code which runs on a language
model is the very code that is tested against dynamic programming.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Policy(Protocol):
    """A distribution over the next token, given all tokens before it."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids, V."""
        ...

    def start(self, prefixes: Sequence[Sequence[int]]) -> "Decoding":
        """Read `prefixes`, one row each, of any lengths (equal ones or not).

        Raises:
            DataError: there is no prefix, or this policy cannot read one of them (an empty one, for a language model).
        """
        ...


@runtime_checkable
class Decoding(Protocol):
    """N texts in progress under one policy. Never changed: :meth:`extend` gives a new one, this one stays usable."""

    def log_probs(self) -> Tensor:
        """Log-probabilities of each row's next token, ``(N, V)`` nats, float32 or float64; not to be written to."""
        ...

    def ended(self) -> Tensor:
        """``(N,)`` bool: rows whose text is over; what `log_probs` says of them has no meaning."""
        ...

    def extend(self, rows: Tensor, tokens: Tensor) -> "Decoding":
        """The texts ``rows[i]`` followed by ``tokens[i]``: rows may be left out, repeated or reordered.

        Args:
            rows: ``(M,)`` int64 rows of this decoding.
            tokens: ``(M,)`` int64 token ids.
        """
        ...
