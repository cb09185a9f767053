"""``bridgegarden quickstart``: ask the teacher once, train a student per objective and seed, measure, keep, report; and
what a person sees of it on a terminal."""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bridgegarden.quickstart import TEACHER
from bridgegarden.quickstart.report import runs_table
from bridgegarden.quickstart.result import (
    STUDENT_SIZE,
    AnswerView,
    Measured,
    ObjectiveRun,
    QuickstartResult,
    QuickstartSettings,
)
from bridgegarden.run.output import partial
from bridgegarden.study.arms import OBJECTIVES
from bridgegarden.study.kept import StudyFolder
from bridgegarden.study.run import Job, Tell, one_thread, steps_told, study

if TYPE_CHECKING:
    from datasets import Dataset
    from rich.console import Console
    from transformers import PreTrainedModel

    from bridgegarden.exact.tasks.arithmetic import ArithmeticWorld
    from bridgegarden.quickstart.student import HeldOut


SIGNALS = "whole vocabulary in 16 bits, from a cache"
"""How the students learn what the teacher says; it is in the key, as the numbers' last digits depend on it."""


FULL_SEEDS = 3
"""Seeds for each objective with `full`: enough for an interval over seeds that says something."""


MEASURING = 60
"""What measuring a student costs, in training steps, for the progress bar."""


class QuickstartFolder(StudyFolder):
    """With the students, and what the teacher says, beside result and report."""

    command = "bridgegarden quickstart"

    def student(self, objective: str, seed: int) -> Path:
        """The student of one finished training, as a folder that ``from_pretrained`` loads."""
        return self.path / "students" / f"{objective}-seed{seed}"

    def signals(self, seed: int) -> Path:
        """What the teacher says about the training answers of a seed: a teacher's cache."""
        return self.path / "caches" / f"seed{seed}"

    def forget(self) -> None:
        """Remove the trainings that are kept."""
        for name in ("caches", "runs", "students"):
            shutil.rmtree(self.path / name, ignore_errors=True)

    def save(self, result: QuickstartResult) -> None:
        """Write what a finished run leaves."""
        from bridgegarden.quickstart.report import report_page

        self.finish(result.to_dict(), report_page(result))

    def save_student(self, objective: str, seed: int, student: "PreTrainedModel") -> None:
        """Keep the student of a training, before its numbers are: where there are numbers, there is a model."""
        from bridgegarden.quickstart.student import load_tokenizer

        folder = self.student(objective, seed)
        for stale in (partial(folder), folder):
            shutil.rmtree(stale, ignore_errors=True)
        student.save_pretrained(partial(folder))
        # So that `diagnose`, `evaluate` and whoever else takes a model's folder can take this one.
        load_tokenizer().save_pretrained(partial(folder))
        partial(folder).rename(folder)


@dataclass(frozen=True, kw_only=True)
class QuickstartJob(Job[QuickstartSettings, QuickstartFolder, ObjectiveRun]):
    """One training and its measurement."""

    makes = ObjectiveRun

    objective: str
    """Key of `OBJECTIVES`."""

    seed: int
    """Of the first weights, the data and its order."""

    @property
    def name(self) -> str:
        return f"{self.objective}-{self.seed}"

    @property
    def path(self) -> Path:
        return self.folder.path / "runs" / f"{self.objective}-seed{self.seed}.json"

    @property
    def decided_by(self) -> dict[str, Any]:
        from bridgegarden.exact.tasks.arithmetic import ArithmeticWorld
        from bridgegarden.recipe import describe_objective

        shared = {name: value for name, value in self.settings.to_dict().items() if name not in ("objectives", "seeds")}
        return {
            "objective": describe_objective(OBJECTIVES[self.objective].build()),
            "seed": self.seed,
            "settings": shared,
            "world": asdict(ArithmeticWorld()),
            "student": asdict(STUDENT_SIZE),
            "teacher": hashlib.sha256((TEACHER / "model.safetensors").read_bytes()).hexdigest(),
            "signals": SIGNALS,
        }

    @property
    def units(self) -> int:
        return self.settings.steps + MEASURING

    @property
    def turn(self) -> int:
        return self.settings.seeds.index(self.seed)

    def kept(self) -> ObjectiveRun | None:
        # Without its student it is no finished training.
        return super().kept() if self.folder.student(self.objective, self.seed).is_dir() else None

    def run(self, tell: Tell) -> ObjectiveRun:
        from bridgegarden.quickstart.student import examine, tokens_asked, train_student
        from bridgegarden.teacher.cache.reader import TeacherCache

        objective, settings = OBJECTIVES[self.objective], self.settings
        signals = TeacherCache(self.folder.signals(self.seed))
        rows = _rows(settings.train_problems, self.seed)
        trained = train_student(objective, self.seed, settings, rows, signals, steps_told(tell))
        tell(settings.steps)
        measured = examine(trained.model, _held_out(settings.test_problems, self.seed)).measured()
        self.folder.save_student(self.objective, self.seed, trained.model)
        return ObjectiveRun(
            objective=self.objective,
            label=objective.label,
            hard_target=objective.hard_target,
            seed=self.seed,
            measured=measured,
            seconds=trained.seconds,
            cpu_seconds=trained.cpu_seconds,
            tokens=trained.tokens,
            teacher_tokens=tokens_asked(rows),
            final_loss=trained.final_loss,
        )

    def told(self, run: ObjectiveRun) -> str:
        found = run.measured
        return (
            f"{run.label}, seed {run.seed}: {100 * found.accuracy_sampled.mean:.1f} % right when sampling, "
            f"{100 * found.diversity.mean:.1f} % of the variety kept"
        )


