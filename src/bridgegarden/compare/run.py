"""``bridgegarden compare``: train and measure every objective with every seed, and hold quality against cost."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bridgegarden.compare.display import told
from bridgegarden.compare.flops import PairFlops
from bridgegarden.compare.job import Job, make_jobs
from bridgegarden.compare.output import CompareFolder, Trained
from bridgegarden.compare.pair import SEED, Pair, check_pair, check_recipe, placed, seeded
from bridgegarden.compare.result import CompareResult, CompareRun, PairInfo, RowInfo
from bridgegarden.compare.rows import DATA_ROWS, ComparedRow, compared_rows
from bridgegarden.compare.settings import CompareSettings
from bridgegarden.compare.teacher_cache import fill_cache
from bridgegarden.errors import NonFiniteError
from bridgegarden.preflight.meta import meta_model, parameter_count
from bridgegarden.recipe import Recipe, build_objective, describe_objective, load_recipe
from bridgegarden.run.output import check_writable
from bridgegarden.run.quiet import quiet_libraries
from bridgegarden.run.record import git_commit, now
from bridgegarden.study.kept import deciding_versions
from bridgegarden.study.run import run_jobs, steps_told, studying
from bridgegarden.study.workers import Tell, one_thread
from bridgegarden.terminal import counted, plain_console

if TYPE_CHECKING:
    from rich.console import Console

    from bridgegarden.compare.measure import Meter


def compare(
    source: str,
    settings: CompareSettings,
    *,
    command: str,
    overrides: Sequence[str] = (),
    output: Path | None = None,
    workers: int = 1,
    console: "Console | None" = None,
) -> tuple[CompareResult, CompareFolder]:
    """Compare objectives on the pair and rows of a recipe, and leave ``result.json`` and what is made from it.

    They appear at the very end; until then, and after an interrupt, a file ``INCOMPLETE`` lies there. What an earlier
    call finished in the folder with the same settings is kept. A training whose loss is not finite is recorded as
    failed, and the others go on.

    Args:
        source: a recipe's file or shipped name.
        settings: what is compared, and how.
        command: what was typed, for the record.
        overrides: changes to the recipe.
        output: folder; None is ``OUTPUT/compare`` of the recipe.
        workers: processes, of one thread each.
        console: for progress; stderr if None.

    Raises:
        ConfigError: a setting is wrong, the folder is a file, or a worker was ended from outside.
        DataError: a row cannot be used.
        ModelError: the models cannot be used, or not with each other.
    """
    began, started = time.perf_counter(), now()
    # Bound to stderr as it is now: what libraries say there while a student is measured is swallowed.
    if console is None:
        console = plain_console(file=sys.stderr, force_terminal=None if sys.stderr.isatty() else False, highlight=False)
    recipe = placed(load_recipe(source, overrides), source)
    rows = compared_rows(settings.objectives, recipe.objective)
    check_recipe(recipe, rows)
    folder = CompareFolder(output or recipe.output / "compare")
    check_writable(folder.path, "output")
    with studying(console):
        with one_thread():
            pair = _check(recipe, rows, settings, console)
        folder.begin()
        jobs = make_jobs(pair, rows, settings, folder)
        with one_thread():
            cache = fill_cache(pair, jobs, folder, console)
        runs = _all_runs(jobs, console, workers)
        result = CompareResult(
            settings=settings,
            recipe=recipe.to_yaml(),
            pair=_pair_info(pair, settings),
            rows={row.name: _row_info(row) for row in rows},
            runs=runs,
            cache=cache,
            versions=deciding_versions(),
            commit=git_commit(),
            command=command,
            started=started,
            seconds=time.perf_counter() - began,
        )
        folder.save(result)
    return result, folder


def run_one(job: Job, tell: Tell) -> CompareRun:
    """Train and measure one student, and keep the numbers in the job's folder."""
    from bridgegarden.compare.train_one import train_one

    with quiet_libraries(interactive=False):
        meter = _meter(job.base, job.settings)
        trained = job.folder.finished_training(job.row, job.seed, job.key)
        if trained is None:
            try:
                summary, spent = train_one(
                    job.recipe, meter.pair, PairFlops.of(meter.pair), on_step=steps_told(job, tell, weight=job.weight)
                )
            except NonFiniteError as error:
                failed = CompareRun(
                    objective=job.row.name, seed=job.seed, spent=None, measured=None, failure=str(error)
                )
                job.folder.save_run(job.row, failed, job.key, keep_model=True)
                return failed
            trained = Trained(spent, dict(summary.evaluation))
            job.folder.save_training(job.row, job.seed, trained, job.key)
        tell(job.name, job.steps * job.weight)
        measured = meter.measure(job.recipe.output / "model", trained.held_out)
        run = CompareRun(objective=job.row.name, seed=job.seed, spent=trained.spent, measured=measured)
        job.folder.save_run(job.row, run, job.key, keep_model=job.settings.keep_models)
    return run


