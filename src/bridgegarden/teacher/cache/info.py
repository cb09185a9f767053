"""What a cache holds, in numbers, and whether it is as it was written."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bridgegarden.errors import DamagedError, DataError
from bridgegarden.statistics import Estimate
from bridgegarden.teacher.cache.manifest import (
    MANIFEST,
    BuildTime,
    ShardRecord,
    build_command,
    finished_shards,
    noted_scoring,
    read_spec,
    remove_command,
    replace_command,
    shards_without_record,
)
from bridgegarden.teacher.cache.record import RecordFormat, Signals
from bridgegarden.teacher.cache.shard import Shard, file_problem, framing_problem
from bridgegarden.teacher.cache.spec import CacheSpec, Served, Support, short
from bridgegarden.teacher.foreign_values import read_as
from bridgegarden.teacher.scoring_check import ScoringReport
from bridgegarden.terminal import counted

ENTROPY_EDGES = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 3.0, 5.0)
"""Lower edges of the histogram's bins, nats; the last is open."""
BRIDGE_LIKE = 0.9
"""A position is Bridge-like where the teacher's likeliest token has more probability than this."""
BAR = 40
CONFIDENCE_EDGES = tuple(n / 10 for n in range(10))
MASS_EDGES = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)
"""Lower edges of bins that end at 1."""
CHUNK = 1 << 20
FEWEST_KEPT = 8
"""Tokens a position in the first line of the table of how many hold how much."""
SAMPLED_POSITIONS = 20_000
SAMPLED_NUMBERS = 1 << 24
"""At most so many positions and log-probabilities are decoded for it: a second or two."""
LOSS_POSITIONS = 1 << 20
"""So many are looked at, about, for the teacher's loss where no other number is asked for."""


class KeptTokens(NamedTuple):
    """How much of the teacher's probability the likeliest tokens hold."""

    k: int
    """So many of them."""
    mass: float
    """On average over positions."""
    low: float
    """19 positions of 20 have more: the 5th percentile."""
    bytes: int
    """A position takes so many if as many tokens are kept everywhere."""


class TeacherLoss(NamedTuple):
    """What the teacher itself loses on the rows: minus its log-probability of the supervised tokens."""

    mean: float
    """Nats a token."""
    half: float | None
    """Half of its 95 % interval, over rows; None of fewer than two, or where the loss is infinite."""
    tokens: int
    """Supervised tokens that were looked at, and of which it is known."""

    def __str__(self) -> str:
        """For a person."""
        error = "" if self.half is None else f" \N{PLUS-MINUS SIGN} {self.half:.3f}"
        return f"{self.mean:.3f}{error} nats a token, over {counted(self.tokens, 'token')}"


