"""Put caches together that were built in parts."""

import errno
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bridgegarden.errors import ConfigError, DataError
from bridgegarden.teacher.cache.check import file_sha256
from bridgegarden.teacher.cache.lock import build_lock
from bridgegarden.teacher.cache.manifest import finished_shards, partial, read_spec, remove_command, write_record
from bridgegarden.teacher.cache.record import RecordFormat
from bridgegarden.teacher.cache.shard import Shard
from bridgegarden.teacher.cache.writer import begin_cache, shard_path


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
        return f"{self.folder}: {self.shards} shards with {self.documents:,} rows added{skipped}"


def merge_caches(folder: Path, parts: Sequence[Path]) -> MergeResult:
    """Copy the shards of `parts` into the cache in `folder`, checking every byte.

    Interrupted, it can be run again.

    Raises:
        ConfigError: the caches hold different kinds of signals, one is not a cache, or the disk is full.
        DataError: a shard is damaged.
    """
    if not parts:
        raise ConfigError("cache merge: name the folders to merge.")
    spec = read_spec(parts[0])
    for part in parts[1:]:
        differences = read_spec(part).differences(spec)
        if differences:
            raise ConfigError(f"cache merge: {part} does not fit {parts[0]}: {differences}.")
    begin_cache(folder, spec)
    layout = RecordFormat(read_spec(folder))
    copied = skipped = documents = 0
    with build_lock(folder):
        mine = finished_shards(folder)
        held = {key.tobytes() for path, record in mine.items() for key in Shard.open(path, record, layout).keys}
        number = max((int(path.stem) for path in mine), default=-1) + 1
        for path, record in (item for part in parts for item in finished_shards(part).items()):
            keys = {key.tobytes() for key in Shard.open(path, record, layout).keys}
            if keys <= held:
                skipped += 1
                continue
            target = shard_path(folder, number)
            _copy(path, target)
            if file_sha256(target) != record.sha256:
                target.unlink()
                raise DataError(f"{path}: damaged (its SHA-256 is not what was written). {remove_command(path)}")
            write_record(target, record)
            held |= keys
            copied, documents, number = copied + 1, documents + record.documents, number + 1
    return MergeResult(folder=folder, shards=copied, skipped=skipped, documents=documents)


def _copy(source: Path, target: Path) -> None:
    try:
        shutil.copyfile(source, partial(target))
        os.replace(partial(target), target)
    except OSError as error:
        partial(target).unlink(missing_ok=True)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ConfigError(
            f"cache merge: no space left on the disk for {target}. What was copied is whole; make room, then run the "
            "same command again."
        ) from error