def _check(recipe: Recipe, rows: Sequence[ComparedRow], settings: CompareSettings, console: "Console") -> Pair:
    """Everything that can be found wrong before the first step, told to `console`."""
    from rich.text import Text

    from bridgegarden.compare.measure import read_held_out
    from bridgegarden.evaluation.lm_eval import prepare_tasks

    console.print("checking models and rows")
    for seed in settings.seeds[1:]:
        check_student(recipe, seed)
    pair, _ = check_pair(recipe, settings.seeds)
    for warning in pair.endings.warnings:
        console.print(Text.assemble(("warning: ", "yellow"), warning), soft_wrap=True)
    prompts = read_held_out(pair, settings)
    if recipe.data.eval is None:
        console.print(
            Text("prompts from data.train, which students see in training; set data.eval for others"), soft_wrap=True
        )
    if settings.evaluation is not None:
        prepare_tasks(settings.evaluation, quiet=console.quiet)
    counts = pair.counts
    console.print(
        f"{counted(counts.rows, 'row')} of {counts.tokens:.0f} tokens, of which {counts.positions:.0f} are learnt; "
        f"{counted(len(prompts.ids), 'prompt')}",
        highlight=False,
        soft_wrap=True,
    )
    return pair


def check_student(recipe: Recipe, seed: int) -> None:
    """Make sure that there is a student for `seed`.

    Raises:
        ModelError: there is none.
    """
    from bridgegarden.preflight import load_facts
    from bridgegarden.run.teacher import student_reference

    load_facts(student_reference(seeded(recipe, seed)))


def _all_runs(jobs: Sequence[Job], console: "Console", workers: int) -> tuple[CompareRun, ...]:
    found = run_jobs(run_one, jobs, console, workers=workers, told=told)
    order = {name: place for place, name in enumerate(jobs[0].settings.objectives)}
    return tuple(found[job.name] for job in sorted(jobs, key=lambda job: (order[job.row.name], job.seed)))


def _row_info(row: ComparedRow) -> RowInfo:
    return RowInfo(
        label=row.label,
        objective=describe_objective(build_objective(row.objective)),
        lmbda=row.lmbda,
        asks_teacher=row.name not in DATA_ROWS,
    )


def _pair_info(pair: Pair, settings: CompareSettings) -> PairInfo:
    from bridgegarden.compare.measure import device_of, read_held_out

    return PairInfo(
        teacher=Path(pair.recipe.teacher.model).name,
        teacher_parameters=parameter_count(meta_model(pair.teacher.config)),
        student=Path(pair.recipe.student.model).name.replace(SEED, "").strip("-_.") or "student",
        student_parameters=parameter_count(meta_model(pair.student.config)),
        rows=pair.counts.rows,
        row_tokens=pair.counts.tokens,
        row_positions=pair.counts.positions,
        prompts=len(read_held_out(pair, settings).ids),
        held_out=pair.recipe.data.eval is not None,
        device=device_of(pair),
    )


# Trainings of one process share what they do not change.
_meters: dict[str, "Meter"] = {}


def _meter(recipe: Recipe, settings: CompareSettings) -> "Meter":
    from bridgegarden.compare.measure import Meter

    place = f"{recipe.to_yaml()}{settings.to_dict()}"
    if place not in _meters:
        _meters.clear()
        _meters[place] = Meter.of(check_pair(recipe, settings.seeds)[0], settings)
    return _meters[place]
