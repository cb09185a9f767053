"""The files of a cache: ``cache.json``, which says what it is, what lies beside every shard, lock, what is put aside.

One builder works at a time. Shards that cannot be used are put aside under another name, never removed: they may be
hours of a teacher.
"""

import errno
import fcntl
import filecmp
import hashlib
import json
import logging
import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from bridgegarden.errors import CacheError, ConfigError, DamagedError, DataError
from bridgegarden.files import write_json
from bridgegarden.teacher.cache.spec import CacheSpec
from bridgegarden.teacher.foreign_values import mapping, read_as, read_json

logger = logging.getLogger(__name__)

FORMAT = 2
"""Version of everything on disk. Another one is refused, never guessed at."""

MANIFEST = "cache.json"
SHARDS = "shards"
LOCK = "build.lock"
JOURNAL = "scored.jsonl"
"""Rows that a server has scored since the last shard."""
LEFT_OUT = "left-out.json"
"""Keys of rows that a server refused to score, and why."""
SHARD_NAME = re.compile(r"[0-9]{5,12}")
PACKAGES = ("bridgegarden", "torch", "transformers", "tokenizers", "numpy", "pyarrow")
HALF_WRITTEN = re.compile(r"\.[0-9]{5,12}\.(arrow|json)\.partial")
OWN_FILE = re.compile(rf"[0-9]{{5,12}}\.(arrow|json)(\.aside(-[0-9]+)?)?|{HALF_WRITTEN.pattern}")
"""Every file that a cache has in ``shards/``."""


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """What is known of a finished shard: ``shards/00000.json`` beside ``shards/00000.arrow``, written after it."""

    spec: str
    """Digest of the spec it was written for."""
    sha256: str
    """Of the shard's file."""
    bytes: int
    """Its size."""
    documents: int
    """Rows of the data in it."""
    positions: int
    """Supervised positions in it."""
    seconds: float | None = None
    """Wall time from the shard before, or the beginning, until it was ready to be written: finding rows, asking the
    teacher, encoding. None where that is not known: a server's teacher, or a shard written before it was kept."""
    cpu_seconds: float | None = None
    """Processor time of the same; None also where the teacher was in other processes."""

    def __post_init__(self) -> None:
        for name in ("bytes", "documents", "positions"):
            if not 0 < getattr(self, name) < 1 << 62:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected more than 0")


class BuildTime(NamedTuple):
    """What filling a cache took, loading the teacher not included; None where that is not known of every shard."""

    seconds: float | None
    """Wall time."""
    cpu_seconds: float | None
    """Processor time."""

    @classmethod
    def of(cls, shards: Iterable[ShardRecord]) -> "BuildTime":
        """Of all `shards` together."""
        records = list(shards)
        return cls(_total(record.seconds for record in records), _total(record.cpu_seconds for record in records))


