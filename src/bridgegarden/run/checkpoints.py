"""Checkpoints that can be trusted, and the signals that end a run with one.

They are sealed once they are whole, and checked before a run goes on from one.

The trainer writes ``trainer_state.json`` last, so that a checkpoint without it was cut short. The seal, written after
it, says what every file held: a file that has changed or lost its end since is found before anything is loaded.
"""

import json
import os
import shutil
import signal
import sys
import threading
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from bridgegarden.errors import Stopped
from bridgegarden.files import partial, sync_folder, write_json

STATE = "trainer_state.json"
SEAL = "seal.json"
PREFIX = "checkpoint-"
ASIDE = "damaged-"
BLOCK = 1 << 22
SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SAID = "{}: finishing this step and saving it. Once more to stop at once.\n"


class Fault(NamedTuple):
    """Why a checkpoint is not gone on from."""

    checkpoint: Path
    reason: str
    torn: bool
    """Whether it was never whole, as opposed to damaged since."""


def seal(checkpoint: Path) -> None:
    """Put every file of a whole checkpoint on the disk for good, and write down what each holds."""
    files = {str(path.relative_to(checkpoint)): _contents(path, sync=True) for path in _files(checkpoint)}
    write_json(checkpoint / SEAL, {"files": files})
    sync_folder(checkpoint.parent)


def fault_of(checkpoint: Path) -> Fault | None:
    """What is wrong with a checkpoint; None where a run can go on from it.

    Without a seal nothing tells whether all of it has reached the disk: the machine may have lost power.
    """
    problem = _state_problem(checkpoint)
    if problem:
        return Fault(checkpoint, problem, torn=not (checkpoint / SEAL).exists())
    if not (checkpoint / SEAL).exists():
        return Fault(checkpoint, f"has no {SEAL}, so that a part of it may be missing", torn=False)
    sealed = _json(checkpoint / SEAL)
    reason = _changed(checkpoint, sealed["files"]) if _is_seal(sealed) else f"{SEAL} cannot be read"
    return None if reason is None else Fault(checkpoint, reason, torn=False)


def _state_problem(checkpoint: Path) -> str:
    from transformers import TrainerState

    tree = _json(checkpoint / STATE)
    if not isinstance(tree, dict):
        return "was not written to its end"
    try:
        state = TrainerState(**tree)
    except TypeError as error:
        return f"{STATE} is not what the trainer writes ({error})"
    history = state.log_history
    known = isinstance(history, list) and all(isinstance(e, dict) and isinstance(e.get("step"), int) for e in history)
    if state.global_step != step_of(checkpoint) or not known:
        return f"{STATE} is not what the trainer writes at this step"
    return ""


def checkpoints_in(folder: Path) -> list[Path]:
    """Everything in the trainer's folder that is called a checkpoint, the newest first."""
    found = [path for path in folder.glob(f"{PREFIX}*") if step_of(path) is not None and path.is_dir()]
    return sorted(found, key=lambda path: step_of(path) or 0, reverse=True)


def step_of(checkpoint: Path) -> int | None:
    """The step after which it was written, by its name."""
    number = checkpoint.name.removeprefix(PREFIX)
    return int(number) if number.isdecimal() and len(number) < 19 else None


def put_aside(fault: Fault) -> Path | None:
    """Take a checkpoint out of the trainer's way. One that was damaged is kept; returns where."""
    if fault.torn:
        shutil.rmtree(fault.checkpoint, ignore_errors=True)
        return None
    aside, number = fault.checkpoint.with_name(f"{ASIDE}{fault.checkpoint.name}"), 2
    while aside.exists():
        aside, number = fault.checkpoint.with_name(f"{ASIDE}{fault.checkpoint.name}-{number}"), number + 1
    os.replace(fault.checkpoint, aside)
    return aside


def put_aside_in(folder: Path) -> list[Path]:
    """What :func:`put_aside` has kept there."""
    return [path for path in folder.glob(f"{ASIDE}{PREFIX}*") if path.is_dir()]


def _files(checkpoint: Path) -> Iterator[Path]:
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file() and path.name not in (SEAL, partial(Path(SEAL)).name):
            yield path


def _contents(path: Path, *, sync: bool = False) -> dict[str, int]:
    size = checksum = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            size += len(block)
            checksum = zlib.crc32(block, checksum)
        if sync:
            os.fsync(file.fileno())
    return {"bytes": size, "crc32": checksum}


def _changed(checkpoint: Path, sealed: Mapping[str, Mapping[str, int]]) -> str | None:
    for name, then in sealed.items():
        path = checkpoint / name
        try:
            size = path.stat().st_size
            if size != then["bytes"]:
                return f"{name} has {size:,} bytes, of {then['bytes']:,} that were written"
            if _contents(path) != then:
                return f"{name} does not hold what was written"
        except FileNotFoundError:
            return f"{name} is gone"
        except (OSError, ValueError) as error:
            return f"{name[:80]} cannot be read ({error})"
    return None


def _is_seal(tree: Any) -> bool:
    files = tree.get("files") if isinstance(tree, dict) else None
    return isinstance(files, dict) and all(
        isinstance(entry, dict) and {"bytes": int, "crc32": int} == {key: type(value) for key, value in entry.items()}
        for entry in files.values()
    )


def _json(path: Path) -> Any:
    """What the file holds; None where it is not there, or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


class StopSignals:
    """While held, SIGINT and SIGTERM end the run in order; from a thread, signals are left as they are.

    Where a step is being trained, the first one only asks (:attr:`asked`): the step is finished and saved. Elsewhere,
    and the second time, :class:`~bridgegarden.errors.Stopped` is raised at once.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        """The signal that asked for the end."""
        self.can_wait = False
        """Whether somebody looks at :attr:`asked`."""
        self.speaks = True
        """Whether this process tells the user."""
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._arrived) for number in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a worker of the data loader, which ends with its parent
        if not self.can_wait or self.asked is not None:
            raise Stopped(number)
        self.asked = number
        if self.speaks:
            # Not through a console, whose lock the interrupted code may hold.
            name = signal.Signals(number).name
            with suppress(OSError):  # stderr may have gone away
                os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, _SAID.format(name).encode())
