"""Find what is damaged in a cache."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from bridgegarden.errors import DataError
from bridgegarden.teacher.cache.manifest import (
    ShardRecord,
    build_command,
    finished_shards,
    read_spec,
    remove_command,
    shards_without_record,
)
from bridgegarden.teacher.cache.record import RecordFormat
from bridgegarden.teacher.cache.shard import file_problem, framing_problem
from bridgegarden.terminal import counted

CHUNK = 1 << 20


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


def _problem(path: Path, record: ShardRecord, layout: RecordFormat) -> str:
    problem = file_problem(path, record, layout)
    if problem:
        return problem
    found = file_sha256(path)
    if found != record.sha256:
        return f"its SHA-256 is {found[:12]}, and {record.sha256[:12]} was written"
    return framing_problem(path, record, layout)
