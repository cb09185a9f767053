"""The rows of a recipe in numbers: how long, how much of them is learnt, and what padding adds."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bridgegarden.errors import ConfigError
from bridgegarden.preflight.activations import Batch
from bridgegarden.teacher.cache.shard import documents_of

if TYPE_CHECKING:
    from datasets import Dataset


MOST_TOKENS = 2**26
"""Tokens of a batch."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Token counts of tokenised rows, in ascending order of length."""

    lengths: np.ndarray
    """``(n,)`` tokens of each row."""
    supervised: np.ndarray
    """``(n,)`` positions of it that have a loss."""

    @classmethod
    def of(cls, data: "Dataset") -> "Rows":
        """Count tokenised rows."""
        documents = list(documents_of(data))
        lengths = np.array([len(document.ids) for document in documents])
        supervised = np.array([document.positions for document in documents])
        order = np.argsort(lengths, kind="stable")
        return cls(lengths=lengths[order], supervised=supervised[order])

    @property
    def count(self) -> int:
        """Rows."""
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        """Of all rows."""
        return int(self.lengths.sum())

    @property
    def positions(self) -> int:
        """Supervised positions of all rows."""
        return int(self.supervised.sum())

    def packed(self, length: int) -> "Rows":
        """As they are when several share a row of `length` tokens; what is left over at its end is neglected."""
        count = max(1, math.ceil(self.tokens / length))
        share = np.full(count, self.positions / count)
        return Rows(lengths=np.full(count, min(length, self.tokens)), supervised=share)

    def largest_batch(self, rows: int, *, extra: int = 0) -> Batch:
        """The longest rows together: as much as a step can need.

        Args:
            rows: of a batch.
            extra: tokens that the student may write on top.

        Raises:
            ConfigError: the batch is beyond any memory, and beyond what its tensors' sizes can be counted with.
        """
        chosen = slice(-min(rows, self.count), None)
        longest = int(self.lengths[-1])
        if rows * (longest + extra) > MOST_TOKENS:
            written = f" and {extra:,} written ones (on_policy.max_new_tokens)" if extra else ""
            raise ConfigError(
                f"training.per_device_train_batch_size: {rows:,} rows of {longest:,} tokens{written} are more than the "
                f"{MOST_TOKENS:,} tokens that a batch can be planned with, and than any device can hold."
            )
        return Batch(
            rows=rows,
            length=longest + extra,
            # Rows of a smaller data set than a batch are read again.
            supervised=math.ceil(self.supervised[chosen].mean() * rows) + extra * rows,
        )

    def padded_mean(self, batch: int, cost: Callable[[float], float]) -> float:
        r"""The mean of `cost` of the length that a row is padded to, when `batch` random rows share a batch.

        The longest of B rows drawn from n is the i-th shortest with probability C(i - 1, B - 1) / C(n, B).
        """
        size = min(batch, self.count)
        ranks = np.arange(size, self.count + 1)
        log_choose = np.array([_log_choose(int(rank) - 1, size - 1) for rank in ranks])
        chance = np.exp(log_choose - _log_choose(self.count, size))
        values, groups = np.unique(self.lengths[size - 1 :], return_inverse=True)
        weights = np.bincount(groups, weights=chance)
        return float(sum(weight * cost(float(value)) for value, weight in zip(values, weights, strict=True)))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
