"""What exported models take where they run (``bridgegarden bench``): bytes, memory, tokens a second, and what they have
lost, side by side.

Each model is run by the program that its files are for, in a process of its own, whose largest memory is then its own
too. All processes stay; they are asked in turn, round after round, so that what slows the machine for a while slows all
of them, and ratios are of the same round.
"""

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from bridgegarden.data import RowRules, load_rows, tokenise, tokenizer_fingerprint
from bridgegarden.data.encode import IGNORED
from bridgegarden.errors import ConfigError, DataError, ModelError
from bridgegarden.export.gguf_tokenizer import Written
from bridgegarden.export.runtimes import PACKAGES, Runtime, context_of, runtime_of
from bridgegarden.preflight import ModelReference, load_tokenizer
from bridgegarden.statistics import Estimate
from bridgegarden.table import Column, Table, number

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
    rows: str | None = None
    """Rows as for training, on whose answers each model is scored; None scores none."""
    limit: int = 32
    """At most so many of them."""

    def __post_init__(self) -> None:
        for name in ("prompt", "decode", "rounds", "threads", "limit"):
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
    nats: tuple[float, ...] = ()
    """Of each row minus the log-probability of its answer, by the model's own program."""
    tokens: tuple[int, ...] = ()
    """Of each row's answer."""

    @property
    def loss(self) -> Estimate:
        """Nats a token, over rows."""
        return Estimate.ratio(self.nats, self.tokens)

    def more_than(self, other: "Measured") -> Estimate:
        """How much its loss is above that of `other` on the same rows."""
        return Estimate.ratio([a - b for a, b in zip(self.nats, other.nats, strict=True)], self.tokens)


class Row(NamedTuple):
    """What is scored."""

    ids: list[int]
    places: list[int]
    """Of the tokens that count."""


