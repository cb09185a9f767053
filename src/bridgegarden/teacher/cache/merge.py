"""Put caches together that were built in parts."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bridgegarden.errors import ConfigError, DataError
from bridgegarden.files import partial
from bridgegarden.teacher.cache.aside import drop_copies_aside
from bridgegarden.teacher.cache.check import file_sha256
from bridgegarden.teacher.cache.lock import build_lock
from bridgegarden.teacher.cache.manifest import (
    ShardRecord,
    finished_shards,
    read_spec,
    remove_command,
    shards_without_record,
    write_record,
    writing,
)
from bridgegarden.teacher.cache.record import RecordFormat
from bridgegarden.teacher.cache.shard import Shard
from bridgegarden.teacher.cache.writer import begin_cache, clear_shards, shard_path
from bridgegarden.terminal import counted


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
            raise ConfigError(f"cache merge: {part} does not fit {parts[0]}: {differences}.")
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
    return MergeResult(folder=folder, shards=copied, skipped=skipped, documents=documents)


def _copy(folder: Path, source: Path, record: ShardRecord, number: int) -> None:
    """Copy a shard, whole or not at all."""
    target = shard_path(folder, number)
    try:
        with writing(folder, target):
            shutil.copyfile(source, partial(target))
            if file_sha256(partial(target)) != record.sha256:
                raise DataError(f"{source}: damaged (its SHA-256 is not what was written). {remove_command(source)}")
            os.replace(partial(target), target)
            write_record(target, record)
    finally:
        partial(target).unlink(missing_ok=True)
    drop_copies_aside(target)
