"""One builder at a time."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bridgegarden.errors import ConfigError
from bridgegarden.teacher.cache.manifest import writing

LOCK = "build.lock"


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
