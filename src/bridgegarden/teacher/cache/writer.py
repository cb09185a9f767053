"""Build a cache: the teacher once over every row that the cache does not hold yet; or of parts built elsewhere."""

import os
import shutil
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from datasets import Dataset
from transformers import PreTrainedModel

from bridgegarden.errors import CacheError, ConfigError, DamagedError, DataError
from bridgegarden.files import partial, write_json
from bridgegarden.teacher.cache.forward import WorkingTeacher
from bridgegarden.teacher.cache.info import TeacherLoss, file_sha256, teacher_loss
from bridgegarden.teacher.cache.manifest import (
    HALF_WRITTEN,
    JOURNAL,
    LEFT_OUT,
    LOCK,
    MANIFEST,
    OWN_FILE,
    SHARDS,
    ShardRecord,
    build_lock,
    drop_copies_aside,
    elsewhere,
    finished_shards,
    is_cache,
    left_out,
    note_scoring,
    noted_scoring,
    put_aside,
    read_spec,
    remove_command,
    shard_files,
    shards_without_record,
    write_record,
    write_spec,
    writing,
)
from bridgegarden.teacher.cache.record import RecordFormat
from bridgegarden.teacher.cache.shard import Document, Entry, Shard, documents_of, shard_problem, write_shard
from bridgegarden.teacher.cache.spec import CacheSpec
from bridgegarden.teacher.mixture import Mixture
from bridgegarden.terminal import counted

SHARD_POSITIONS = 65_536
"""About 13 MB at 64 tokens a position: what a killed build loses at most."""
BATCH_TOKENS = 4096

ReportProgress = Callable[[int, int], None]
"""Called with the supervised positions done so far and all there are to do."""

Clock = Literal["seconds", "cpu_seconds"]
"""A field of :class:`ShardRecord` that says what a shard took."""
CLOCKS: Mapping[Clock, Callable[[], float]] = {"seconds": time.perf_counter, "cpu_seconds": time.process_time}


@dataclass(frozen=True, kw_only=True)
class BuildResult:
    """What a build did."""

    folder: Path
    documents: int = 0
    """Rows that were added."""
    positions: int = 0
    """Supervised positions that were added."""
    kept: int
    """Rows of the data that the cache held already."""
    bytes: int = 0
    """Size of the added shards."""
    seconds: float = 0.0
    teacher_seconds: float = 0.0
    """Of these, in the teacher; the rest is finding rows, encoding what could not be done meanwhile, and writing."""
    loss: TeacherLoss | None = None
    """The teacher's own on the rows that the cache now holds; None where it is not known."""

    @property
    def own_loss(self) -> str:
        """The same for a person."""
        return f"the teacher's own loss on the rows there: {'not known' if self.loss is None else self.loss}"

    def __str__(self) -> str:
        """For a person."""
        kept = f", {self.kept:,} were there" if self.kept else ""
        size = f"{self.bytes / max(self.positions, 1):.1f} bytes each, {self.bytes:,} in all"
        share = f"{self.teacher_seconds / max(self.seconds, 1e-9):.0%} of {self.seconds:.0f} s in the teacher"
        rows = counted(self.documents, "row")
        return f"{self.folder}: {rows} added{kept}; {self.positions:,} positions, {size}; {share}\n{self.own_loss}"


class Engine(Protocol):
    """Asks a teacher about the rows of a build."""

    @property
    def clocks(self) -> tuple[Clock, ...]:
        """The clocks of this process by which the teacher's work can be told."""
        ...

    @property
    def seconds(self) -> float:
        """Spent in the teacher so far; with several of them, on average."""
        ...

    def entries(self, shards: Sequence[Sequence[Document]]) -> Generator[list[Entry], None, None]:
        """What the teacher says about the documents of each shard, in order."""
        ...


