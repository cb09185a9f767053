"""Code that a model wrote, run where it can harm nobody, and examined from outside so that it cannot pass by cheating.

Two processes take part in an examination. The *candidate* is the model's code; the *examiner* is the test. They share
nothing but plain values that this process carries between them: what a call returns is compared in a process in which
nothing of the candidate exists. See :mod:`bridgegarden.evaluation.confined_child` for what each of them gives up.
"""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bridgegarden.errors import ConfigError

CHILD = Path(__file__).with_name("confined_child.py")
CONFINEMENT = (
    "a process for every answer, which has given up for good all system calls but those of pure computation (seccomp): "
    "no file, socket, process, thread or signal; memory and time limited; an empty environment and working directory"
)
"""What was in force. It is this or nothing: where the kernel does not offer it, no code is run."""
START_SECONDS = 60.0
"""Until a process must be ready; it has run nothing but our own code by then."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one examination may use."""

    cpu_seconds: int = 5
    """Processor time of the candidate, >= 1."""
    wall_seconds: int = 15
    """Time on the clock, for a candidate that sleeps, >= 1."""
    memory_bytes: int = 1 << 30
    """Address space, >= 256 MiB: Python itself takes a part of it."""
    message_bytes: int = 1 << 20
    """Longest value that crosses, as JSON, >= 1024."""

    def __post_init__(self) -> None:
        least = {"cpu_seconds": 1, "wall_seconds": 1, "memory_bytes": 1 << 28, "message_bytes": 1024}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ConfigError(f"limits.{name} must be >= {low}, got {getattr(self, name)}.")


@dataclass(frozen=True, kw_only=True)
class Exam:
    """A test of a candidate."""

    context: str = ""
    """Code that the test needs and the candidate may have too, such as the problem's own helper functions."""
    test: str
    """Code that raises unless the candidate is right."""
    names: tuple[str, ...]
    """The candidate's functions that `test` calls. Arguments and results are plain data, handed over by value."""


class Verdict(NamedTuple):
    """What came of an examination."""

    passed: bool
    reason: str
    """One line; empty if passed."""


def examine(candidate: str, exam: Exam, limits: Limits | None = None) -> Verdict:
    """Whether the code `candidate` passes `exam`.

    Raises:
        ConfigError: this system cannot confine a process.
    """
    limits = limits or Limits()
    try:
        with _confined(limits) as code, _confined(limits) as examiner:
            deadline = time.monotonic() + limits.wall_seconds
            code.send({"candidate": candidate}, deadline)
            examiner.send({"examiner": asdict(exam)}, deadline)
            loaded = _parsed(code.receive(deadline))
            if "raised" in loaded:
                return Verdict(False, f"the code cannot be loaded ({loaded['raised']})")
            while True:
                question = examiner.receive(deadline)
                verdict = _parsed(question)
                if "verdict" in verdict:
                    return Verdict(verdict["verdict"] is None, verdict["verdict"] or "")
                code.send(question, deadline)
                examiner.send(code.receive(deadline), deadline)
    except _Failed as failure:
        return Verdict(False, str(failure))


def check_confinement() -> None:
    """Make sure that a process can be confined here, before any code is written.

    Raises:
        ConfigError: it cannot.
    """
    with _confined(Limits()):
        pass


class _Failed(Exception):
    """The candidate ended the examination in one line."""


class _Process:
    """A confined process, as lines that go in and come out."""

    def __init__(self, process: "subprocess.Popen[bytes]", message_bytes: int) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._in, self._out = process.stdin.fileno(), process.stdout.fileno()
        self._largest = message_bytes
        self._read = b""
        os.set_blocking(self._in, False)

    def send(self, message: Any, deadline: float) -> None:
        """Write one line: an object, or a line as it came from the other process."""
        rest = memoryview(message if isinstance(message, bytes) else json.dumps(message).encode() + b"\n")
        while rest:
            self._wait(self._in, select.POLLOUT, deadline)
            try:
                rest = rest[os.write(self._in, rest) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise _Failed(self._how_it_ended()) from None

    def receive(self, deadline: float) -> bytes:
        """The next line."""
        while b"\n" not in self._read:
            if len(self._read) > self._largest:
                raise _Failed(f"it answered with more than {self._largest} bytes")
            self._wait(self._out, select.POLLIN, deadline)
            part = os.read(self._out, 1 << 16)
            if not part:
                raise _Failed(self._how_it_ended())
            self._read += part
        line, _, self._read = self._read.partition(b"\n")
        return line + b"\n"

    def _wait(self, descriptor: int, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(descriptor, event)
        if not poll.poll(max(deadline - time.monotonic(), 0) * 1000):
            raise _Failed("it took too long")

    def _how_it_ended(self) -> str:
        try:
            status = self._process.wait(1)
        except subprocess.TimeoutExpired:
            return "it closed its pipes"
        if status in (-signal.SIGXCPU, -signal.SIGALRM, -signal.SIGKILL):
            return "it took too long"
        return f"its process ended before the test did (status {status})"


@contextmanager
def _confined(limits: Limits) -> Iterator[_Process]:
    """A confined process that waits for its task."""
    if sys.platform != "linux":
        raise ConfigError(
            f"code that a model writes is only run on Linux, where it can be confined; this is {sys.platform}."
        )
    with tempfile.TemporaryDirectory(prefix="bridgegarden-confined-") as empty:
        os.chmod(empty, 0o555)
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "-X", "utf8", str(CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            cwd=empty,
            start_new_session=True,
        )
        try:
            yield _ready(process, limits)
        finally:
            _end(process)


def _ready(process: "subprocess.Popen[bytes]", limits: Limits) -> _Process:
    started = _Process(process, limits.message_bytes)
    deadline = time.monotonic() + START_SECONDS
    try:
        told = {name: value for name, value in asdict(limits).items() if name != "message_bytes"}
        started.send({**told, "parent": os.getpid()}, deadline)
        reply = _parsed(started.receive(deadline))
    except _Failed as failure:
        reply = {"refused": str(failure)}
    if "refused" in reply:
        raise ConfigError(
            f"this system does not let a process be confined ({reply['refused']}), so code that a model writes is not "
            "run. It takes Linux on x86-64 or ARM64 with seccomp filters, and a Python with ctypes."
        )
    return started


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:  # once it is waited for, its number may be another's
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise _Failed("it wrote to the pipe of its answers")
    return message
