"""How what a cache holds is distributed over its positions, and what its bytes are."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bridgegarden.teacher.cache.info import BRIDGE_LIKE, ENTROPY_EDGES
from bridgegarden.teacher.cache.manifest import finished_shards, read_spec
from bridgegarden.teacher.cache.record import RecordFormat
from bridgegarden.teacher.cache.shard import Shard

CONFIDENCE_EDGES = tuple(n / 10 for n in range(10))
MASS_EDGES = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)
"""Lower edges of bins that end at 1."""


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Positions by a quantity, Bridge-like ones and others."""

    edges: tuple[float, ...]
    """Lower edge of each bin."""
    bridge_like: tuple[int, ...]
    """Positions where max p > :data:`bridgegarden.teacher.cache.info.BRIDGE_LIKE`."""
    other: tuple[int, ...]
    """All others."""


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """Of all positions of a cache."""

    entropy: Histogram
    """Of the teacher, nats; the last bin is open."""
    confidence: Histogram
    """max p."""
    captured_mass: Histogram | None
    """Probability of the kept tokens; None where nothing can lie outside them."""
    mean_confidence: float
    """Mean of max p."""
    record_bytes: Mapping[str, int]
    """Bytes of each field of a position's record, before any compression."""


def cache_distribution(folder: Path) -> Distribution:
    """Read the numbers of every position of the cache in `folder`.

    Raises:
        ConfigError: there is no cache, or one of another version.
        DataError: a shard is missing or is not as long as it was.
    """
    layout = RecordFormat(read_spec(folder))
    has_tail = layout.spec.has_tail
    entropy, confidence, mass = _Counts(ENTROPY_EDGES), _Counts(CONFIDENCE_EDGES), _Counts(MASS_EDGES)
    total, positions = 0.0, 0
    for path, record in finished_shards(folder).items():
        shard = Shard.open(path, record, layout)
        for index in range(record.documents):
            records = shard.records(index)
            highest = np.exp(records["max_logp"].astype(np.float64))
            bridge_like = np.exp(records["max_logp"]) > BRIDGE_LIKE
            entropy.add(records["entropy"], bridge_like)
            confidence.add(highest, bridge_like)
            if has_tail:
                mass.add(-np.expm1(records["log_tail"].astype(np.float64)), bridge_like)
            total += float(highest.sum())
            positions += len(records)
    return Distribution(
        entropy=entropy.histogram(),
        confidence=confidence.histogram(),
        captured_mass=mass.histogram() if has_tail else None,
        mean_confidence=total / max(positions, 1),
        record_bytes={name: field[0].itemsize for name, field in (layout.dtype.fields or {}).items()},
    )


class _Counts:
    def __init__(self, edges: tuple[float, ...]) -> None:
        self._edges = edges
        self._counts = np.zeros((2, len(edges)), dtype=np.int64)

    def add(self, values: np.ndarray, bridge_like: np.ndarray) -> None:
        # Rounding can take an entropy or a mass a hair below zero.
        bins = np.searchsorted(self._edges, np.maximum(values, 0.0), side="right") - 1
        for row, chosen in enumerate((bridge_like, ~bridge_like)):
            self._counts[row] += np.bincount(bins[chosen], minlength=len(self._edges))

    def histogram(self) -> Histogram:
        bridge_like, other = (tuple(row) for row in self._counts.tolist())
        return Histogram(edges=self._edges, bridge_like=bridge_like, other=other)
