"""What exported models take where they run (``bridgegarden bench``): bytes, memory, tokens a second, side by side.

Each model is run by the program that its files are for, in a process of its own, whose largest memory is then its own
too. All processes stay; they are asked in turn, round after round, so that what slows the machine for a while slows all
of them, and ratios are of the same round.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from bridgegarden.errors import ConfigError, ModelError
from bridgegarden.export.runtimes import PACKAGES, Runtime, context_of, runtime_of
from bridgegarden.table import Column, Table, number


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """How much is read and written."""

    prompt: int = 64
    """Tokens that are read at once."""
    decode: int = 32
    """Tokens that are then written one by one."""
    rounds: int = 5
    """How often; the first, which also warms caches, is not counted."""
    threads: int = 1
    """Of each model."""

    def __post_init__(self) -> None:
        for name in ("prompt", "decode", "rounds", "threads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name}: {getattr(self, name)}; expected 1 or more.")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One model."""

    model: str
    runtime: Runtime
    size: int
    """Bytes on disk of all that it needs."""
    missing: str | None = None
    """What is not installed; nothing more is known then."""
    memory: int = 0
    """Bytes, the largest that its process took, the program itself included."""
    prompt: tuple[float, ...] = ()
    """Tokens a second that were read, round by round."""
    decode: tuple[float, ...] = ()
    """Tokens a second that were written, round by round."""


def bench(models: Sequence[str], options: BenchOptions) -> list[Measured]:
    """Measure `models`, each a folder of transformers or onnxruntime, or a GGUF file.

    Raises:
        ConfigError: one is none of these.
        ModelError: one cannot be run, or has no room for so many tokens.
    """
    paths = [Path(model).expanduser() for model in models]
    runtimes: list[Runtime] = [runtime_of(path) for path in paths]
    for path, runtime in zip(paths, runtimes, strict=True):
        room = context_of(path, runtime)
        if room is not None and options.prompt + options.decode > room:
            raise ModelError(
                f"{path}: has room for {room} tokens, and {options.prompt} + {options.decode} are to be read and "
                "written; lower --prompt or --decode."
            )
    workers = [
        None if _missing(runtime) else _Worker(path, options) for path, runtime in zip(paths, runtimes, strict=True)
    ]
    try:
        for worker in filter(None, workers):
            worker.hear()
        for _ in range(options.rounds + 1):
            for worker in filter(None, workers):
                worker.ask()
    finally:
        for worker in filter(None, workers):
            worker.end()
    return [
        _measured(path, runtime, worker, options)
        for path, runtime, worker in zip(paths, runtimes, workers, strict=True)
    ]


def _missing(runtime: Runtime) -> str | None:
    """What is not installed of what `runtime` is run with, and how to get it."""
    package, command = PACKAGES[runtime]
    return None if find_spec(package) is not None else command


def _measured(path: Path, runtime: Runtime, worker: "_Worker | None", options: BenchOptions) -> Measured:
    size = path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    if worker is None:
        return Measured(model=str(path), runtime=runtime, size=size, missing=_missing(runtime))
    counted = worker.heard[2:]  # behind the greeting and the first round
    return Measured(
        model=str(path),
        runtime=runtime,
        size=size,
        memory=int(max(one["memory"] for one in worker.heard)),
        prompt=tuple(options.prompt / one["prompt"] for one in counted),
        decode=tuple(options.decode / one["decode"] for one in counted),
    )


class _Worker:
    """A process with one model, which works when it is asked to."""

    def __init__(self, path: Path, options: BenchOptions) -> None:
        self.path, self.heard = path, list[dict[str, float]]()
        settings = json.dumps(asdict(options))
        command = [sys.executable, "-m", "bridgegarden.export.runtimes", str(path), settings]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    def ask(self) -> None:
        """One round."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # what it said last tells why
        self.hear()

    def hear(self) -> None:
        """What it says next.

        Raises:
            ModelError: it has ended.
        """
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        for line in self._process.stdout:
            if line.startswith("{"):  # and not a word of a library's
                self.heard.append(json.loads(line))
                return
        said = self._process.stderr.read().strip().splitlines() or [f"status {self._process.wait()}"]
        raise ModelError(f"{self.path}: cannot be run ({said[-1]}).")

    def end(self) -> None:
        """And its process with it."""
        self._process.kill()
        self._process.communicate()


def bench_table(found: Sequence[Measured], options: BenchOptions) -> Table:
    """Medians over rounds; speed also as a multiple of the first model's in the same round."""
    first = next((one for one in found if one.missing is None), None)
    rows: list[list[Any]] = []
    for one in found:
        row: list[Any] = [Path(one.model).name, one.runtime, f"{one.size / 1e6:,.1f}"]
        if one.missing is not None or first is None:
            rows.append([*row, one.missing, None, None, None, None])
            continue
        row.append(f"{one.memory / 1e6:,.0f}")
        for own, held in ((one.prompt, first.prompt), (one.decode, first.decode)):
            ratio = median(a / b for a, b in zip(own, held, strict=True))
            row += [number(median(own)), f"{ratio:.2f}x"]
        rows.append(row)
    columns = ["model", Column("run by", words=True), "MB", "memory, MB", "read, t/s", "", "written, t/s", ""]
    note = (
        f"Medians of {options.rounds} rounds, in turn: {options.prompt} tokens read at once, {options.decode} written "
        f"one by one, {options.threads} thread{'s' * (options.threads > 1)}; x: as a multiple of the first model's. "
        "Memory is the largest of the whole process, with the program and its libraries."
    )
    return Table(columns=columns, rows=rows, note=note)