def build_cache(
    folder: Path,
    engine: Engine,
    data: Iterable[Dataset],
    spec: CacheSpec,
    *,
    part: tuple[int, int] = (1, 1),
    shard_positions: int = SHARD_POSITIONS,
) -> BuildResult:
    """Add to the cache in `folder` what it lacks of `data`. Interrupted at any moment, it goes on from the last shard.

    Args:
        folder: where, on this machine; made if need be.
        engine: asks the teacher.
        data: tokenised rows (``input_ids``, ``labels``). Equal rows are asked once.
        spec: what is kept. A cache that is there already must have the same.
        part: ``(i, n)``: only the i-th of n parts, by content. Parts are built anywhere and put together by
            :func:`merge_caches`.
        shard_positions: positions after which a shard is closed.

    Raises:
        ConfigError: the folder holds another cache, somebody else builds in it, or the disk is full; or of the engine.
        ModelError: the teacher's distribution is not finite.
    """
    begin_cache(folder, spec)
    layout = RecordFormat(spec)
    began = time.perf_counter()
    marks: dict[Clock, float] = {name: CLOCKS[name]() for name in engine.clocks}
    wanted = _wanted(data, part)
    there = _held(folder, layout)
    if there.is_clean and wanted.keys() <= there.keys:
        # Nothing is written, so that it may be where nothing can be.
        return BuildResult(folder=folder, kept=len(wanted), loss=teacher_loss(folder))
    with build_lock(folder):
        held, first = clear_shards(folder, layout)
        todo = sorted((d for key, d in wanted.items() if key not in held), key=lambda d: (-len(d.as_read.ids), d.key))
        size = added = positions = 0
        with closing(engine.entries(list(_cut(todo, shard_positions)))) as shards:
            for entries in filter(None, shards):  # a server may refuse all rows of one
                now: dict[Clock, float] = {name: CLOCKS[name]() for name in marks}
                took = {name: now[name] - mark for name, mark in marks.items()}
                record = write_shard(shard_path(folder, first), entries, layout, **took)
                size, added, positions = size + record.bytes, added + record.documents, positions + record.positions
                marks, first = now, first + 1
    return BuildResult(
        folder=folder,
        documents=added,
        positions=positions,
        kept=len(wanted) - len(todo),
        bytes=size,
        seconds=time.perf_counter() - began,
        teacher_seconds=engine.seconds,
        loss=teacher_loss(folder),
    )


@dataclass(frozen=True, kw_only=True)
class MergeResult:
    """What was copied."""

    folder: Path
    shards: int
    """Shards copied."""
    skipped: int
    """Shards whose rows were all there already."""
    documents: int
    """Rows copied."""

    def __str__(self) -> str:
        skipped = f"; {self.skipped} held nothing new" if self.skipped else ""
        return f"{self.folder}: {counted(self.shards, 'shard')} with {counted(self.documents, 'row')} added{skipped}"


def merge_caches(folder: Path, parts: Sequence[Path]) -> MergeResult:
    """Copy the shards of `parts` into the cache in `folder`, checking every byte.

    Interrupted, it can be run again.

    Raises:
        ConfigError: the caches hold different kinds of signals, one is not a cache, or nothing can be written.
        DataError: a shard is damaged, or the file beside it is gone.
    """
    if not parts:
        raise ConfigError("cache merge: name the folders to merge.")
    spec = read_spec(parts[0])
    for part in parts[1:]:
        differences = read_spec(part).differences(spec)
        if differences:
            raise CacheError(f"cache merge: {part} does not fit {parts[0]}: {differences}.")
    for part in parts:
        if unread := shards_without_record(part):
            raise DataError(
                f"cache merge: {len(unread)} shards of {part} cannot be copied, since the files beside them are gone "
                f"({unread[0].name} has no {unread[0].stem}.json). Copy those from where the part was built."
            )
    begin_cache(folder, spec)
    layout = RecordFormat(read_spec(folder))
    copied = skipped = documents = 0
    with build_lock(folder):
        held, number = clear_shards(folder, layout)
        for path, record in (item for part in parts for item in finished_shards(part).items()):
            keys = {key.tobytes() for key in Shard.open(path, record, layout).keys}
            if keys <= held:
                skipped += 1
                continue
            _copy(folder, path, record, number)
            held |= keys
            copied, documents, number = copied + 1, documents + record.documents, number + 1
    reports = [report for part in (folder, *parts) if (report := noted_scoring(part)) is not None]
    if reports:
        note_scoring(folder, reports[0])
        note_left_out(folder, {key: why for part in (*parts, folder) for key, why in left_out(part).items()})
    return MergeResult(folder=folder, shards=copied, skipped=skipped, documents=documents)