@dataclass(frozen=True, kw_only=True)
class ServedNumbers:
    """What a cache of a served teacher does not know, in numbers."""

    label_alone: int
    """Positions of which only the token that was written is known, mostly ends of turn."""
    smallest_tail: int
    """Positions of which the server's numbers leave nothing for the tail; :attr:`Served.smallest_tail` stands there."""
    entropy_at_most: float
    """Mean upper bound of the entropy, nats: the tail spread over all other tokens. The stored one is a lower bound."""


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Positions by a quantity, Bridge-like ones and others."""

    edges: tuple[float, ...]
    """Lower edge of each bin."""
    bridge_like: tuple[int, ...]
    """Positions where max p > :data:`BRIDGE_LIKE`."""
    other: tuple[int, ...]
    """All others."""


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
    confidence: float
    """Mean of max p."""
    entropies: Histogram
    """Over :data:`ENTROPY_EDGES`."""
    confidences: Histogram
    """Of max p."""
    masses: Histogram | None
    """Of the probability of the kept tokens; None where nothing can lie outside them."""
    kept: tuple[KeptTokens, ...]
    """By number of tokens up to those kept, on positions spread over the cache; empty where there is no tail."""
    built_in: BuildTime
    """What filling it took."""
    loss: TeacherLoss | None = None
    """The teacher's own on the rows; None where nothing is known of it."""
    served: ServedNumbers | None = None
    """Of a teacher on a server: what is not known of it. The entropy is then a lower bound."""
    scoring: ScoringReport | None = None
    """Of a server that scored rows: how it did in its self-test; None for others, or where that was not kept."""

    @property
    def bytes_per_position(self) -> float:
        """Everything on disk counted."""
        return self.bytes / max(self.positions, 1)

    @property
    def record_bytes(self) -> dict[str, int]:
        """Bytes of each field of a position's record, before any compression."""
        return {name: field[0].itemsize for name, field in (RecordFormat(self.spec).dtype.fields or {}).items()}

    @property
    def entropy_histogram(self) -> tuple[int, ...]:
        """Positions per bin of :data:`ENTROPY_EDGES`."""
        return tuple(map(sum, zip(self.entropies.bridge_like, self.entropies.other, strict=True)))

    @property
    def bridge_like(self) -> float:
        """Share of positions where max p > :data:`BRIDGE_LIKE`."""
        return sum(self.entropies.bridge_like) / max(self.positions, 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        histogram = [
            {"from": edge, "positions": n} for edge, n in zip(ENTROPY_EDGES, self.entropy_histogram, strict=True)
        ]
        tree = asdict(self) | {"spec": self.spec.to_dict(), "built_in": self.built_in._asdict()}
        tree["kept"] = [row._asdict() for row in self.kept]
        tree["loss"] = None if self.loss is None else self.loss._asdict()
        tree |= {"bytes_per_position": self.bytes_per_position, "bridge_like": self.bridge_like}
        for name in ("confidence", "entropies", "confidences", "masses"):
            del tree[name]
        return tree | {"entropy_histogram": histogram}

    def __str__(self) -> str:
        """For a person."""
        spec = self.spec
        none = "none needed" if spec.served is None else "none, since likeliest tokens do not determine them"
        lines = [
            f"teacher        {spec.teacher}{f' at {spec.revision}' if spec.revision else ''}, {spec.dtype}"
            + (f", from {spec.gguf_file} (quantised)" if spec.gguf_file else "")
            + (f", quantised ({spec.quantization})" if spec.quantization else ""),
            *(f"  mixed of     {member}" for member in spec.mix or ()),
            *([] if spec.prompt is None else [f"its prompt     {spec.prompt}"]),
            f"tokenizer      {short(spec.tokenizer)}, chat template {short(spec.chat_template)}",
            f"rows           {self.documents:,} of at most {spec.max_length or 'any'} tokens, in "
            f"{counted(self.shards, 'shard')}",
            f"positions      {self.positions:,}, {self.bytes_per_position:.1f} bytes each, {self.bytes:,} in all",
            f"built in       {_build_time(self.built_in)}",
            f"support        {spec.support} of {spec.vocab_size:,} tokens, {spec.bits} bits a log-probability",
            f"tail powers    {', '.join(f'{g:g}' for g in spec.stored_exponents) or none}",
            f"captured mass  {self.captured_mass:.4f} on average, {self.least_captured_mass:.4f} at least",
            *self._kept_lines(),
            f"its own loss   {'not known' if self.loss is None else f'{self.loss} of these rows'}",
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

    def _kept_lines(self) -> list[str]:
        if len(self.kept) < 2:
            return []
        rows = [f"  {row.k:>11,}  {row.mass:>7.4f}  {row.low:>7.4f}  {row.bytes:>6,}" for row in self.kept]
        return ["by tokens kept    mass   19 of 20   bytes   (on average, and in 19 positions of 20 at least)", *rows]

    def _served_lines(self) -> list[str]:
        spec, numbers = self.spec.served, self.served
        if numbers is None:
            return []
        assert spec is not None
        ways = {
            "answers": [f"from answers   of a server, sampled at temperature {spec.temperature:g}"],
            "scored": [] if self.scoring is None else self.scoring.lines(),
            "imported": [
                "imported       from another program's file; a label outside its tokens has at most the log p kept"
            ],
        }
        return [
            *ways[spec.source],
            f"not given      {numbers.label_alone:,} positions with the hard label alone (ends of turn), "
            f"{numbers.smallest_tail:,} with a tail below {spec.smallest_tail:g}",
            f"entropy bounds {self.entropy:.3f} to {numbers.entropy_at_most:.3f} nats on average; kept is the lower",
        ]


def cache_info(folder: Path) -> CacheInfo:
    """Read the numbers of every position of the cache in `folder`.

    Raises:
        ConfigError: there is no cache, or one of another version.
        DataError: a shard is missing or is not as long as it was.
    """
    spec = read_spec(folder)
    layout = RecordFormat(spec)
    shards = finished_shards(folder)
    entropies, confidences, masses = map(_Counts, (ENTROPY_EDGES, CONFIDENCE_EDGES, MASS_EDGES))
    served = None if spec.served is None else _ServedCounts(spec, spec.served)
    losses = _LossSums()
    sums, least = np.zeros(3), 1.0
    for path, record in shards.items():
        shard = Shard.open(path, record, layout)
        for index in range(record.documents):
            records = shard.records(index)
            entropy, confidence = records["entropy"].astype(np.float64), np.exp(records["max_logp"].astype(np.float64))
            mass = -np.expm1(records["log_tail"].astype(np.float64)) if spec.has_tail else np.ones(len(records))
            losses.add(layout.label_logp(records))
            sums += entropy.sum(), confidence.sum(), mass.sum()
            least = min(least, mass.min())
            bridge_like = np.exp(records["max_logp"]) > BRIDGE_LIKE
            for counts, values in ((entropies, entropy), (confidences, confidence), (masses, mass)):
                counts.add(values, bridge_like)
            if served is not None:
                served.add(shard.signals(index), layout.label_alone(records))
    positions = sum(record.positions for record in shards.values())
    mean_entropy, mean_confidence, mean_mass = (sums / max(positions, 1)).tolist()
    return CacheInfo(
        spec=spec,
        shards=len(shards),
        documents=sum(record.documents for record in shards.values()),
        positions=positions,
        bytes=sum(record.bytes for record in shards.values()),
        captured_mass=mean_mass,
        least_captured_mass=float(least),
        entropy=mean_entropy,
        confidence=mean_confidence,
        entropies=entropies.histogram(),
        confidences=confidences.histogram(),
        masses=masses.histogram() if spec.has_tail else None,
        kept=kept_tokens(folder),
        built_in=BuildTime.of(shards.values()),
        loss=losses.loss(),
        served=None if served is None else served.numbers(max(positions, 1)),
        scoring=_scoring(folder),
    )


def teacher_loss(folder: Path) -> TeacherLoss | None:
    """The teacher's own loss on the rows of a cache: on all of them, or of very many on some that are spread evenly.

    Raises:
        ConfigError: there is no cache, or one of another version.
        DataError: a shard is missing or damaged.
    """
    layout, losses = RecordFormat(read_spec(folder)), _LossSums()
    for shard, index in _spread(folder, layout, LOSS_POSITIONS):
        losses.add(layout.label_logp(shard.records(index)))
    return losses.loss()


def _scoring(folder: Path) -> ScoringReport | None:
    noted = noted_scoring(folder)
    try:
        return None if noted is None else read_as(ScoringReport, noted, "scoring")
    except ValueError as error:
        raise DamagedError(f"{folder / MANIFEST}: damaged ({error}). {replace_command(folder)}") from error


def kept_tokens(folder: Path, exponent: float = 1.0) -> tuple[KeptTokens, ...]:
    """How much the k likeliest tokens hold, for k twice the one before up to what the cache in `folder` keeps.

    Args:
        folder: the cache. Documents spread evenly over it are read, about :data:`SAMPLED_POSITIONS`.
        exponent: of the distribution p^g over its sum that is asked about: 1/T for a temperature T.

    Raises:
        ConfigError: there is no cache, or one of another version.
        DataError: a shard is missing or damaged.
    """
    spec = read_spec(folder)
    if not spec.has_tail or spec.support.kind == "sampled":
        return ()
    counts = [*takewhile(lambda k: k < spec.slots, (FEWEST_KEPT << n for n in range(32))), spec.slots]
    powers = None if exponent == 1.0 else spec.stored_exponents.index(exponent)
    shares = []
    decoded = min(SAMPLED_POSITIONS, max(1, SAMPLED_NUMBERS // spec.slots))
    for signals in (shard.signals(index) for shard, index in _spread(folder, RecordFormat(spec), decoded)):
        assert signals.log_tail is not None
        kept = np.exp(exponent * -np.sort(-signals.logp.astype(np.float64), axis=1)).cumsum(axis=1)
        tail = np.exp((signals.log_tail if powers is None else signals.tail_powers[:, powers]).astype(np.float64))
        shares.append(kept[:, [k - 1 for k in counts]] / (kept[:, -1] + tail)[:, None])
    if not shares:
        return ()
    held = np.concatenate(shares)
    rows = zip(counts, held.mean(axis=0).tolist(), np.quantile(held, 0.05, axis=0).tolist(), strict=True)
    return tuple(KeptTokens(k, mass, low, _record_bytes(spec, k)) for k, mass, low in rows)


def _record_bytes(spec: CacheSpec, k: int) -> int:
    return RecordFormat(replace(spec, support=Support(k=k))).bytes_per_position


def _spread(folder: Path, layout: RecordFormat, most: int) -> Iterator[tuple[Shard, int]]:
    """Documents with about `most` positions, spread evenly over a cache: shards hold documents of like lengths."""
    shards = finished_shards(folder)
    step = max(1.0, sum(record.positions for record in shards.values()) / most)
    first, number = 0, 0.0
    for path, record in shards.items():
        shard = Shard.open(path, record, layout)
        while number < first + record.documents:
            yield shard, int(number) - first
            number += step
        first += record.documents


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """A cache of which every shard is as it was written."""

    folder: Path
    shards: int
    documents: int
    positions: int
    bytes: int

    def __str__(self) -> str:
        held = (self.shards, "shard"), (self.documents, "row"), (self.positions, "position"), (self.bytes, "byte")
        counts = ", ".join(counted(count, noun) for count, noun in held)
        return f"{self.folder}: every byte of the shards is as it was written ({counts})"


def check_cache(folder: Path) -> CheckResult:
    """Read every byte of the shards in `folder` and compare with what was written, and with the counts beside them.

    Raises:
        ConfigError: there is no cache, or one of another version.
        DataError: shards are damaged; names them all, and what to do.
    """
    layout = RecordFormat(read_spec(folder))
    shards = finished_shards(folder)
    alone = shards_without_record(folder)
    problems = {path: problem for path, record in shards.items() if (problem := _problem(path, record, layout))}
    problems |= {path: f"{path.stem}.json is gone, so that nothing of it is read" for path in alone}
    if problems:
        listed = "; ".join(f"{path.name}: {problem}" for path, problem in sorted(problems.items()))
        damaged = next((path for path in problems if path not in alone), None)
        advice = build_command(folder) if damaged is None else remove_command(damaged)
        raise DataError(
            f"teacher cache {folder}: {len(problems)} of {len(shards) + len(alone)} shards are damaged: {listed}. "
            f"{'Copy the missing files, if they are anywhere. ' if alone else ''}{advice}"
        )
    return CheckResult(
        folder=folder,
        shards=len(shards),
        documents=sum(record.documents for record in shards.values()),
        positions=sum(record.positions for record in shards.values()),
        bytes=sum(record.bytes for record in shards.values()),
    )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _build_time(time: BuildTime) -> str:
    if time.seconds is None:
        return "a time that is not known"
    processor = "" if time.cpu_seconds is None else f", {time.cpu_seconds:,.1f} s of processor time"
    return f"{time.seconds:,.1f} s{processor}, without loading the teacher"


def _problem(path: Path, record: ShardRecord, layout: RecordFormat) -> str:
    problem = file_problem(path, record, layout)
    if problem:
        return problem
    found = file_sha256(path)
    if found != record.sha256:
        return f"its SHA-256 is {found[:12]}, and {record.sha256[:12]} was written"
    return framing_problem(path, record, layout)


class _Counts:
    """Of a :class:`Histogram`, while positions are looked at."""

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


class _LossSums:
    """Of a :class:`TeacherLoss`, while rows are looked at."""

    def __init__(self) -> None:
        # Rows, tokens, losses; squares of tokens and of losses, and their products.
        self._sums = np.zeros(6)

    def add(self, label_logp: np.ndarray) -> None:
        known = label_logp[~np.isnan(label_logp)]
        loss, tokens = -known.sum(dtype=np.float64), len(known)
        if tokens:
            self._sums += (1, tokens, loss, tokens**2, loss**2, tokens * loss)

    def loss(self) -> TeacherLoss | None:
        rows, tokens, loss, squared_tokens, squared_loss, product = self._sums
        if not rows:
            return None
        mean = loss / tokens
        if rows < 2 or not math.isfinite(loss):
            return TeacherLoss(float(mean), None, int(tokens))
        squares = max(squared_loss - 2 * mean * product + mean**2 * squared_tokens, 0.0)
        stderr = math.sqrt(squares / (rows - 1) / rows) / (tokens / rows)
        interval = Estimate(float(mean), stderr, int(rows)).interval()
        return TeacherLoss(float(mean), (interval.high - interval.low) / 2, int(tokens))


class _ServedCounts:
    """Of :class:`ServedNumbers`, while positions are looked at."""

    def __init__(self, spec: CacheSpec, served: Served) -> None:
        self._tokens, self._floor = spec.vocab_size, math.log(served.smallest_tail) + 1e-3
        self._label_alone = self._smallest_tail = 0
        self._entropy = 0.0

    def add(self, signals: Signals, label_alone: np.ndarray) -> None:
        assert signals.ids is not None
        assert signals.log_tail is not None
        kept, log_tail = (signals.ids >= 0).sum(1), signals.log_tail.astype(np.float64)
        self._label_alone += int(np.count_nonzero(label_alone))
        self._smallest_tail += int(np.count_nonzero((kept > 1) & (log_tail <= self._floor)))
        # The most that a distribution with these tokens and this tail can have: the tail spread evenly.
        logp = np.where(signals.ids >= 0, signals.logp, 0.0).astype(np.float64)
        listed = -(np.where(signals.ids >= 0, np.exp(logp), 0.0) * logp).sum(1)
        self._entropy += float((listed - np.exp(log_tail) * (log_tail - np.log(self._tokens - kept))).sum())

    def numbers(self, positions: int) -> ServedNumbers:
        return ServedNumbers(
            label_alone=self._label_alone,
            smallest_tail=self._smallest_tail,
            entropy_at_most=self._entropy / positions,
        )
