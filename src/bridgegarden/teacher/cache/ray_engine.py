"""Ray Data as the engine of a build: several actors, each with a teacher of its own.

The driver cuts the rows into shards and batches as it does for one teacher, and it alone writes. Actors get a few whole
batches at a time and give back records, which Ray Data keeps in order: shards are finished one after another with the
same content, and a build that ended early is resumed as any other. What a killed actor had not given back yet, Ray asks
another one about.

Ray is the cluster that is there, or one of our own on this machine; without telemetry, and quiet.
"""

import itertools
import logging
import os
import sys
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
from transformers import PreTrainedModel

from bridgegarden.errors import BridgegardenError, ConfigError, MissingPackageError
from bridgegarden.teacher.cache.forward import WorkingTeacher
from bridgegarden.teacher.cache.record import RecordFormat
from bridgegarden.teacher.cache.shard import SCHEMA, Document, Entry
from bridgegarden.teacher.cache.spec import CacheSpec
from bridgegarden.teacher.cache.writer import (
    BATCH_TOKENS,
    Clock,
    ReportProgress,
    cut_batches,
)
from bridgegarden.teacher.mixture import Mixture

if TYPE_CHECKING:
    import ray.data

LoadTeacher = Callable[[], PreTrainedModel | Mixture]
"""Called once in every actor; travels there, so it names the weights and does not hold them."""

BATCHES_AT_ONCE = 8
"""Batches that an actor gets at most: enough for records to be made beside the teacher, few enough to share out."""

IDS = ("ids", "labels", "teacher_ids", "teacher_labels")
"""Of a document, and of what the teacher reads of it; null where that is the same."""
ASKED = pa.schema([("batch", pa.int64()), ("row", pa.int64()), *((name, pa.list_(pa.int32())) for name in IDS)])
"""Documents on their way to an actor."""
ANSWERED = SCHEMA.append(pa.field("seconds", pa.float64()))
"""And their records on the way back, with each document's share of the seconds in the teacher."""

STORE_BYTES = 512 << 20
"""Shared memory of a Ray of our own; token ids and records on their way that take more go to its folder on the disk."""
SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
"""Nothing is reported to Ray's makers. Below fatal, Ray's core complains of how Ray Data makes its actors."""


class ActorShare(NamedTuple):
    """How many actors there are, and what each of them reserves."""

    actors: int
    cpus: float
    """Also the threads of each, where ``OMP_NUM_THREADS`` is not set: from one on."""
    gpus: int


def share_out(machines: Sequence[Mapping[str, float]], actors: int | None, *, use_gpus: bool) -> ActorShare:
    """Share out what there is, so that all actors find room at once.

    Args:
        machines: Ray's ``CPU`` and ``GPU`` of each.
        actors: how many; None is one for each GPU, or without GPUs one for each machine.
        use_gpus: whether GPUs may be taken.

    Raises:
        ConfigError: there are fewer GPUs than actors.
    """
    gpus = sum(int(machine.get("GPU", 0)) for machine in machines) if use_gpus else 0
    if gpus:
        if (actors or 1) > gpus:
            raise ConfigError(f"--actors {actors}: each takes a GPU, and Ray has {gpus}. Ask for at most as many.")
        return ActorShare(actors or gpus, cpus=1, gpus=1)
    cpus = [machine["CPU"] for machine in machines if machine.get("CPU", 0) >= 1]
    if not cpus:
        raise ConfigError("--engine ray: Ray has neither GPUs nor CPUs. Give its machines some (ray start --num-cpus).")
    count = actors or len(cpus)
    shares = itertools.chain(range(int(max(cpus)), 0, -1), (1 / n for n in range(2, count + 1)))
    return ActorShare(count, next(s for s in shares if sum(int(cpu / s + 1e-6) for cpu in cpus) >= count), gpus=0)


