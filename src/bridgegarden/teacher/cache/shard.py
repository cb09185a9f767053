"""Documents and what was said of them, some in one Arrow file: a shard.

A signal is filed under the content of a tokenised row, never its place in a data set or batch. However rows are
shuffled, packed, accumulated, repeated or spread over processes, a document's key is the same, so a signal cannot end
up at another document's positions.

An Arrow IPC file that is not compressed can be mapped into memory and any document in it used without reading the rest.
In a cache whose support is ``mass`` most slots are empty, so there each document's records are compressed by Zstandard.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bridgegarden.data.teacher_prompt import TEACHER_IDS, TEACHER_LABELS, TEACHER_NUMBER
from bridgegarden.errors import DamagedError, DataError
from bridgegarden.files import write_whole
from bridgegarden.objective.alignment import IGNORE
from bridgegarden.teacher.cache.manifest import ShardRecord, drop_copies_aside, remove_command, write_record, writing
from bridgegarden.teacher.cache.record import DamagedRecords, RecordFormat, Signals

if TYPE_CHECKING:
    from datasets import Dataset

KEY_BYTES = 16
BATCH = 1000
"""Rows of a data set that are read at a time."""
_OF_ROWS = ("row", TEACHER_NUMBER)
"""Columns with a number of a row; in packed rows one a token."""
SCHEMA = pa.schema([("key", pa.binary(KEY_BYTES)), ("positions", pa.int32()), ("records", pa.large_binary())])


@dataclass(frozen=True, kw_only=True)
class Document:
    """One tokenised row that stands alone: nothing of another row is in its context."""

    ids: np.ndarray
    """Token ids, int32."""
    labels: np.ndarray
    """The same ids where supervised, -100 elsewhere."""
    row: int
    """Number of the row in the source data, for messages."""
    teacher: "Document | None" = None
    """What the teacher reads, where it is another prompt; the supervised tokens are the same."""
    teacher_number: int | None = None
    """Which of several teachers reads it, which is no part of its key; None where the data do not say."""

    @property
    def positions(self) -> int:
        """Supervised positions. The first token has no position before it that could predict it."""
        return int(np.count_nonzero(self.labels[1:] != IGNORE))

    @property
    def as_read(self) -> "Document":
        """What the teacher reads."""
        return self.teacher or self

    @property
    def key(self) -> bytes:
        """Hash of the ids and of which of them are supervised; and of the teacher's, where they are others."""
        key = document_key(self.ids, self.labels)
        if self.teacher is None:
            return key
        return hashlib.blake2b(key + self.teacher.key, digest_size=KEY_BYTES).digest()


def document_key(ids: np.ndarray, labels: np.ndarray) -> bytes:
    """16 bytes of BLAKE2b over the number of tokens, the ids, and one bit a token from the second on."""
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    digest.update(len(ids).to_bytes(8, "little"))
    digest.update(np.ascontiguousarray(ids, "<i4").tobytes())
    digest.update(np.packbits(labels[1:] != IGNORE).tobytes())
    return digest.digest()


def documents_of(dataset: "Dataset") -> Iterator[Document]:
    """The documents of a tokenised data set, packed rows taken apart; those without a supervised position left out."""
    known = ("input_ids", "labels", "seq_lengths", TEACHER_IDS, TEACHER_LABELS, *_OF_ROWS)
    columns = [name for name in known if name in dataset.column_names]
    number = 0
    for batch in dataset.select_columns(columns).with_format("arrow").iter(BATCH):
        table = cast("pa.Table", batch)
        lists = {name: _lists(table[name].combine_chunks()) for name in columns if name not in _OF_ROWS}
        of_rows = {name: table[name].to_pylist() for name in _OF_ROWS if name in columns}
        for index in range(table.num_rows):
            example: dict[str, Any] = {name: values[index] for name, values in (lists | of_rows).items()}
            yield from documents_in(example, number)
            number += 1


def documents_in(example: Mapping[str, Any], number: int = 0) -> Iterator[Document]:
    """The documents of one example of a batch, in order: one, or as many as were packed into it."""
    ids = np.asarray(example["input_ids"], dtype=np.int32)
    labels = np.asarray(example.get("labels", example["input_ids"]), dtype=np.int32)
    rows, routes = example.get("row", number), example.get(TEACHER_NUMBER)
    start = 0
    for length in example.get("seq_lengths", (len(ids),)):
        part = slice(start, start + int(length))
        row = int(rows[start]) if isinstance(rows, Sequence) else int(rows)
        route = routes[start] if isinstance(routes, Sequence) else routes
        document = Document(
            ids=ids[part],
            labels=labels[part],
            row=row,
            teacher=_teacher_of(example, row),
            teacher_number=None if route is None else int(route),
        )
        if document.positions:
            yield document
        start += int(length)


def _teacher_of(example: Mapping[str, Any], row: int) -> Document | None:
    """What the teacher reads of an example that is no packed one, where that is not what the student reads."""
    if TEACHER_IDS not in example:
        return None
    ids, labels = (np.asarray(example[name], dtype=np.int32) for name in (TEACHER_IDS, TEACHER_LABELS))
    return Document(ids=ids, labels=labels, row=row)


class Entry(NamedTuple):
    """A document on its way to disk."""

    key: bytes
    records: np.ndarray