def note_left_out(folder: Path, refused: Mapping[str, str]) -> None:
    """Write down which rows a server refused to score, and why: those of `refused` that the cache does not hold.

    Raises:
        ConfigError: the folder may not be written to.
    """
    held = _held(folder, RecordFormat(read_spec(folder))).keys if refused else set()
    with writing(folder, folder / LEFT_OUT):
        write_json(folder / LEFT_OUT, {key: why for key, why in refused.items() if bytes.fromhex(key) not in held})


def begin_cache(folder: Path, spec: CacheSpec) -> None:
    """Make sure that `folder` is a cache with `spec`, new or begun earlier.

    Raises:
        ConfigError: it holds something else, or may not be written to.
    """
    if (folder / MANIFEST).exists():
        differences = read_spec(folder).differences(spec)
        if differences and shard_files(folder):
            raise CacheError(
                f"teacher cache {folder}: holds signals of another kind than asked for: {differences}. Build in "
                "another folder (--set teacher.cache=FOLDER; with teacher.by, another cache there or another output), "
                "or have what it holds replaced: bridgegarden cache build RECIPE --replace."
            )
        with writing(folder, folder / SHARDS):
            (folder / SHARDS).mkdir(exist_ok=True)
        if differences:
            # A build that failed before its first shard has left the name of its teacher and nothing that it said.
            with build_lock(folder):
                write_spec(folder, spec)
        return
    theirs = _not_ours(folder)
    if theirs:
        raise CacheError(
            f"teacher cache {folder}: is not empty and not a cache (it holds {theirs}); give a folder of its own."
        )
    with writing(folder, folder / SHARDS):
        (folder / SHARDS).mkdir(parents=True, exist_ok=True)
    write_spec(folder, spec)


def remove_cache(folder: Path) -> None:
    """Remove the cache in `folder`, of whatever format, and nothing else; without one there is nothing to do.

    Raises:
        ConfigError: the folder holds files that no cache has left, which would be lost; or somebody builds there.
    """
    if not (folder / MANIFEST).exists():
        return
    if not is_cache(folder):
        raise ConfigError(f"{folder / MANIFEST}: no cache's, or damaged. {elsewhere(folder)}")
    files = shard_files(folder)
    theirs = [path for path in files if not (path.is_file() and OWN_FILE.fullmatch(path.name))]
    if theirs:
        raise ConfigError(
            f"teacher cache {folder}: {SHARDS} holds {theirs[0].name}, which no cache has left. {elsewhere(folder)}"
        )
    with build_lock(folder), writing(folder, folder / SHARDS):
        for path in (*files, folder / JOURNAL, folder / LEFT_OUT):
            path.unlink(missing_ok=True)
        # Last: until then it is what tells that the rest is ours.
        (folder / MANIFEST).unlink()


def shard_path(folder: Path, number: int) -> Path:
    """The file of a shard."""
    return folder / SHARDS / f"{number:05d}.arrow"