@dataclass
class RayTeachers:
    """The engine for several teachers, each in an actor of its own.

    Its use raises a ConfigError if Ray is not installed or cannot be reached, or has fewer GPUs than `actors`.
    """

    load: LoadTeacher
    """Gives a teacher, on its device, in the process that calls it."""
    spec: CacheSpec
    """What is kept."""
    actors: int | None = None
    """Teachers; None is one for each GPU, or without GPUs one for each machine."""
    use_gpus: bool = True
    """Whether each actor is to have a GPU, where there are any."""
    batch_tokens: int = BATCH_TOKENS
    """Tokens of a teacher's batch at most, padding included."""
    on_progress: ReportProgress | None = None
    """Told of the progress whenever batches come back."""
    on_start: Callable[[], None] = lambda: None
    """Called before Ray is started."""
    seconds: float = field(default=0.0, init=False)
    clocks: tuple[Clock, ...] = field(default=("seconds",), init=False)

    def entries(self, shards: Sequence[Sequence[Document]]) -> Generator[list[Entry], None, None]:
        if not shards:
            return
        self.on_start()
        with ray_session() as machines:
            share = share_out(machines, self.actors, use_gpus=self.use_gpus)
            batches = [batch for shard in shards for batch in cut_batches(shard, self.batch_tokens)]
            answers = self._answers(_dataset(batches, self.load, self.spec, share), share, _positions(batches))
            for shard in shards:
                entries = list(itertools.islice(answers, len(shard)))
                assert [entry.key for entry in entries] == [document.key for document in shard]
                yield entries
            assert next(answers, None) is None

    def _answers(self, dataset: "ray.data.Dataset", share: ActorShare, total: int) -> Iterator[Entry]:
        layout, done = RecordFormat(self.spec), 0
        for table in _tables(dataset, share):
            self.seconds += sum(table["seconds"].to_pylist()) / share.actors
            done += sum(table["positions"].to_pylist())
            if self.on_progress is not None:
                self.on_progress(done, total)
            for key, block in zip(table["key"], table["records"], strict=True):
                yield Entry(key.as_py(), np.frombuffer(block.as_buffer(), layout.dtype))


class _Actor:
    """What an actor does with the documents that it gets."""

    def __init__(self, load: LoadTeacher, spec: CacheSpec) -> None:
        self._load = load
        self._layout = RecordFormat(spec)
        self._teacher: WorkingTeacher | None = None

    def __call__(self, table: pa.Table) -> pa.Table:
        # Not in __init__: what fails there Ray tries again, and says at length; what fails here ends the build.
        if self._teacher is None:
            self._teacher = WorkingTeacher(self._load(), self._layout)
        before = self._teacher.seconds
        entries = self._teacher.entries(_asked(table))
        seconds = (self._teacher.seconds - before) / len(entries)
        rows = [(entry.key, len(entry.records), entry.records.tobytes(), seconds) for entry in entries]
        return pa.table([list(column) for column in zip(*rows, strict=True)], schema=ANSWERED)


