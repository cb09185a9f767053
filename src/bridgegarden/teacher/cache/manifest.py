"""``cache.json``, what a whole cache is, and the files that lie beside every finished shard."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bridgegarden.errors import ConfigError, DataError
from bridgegarden.teacher.cache.spec import CacheSpec

FORMAT = 2
"""Version of everything on disk. Another one is refused, never guessed at."""

MANIFEST = "cache.json"
PACKAGES = ("bridgegarden", "torch", "transformers", "tokenizers", "numpy", "pyarrow")


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


def read_spec(folder: Path) -> CacheSpec:
    """The spec of the cache in `folder`.

    Raises:
        ConfigError: there is none, or it was written by another version of the format.
        DataError: its ``cache.json`` cannot be read.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ConfigError(f"teacher cache {folder}: no cache there ({MANIFEST} is missing). {build_command(folder)}")
    tree = _read_json(path)
    found = tree.get("format") if isinstance(tree, dict) else None
    if found != FORMAT:
        raise ConfigError(
            f"teacher cache {folder}: written in format {found!r}, and this version reads format {FORMAT}. "
            f"{replace_command(folder)}"
        )
    try:
        return CacheSpec.from_dict(tree["spec"])
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged ({error}). {replace_command(folder)}") from error


def write_spec(folder: Path, spec: CacheSpec) -> None:
    """Begin a cache in `folder`: whole or not at all."""
    versions = {name: version(name) for name in PACKAGES}
    write_json(folder / MANIFEST, {"format": FORMAT, "spec": spec.to_dict(), "versions": versions})


def finished_shards(folder: Path) -> dict[Path, ShardRecord]:
    """The shards of `folder` that were written to their end, by the path of their file, in order.

    Raises:
        DataError: the file beside a shard cannot be read.
    """
    records = {}
    for path in sorted((folder / "shards").glob("*.json")):
        try:
            records[path.with_suffix(".arrow")] = ShardRecord(**_read_json(path))
        except TypeError as error:
            raise DataError(f"{path}: damaged ({error}). {remove_command(path)}") from error
    return records


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


def write_json(path: Path, tree: Mapping[str, Any]) -> None:
    """A file that is there whole or not at all, also after a power failure."""
    write_atomically(path, (json.dumps(tree, indent=2) + "\n").encode())


def write_record(shard: Path, record: ShardRecord) -> None:
    """Declare the file `shard` finished."""
    write_json(shard.with_suffix(".json"), asdict(record))


def partial(path: Path) -> Path:
    """Where `path` is written before it is whole."""
    return path.with_name(f".{path.name}.partial")


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write under a temporary name, to the disk, then rename. Nothing is left behind if that fails."""
    try:
        with partial(path).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial(path), path)
    except BaseException:
        partial(path).unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}).") from error