class OneTeacher:
    """The engine for a teacher in this process."""

    clocks: tuple[Clock, ...] = ("seconds", "cpu_seconds")

    def __init__(
        self,
        load: Callable[[], PreTrainedModel | Mixture],
        spec: CacheSpec,
        *,
        batch_tokens: int = BATCH_TOKENS,
        on_progress: ReportProgress | None = None,
        on_start: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            load: loads the teacher, on its device; called once there are rows to ask about.
            spec: what is kept.
            batch_tokens: tokens of a batch at most, padding included.
            on_progress: told of the progress after every batch.
            on_start: called before it is loaded.
        """
        self._load, self._layout = load, RecordFormat(spec)
        self._teacher: WorkingTeacher | None = None
        self._batch_tokens, self._on_progress, self._on_start = batch_tokens, on_progress, on_start

    @property
    def seconds(self) -> float:
        return 0.0 if self._teacher is None else self._teacher.seconds

    def entries(self, shards: Sequence[Sequence[Document]]) -> Generator[list[Entry], None, None]:
        """See :class:`Engine`.

        Raises:
            ModelError: the teacher cannot be loaded, or read.
        """
        if not shards:
            return
        self._on_start()
        self._teacher = WorkingTeacher(self._load(), self._layout)
        done, total = 0, sum(document.positions for shard in shards for document in shard)

        def count(batch: Sequence[Document]) -> None:
            nonlocal done
            done += sum(document.positions for document in batch)
            if self._on_progress is not None:
                self._on_progress(done, total)

        for shard in shards:
            yield self._teacher.entries(cut_batches(shard, self._batch_tokens), count)


def _not_ours(folder: Path) -> str:
    """What a folder without a manifest holds that no build has left which was killed before there was one."""
    if folder.is_file():
        return "a file"
    try:
        there = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
        theirs = [name for name in there if name not in (LOCK, SHARDS, partial(Path(MANIFEST)).name)]
        if not theirs and SHARDS in there:
            theirs = [f"{SHARDS}/{path.name}" for path in (folder / SHARDS).iterdir()]
    except OSError as error:
        return f"what cannot be read: {error.strerror}"
    return theirs[0] if theirs else ""


class _Held(NamedTuple):
    """What the shards of a cache hold."""

    keys: set[bytes]
    """Documents in shards that can be used."""
    unusable: dict[Path, str]
    """Shards that cannot, and why."""
    half_written: list[Path]
    """What a killed build left."""

    @property
    def is_clean(self) -> bool:
        return not self.unusable and not self.half_written


def _held(folder: Path, layout: RecordFormat) -> _Held:
    keys: set[bytes] = set()
    unusable = {path: f"it has no {path.stem}.json" for path in shards_without_record(folder)}
    for path, record in finished_shards(folder).items():
        problem = shard_problem(path, record, layout)
        if problem:
            unusable[path] = problem
        else:
            keys.update(key.tobytes() for key in Shard.open(path, record, layout).keys)
    half_written = [path for path in shard_files(folder) if HALF_WRITTEN.fullmatch(path.name)]
    return _Held(keys, unusable, half_written)


def clear_shards(folder: Path, layout: RecordFormat) -> tuple[set[bytes], int]:
    """Put aside the shards of `folder` that cannot be used; keys of the documents in the others, and the number of the
    next shard.

    Raises:
        ConfigError: the folder may not be written to.
        DataError: the file beside a shard cannot be read.
    """
    held = _held(folder, layout)
    for path, problem in held.unusable.items():
        put_aside(folder, path, problem)
    for path in held.half_written:
        with writing(folder, path):
            path.unlink()
    return held.keys, max((int(path.stem) + 1 for path in finished_shards(folder)), default=0)


def _wanted(data: Iterable[Dataset], part: tuple[int, int]) -> dict[bytes, Document]:
    index, count = part
    if not 1 <= index <= count:
        raise ConfigError(f"cache: a part is i/n with 1 <= i <= n, got {index}/{count}.")
    documents = ((document.key, document) for dataset in data for document in documents_of(dataset))
    return {key: document for key, document in documents if int.from_bytes(key[-8:], "little") % count == index - 1}


def _cut(documents: Sequence[Document], size: int) -> Iterator[list[Document]]:
    """Runs of documents with about `size` positions each."""
    run: list[Document] = []
    positions = 0
    for document in documents:
        run.append(document)
        positions += document.positions
        if positions >= size:
            yield run
            run, positions = [], 0
    if run:
        yield run


def cut_batches(documents: Sequence[Document], tokens: int) -> Iterator[list[Document]]:
    """Runs of documents that take at most `tokens` when padded; they come longest first."""
    batch: list[Document] = []
    for document in documents:
        if batch and (len(batch) + 1) * len(batch[0].as_read.ids) > tokens:
            yield batch
            batch = []
        batch.append(document)
    if batch:
        yield batch


def _copy(folder: Path, source: Path, record: ShardRecord, number: int) -> None:
    """Copy a shard, whole or not at all."""
    target = shard_path(folder, number)
    try:
        with writing(folder, target):
            shutil.copyfile(source, partial(target))
            if file_sha256(partial(target)) != record.sha256:
                raise DamagedError(f"{source}: damaged (its SHA-256 is not what was written). {remove_command(source)}")
            os.replace(partial(target), target)
            write_record(target, record)
    finally:
        partial(target).unlink(missing_ok=True)
    drop_copies_aside(target)