def plan(*, full: bool = False, seed: int = 0) -> QuickstartSettings:
    """The settings of the command: all objectives and several seeds with `full`, else the default ones and `seed`."""
    if full:
        return QuickstartSettings(objectives=tuple(OBJECTIVES), seeds=tuple(range(seed, seed + FULL_SEEDS)))
    return QuickstartSettings(seeds=(seed,))


def quickstart(
    output: Path,
    *,
    full: bool = False,
    seed: int = 0,
    workers: int | None = None,
    settings: QuickstartSettings | None = None,
    console: "Console | None" = None,
) -> QuickstartResult:
    """Compare the objectives on the packaged world, and leave ``result.json`` and ``report.html`` in `output`.

    Both appear at the very end; until then, and after an interrupt, a file ``INCOMPLETE`` lies there. The numbers
    depend on the settings, the libraries' versions and the machine, not on the number of workers.

    Args:
        output: folder; made if need be.
        full: all objectives and several seeds. Trainings that an earlier run finished in `output` are not repeated.
        seed: the first seed.
        workers: processes of one thread each; the processors there are, at most 4, if None.
        settings: instead of those of `plan`.
        console: for progress; stderr if None.

    Raises:
        ConfigError: `output` is a file, a setting is wrong, or a worker was ended from outside.
    """
    settings = settings or plan(full=full, seed=seed)
    folder = QuickstartFolder(output)
    command = f"bridgegarden quickstart{' --full' if full else ''} --seed {settings.seeds[0]}"
    with study(folder, command, console) as begun:

        def prepare(todo: Sequence[QuickstartJob]) -> None:
            if not full:
                folder.forget()
            _ask_the_teacher(todo, begun.console)

        jobs = [
            QuickstartJob(objective=objective, seed=seed, settings=settings, folder=folder)
            for objective in settings.objectives
            for seed in settings.seeds
        ]
        runs = begun.run(jobs, workers=workers, resume=full, prepare=prepare, above=runs_table)
        with one_thread():
            teacher, answer = _look_at_teacher_and_answer(settings, folder)
        result = QuickstartResult(
            settings=settings, runs=runs, teacher=teacher, answer=answer, full=full, **begun.record()
        )
        folder.save(result)
    return result


def _ask_the_teacher(jobs: Sequence[QuickstartJob], console: "Console") -> None:
    """Once for all students of each seed; what an earlier run kept is not asked again."""
    from bridgegarden.quickstart.student import keep_signals, load_tokenizer

    for seed, job in {job.seed: job for job in jobs}.items():
        with console.status("asking the teacher"), one_thread():
            rows = _rows(job.settings.train_problems, seed)
            built = keep_signals(job.folder.signals(seed), rows, _teacher(), load_tokenizer())
        if built.documents:
            console.print(f"teacher asked once for {built.positions:,} tokens, in {built.seconds:.0f} s (seed {seed})")
        else:
            console.print(f"what the teacher says is kept from before (seed {seed})")


def _look_at_teacher_and_answer(settings: QuickstartSettings, folder: QuickstartFolder) -> tuple[Measured, AnswerView]:
    """The teacher on the held-out problems of all seeds, and one answer with the students of the first."""
    from transformers import AutoModelForCausalLM

    from bridgegarden.quickstart.student import PerProblem, examine, view_answer

    examined = [examine(_teacher(), _held_out(settings.test_problems, seed)) for seed in settings.seeds]
    together = PerProblem(*(torch.cat(columns) for columns in zip(*examined, strict=True)))
    first = settings.seeds[0]
    students = {
        name: AutoModelForCausalLM.from_pretrained(folder.student(name, first), dtype=torch.float32).eval()
        for name in settings.objectives
    }
    return together.measured(), view_answer(students, _held_out(settings.test_problems, first))


# Trainings of one process share what they do not change.
@lru_cache(maxsize=1)
def _world() -> "ArithmeticWorld":
    from bridgegarden.exact.tasks.arithmetic import ArithmeticWorld

    return ArithmeticWorld()


@lru_cache(maxsize=1)
def _teacher() -> "PreTrainedModel":
    from bridgegarden.quickstart.student import load_teacher

    return load_teacher()


@lru_cache(maxsize=1)
def _rows(problems: int, seed: int) -> "Dataset":
    from bridgegarden.quickstart.student import training_rows

    return training_rows(_world(), problems, seed)


@lru_cache(maxsize=1)
def _held_out(problems: int, seed: int) -> "HeldOut":
    from bridgegarden.quickstart.student import hold_out

    return hold_out(_world(), _teacher(), problems, seed)