def write_shard(
    path: Path,
    entries: Sequence[Entry],
    layout: RecordFormat,
    *,
    seconds: float | None = None,
    cpu_seconds: float | None = None,
) -> ShardRecord:
    """Write a shard, whole or not at all, and declare it finished.

    Args:
        path: of its file.
        entries: what it holds.
        layout: of the records.
        seconds: wall time it took, as :class:`ShardRecord` has it.
        cpu_seconds: processor time it took.

    Raises:
        ConfigError: it cannot be written, as where the disk is full; what was finished before is untouched.
    """
    blocks = [entry.records.tobytes() for entry in entries]
    if is_compressed(layout):
        blocks = [pa.compress(block, codec="zstd", asbytes=True) for block in blocks]
    columns = [[entry.key for entry in entries], [len(entry.records) for entry in entries], blocks]
    batch = pa.record_batch([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_batch(batch)
    content = memoryview(sink.getvalue())
    record = ShardRecord(
        spec=layout.spec.digest,
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
        documents=len(entries),
        positions=sum(columns[1]),
        seconds=seconds,
        cpu_seconds=cpu_seconds,
    )
    with writing(path.parent.parent, path):
        write_whole(path, [content])
        write_record(path, record)
    drop_copies_aside(path)
    return record


def is_compressed(layout: RecordFormat) -> bool:
    """Whether the records of a document are compressed."""
    return layout.spec.support.kind == "mass"


@dataclass(frozen=True)
class Shard:
    """A shard that is mapped into memory."""

    batch: pa.RecordBatch
    layout: RecordFormat

    path: Path

    @classmethod
    def open(cls, path: Path, record: ShardRecord, layout: RecordFormat) -> "Shard":
        """Map the file `path`.

        Lengths and offsets are compared with the file before anything follows them; what stands in the records is not
        looked at.

        Raises:
            DataError: it is missing, shorter than it was, of another cache, or no shard.
        """
        problem = shard_problem(path, record, layout)
        if problem:
            raise DamagedError(f"{path}: {problem}. {remove_command(path)}")
        return cls(_mapped(path).get_batch(0), layout, path)

    @property
    def keys(self) -> np.ndarray:
        """``(D, 16)`` bytes, in the order of the documents."""
        column = cast(pa.FixedSizeBinaryArray, self.batch.column("key"))
        data = column.buffers()[1]
        assert data is not None
        return np.frombuffer(data, dtype=np.uint8)[: KEY_BYTES * len(column)].reshape(-1, KEY_BYTES)

    def records(self, index: int) -> np.ndarray:
        """The records of a document; of an uncompressed one, where they lie on disk.

        Raises:
            DataError: they cannot be decompressed, or hold what no teacher says.
        """
        block = self.batch.column("records")[index].as_buffer()
        if is_compressed(self.layout):
            size = self.batch.column("positions")[index].as_py() * self.layout.bytes_per_position
            try:
                block = pa.decompress(block, decompressed_size=size, codec="zstd")
            except (pa.ArrowException, OSError) as error:
                raise self.damaged(index, str(error)) from error
        records = np.frombuffer(block, dtype=self.layout.dtype)
        try:
            self.layout.check(records)
        except DamagedRecords as damage:
            raise self.damaged(index, str(damage)) from damage
        return records

    def signals(self, index: int) -> Signals:
        """What the teacher said at the positions of a document.

        Raises:
            DataError: the records cannot be what was written.
        """
        try:
            return self.layout.decode(self.records(index))
        except DamagedRecords as damage:
            raise self.damaged(index, str(damage)) from damage

    def damaged(self, index: int, problem: str) -> DataError:
        """The error for what is wrong with the records of a document."""
        return DamagedError(f"{self.path}: damaged (row {index} of it: {problem}). {remove_command(self.path)}")


def shard_problem(path: Path, record: ShardRecord, layout: RecordFormat) -> str:
    """What is wrong with a shard as far as can be seen without reading its records; empty if nothing is."""
    return file_problem(path, record, layout) or framing_problem(path, record, layout)


def file_problem(path: Path, record: ShardRecord, layout: RecordFormat) -> str:
    """What is wrong with a shard as far as can be seen without opening it; empty if nothing is."""
    if not path.is_file():
        return "missing"
    size = path.stat().st_size
    if size != record.bytes:
        return f"{size:,} bytes long, and {record.bytes:,} were written"
    if record.spec != layout.spec.digest:
        return f"belongs to another cache (spec {record.spec:.40}, not {layout.spec.digest})"
    return ""


def framing_problem(path: Path, record: ShardRecord, layout: RecordFormat) -> str:
    """What is wrong with how a file is laid out; empty if nothing is."""
    try:
        file = _mapped(path)
        if not file.schema.equals(SCHEMA) or file.num_record_batches != 1:
            return "damaged: its columns are not those of a shard"
        batch = file.get_batch(0)
        # Offsets that point out of the file would be followed.
        batch.validate(full=True)
    except (pa.ArrowException, OSError, KeyError) as error:
        return f"damaged: no shard ({error})"
    if batch.num_rows != record.documents or any(column.null_count for column in batch.columns):
        return f"damaged: it has {batch.num_rows:,} rows, and {record.documents:,} were written"
    positions = batch.column("positions").to_numpy().astype(np.int64)
    if positions.min() < 1 or positions.sum() != record.positions:
        return f"damaged: it has {positions.sum():,} positions, and {record.positions:,} were written"
    if not is_compressed(layout):
        lengths = pc.call_function("binary_length", [batch.column("records")]).to_numpy()
        if (lengths != positions * layout.bytes_per_position).any():
            return "damaged: the records of a row are not as long as its positions take"
    return ""


def _mapped(path: Path) -> "pa.RecordBatchFileReader":
    return pa.ipc.open_file(pa.memory_map(str(path)))


def _lists(column: "pa.ListArray") -> list[np.ndarray]:
    values = column.flatten().to_numpy(zero_copy_only=False)
    return np.split(values, np.cumsum(column.value_lengths().to_numpy())[:-1])
