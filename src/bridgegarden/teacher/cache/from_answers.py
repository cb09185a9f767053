"""Build a cache of what a server said: no teacher runs, its answers hold the log-probabilities."""

import math
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bridgegarden.teacher.answer_signals import AnsweredRow, Position
from bridgegarden.teacher.cache.documents import Document, document_key
from bridgegarden.teacher.cache.manifest import finished_shards, read_spec
from bridgegarden.teacher.cache.record import RecordFormat, Signals
from bridgegarden.teacher.cache.shard import Entry, Shard
from bridgegarden.teacher.cache.spec import CacheSpec


class AnswersEngine:
    """Has been told what the teacher said. An :class:`~bridgegarden.teacher.cache.writer.Engine`."""

    seconds = 0.0
    """The server's time was spent when it answered."""
    clocks = ()

    def __init__(self, spec: CacheSpec) -> None:
        """
        Args:
            spec: of a served teacher.
        """
        self._layout = RecordFormat(spec)
        self._records: dict[bytes, np.ndarray] = {}

    def add(self, row: AnsweredRow) -> None:
        """Tell it a row, which is encoded at once: as objects it takes ten times the memory. Of equal ones the first
        counts."""
        key = document_key(np.asarray(row.input_ids, np.int32), np.asarray(row.labels, np.int32))
        if key not in self._records:
            self._records[key] = self._layout.encode(position_arrays(row.positions, self._layout.spec))

    def entries(self, shards: Sequence[Sequence[Document]]) -> Generator[list[Entry], None, None]:
        """What it said about the documents of each shard, in order."""
        for shard in shards:
            yield [Entry(document.key, self._records[document.key]) for document in shard]


def position_arrays(positions: Sequence[Position], spec: CacheSpec) -> Signals:
    """Positions as they are encoded: empty slots have the id -1 and no mass."""
    shape = len(positions), spec.slots
    ids, logp = np.full(shape, -1, np.int32), np.full(shape, -np.inf, np.float32)
    for row, position in enumerate(positions):
        ids[row, : len(position.ids)] = position.ids
        logp[row, : len(position.logp)] = position.logp

    def column(values: Iterable[float]) -> np.ndarray:
        return np.fromiter(values, np.float32, len(positions))

    return Signals(
        ids=ids,
        logp=logp,
        log_tail=column(position.log_tail for position in positions),
        tail_powers=np.zeros((len(positions), 0), np.float32),
        entropy=column(position.entropy for position in positions),
        argmax=ids[:, 0],
        max_logp=logp[:, 0],
        label_logp=column(position.label_logp for position in positions),
    )


@dataclass(frozen=True, kw_only=True)
class ServedNumbers:
    """What a cache of a served teacher does not know, in numbers."""

    label_alone: int
    """Positions of which only the token that was written is known, mostly ends of turn."""
    smallest_tail: int
    """Positions of which the server's numbers leave nothing for the tail; :attr:`Served.smallest_tail` stands there."""
    entropy_at_most: float
    """Mean upper bound of the entropy, nats: the tail spread over all other tokens. The stored one is a lower bound."""


def served_numbers(folder: Path) -> ServedNumbers:
    """Read them from the cache in `folder`, which is a served teacher's.

    Raises:
        ConfigError: there is no cache, or one of another version.
        DataError: a shard is missing or is not as long as it was.
    """
    spec = read_spec(folder)
    assert spec.served is not None
    layout, floor = RecordFormat(spec), math.log(spec.served.smallest_tail) + 1e-3
    label_alone = smallest_tail = positions = 0
    entropy = 0.0
    for path, record in finished_shards(folder).items():
        shard = Shard.open(path, record, layout)
        for index in range(record.documents):
            signals = shard.signals(index)
            assert signals.ids is not None
            assert signals.log_tail is not None
            kept, log_tail = (signals.ids >= 0).sum(1), signals.log_tail.astype(np.float64)
            label_alone += int(np.count_nonzero((kept == 1) & (log_tail <= floor)))
            smallest_tail += int(np.count_nonzero((kept > 1) & (log_tail <= floor)))
            entropy += float((signals.entropy + np.exp(log_tail) * np.log(spec.vocab_size - kept)).sum())
            positions += len(kept)
    return ServedNumbers(
        label_alone=label_alone, smallest_tail=smallest_tail, entropy_at_most=entropy / max(positions, 1)
    )
