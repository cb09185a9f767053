"""Finished runs as files, each under a key of everything that decided it, so that none is done twice."""

import hashlib
import json
import platform
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from bridgegarden.run.output import check_writable, write_json, write_text
from bridgegarden.run.record import package_versions

RunT = TypeVar("RunT")

DECIDES = ("bridgegarden", "torch", "transformers", "trl", "tokenizers")
"""Packages whose version may change a number."""


def key_of(parts: Mapping[str, Any]) -> str:
    """A hash of everything that decides a run, the same in every process."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def keep(path: Path, key: str, run: Mapping[str, Any]) -> None:
    """Write a finished run, whole or not at all."""
    write_json(path, {"key": key, "run": run})


def kept(path: Path, key: str, read: Callable[[Mapping[str, Any]], RunT]) -> RunT | None:
    """The run in `path`, if it was made with everything as `key` has it.

    None if it is missing, damaged, or not ours: it is then made again, and overwritten.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        return read(tree["run"]) if tree["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def deciding_versions() -> Mapping[str, Any]:
    """Python, the platform and the packages that decide the numbers."""
    packages = package_versions()
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        **{name: packages[name] for name in DECIDES if name in packages},
    }


def mark_of(folder: Path) -> Path:
    """The file in `folder` that says that the newest run there did not finish, or has not yet."""
    return folder / "INCOMPLETE"


def begin_folder(path: Path, *, command: str, results: str) -> None:
    """Make `path` and mark it as one that does not hold a finished run; see :func:`mark_of`.

    Args:
        path: the output folder.
        command: whose.
        results: the files that a finished run leaves, for a reader of the mark.

    Raises:
        ConfigError: nothing can be written there.
    """
    check_writable(path, "output")
    path.mkdir(parents=True, exist_ok=True)
    write_text(
        mark_of(path),
        f"A run of `{command}` in this folder is under way or was interrupted. Until it finishes, {results}, if they "
        "are here, are those of an earlier run.\n",
    )
