"""A server scores rows that are there already: from token ids to what the cache keeps of every supervised position.

The first thing that happens is a self-test of the server: nothing is kept of one that contradicts itself. What it
has answered is put on disk at once, so that a build that is killed at any moment asks for nothing twice.
"""

import base64
import itertools
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bridgegarden.errors import ServedTeacherError
from bridgegarden.files import AppendedLines
from bridgegarden.objective.alignment import IGNORE
from bridgegarden.teacher.cache.manifest import JOURNAL, note_scoring
from bridgegarden.teacher.cache.record import RecordFormat, Signals
from bridgegarden.teacher.cache.shard import Document, Entry
from bridgegarden.teacher.cache.spec import CacheSpec
from bridgegarden.teacher.foreign_values import Unfit
from bridgegarden.teacher.generate import GIVE_UP_AFTER
from bridgegarden.teacher.scores import Scores
from bridgegarden.teacher.scoring_api import Api, found_api
from bridgegarden.teacher.scoring_check import Example, ScoringReport, Weights, self_test
from bridgegarden.teacher.server_connection import ApiName
from bridgegarden.teacher.server_logprobs import SMALLEST_TAIL
from bridgegarden.teacher.server_requests import Line, Refused, Requests, Server

DEFAULT_K = 20
"""Tokens a position, unless more are asked for: vLLM lists no more until it is told otherwise."""


def scored_signals(scores: Scores, spec: CacheSpec) -> Signals:
    """What is kept of `scores`, by the rules of :func:`~bridgegarden.teacher.answers.kept_position`.

    Tokens outside the shared vocabulary are in the tail. The entropy is the least that it can be, as in
    :func:`~bridgegarden.teacher.answers.least_entropy`: none of the others is likelier than the last that is listed.

    Raises:
        Unfit: a likeliest token is outside the vocabulary.
    """
    ids, logps = scores.ids, scores.logps
    named = ids < spec.vocab_size
    if not named[:, 0].all():
        outside = int(ids[~named[:, 0], 0][0])
        raise Unfit(
            f"the likeliest token has the id {outside}, and the last of the rows' vocabulary is {spec.vocab_size - 1}"
        )
    masses = np.exp(logps)
    rest = 1 - np.where(named, masses, 0.0).sum(1)
    tail = np.maximum(rest, SMALLEST_TAIL)
    excess = np.where(tail > rest, np.log(1 - rest + tail), 0.0)
    kept = np.where(named, logps - excess[:, None], -np.inf).astype(np.float32)
    kept_ids = np.where(named, ids, -1).astype(np.int32)
    return Signals(
        ids=kept_ids,
        logp=kept,
        log_tail=(np.log(tail) - excess).astype(np.float32),
        tail_powers=np.zeros((len(ids), 0), np.float32),
        entropy=_least_entropy(masses, logps[:, -1]).astype(np.float32),
        argmax=kept_ids[:, 0],
        max_logp=kept[:, 0],
        label_logp=scores.label_logps.astype(np.float32),
    )


def _least_entropy(masses: np.ndarray, least: np.ndarray) -> np.ndarray:
    rest = np.maximum(1 - masses.sum(1), SMALLEST_TAIL)
    total = masses.sum(1) + rest
    shares, tail = masses / total[:, None], rest / total
    listed = np.where(shares > 0, shares * np.log(np.maximum(shares, 1e-300)), 0.0).sum(1)
    return -listed - tail * np.minimum(np.log(tail), least)


class Unscored(NamedTuple):
    """A row of which the server says nothing."""

    row: int
    key: bytes
    reason: str


class Journal:
    """What was answered since the last shard: lines that only grow, beside the shards. Any thread may add to it."""

    def __init__(self, folder: Path, layout: RecordFormat) -> None:
        """Open what a killed build has left in the cache `folder`; lines of another kind of signals are dropped.

        Raises:
            DataError: it is damaged, or cannot be written.
        """
        self._layout, self._digest = layout, layout.spec.digest
        self._lock, self._closed = threading.Lock(), False
        self._lines = AppendedLines(folder / JOURNAL)
        self.path = folder / JOURNAL
        self.held = {
            bytes.fromhex(record["key"]): np.frombuffer(base64.b64decode(record["records"]), layout.dtype)
            for _, record in self._lines.records()
            if record.get("spec") == self._digest
        }

    def add(self, key: bytes, records: np.ndarray) -> None:
        """Write down: what becomes of this process does not matter any more when this returns. Nothing once it is
        closed: a reply may come when nobody waits for it any more."""
        line = {"spec": self._digest, "key": key.hex(), "records": base64.b64encode(records.tobytes()).decode()}
        with self._lock:
            if not self._closed:
                self._lines.append([line], waits=False)
                self.held[key] = records

    def settle(self) -> None:
        """Nor does what becomes of the machine, of what is more than a second old."""
        self._lines.settle(at_most_every=1.0)

    def clear(self) -> None:
        """All of it is in a shard now."""
        self._lines.close()
        self.path.unlink()
        self.held.clear()
        self._lines = AppendedLines(self.path)

    def close(self) -> None:
        """Leave nothing behind where nothing is kept."""
        with self._lock:
            self._closed = True
            self._lines.close()
            if not self.held:
                self.path.unlink(missing_ok=True)