def read_spec(folder: Path) -> CacheSpec:
    """The spec of the cache in `folder`.

    Raises:
        ConfigError: there is none, or it was written by another version of the format.
        DataError: its ``cache.json`` cannot be read.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise CacheError(f"teacher cache {folder}: no cache there ({MANIFEST} is missing). {build_command(folder)}")
    try:
        tree = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}). {elsewhere(folder)}") from error
    if not _is_manifest(tree):
        raise CacheError(f"{path}: no cache's; a file of this name is there that is not ours. {elsewhere(folder)}")
    if tree["format"] != FORMAT:
        raise CacheError(
            f"teacher cache {folder}: written in format {tree['format']}, and this version reads format {FORMAT}. "
            f"{replace_command(folder)}"
        )
    if "sha256" in tree and tree["sha256"] != _manifest_sha256(tree):
        raise DamagedError(f"{path}: damaged (it does not hold what was written). {replace_command(folder)}")
    try:
        return CacheSpec.from_dict(tree["spec"])
    except ValueError as error:
        raise DamagedError(f"{path}: damaged ({error}). {replace_command(folder)}") from error


def is_cache(folder: Path) -> bool:
    """Whether the ``cache.json`` of `folder` is one that this library wrote, of whatever format."""
    try:
        return _is_manifest(read_json(folder / MANIFEST))
    except (OSError, ValueError):
        return False


def write_spec(folder: Path, spec: CacheSpec) -> None:
    """Begin a cache in `folder`: whole or not at all."""
    tree: dict[str, Any] = {"format": FORMAT, "spec": spec.to_dict(), "versions": {n: version(n) for n in PACKAGES}}
    with writing(folder, folder / MANIFEST):
        write_json(folder / MANIFEST, {**tree, "sha256": _manifest_sha256(tree)})


def note_scoring(folder: Path, report: Mapping[str, Any]) -> None:
    """Write down in the manifest of `folder` how the server that scores did in its self-test."""
    tree = dict(read_json(folder / MANIFEST)) | {"scoring": dict(report)}
    with writing(folder, folder / MANIFEST):
        write_json(folder / MANIFEST, {**tree, "sha256": _manifest_sha256(tree)})


def noted_scoring(folder: Path) -> Mapping[str, Any] | None:
    """What :func:`note_scoring` wrote last; None where no server has scored."""
    return read_json(folder / MANIFEST).get("scoring")


def left_out(folder: Path) -> dict[str, str]:
    """Rows that the cache in `folder` lacks because a server refused to score them: keys in hexadecimal, and reasons.

    Raises:
        DataError: the file cannot be read.
    """
    path = folder / LEFT_OUT
    try:
        return dict(mapping(read_json(path), "it"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}). Remove it, then run cache build again.") from error


def shard_files(folder: Path) -> list[Path]:
    """Everything in ``shards/``, in order.

    Raises:
        DataError: the folder cannot be read.
    """
    try:
        return sorted((folder / SHARDS).iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{folder / SHARDS}: cannot be read ({error.strerror}).") from error


def finished_shards(folder: Path) -> dict[Path, ShardRecord]:
    """The shards of `folder` that were written to their end, by the path of their file, in order.

    Raises:
        DataError: the file beside a shard, or the folder, cannot be read.
    """
    records = {}
    for path in shard_files(folder):
        if SHARD_NAME.fullmatch(path.stem) and path.suffix == ".json":
            try:
                records[path.with_suffix(".arrow")] = read_as(ShardRecord, read_json(path))
            except (OSError, ValueError) as error:
                raise DamagedError(f"{path}: damaged ({error}). {remove_command(path)}") from error
    return records


def shards_without_record(folder: Path) -> list[Path]:
    """Shards whose ``.json`` is not there: never finished, or it was lost since. Nothing in them is read."""
    files = [path for path in shard_files(folder) if SHARD_NAME.fullmatch(path.stem)]
    recorded = {path.stem for path in files if path.suffix == ".json"}
    return [path for path in files if path.suffix == ".arrow" and path.stem not in recorded]


def _total(values: Iterable[float | None]) -> float | None:
    """The sum; None if one is."""
    listed = list(values)
    known = [value for value in listed if value is not None]
    return sum(known, 0.0) if len(known) == len(listed) else None


def build_command(folder: Path) -> str:
    """The advice to build a cache, or what it lacks, for messages."""
    return f"Build it with: bridgegarden cache build RECIPE --set teacher.cache={folder}"


def replace_command(folder: Path, spec: CacheSpec | None = None) -> str:
    """The advice to build a cache anew, keeping as much as `spec` does, for messages."""
    options = "" if spec is None else f" {spec.options}"
    return f"{build_command(folder)}{options} --replace"


def remove_command(path: Path) -> str:
    """The advice to build one shard again, for messages."""
    return (
        f"Remove it, then build what is missing: rm {path.with_suffix('')}.* && "
        f"bridgegarden cache build RECIPE --set teacher.cache={path.parent.parent}"
    )


def elsewhere(folder: Path) -> str:
    """The advice where nothing that is there may be removed, for messages."""
    return f"Nothing there is removed: name another folder (--set teacher.cache=FOLDER), or clear {folder} yourself."


@contextmanager
def writing(folder: Path, path: Path) -> Iterator[None]:
    """Whatever keeps `path` from being written in the cache `folder` becomes one line.

    Raises:
        ConfigError: the disk is full, or the folder may not be written to.
    """
    try:
        yield
    except OSError as error:
        where = f"teacher cache {folder}: {path.relative_to(folder)}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ConfigError(
                f"{where} cannot be written: no space left on the disk. What was finished is whole and is kept; make "
                "room, then run the same command again."
            ) from error
        raise ConfigError(
            f"{where} cannot be written ({error.strerror or error}). Make it writable, or name another folder (--set "
            "teacher.cache=FOLDER)."
        ) from error


def write_record(shard: Path, record: ShardRecord) -> None:
    """Declare the file `shard` finished."""
    write_json(shard.with_suffix(".json"), asdict(record))


def _is_manifest(tree: Any) -> bool:
    """By the keys, among them the version of this library, that a cache of every format has had."""
    if not (isinstance(tree, dict) and isinstance(tree.get("spec"), dict) and isinstance(tree.get("versions"), dict)):
        return False
    return type(tree.get("format")) is int and "bridgegarden" in tree["versions"]


def _manifest_sha256(tree: Mapping[str, Any]) -> str:
    """Of everything else in ``cache.json``."""
    rest = {name: value for name, value in tree.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


@contextmanager
def build_lock(folder: Path) -> Iterator[None]:
    """Hold `folder` for writing; it says who does.

    The system itself releases what a killed builder on this machine held. Of a builder on another machine, which shares
    the folder, nobody here can tell whether it lives: its lock stands until it is removed.

    Raises:
        ConfigError: another builder holds it, or the folder may not be written to.
    """
    path = folder / LOCK
    with writing(folder, path):
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _held(folder, _holder(file), "") from None
        holder = _holder(file)
        if holder and holder.get("host") != socket.gethostname():
            raise _held(folder, holder, f" If it no longer runs, remove {path}.")
        with writing(folder, path):
            _write(file, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode())
        try:
            yield
        finally:
            _write(file, b"")
    finally:
        os.close(file)


def _held(folder: Path, holder: dict[str, object], advice: str) -> ConfigError:
    who = f"process {holder['pid']} on {holder['host']}" if holder else "another process"
    return ConfigError(f"teacher cache {folder}: {who} is building here; wait for it, or build elsewhere.{advice}")


def _holder(file: int) -> dict[str, object]:
    try:
        tree = json.loads(os.pread(file, 4096, 0))
    except (ValueError, RecursionError):
        return {}
    return tree if isinstance(tree, dict) and {"pid", "host"} <= tree.keys() else {}


def _write(file: int, content: bytes) -> None:
    os.ftruncate(file, 0)
    os.pwrite(file, content, 0)


def put_aside(folder: Path, shard: Path, reason: str) -> None:
    """Rename a shard, and what lies beside it, so that it is not read; and say so.

    Raises:
        ConfigError: the folder may not be written to.
    """
    kept = "nothing of it is left"
    for path in (shard.with_suffix(".json"), shard):
        if path.exists():
            with writing(folder, path):
                os.rename(path, name := _free_name(path))
            kept = f"it is kept as {name.name}"
    logger.warning("%s: %s; %s, and its rows are asked again", shard, reason, kept)


def drop_copies_aside(shard: Path) -> None:
    """Remove what was put aside and is, byte for byte, the shard that has now been written in its place.

    A build that is killed between a shard and the file beside it leaves that.
    """
    for path in shard.parent.glob(f"{shard.name}.aside*"):
        if path.is_file() and filecmp.cmp(path, shard, shallow=False):
            path.unlink()


def _free_name(path: Path) -> Path:
    name, number = path.with_name(f"{path.name}.aside"), 2
    while name.exists():
        name, number = path.with_name(f"{path.name}.aside-{number}"), number + 1
    return name
