"""The whole SmolLM2 example: problems, a teacher that can solve most of them, and students by many objectives.

    python examples/smollm2/run.py --size rehearsal   # shows that everything runs; teaches nothing
    python examples/smollm2/run.py                    # two tasks, four objectives, two seeds: two hours of two cores
    python examples/smollm2/run.py --size full        # eight tasks, eleven objectives, three seeds: for a GPU

Interrupted, the same command goes on where it stopped.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import click
from prepare import RowPlan, prepare_base, prepare_rows, say
from problems import TASKS

from bridgegarden.errors import BridgegardenError, ModelError

HERE = Path(__file__).parent
RIGHT_AT_MOST = 0.95
"""A teacher that is right more often has nothing unsure left to be imitated."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is done."""

    tasks: tuple[str, ...]
    rows: tuple[int, int, int]
    """Of each task: to train on, for validation, held out."""
    layers: int
    """Of the student."""
    round_steps: int
    """Optimiser steps of the teacher between two looks at how often it is right."""
    round_batch: int
    """Rows a step, of the teacher."""
    rounds: int
    """At most."""
    right: float
    """The teacher is ready when it is right this often."""
    objectives: tuple[str, ...]
    seeds: int
    steps: int
    """Optimiser steps of a student."""
    batch: int
    """Rows a step, of a student."""
    prompts: int
    """Behind exposure bias."""
    new_tokens: int
    """Of a text behind exposure bias, at most."""
    equal_compute: tuple[str, ...] = ()
    """Objectives that are compared once more at equal compute."""


