"""The whole SmolLM2 example: prepare, distil once per objective, measure.

    python examples/smollm2/run.py --steps 5 --objectives risk_guided   # a rehearsal on the problems that come with it
    python examples/smollm2/run.py --data gsm8k.jsonl                   # about an hour on two ordinary CPU cores

Interrupted, it goes on where it stopped: what is prepared and every finished objective are kept.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from bridgegarden.errors import ConfigError, unknown_name

HERE = Path(__file__).parent
PROBLEMS = HERE / "problems.jsonl"
"""Sixty-four word problems made from four patterns: enough for a rehearsal."""
OBJECTIVES = ("hard", "soft", "entropy", "risk_guided")
REHEARSAL_STEPS = 20
"""Fewer steps than this teach nothing: they only show that everything runs, so rows are cut short and few measured."""
REHEARSAL_TRAINING = {"max_length": 160, "per_device_train_batch_size": 2, "logging_steps": 1}
REHEARSAL_MEASURE = ("--rows", "4", "--prompts", "1", "--new-tokens", "24")


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What is noted when an objective has been trained; its presence says that the model beside it is complete."""

    seconds: float
    """Wall-clock time of `bridgegarden train`, loading included."""
    threads: int | None
    """As `--threads` said; `None` leaves the choice to PyTorch."""


def python(*arguments: str | Path, threads: int | None) -> None:
    """Run this Python with `arguments`; its failure is ours, for it has said why."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}  # every model and row is a local file
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    result = subprocess.run([sys.executable, *map(str, arguments)], env=environment, check=False)
    if result.returncode != 0:
        sys.exit(result.returncode)


def read_finished(output: Path) -> Finished | None:
    """The note of a finished training in `output`, if there is one."""
    note = output / "finished.json"
    return Finished(**json.loads(note.read_text(encoding="utf-8"))) if note.exists() else None


def train(objective: str, work: Path, output: Path, steps: int, threads: int | None) -> None:
    """`bridgegarden train` of the recipe of that name, unless `output` holds its finished model."""
    if read_finished(output) is not None:
        click.echo(f"{objective}: finished before, kept ({output})", err=True)
        return
    if output.exists():
        click.echo(f"{objective}: {output} was left unfinished, starting over", err=True)
        shutil.rmtree(output)
    settings = {
        "teacher.model": work / "teacher",
        "student.model": work / "student",
        "data.train": work / "train.jsonl",
        "training.max_steps": steps,
        "output": output,
    }
    if steps < REHEARSAL_STEPS:
        settings |= {f"training.{name}": value for name, value in REHEARSAL_TRAINING.items()}
    overrides = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    started = time.perf_counter()
    python("-m", "bridgegarden", "train", HERE / f"{objective}.yaml", *overrides, threads=threads)
    note = Finished(seconds=round(time.perf_counter() - started, 1), threads=threads)
    (output / "finished.json").write_text(json.dumps(asdict(note)) + "\n", encoding="utf-8")


def measure(work: Path, runs: Path, steps: int, threads: int | None) -> Path:
    """Measure the untrained student and every finished one; returns where the table is."""
    finished = {name: note for name in OBJECTIVES if (note := read_finished(runs / name)) is not None}
    students = [work / "student", *[runs / name / "model" for name in finished]]
    results = runs / "results.md"
    python(
        HERE / "measure.py",
        *("--teacher", work / "teacher"),
        *[part for student in students for part in ("--student", student)],
        *("--data", work / "held_out.jsonl", "--markdown", results),
        *(REHEARSAL_MEASURE if steps < REHEARSAL_STEPS else ()),
        threads=threads,
    )
    rows = [f"| {name} | {note.seconds:.0f} | {note.threads or 'default'} |" for name, note in finished.items()]
    table = "\n".join(["| student | seconds | threads |", "| --- | ---: | ---: |", *rows])
    with results.open("a", encoding="utf-8") as file:
        file.write(f"\n### Training: {steps} steps each\n\n{table}\n")
    return results


def read_objectives(_context: click.Context, _option: click.Parameter, value: str) -> list[str]:
    """`a,b` as names of recipes that exist."""
    names = [name.strip() for name in value.split(",")]
    for name in names:
        if name not in OBJECTIVES:
            error: ConfigError = unknown_name(name, OBJECTIVES, field="--objectives", kind="objective")
            click.echo(f"Error: {error}", err=True)
            sys.exit(2)
    return names


@click.command()
@click.option(
    "--data",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=PROBLEMS,
    help="Rows: question, answer.  [default: problems.jsonl beside this file]",
)
@click.option("--held-out", type=click.IntRange(min=1), help="Rows to measure on.  [default: 100, or 16 of our own]")
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), default="runs/smollm2", show_default=True)
@click.option("--steps", type=click.IntRange(min=1), default=120, show_default=True, help="Under 20: a rehearsal.")
@click.option("--objectives", callback=read_objectives, default=",".join(OBJECTIVES), show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: PyTorch's choice]")
def run(data: Path, held_out: int | None, work: Path, steps: int, objectives: list[str], threads: int | None) -> None:
    """Distil the SmolLM2 student once per objective and measure all of them on held-out rows of DATA."""
    kept = held_out or (16 if data == PROBLEMS else 100)
    python(HERE / "prepare.py", "--data", data, "--held-out", str(kept), "--output", work, threads=threads)
    runs = work / f"{steps}-steps"
    for number, objective in enumerate(objectives, start=1):
        click.echo(f"\n[{number}/{len(objectives)}] {objective}, {steps} steps", err=True)
        train(objective, work, runs / objective, steps, threads)
    click.echo("\nmeasuring on held-out rows", err=True)
    results = measure(work, runs, steps, threads)
    click.echo(f"\nresults: {results}")


if __name__ == "__main__":
    run()