def bench(models: Sequence[str], options: BenchOptions) -> list[Measured]:
    """Measure `models`, each a folder of transformers or onnxruntime, or a GGUF file.

    Raises:
        ConfigError: one is none of these, or rows are given and no folder with a tokenizer.
        DataError: the rows cannot be read.
        ModelError: one cannot be run, or has no room for so many tokens, or another tokenizer than the others.
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
    rows = [] if options.rows is None else held_out(paths, options)
    longest = max((len(row.ids) for row in rows), default=0)
    workers = [
        None if _missing(runtime) else _Worker(path, options, longest)
        for path, runtime in zip(paths, runtimes, strict=True)
    ]
    try:
        for worker in filter(None, workers):
            worker.hear()
        for _ in range(options.rounds + 1):
            for worker in filter(None, workers):
                worker.ask()
        for worker in filter(None, workers):
            worker.score(rows)
    finally:
        for worker in filter(None, workers):
            worker.end()
    return [
        _measured(path, runtime, worker, options, rows)
        for path, runtime, worker in zip(paths, runtimes, workers, strict=True)
    ]


def held_out(paths: Sequence[Path], options: BenchOptions) -> list[Row]:
    """The rows that are scored, in the tokens of the first folder, which all models must have.

    Raises:
        ConfigError: none is a folder with a tokenizer.
        DataError: the rows cannot be read, or nothing in them is an answer that every model has room for.
        ModelError: a model has other tokens.
    """
    assert options.rows is not None
    folder = next((path for path in paths if path.is_dir()), None)
    if folder is None:
        raise ConfigError(
            "--rows: are read with the tokenizer of a model's folder, and all models are files. Add the folder that "
            "they were made of, first or last."
        )
    tokenizer = load_tokenizer(ModelReference(role="model", model=str(folder)))
    for path in paths:
        _check_tokenizer(path, folder, tokenizer)
    rooms = [room for path in paths if (room := context_of(path, runtime_of(path))) is not None]
    data = load_rows(options.rows, limit=options.limit)
    rules = RowRules(max_length=min(rooms, default=None))
    made = [
        Row(row["input_ids"], [at for at, label in enumerate(row["labels"]) if at and label != IGNORED])
        for row in map(dict, tokenise(data, tokenizer, rules, name=options.rows))
    ]
    if len(made) < 2:
        raise DataError(f"--rows: {options.rows} has one row with an answer; two say how sure a loss is.")
    return made


def _check_tokenizer(path: Path, folder: Path, tokenizer: "PreTrainedTokenizerBase") -> None:
    if path.is_dir():
        own = load_tokenizer(ModelReference(role="model", model=str(path)))
        fault = None if tokenizer_fingerprint(own) == tokenizer_fingerprint(tokenizer) else "it gives other ids"
    else:
        fault = Written.of(path).fault_of(tokenizer)
    if fault is not None:
        raise ModelError(f"{path}: has another tokenizer than {folder} ({fault}), so --rows are other tokens to it.")


def _missing(runtime: Runtime) -> str | None:
    """What is not installed of what `runtime` is run with, and how to get it."""
    package, command = PACKAGES[runtime]
    return None if find_spec(package) is not None else command


def _measured(
    path: Path, runtime: Runtime, worker: "_Worker | None", options: BenchOptions, rows: Sequence[Row]
) -> Measured:
    size = path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    if worker is None:
        return Measured(model=str(path), runtime=runtime, size=size, missing=_missing(runtime))
    counted = worker.heard[1:]  # behind the first round
    return Measured(
        model=str(path),
        runtime=runtime,
        size=size,
        memory=int(max(one["memory"] for one in worker.heard)),
        prompt=tuple(options.prompt / one["prompt"] for one in counted),
        decode=tuple(options.decode / one["decode"] for one in counted),
        nats=tuple(worker.nats),
        tokens=tuple(len(row.places) for row in rows),
    )


class _Worker:
    """A process with one model, which works when it is asked to."""

    def __init__(self, path: Path, options: BenchOptions, longest: int) -> None:
        self.path, self.heard, self.nats = path, list[dict[str, float]](), list[float]()
        settings = json.dumps(asdict(options) | {"longest": longest})
        command = [sys.executable, "-m", "bridgegarden.export.runtimes", str(path), settings]
        pipe = subprocess.PIPE
        # A pipe that nobody reads would be full one day: llama.cpp logs every request.
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._log, text=True)

    def ask(self) -> None:
        """One round."""
        self.heard.append(self._asked(""))

    def score(self, rows: Sequence[Row]) -> None:
        """How likely each of `rows` is to the model.

        Raises:
            ModelError: it has ended, or what it says is no number.
        """
        if not rows:
            return
        from bridgegarden.terminal import Display, stderr_console

        with Display(stderr_console(), f"scoring {self.path.name}", len(rows)) as display:
            for done, row in enumerate(rows, start=1):
                nats = self._asked(json.dumps(row._asdict()))["nats"]
                if not math.isfinite(nats):
                    raise ModelError(f"{self.path}: gives an answer no probability, or one that is not a number.")
                self.nats.append(nats)
                display.update(done)

    def _asked(self, line: str) -> dict[str, float]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # what it said last tells why
        return self.hear()

    def hear(self) -> dict[str, float]:
        """What it says next.

        Raises:
            ModelError: it has ended.
        """
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):  # and not a word of a library's
                return json.loads(line)
        status = self._process.wait()
        self._log.seek(0)
        said = self._log.read().strip().splitlines() or [f"status {status}"]
        raise ModelError(f"{self.path}: cannot be run ({said[-1]}).")

    def end(self) -> None:
        """And its process with it."""
        self._process.kill()
        self._process.communicate()
        self._log.close()


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


def loss_table(found: Sequence[Measured]) -> Table | None:
    """What each model loses on the rows, and how much more that is than the first; None where none were given."""
    scored = [one for one in found if one.nats]
    if not scored:
        return None
    first = scored[0]
    rows = [
        [
            Path(one.model).name,
            one.runtime,
            _with_error(one.loss),
            None if one is first else _with_error(one.more_than(first), sign="+"),
        ]
        for one in scored
    ]
    note = (
        f"Nats a token of the answers of {len(first.nats)} rows ({sum(first.tokens):,} tokens), by the model's own "
        "program, and how much more than the first model's; ± one standard error over rows."
    )
    return Table(columns=["model", Column("run by", words=True), "loss", "more"], rows=rows, note=note)


def _with_error(found: Estimate, sign: str = "") -> str:
    return f"{found.mean:{sign}.4f} ± {found.stderr:.4f}"
