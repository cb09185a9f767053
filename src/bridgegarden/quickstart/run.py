"""``bridgegarden quickstart``: ask the teacher once, train a student per objective and seed, measure, keep, report; and
what a person sees of it on a terminal."""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bridgegarden.quickstart import TEACHER
from bridgegarden.quickstart.report import runs_table
from bridgegarden.quickstart.result import AnswerView, Measured, ObjectiveRun, QuickstartResult, QuickstartSettings
from bridgegarden.run.output import partial
from bridgegarden.run.quiet import quiet_libraries
from bridgegarden.study.arms import OBJECTIVES
from bridgegarden.study.kept import StudyFolder, deciding_versions, keep, kept, key_of
from bridgegarden.study.run import Tell, one_thread, run_jobs, steps_told, study

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

    def run(self, objective: str, seed: int) -> Path:
        """Numbers of one finished training."""
        return self.path / "runs" / f"{objective}-seed{seed}.json"

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

    def save_run(self, run: ObjectiveRun, student: "PreTrainedModel", key: str) -> None:
        """Keep a finished training: the student first, so that where there are numbers there is a model."""
        from bridgegarden.quickstart.student import load_tokenizer

        folder = self.student(run.objective, run.seed)
        for stale in (partial(folder), folder):
            shutil.rmtree(stale, ignore_errors=True)
        student.save_pretrained(partial(folder))
        # So that `diagnose`, `evaluate` and whoever else takes a model's folder can take this one.
        load_tokenizer().save_pretrained(partial(folder))
        partial(folder).rename(folder)
        keep(self.run(run.objective, run.seed), key, run)

    def finished_run(self, objective: str, seed: int, key: str) -> ObjectiveRun | None:
        """A training that was finished here with everything as `key` has it."""
        if not self.student(objective, seed).is_dir():
            return None
        return kept(self.run(objective, seed), key, ObjectiveRun)


def run_key(objective: str, seed: int, settings: QuickstartSettings) -> str:
    """A hash of everything that the numbers of one training depend on."""
    from bridgegarden.exact.tasks.arithmetic import ArithmeticWorld
    from bridgegarden.quickstart.result import STUDENT_SIZE
    from bridgegarden.recipe import describe_objective

    shared = {name: value for name, value in settings.to_dict().items() if name not in ("objectives", "seeds")}
    parts = {
        "objective": describe_objective(OBJECTIVES[objective].build()),
        "seed": seed,
        "settings": shared,
        "world": asdict(ArithmeticWorld()),
        "student": asdict(STUDENT_SIZE),
        "teacher": hashlib.sha256((TEACHER / "model.safetensors").read_bytes()).hexdigest(),
        "signals": SIGNALS,
        "versions": dict(deciding_versions()),
    }
    return key_of(parts)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training and its measurement."""

    objective: str
    """Key of `OBJECTIVES`."""

    seed: int
    """Of the first weights, the data and its order."""

    settings: QuickstartSettings
    """What else the numbers depend on."""

    folder: QuickstartFolder
    """Where the numbers and the student are kept."""

    @property
    def name(self) -> str:
        """For the display."""
        return f"{self.objective}-{self.seed}"

    @property
    def key(self) -> str:
        """Of everything the numbers depend on."""
        return run_key(self.objective, self.seed, self.settings)

    @property
    def units(self) -> int:
        """All its work, in training steps."""
        return self.settings.steps + MEASURING

    def kept(self) -> ObjectiveRun | None:
        """What an earlier run found with everything as it is here."""
        return self.folder.finished_run(self.objective, self.seed, self.key)

    def told(self, run: ObjectiveRun) -> str:
        """What came of it, on one line."""
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
        if not full:
            folder.forget()
        runs = _all_runs(settings, folder, begun.console, workers, resume=full)
        with one_thread():
            teacher, answer = _look_at_teacher_and_answer(settings, folder)
        result = QuickstartResult(
            settings=settings,
            runs=runs,
            teacher=teacher,
            answer=answer,
            **{name: value for name, value in begun.record().items() if name != "commit"},
            full=full,
        )
        folder.save(result)
    return result


def run_one(job: Job, tell: Tell) -> ObjectiveRun:
    """Train and measure one student, and keep both in the job's folder."""
    from bridgegarden.quickstart.student import examine, tokens_asked, train_student
    from bridgegarden.teacher.cache.reader import TeacherCache

    objective, settings = OBJECTIVES[job.objective], job.settings
    with quiet_libraries(interactive=False):
        signals = TeacherCache(job.folder.signals(job.seed))
        rows = _rows(settings.train_problems, job.seed)
        trained = train_student(objective, job.seed, settings, rows, signals, steps_told(job, tell))
        tell(job.name, settings.steps)
        measured = examine(trained.model, _held_out(settings.test_problems, job.seed)).measured()
        run = ObjectiveRun(
            objective=job.objective,
            label=objective.label,
            hard_target=objective.hard_target,
            seed=job.seed,
            measured=measured,
            seconds=trained.seconds,
            cpu_seconds=trained.cpu_seconds,
            tokens=trained.tokens,
            teacher_tokens=tokens_asked(rows),
            final_loss=trained.final_loss,
        )
        job.folder.save_run(run, trained.model, job.key)
    return run


def _all_runs(
    settings: QuickstartSettings, folder: QuickstartFolder, console: "Console", workers: int | None, *, resume: bool
) -> tuple[ObjectiveRun, ...]:
    """Every objective with every seed; seed by seed, so that an interrupted run has whole comparisons."""
    jobs = [
        Job(objective=objective, seed=seed, settings=settings, folder=folder)
        for seed in settings.seeds
        for objective in settings.objectives
    ]
    found = run_jobs(
        run_one,
        jobs,
        console,
        workers=workers,
        resume=resume,
        prepare=lambda todo: _ask_the_teacher(settings, folder, todo, console),
        above=runs_table,
    )
    order = {objective: place for place, objective in enumerate(settings.objectives)}
    return tuple(sorted(found.values(), key=lambda run: (order[run.objective], settings.seeds.index(run.seed))))


def _ask_the_teacher(
    settings: QuickstartSettings, folder: QuickstartFolder, jobs: Sequence[Job], console: "Console"
) -> None:
    """Once for all students of each seed; what an earlier run kept is not asked again."""
    from bridgegarden.quickstart.student import keep_signals, load_tokenizer

    for seed in dict.fromkeys(job.seed for job in jobs):
        with console.status("asking the teacher"), one_thread():
            rows = _rows(settings.train_problems, seed)
            built = keep_signals(folder.signals(seed), rows, _teacher(), load_tokenizer())
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
