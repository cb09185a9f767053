"""What a cache holds, in numbers."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bridgegarden.teacher.cache.from_answers import ServedNumbers, served_numbers
from bridgegarden.teacher.cache.manifest import BuildTime, finished_shards, read_spec
from bridgegarden.teacher.cache.record import RecordFormat
from bridgegarden.teacher.cache.shard import Shard
from bridgegarden.teacher.cache.spec import CacheSpec, short
from bridgegarden.terminal import counted

ENTROPY_EDGES = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 3.0, 5.0)
"""Lower edges of the histogram's bins, nats; the last is open."""
BRIDGE_LIKE = 0.9
"""A position is Bridge-like where the teacher's likeliest token has more probability than this."""
BAR = 40


@dataclass(frozen=True, kw_only=True)
class CacheInfo:
    """Counts and means over all positions of a cache."""

    spec: CacheSpec
    shards: int
    documents: int
    positions: int
    bytes: int
    """Of the shards' files."""
    captured_mass: float
    """Mean probability of the kept tokens; 1 where draws are kept."""
    least_captured_mass: float
    """The least of any position."""
    entropy: float
    """Mean entropy of the teacher, nats."""
    entropy_histogram: tuple[int, ...]
    """Positions per bin of :data:`ENTROPY_EDGES`."""
    bridge_like: float
    """Share of positions where max p > :data:`BRIDGE_LIKE`."""
    built_in: BuildTime
    """What filling it took."""
    served: ServedNumbers | None = None
    """Of a teacher on a server: what is not known of it. The entropy is then a lower bound."""

    @property
    def bytes_per_position(self) -> float:
        """Everything on disk counted."""
        return self.bytes / max(self.positions, 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        histogram = [
            {"from": edge, "positions": n} for edge, n in zip(ENTROPY_EDGES, self.entropy_histogram, strict=True)
        ]
        extra = {"bytes_per_position": self.bytes_per_position, "entropy_histogram": histogram}
        extra["built_in"] = self.built_in._asdict()
        return asdict(self) | {"spec": self.spec.to_dict()} | extra

    def __str__(self) -> str:
        """For a person."""
        spec = self.spec
        none = "none needed" if spec.served is None else "none, since a server gives none"
        lines = [
            f"teacher        {spec.teacher}{f' at {spec.revision}' if spec.revision else ''}, {spec.dtype}",
            f"tokenizer      {short(spec.tokenizer)}, chat template {short(spec.chat_template)}",
            f"rows           {self.documents:,} of at most {spec.max_length or 'any'} tokens, in "
            f"{counted(self.shards, 'shard')}",
            f"positions      {self.positions:,}, {self.bytes_per_position:.1f} bytes each, {self.bytes:,} in all",
            f"built in       {_build_time(self.built_in)}",
            f"support        {spec.support} of {spec.vocab_size:,} tokens, {spec.bits} bits a log-probability",
            f"tail powers    {', '.join(f'{g:g}' for g in spec.stored_exponents) or none}",
            f"captured mass  {self.captured_mass:.4f} on average, {self.least_captured_mass:.4f} at least",
            f"Bridge-like    {self.bridge_like:.1%} of positions (max p > {BRIDGE_LIKE})",
            *self._served_lines(),
            f"entropy        {'at least ' if self.served else ''}{self.entropy:.3f} nats on average:",
        ]
        ends = [f"{edge:g}" for edge in ENTROPY_EDGES[1:]] + ["   "]
        most = max((*self.entropy_histogram, 1))
        for start, end, count in zip(ENTROPY_EDGES, ends, self.entropy_histogram, strict=True):
            share = count / max(self.positions, 1)
            lines.append(f"  {start:>5g} to {end:<4} {share:>6.1%} {'#' * round(BAR * count / most)}".rstrip())
        return "\n".join(lines)

    def _served_lines(self) -> list[str]:
        spec, numbers = self.spec.served, self.served
        if spec is None or numbers is None:
            return []
        return [
            f"from answers   of a server, sampled at temperature {spec.temperature:g}",
            f"not given      {numbers.label_alone:,} positions with the hard label alone (ends of turn), "
            f"{numbers.smallest_tail:,} with a tail below {spec.smallest_tail:g}",
            f"entropy bounds {self.entropy:.3f} to {numbers.entropy_at_most:.3f} nats on average; kept is the lower",
        ]


def _build_time(time: BuildTime) -> str:
    if time.seconds is None:
        return "a time that is not known"
    processor = "" if time.cpu_seconds is None else f", {time.cpu_seconds:,.1f} s of processor time"
    return f"{time.seconds:,.1f} s{processor}, without loading the teacher"


def cache_info(folder: Path) -> CacheInfo:
    """Read the numbers of every position of the cache in `folder`.

    Raises:
        ConfigError: there is no cache, or one of another version.
        DataError: a shard is missing or is not as long as it was.
    """
    spec = read_spec(folder)
    layout = RecordFormat(spec)
    shards = finished_shards(folder)
    entropy_sum = mass_sum = bridge_like = 0.0
    least, histogram = 1.0, np.zeros(len(ENTROPY_EDGES), dtype=np.int64)
    for path, record in shards.items():
        shard = Shard.open(path, record, layout)
        for index in range(record.documents):
            records = shard.records(index)
            entropy = records["entropy"].astype(np.float64)
            mass = -np.expm1(records["log_tail"].astype(np.float64)) if spec.has_tail else np.ones(len(records))
            entropy_sum += entropy.sum()
            mass_sum += mass.sum()
            least = min(least, mass.min())
            bridge_like += np.count_nonzero(np.exp(records["max_logp"]) > BRIDGE_LIKE)
            # Rounding can take the entropy of a sure teacher a hair below zero.
            bins = np.searchsorted(ENTROPY_EDGES, np.maximum(entropy, 0.0), side="right") - 1
            histogram += np.bincount(bins, minlength=len(ENTROPY_EDGES))
    positions = sum(record.positions for record in shards.values())
    count = max(positions, 1)
    return CacheInfo(
        spec=spec,
        shards=len(shards),
        documents=sum(record.documents for record in shards.values()),
        positions=positions,
        bytes=sum(record.bytes for record in shards.values()),
        captured_mass=float(mass_sum / count),
        least_captured_mass=float(least),
        entropy=float(entropy_sum / count),
        entropy_histogram=tuple(histogram.tolist()),
        bridge_like=float(bridge_like / count),
        built_in=BuildTime.of(shards.values()),
        served=None if spec.served is None else served_numbers(folder),
    )
