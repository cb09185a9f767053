"""A shard: some documents and their records in one Arrow file, read where it lies.

An Arrow IPC file that is not compressed can be mapped into memory and any document in it used without reading the rest.
In a cache whose support is ``mass`` most slots are empty, so there each document's records are compressed by Zstandard.
"""

import errno
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import pyarrow as pa

from bridgegarden.errors import ConfigError, DataError
from bridgegarden.teacher.cache.documents import KEY_BYTES
from bridgegarden.teacher.cache.manifest import ShardRecord, remove_command, write_atomically, write_record
from bridgegarden.teacher.cache.record import RecordFormat

SCHEMA = pa.schema([("key", pa.binary(KEY_BYTES)), ("positions", pa.int32()), ("records", pa.large_binary())])


class Entry(NamedTuple):
    """A document on its way to disk."""

    key: bytes
    records: np.ndarray


def write_shard(path: Path, entries: Sequence[Entry], layout: RecordFormat) -> ShardRecord:
    """Write a shard, whole or not at all, and declare it finished.

    Raises:
        ConfigError: the disk is full; what was finished before is untouched.
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
    )
    try:
        write_atomically(path, content)
        write_record(path, record)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ConfigError(
            f"teacher cache {path.parent.parent}: no space left on the disk for {path.name} ({len(content):,} bytes). "
            "Finished shards are whole and are kept; make room, then run the same command again."
        ) from error
    return record


def is_compressed(layout: RecordFormat) -> bool:
    """Whether the records of a document are compressed."""
    return layout.spec.support.kind == "mass"


@dataclass(frozen=True)
class Shard:
    """A shard that is mapped into memory."""

    batch: pa.RecordBatch
    layout: RecordFormat

    @classmethod
    def open(cls, path: Path, record: ShardRecord, layout: RecordFormat) -> "Shard":
        """Map the file `path`.

        Raises:
            DataError: it is missing, shorter than it was, of another cache, or no shard.
        """
        problem = shard_problem(path, record, layout)
        if problem:
            raise DataError(f"{path}: {problem}. {remove_command(path)}")
        try:
            file = pa.ipc.open_file(pa.memory_map(str(path)))
            batch = file.get_batch(0)
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{path}: not a shard ({error}). {remove_command(path)}") from error
        return cls(batch, layout)

    @property
    def keys(self) -> np.ndarray:
        """``(D, 16)`` bytes, in the order of the documents."""
        column = cast(pa.FixedSizeBinaryArray, self.batch.column("key"))
        data = column.buffers()[1]
        assert data is not None
        return np.frombuffer(data, dtype=np.uint8)[: KEY_BYTES * len(column)].reshape(-1, KEY_BYTES)

    def records(self, index: int) -> np.ndarray:
        """The records of a document; of an uncompressed one, where they lie on disk."""
        block = self.batch.column("records")[index].as_buffer()
        if is_compressed(self.layout):
            size = self.batch.column("positions")[index].as_py() * self.layout.bytes_per_position
            block = pa.decompress(block, decompressed_size=size, codec="zstd")
        return np.frombuffer(block, dtype=self.layout.dtype)


def shard_problem(path: Path, record: ShardRecord, layout: RecordFormat) -> str:
    """What is wrong with a shard as far as can be seen without reading it; empty if nothing is."""
    if not path.is_file():
        return "missing"
    size = path.stat().st_size
    if size != record.bytes:
        return f"{size:,} bytes long, and {record.bytes:,} were written"
    if record.spec != layout.spec.digest:
        return f"belongs to another cache (spec {record.spec}, not {layout.spec.digest})"
    return ""