@dataclass
class ScoringEngine:
    """Asks a server about documents. An :class:`~bridgegarden.teacher.cache.writer.Engine`."""

    requests: Requests
    """Where, below whose address the server's own paths are."""
    server: Server
    """Its address as the recipe has it."""
    spec: CacheSpec
    folder: Path
    """Of the cache."""
    example: Example
    """Of the rows, for the self-test."""
    say: Callable[[str], None]
    """Tells a person a line."""
    weights: Weights | None = None
    """Those that the server should have, for the self-test; None where they are not here."""
    on_progress: Callable[[int, int, int], None] = lambda done, total, failed: None
    """Told of the supervised positions done, of all there are, and of the rows that were refused."""
    unscored: list[Unscored] = field(default_factory=list)
    report: ScoringReport | None = None
    """Of the self-test; None where nothing was asked."""
    seconds: float = 0.0
    clocks = ("seconds",)

    def entries(self, shards: Sequence[Sequence[Document]]) -> Generator[list[Entry], None, None]:
        """What the server says about the documents of each shard, in order; those that it refuses are left out.

        Raises:
            ConfigError: it refuses the key, or is of another kind than what the cache holds.
            ModelError: it contradicts itself, or refuses one row after the other.
        """
        if not shards:
            return
        began = time.perf_counter()
        api = self._found()
        requests = self.requests.at_a_time(api.workers)
        self.report = self_test(api, requests, self.spec.support.k, self.example, self.say, self.weights)
        note_scoring(self.folder, self.report.to_dict())
        self.seconds += time.perf_counter() - began
        journal = Journal(self.folder, RecordFormat(self.spec))
        count = _Count(sum(document.positions for shard in shards for document in shard), self.on_progress)
        try:
            for shard in shards:
                before = time.perf_counter()
                todo = [document for document in shard if document.key not in journal.held]
                count.before(shard, todo)
                self._ask(todo, api, requests, journal, count)
                self.seconds += time.perf_counter() - before
                yield [Entry(d.key, journal.held[d.key]) for d in shard if d.key in journal.held]
                journal.clear()
        finally:
            journal.close()

    def _found(self) -> Api:
        served = self.spec.served
        assert served is not None
        name: ApiName | None = served.api  # pyright: ignore[reportAssignmentType]
        return found(self.requests, self.server, name)

    def _ask(
        self, documents: Sequence[Document], api: Api, requests: Requests, journal: Journal, count: "_Count"
    ) -> None:
        """Let the server score `documents`, and write down what it says as it comes: who is answered asks for nothing
        more before that."""
        layout = RecordFormat(self.spec)
        k, failed_in_a_row = self.spec.support.k, 0

        async def score(line: Line, document: Document) -> None:
            positions = (np.flatnonzero(document.labels[1:] != IGNORE) + 1).tolist()
            scores = await api.score(line, document.ids.tolist(), positions, k)
            try:
                signals = scored_signals(scores, self.spec)
            except Unfit as error:
                raise Refused(f"{error}.") from None
            journal.add(document.key, layout.encode(signals))

        for batch in requests.outcomes(documents, score):
            for document, outcome in batch:
                count.add(document.positions, failed=outcome is not None)
                if outcome is None:
                    failed_in_a_row = 0
                    continue
                self.unscored.append(Unscored(document.row, document.key, str(outcome)))
                failed_in_a_row += 1
            journal.settle()
            if failed_in_a_row >= GIVE_UP_AFTER:
                raise ServedTeacherError(
                    f"{self.server.base_url}: {failed_in_a_row} rows were refused one after the other, the last one "
                    f"because: {self.unscored[-1].reason} What was answered is kept in {self.folder}; mend this and "
                    "run the same again."
                )


class _Count:
    """How far it is."""

    def __init__(self, total: int, on_progress: Callable[[int, int, int], None]) -> None:
        self._total, self._on_progress = total, on_progress
        self._done = self._failed = 0

    def before(self, shard: Sequence[Document], todo: Sequence[Document]) -> None:
        """What a killed build had been told of `shard`."""
        self._done += sum(d.positions for d in shard) - sum(d.positions for d in todo)

    def add(self, positions: int, *, failed: bool) -> None:
        self._done += positions
        self._failed += failed
        self._on_progress(self._done, self._total, self._failed)


def found(requests: Requests, server: Server, name: ApiName | None) -> Api:
    """The kind of the server; see :func:`~bridgegarden.teacher.scoring_api.found_api`.

    Raises:
        ConfigError: it is none that scores, or refuses the key.
        ModelError: it does not answer.
    """

    async def find(line: Line, _: None) -> Api:
        return await found_api(line, server, name)

    [(_, outcome)] = itertools.chain.from_iterable(requests.outcomes([None], find))
    if isinstance(outcome, Refused):
        raise ServedTeacherError(f"{server.base_url}: {outcome}")
    return outcome


def root_of(server: Server) -> Server:
    """`server` with the address below which vLLM, SGLang and llama.cpp have paths of their own."""
    return replace(server, base_url=server.base_url.rstrip("/").removesuffix("/v1"))
