"""Files that no crash and no full disk can spoil: whole or not there at all, or JSON lines that only grow.

Whatever a user finds on disk, but for the weights and checkpoints that other libraries write, is written here.
"""

import errno
import json
import math
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from time import monotonic
from typing import Any, BinaryIO

from bridgegarden.errors import ConfigError, DataError


class AppendedLines:
    """A file of JSON lines that only grows, a batch at a time, each wholly or not at all."""

    def __init__(self, path: Path, *, locked: bool = False, first_key: str | None = None) -> None:
        """
        Args:
            path: of the file.
            locked: whether no other process may write it meanwhile.
            first_key: of every record. A file that begins otherwise is somebody else's, and left as it is; None where
                that has been made sure of.

        Raises:
            ConfigError: another process is writing it.
            DataError: it is somebody else's, or cannot be written.
        """
        self.path = path
        if first_key is not None:
            self._refuse_foreign(line_of({first_key: 0}).partition(b":")[0])
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise DataError(f"{path}: cannot be written ({error.strerror}).") from error
        if not stat.S_ISREG(os.fstat(self._file).st_mode):
            os.close(self._file)
            raise DataError(f"{path}: is a device, a pipe or the like; expected a file.")
        self._on_disk_at = -math.inf
        if locked:
            self._lock()
        self._cut_torn_line()

    def records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Line numbers, from 1, and what is there.

        Raises:
            DataError: a line is damaged.
        """
        with self.path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                yield number, _parse(raw, self.path, number)

    def append(self, records: Sequence[Mapping[str, Any]], *, waits: bool = True) -> None:
        """Write `records` and wait until they are on the disk.

        Args:
            records: a line each.
            waits: whether to wait. The lines outlive the end of this process in any case, and without only then not
                that of the machine, until :meth:`settle`.

        Raises:
            DataError: they cannot be written; nothing of them is left.
        """
        if not records:
            return
        before = os.fstat(self._file).st_size
        rest = memoryview(b"".join(map(line_of, records)))
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
            if waits:
                os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, before)
            raise self._unwritable(error) from error

    def settle(self, *, at_most_every: float = 0.0) -> None:
        """Wait until all that was written is on the disk, if it was not waited for in the last so many seconds.

        Raises:
            DataError: it cannot be.
        """
        if monotonic() - self._on_disk_at < at_most_every:
            return
        try:
            os.fsync(self._file)
        except OSError as error:
            raise self._unwritable(error) from error
        self._on_disk_at = monotonic()

    def _unwritable(self, error: OSError) -> DataError:
        full = " Free some space and run the same command again." if error.errno == errno.ENOSPC else ""
        return DataError(f"{self.path}: cannot be written ({error.strerror}). What was there is whole.{full}")

    def sort(self, key: Callable[[Mapping[str, Any], Path, int], tuple[int, int]]) -> None:
        """By `key` of a record, its file and its line. Line by line: a large file does not fit in memory."""
        places: list[tuple[tuple[int, int], int, int]] = []
        offset = 0
        with self.path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                places.append((key(_parse(raw, self.path, number), self.path, number), offset, len(raw)))
                offset += len(raw)
            ordered = sorted(places)
            if ordered != places:
                write_whole(self.path, (os.pread(file.fileno(), size, at) for _, at, size in ordered))

    def close(self) -> None:
        os.close(self._file)

    def _refuse_foreign(self, beginning: bytes) -> None:
        """Before a line that has no end is cut off."""
        with suppress(FileNotFoundError), self.path.open("rb") as file:
            found = file.read(len(beginning))
            if not beginning.startswith(found):
                raise DataError(f"{self.path}: exists, and was not written by this command. Give another --output.")

    def _lock(self) -> None:
        import fcntl

        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken = os.fstat(self._file).st_ino != self.path.stat().st_ino  # sorted and replaced in between
        except BlockingIOError:
            taken = True
        if taken:
            os.close(self._file)
            raise ConfigError(f"{self.path}: another process is writing it. Wait for it, or give another --output.")

    def _cut_torn_line(self) -> None:
        size = os.fstat(self._file).st_size
        end = size
        while end > 0:
            start = max(end - 65536, 0)
            at = os.pread(self._file, end - start, start).rfind(b"\n")
            if at >= 0:
                end = start + at + 1
                break
            end = start
        if end < size:
            os.ftruncate(self._file, end)


def line_of(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False, allow_nan=False, default=_as_text).encode() + b"\n"


def _as_text(value: object) -> str:
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    raise TypeError(f"it holds a {type(value).__name__}")


def _parse(raw: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        record = json.loads(raw)
    except (ValueError, RecursionError) as error:
        record = None
        cause: Exception | None = error
    else:
        cause = None
    if not isinstance(record, dict):
        raise DataError(
            f"{path}:{number}: is damaged, not a JSON object. Remove the line, or give another --output."
        ) from (cause)
    return record


def partial(path: Path) -> Path:
    """Where `path` is written before it is whole: beside it, so that it can be renamed."""
    return path.with_name(f".{path.name}.partial")


def write_whole(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write a file that is there whole or not at all, also after a power failure; nothing else is left behind.

    Raises:
        OSError: it cannot be written; names `path`. What was there before is as it was.
    """
    with whole_file(path) as file:
        for part in parts:
            file.write(part)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which becomes `path` at the end of the block and is gone if that fails.

    Raises:
        OSError: as :func:`write_whole`.
    """
    unfinished = partial(path)
    try:
        unfinished.unlink(missing_ok=True)
        with unfinished.open("xb") as file:  # whatever else may lie there is not written through
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        sync_folder(path.parent)
    except OSError as error:
        error.filename = os.fspath(path)
        raise
    finally:
        with suppress(OSError):  # which may have been the trouble
            unfinished.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """:func:`write_whole` of text. What UTF-8 cannot say (half an emoji, bytes of a file's name) is escaped, as JSON
    does."""
    write_whole(path, [text.encode("utf-8", errors="backslashreplace")])


def write_json(path: Path, tree: Mapping[str, Any]) -> None:
    """:func:`write_text` of JSON."""
    write_text(path, json.dumps(tree, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def sync_folder(folder: Path) -> None:
    """Put the names in `folder` on the disk for good."""
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