SIZES = {
    "rehearsal": Size(
        tasks=("chain_sum", "simple_equations"),
        rows=(12, 4, 4),
        layers=1,
        round_steps=2,
        round_batch=2,
        rounds=1,
        right=0.0,
        objectives=("soft", "sharpened"),
        seeds=1,
        steps=2,
        batch=2,
        prompts=2,
        new_tokens=8,
    ),
    "small": Size(
        tasks=("short_sum", "short_arithmetic"),
        rows=(4000, 64, 150),
        layers=10,
        round_steps=100,
        round_batch=16,
        rounds=15,
        right=0.6,
        objectives=("hard", "soft", "sharpened", "confidence"),
        seeds=2,
        steps=700,
        batch=8,
        prompts=48,
        new_tokens=96,
    ),
    "full": Size(
        tasks=tuple(name for name, task in TASKS.items() if name == task.generator),
        rows=(6000, 64, 250),
        layers=15,
        round_steps=200,
        round_batch=32,
        rounds=15,
        right=0.6,
        objectives=(
            *("sft", "hard", "soft", "sharpened", "static", "confidence", "entropy", "risk_guided"),
            *("reverse_kl", "gkd", "on_policy_hybrid"),
        ),
        seeds=3,
        steps=1500,
        batch=32,
        prompts=128,
        new_tokens=192,
        equal_compute=("soft", "gkd", "on_policy_hybrid"),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where everything is, and how commands are run."""

    work: Path
    threads: int | None
    dtype: str
    bf16: bool

    def bridgegarden(self, *arguments: str | Path) -> None:
        """Run the command line, shown as it could be typed; its failure is ours, for it has said why."""
        typed = list(map(str, arguments))
        say(f"\n$ {shlex.join(['bridgegarden', *typed])}")
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}  # every model and row is a local file
        if self.threads is not None:
            environment["OMP_NUM_THREADS"] = str(self.threads)
        result = subprocess.run([sys.executable, "-m", "bridgegarden", *typed], env=environment, check=False)
        if result.returncode != 0:
            sys.exit(result.returncode)

    def settings(self, **changes: str | int | Path) -> list[str]:
        """Changes to a recipe, a double underscore between section and key; and the type of all weights."""
        named = {name.replace("__", "."): value for name, value in changes.items()}
        named |= {"teacher.dtype": self.dtype, "student.dtype": self.dtype}
        if self.bf16:
            named |= {"training.use_cpu": "true", "training.bf16": "true"}
        return [part for name, value in named.items() for part in ("--set", f"{name}={value}")]

    def right(self, model: Path, tasks: list[Path], output: Path) -> float:
        """How often a model's greedy answers are right, the mean over files of problems; measured once."""
        results = output / "results.json"
        if not results.exists():
            named = ",".join(map(str, tasks))
            self.bridgegarden(
                *("evaluate", model, "--tasks", named, "--samples", "0", "--dtype", self.dtype, "--output", output)
            )
        scores = json.loads(results.read_text(encoding="utf-8"))["scores"]
        return sum(score["mean"] for score in scores) / len(scores)


def teach(place: Place, size: Size) -> Path:
    """Fine-tune the base until it is right often enough on validation problems; returns the teacher's folder.

    Raises:
        ModelError: it is not, after all rounds.
    """
    teacher = place.work / "teacher"
    if teacher.exists():
        say(f"{teacher}: exists, kept")
        return teacher
    model, right = place.work / "base", 0.0
    for number in range(1, size.rounds + 1):
        folder = place.work / "teacher-rounds" / str(number)
        measured = folder / "validation"
        if not (measured / "results.json").exists():
            settings = place.settings(
                teacher__model=place.work / "base",
                student__model=model,
                data__train=place.work / "train.jsonl",
                training__max_steps=size.round_steps,
                training__per_device_train_batch_size=size.round_batch,
                training__seed=number,
                output=folder,
            )
            place.bridgegarden("train", HERE / "teacher.yaml", *settings)
        right = place.right(folder / "model", [place.work / "validation.jsonl"], measured)
        if number > 1:
            shutil.rmtree(model, ignore_errors=True)  # only the newest round is gone on from
        model = folder / "model"
        say(f"teacher, {number * size.round_steps} steps: {right:.0%} of the validation problems right")
        if right >= size.right:
            break
    else:
        raise ModelError(
            f"the teacher is right on {right:.0%} of the validation problems after {size.rounds} rounds, and "
            f"{size.right:.0%} are wanted. Give it easier problems (problems.py) or more rounds (run.py)."
        )
    if right > RIGHT_AT_MOST:
        say(f"warning: right more often than {RIGHT_AT_MOST:.0%}; shorter rounds leave a teacher that is less sure")
    shutil.copytree(model, place.work / "teacher.unfinished", dirs_exist_ok=True)
    (place.work / "teacher.unfinished").rename(teacher)
    return teacher


def compare(place: Place, size: Size, workers: int) -> None:
    """Train and measure the students: at equal steps, and some of them at equal compute."""
    held_out = [place.work / "held_out" / f"{task}.jsonl" for task in size.tasks]
    for budget, objectives in (("steps", size.objectives), ("compute", size.equal_compute)):
        if not objectives:
            continue
        output = place.work / f"compare-{budget}"
        settings = place.settings(
            teacher__model=place.work / "teacher",
            student__layers=size.layers,
            data__train=place.work / "train.jsonl",
            data__eval=place.work / "validation.jsonl",
            data__limit=size.steps * size.batch,  # the teacher is not asked about rows that no student sees
            training__max_steps=size.steps,
            training__per_device_train_batch_size=size.batch,
            output=place.work / "students",
        )
        place.bridgegarden(
            *("compare", HERE / "compare.yaml", *settings),
            *("--objectives", ",".join(objectives), "--seeds", str(size.seeds), "--budget", budget),
            *("--baseline", "soft", "--tasks", ",".join(map(str, held_out)), "--prompts", str(size.prompts)),
            *("--texts", "2", "--max-new-tokens", str(size.new_tokens)),
            *("--no-keep-models", "--workers", str(workers), "--output", output),
        )
        click.echo(f"\nresults: {output / 'report.html'}")


@click.command()
@click.option("--size", "size_name", type=click.Choice(list(SIZES)), default="small", show_default=True)
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), help="Folder.  [default: runs/smollm2/SIZE]")
@click.option(
    "--base",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A Llama model's folder in the place of SmolLM2.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the problems.")
@click.option(
    "--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Students at a time, on CPUs."
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: PyTorch's choice]")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
@click.option("--bf16", is_flag=True, help="Train on CPUs that multiply bfloat16 fast: weights stay float32.")
def run(
    size_name: str,
    work: Path | None,
    base: Path | None,
    seed: int,
    workers: int,
    threads: int | None,
    dtype: str,
    bf16: bool,
) -> None:
    """Teach SmolLM2 to solve problems, distil it by several objectives, and compare the students."""
    size = SIZES[size_name]
    place = Place(work=work or Path("runs/smollm2") / size_name, threads=threads, dtype=dtype, bf16=bf16)
    train, validation, held_out = size.rows
    plan = RowPlan(tasks=size.tasks, seed=seed, train=train, validation=validation, held_out=held_out)
    try:
        prepare_rows(place.work, plan)
        if base is None:
            prepare_base(place.work / "base")
        elif not (place.work / "base").exists():
            shutil.copytree(base, place.work / "base")
        teacher = teach(place, size)
        files = [place.work / "held_out" / f"{task}.jsonl" for task in size.tasks]
        right = place.right(teacher, files, place.work / "teacher-held-out")
        say(f"teacher: {right:.1%} of the held-out problems right (greedy, mean over tasks)")
    except BridgegardenError as error:
        say(f"Error: {error}")
        sys.exit(2)
    compare(place, size, workers)


if __name__ == "__main__":
    run()