def _dataset(
    batches: Sequence[Sequence[Document]], load: LoadTeacher, spec: CacheSpec, share: ActorShare
) -> "ray.data.Dataset":
    import ray.data

    at_once = min(BATCHES_AT_ONCE, -(-len(batches) // (4 * share.actors)))
    numbered = list(enumerate(batches))
    tables = [_table(numbered[start : start + at_once]) for start in range(0, len(batches), at_once)]
    dataset = ray.data.from_arrow(tables).map_batches(
        _Actor,
        fn_constructor_args=(load, spec),
        compute=ray.data.ActorPoolStrategy(size=share.actors),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=share.cpus,
        num_gpus=share.gpus,
    )
    dataset.context.execution_options.preserve_order = True
    dataset.context.enable_progress_bars = False
    dataset.context.raise_original_map_exception = True
    return dataset


def _tables(dataset: "ray.data.Dataset", share: ActorShare) -> Iterator[pa.Table]:
    """What comes back, with errors as they were raised in the actors."""
    from ray.exceptions import RayActorError, RayTaskError

    try:
        yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow")
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, BridgegardenError):
            # Ray adds lines about its settings for retries; ours is the first.
            raise type(cause)(str(cause).splitlines()[0]) from None
        raise
    except RayActorError as error:
        raise ConfigError(
            f"--engine ray: an actor died and could not be started again ({str(error).splitlines()[0]}). Each holds a "
            f"teacher, and there were {share.actors}; with less memory, ask for fewer (--actors), then run the same "
            "command again."
        ) from error


def _table(batches: Iterable[tuple[int, Sequence[Document]]]) -> pa.Table:
    rows = [
        (number, document.row, *(part for d in (document, document.teacher) for part in _ids_of(d)))
        for number, batch in batches
        for document in batch
    ]
    return pa.table([list(column) for column in zip(*rows, strict=True)], schema=ASKED)


def _asked(table: pa.Table) -> Iterator[list[Document]]:
    """The batches that :func:`_table` was given."""
    numbers, rows = table["batch"].to_pylist(), table["row"].to_pylist()
    parts = ([item.values.to_numpy() if item.is_valid else None for item in table[name]] for name in IDS)
    documents = [_document(row, *lists) for row, *lists in zip(rows, *parts, strict=True)]
    for _, group in itertools.groupby(zip(numbers, documents, strict=True), key=lambda pair: pair[0]):
        yield [document for _, document in group]


def _ids_of(document: Document | None) -> tuple[np.ndarray | None, np.ndarray | None]:
    return (None, None) if document is None else (document.ids, document.labels)


def _document(
    row: int, ids: np.ndarray, labels: np.ndarray, teacher_ids: np.ndarray | None, teacher_labels: np.ndarray | None
) -> Document:
    """The inverse of :func:`_ids_of`, of a document and of what the teacher reads of it."""
    if teacher_ids is None or teacher_labels is None:
        return Document(ids=ids, labels=labels, row=row)
    return Document(ids=ids, labels=labels, row=row, teacher=Document(ids=teacher_ids, labels=teacher_labels, row=row))


def _positions(batches: Iterable[Sequence[Document]]) -> int:
    return sum(document.positions for batch in batches for document in batch)


def check_ray() -> None:
    """Make sure that Ray Data can be used.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import ray.data  # noqa: F401  only whether it is there
    except ImportError as error:
        raise MissingPackageError(
            "--engine ray: Ray Data is not installed. Install it with: pip install 'bridgegarden[ray]'"
        ) from error


@contextmanager
def ray_session() -> Iterator[Sequence[Mapping[str, float]]]:
    """Run in Ray; yields what each of its machines has.

    A Ray that this process uses already is used and left running. Else ``RAY_ADDRESS`` names a cluster; without it, Ray
    is started on this machine and stopped afterwards.

    Raises:
        ConfigError: Ray is not installed, or the cluster cannot be reached.
    """
    with _quiet():
        check_ray()
        import ray

        ours = not ray.is_initialized()
        if ours:
            _start()
        try:
            yield [node["Resources"] for node in ray.nodes() if node["Alive"]]
        finally:
            if ours:
                ray.shutdown()


def _start() -> None:
    import ray

    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    silent = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        with _core_silent():
            ray.init("local", include_dashboard=False, object_store_memory=STORE_BYTES, **silent)
        return
    try:
        with _core_silent():
            ray.init(address, **silent)
    except ConnectionError as error:
        raise ConfigError(
            f"--engine ray: no Ray answers at RAY_ADDRESS={address}. Start one there (ray start --head), or unset "
            "RAY_ADDRESS to have one started on this machine."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        # Ray tells of actors that died on stdout, which is for results.
        with redirect_stdout(sys.stderr), warnings.catch_warnings():
            # Ray Data sets its own outdated options, and warns of them.
            warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"ray\.")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _core_silent() -> Iterator[None]:
    """Ray's core tells the terminal, past Python's stderr, that it was told to be silent."""
    sys.stderr.flush()
    terminal = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
