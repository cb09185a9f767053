"""``bridgegarden compare``: train and measure every objective with every seed, and hold quality against cost."""

import dataclasses
import hashlib
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bridgegarden.compare.findings import mean_of
from bridgegarden.compare.pair import (
    SEED,
    Pair,
    PairFlops,
    check_pair,
    check_recipe,
    placed,
    seeded,
    steps_of,
    student_fingerprint,
)
from bridgegarden.compare.result import CacheCost, CompareResult, CompareRun, CompareSettings, PairInfo, RowInfo, Spent
from bridgegarden.errors import ConfigError, NonFiniteError
from bridgegarden.evaluation.tasks import is_file
from bridgegarden.export.gguf_file import check_kind
from bridgegarden.fake_quantisation import QUANTISED
from bridgegarden.preflight.models import meta_model, parameter_count
from bridgegarden.pruning.shape import Shape
from bridgegarden.recipe import Recipe, build_objective, describe_objective, load_recipe
from bridgegarden.run.cut_student import sizes_text
from bridgegarden.run.export import check_installed
from bridgegarden.run.kappa_probe import check_probes, probe_hashes
from bridgegarden.run.rows import columns_of
from bridgegarden.study.arms import ComparedRow, compared_rows
from bridgegarden.study.kept import StudyFolder, keep, kept
from bridgegarden.study.run import Job, Tell, one_thread, steps_told, study
from bridgegarden.terminal import counted, plain_console

if TYPE_CHECKING:
    from rich.console import Console

    from bridgegarden.compare.student import Meter


TRAINED, MEASURED = "trained.json", "measured.json"
"""In the folder of a training: what it cost, once it is done; and what was measured."""


class Trained(NamedTuple):
    """A training that is not measured yet."""

    spent: Spent
    """What it cost."""
    held_out: Mapping[str, float]
    """Its terms on held-out rows."""


class CompareFolder(StudyFolder):
    """With ``objectives.csv`` and ``tables.md`` beside result and report."""

    command = "bridgegarden compare"

    @property
    def cache(self) -> Path:
        """The teacher's signals, if the recipe names no folder for them."""
        return self.path / "teacher_cache"

    def run(self, row: ComparedRow, seed: int) -> Path:
        """The folder of one training, as ``bridgegarden train`` writes it."""
        return self.path / "runs" / f"{row.file_name}-seed{seed}"

    def save(self, result: CompareResult) -> None:
        """Write what a finished comparison leaves."""
        from bridgegarden.compare.findings import all_differences
        from bridgegarden.compare.report import objectives_csv, report_page, tables_markdown

        self.finish(
            {**result.to_dict(), "differences": all_differences(result)},
            report_page(result),
            {"objectives.csv": objectives_csv(result), "tables.md": tables_markdown(result)},
        )


def decided_by(recipe: Recipe, content: Mapping[str, Any], settings: CompareSettings) -> dict[str, Any]:
    """Everything that the numbers of one training and its measurement depend on.

    Args:
        recipe: of the run.
        content: fingerprints of what all runs share.
        settings: of the comparison.
    """
    tree: dict[str, Any] = recipe.to_dict()
    del tree["output"]
    tree["teacher"].pop("cache", None)
    tree["student"].pop("folder", None)
    tasks = settings.evaluation.tasks if settings.evaluation is not None else ()
    return {
        "recipe": tree,
        "content": dict(content),
        "student": student_fingerprint(recipe, recipe.training.arguments["seed"]),
        "cached": recipe.teacher.is_cached,
        "measuring": settings.measuring,
        **({"probes": probes} if (probes := probe_hashes(build_objective(recipe.objective))) else {}),
        "problems": {task: hashlib.sha256(Path(task).read_bytes()).hexdigest() for task in tasks if is_file(task)},
    }


WRITING = 5
"""What a step costs on the student's own text, in steps on fixed data, for the progress bar."""


@dataclass(frozen=True, kw_only=True)
class CompareJob(Job[CompareSettings, CompareFolder, CompareRun]):
    """One training and its measurement."""

    makes = CompareRun

    row: ComparedRow
    seed: int
    steps: int
    """Optimiser steps."""
    recipe: Recipe
    """Of this run."""
    base: Recipe
    """Of the comparison."""
    content: Mapping[str, Any]
    """Fingerprints of what all runs share."""

    @property
    def name(self) -> str:
        return f"{self.row.label}, seed {self.seed}"

    @property
    def output(self) -> Path:
        """The folder of the training."""
        return self.folder.run(self.row, self.seed)

    @property
    def path(self) -> Path:
        return self.output / MEASURED

    @property
    def decided_by(self) -> dict[str, Any]:
        return decided_by(self.recipe, self.content, self.settings)

    @property
    def units(self) -> int:
        # Measuring costs about as much as a third of a training.
        return self.steps * self.weight + max(1, self.steps // 3)

    @property
    def weight(self) -> int:
        """Units of a step."""
        return WRITING if self.row.on_policy else 1

    @property
    def turn(self) -> int:
        return self.settings.seeds.index(self.seed)

    def run(self, tell: Tell) -> CompareRun:
        meter = _meter(self.base, self.settings)
        run = CompareRun(objective=self.row.name, seed=self.seed, spent=None, measured=None)
        try:
            trained = self._trained(meter, tell)
        except NonFiniteError as error:
            return dataclasses.replace(run, failure=str(error))
        tell(self.steps * self.weight)
        measured = meter.measure(self.output / "model", self._held_out(trained))
        return dataclasses.replace(run, spent=trained.spent, measured=measured)

    def _held_out(self, trained: Trained) -> Mapping[str, float] | Recipe:
        """What the last evaluation of training found; or, where it was not of what is measured, how to."""
        trained_for = self.recipe.training.quantised
        same = self.settings.export == (None if trained_for is None else trained_for.kind)
        return trained.held_out if same else self.recipe

    def _trained(self, meter: "Meter", tell: Tell) -> Trained:
        """The training itself; one that was interrupted while it was measured does not cost it again.

        Raises:
            NonFiniteError: the loss is no number any more.
        """
        from bridgegarden.compare.student import train_one

        if (self.output / "model").is_dir():
            before = kept(self.output / TRAINED, self.key, Trained)
            if before is not None:
                return before
        on_step = steps_told(tell, weight=self.weight)
        summary, spent = train_one(self.recipe, meter.pair, PairFlops.of(meter.pair), on_step=on_step)
        trained = Trained(spent, dict(summary.evaluation))
        keep(self.output / TRAINED, self.key, trained)
        return trained

    def keep(self, run: CompareRun) -> None:
        super().keep(run)
        if run.failure is None and not self.settings.keep_models:
            for name in ("model", "adapter", "export"):
                shutil.rmtree(self.output / name, ignore_errors=True)

    def told(self, run: CompareRun) -> str:
        if run.spent is None:
            return f"{self.name}: FAILED: {run.failure}"
        parts = []
        for quantity in ("greedy", "sampled"):
            value = mean_of(run, quantity)
            if value is not None:
                parts.append(f"{quantity} {100 * value:.1f} %")
        parts.append(f"exposure bias {mean_of(run, 'exposure_bias'):+.3g}")
        return f"{self.name}: {', '.join(parts)}, {run.spent.cpu_seconds:.0f} CPU s"


def make_jobs(
    pair: Pair, rows: Sequence[ComparedRow], settings: CompareSettings, folder: CompareFolder
) -> tuple[CompareJob, ...]:
    """Every row with every seed."""
    from bridgegarden.compare.student import run_recipe

    flops = PairFlops.of(pair)
    sharers = len(settings.seeds) * sum(row.reads_cache for row in rows)
    cache = folder.cache if pair.recipe.teacher.cache is None else Path(pair.recipe.teacher.cache)
    jobs = []
    for row in rows:
        steps = steps_of(pair, flops, row, sharers=sharers) if settings.budget == "compute" else pair.steps
        where = None if row.on_policy else cache
        for seed in settings.seeds:
            recipe = run_recipe(
                pair.recipe,
                row,
                seed,
                steps=steps,
                cache=where,
                output=folder.run(row, seed),
                export=settings.export,
            )
            jobs.append(
                CompareJob(
                    row=row,
                    seed=seed,
                    steps=steps,
                    recipe=recipe,
                    base=pair.recipe,
                    content=pair.fingerprints,
                    settings=settings,
                    folder=folder,
                )
            )
    return tuple(jobs)


def fill_cache(jobs: Sequence[CompareJob], console: "Console") -> None:
    """Fill the teacher's cache with what it lacks, if one of `jobs` reads it."""
    from bridgegarden.run.cache import CacheOptions, build_recipe_cache
    from bridgegarden.teacher.cache.writer import BuildResult

    job = next((job for job in jobs if job.recipe.teacher.is_cached), None)
    if job is None:
        return
    recipe = seeded(job.base, job.settings.seeds[0])
    teacher = dataclasses.replace(recipe.teacher, cache=job.recipe.teacher.cache)
    with one_thread():
        built = build_recipe_cache(dataclasses.replace(recipe, teacher=teacher, on_policy=None), CacheOptions())
    if isinstance(built, BuildResult) and built.documents:
        console.print(f"teacher asked once about {counted(built.documents, 'row')}")


def cache_cost(pair: Pair, jobs: Sequence[CompareJob]) -> CacheCost | None:
    """What asking the teacher once about all rows took; None if no training reads its cache."""
    from bridgegarden.run.recipe_teacher import cache_folder
    from bridgegarden.teacher.cache.manifest import BuildTime, finished_shards

    cached = [job for job in jobs if job.recipe.teacher.is_cached]
    if not cached:
        return None
    records = finished_shards(cache_folder(cached[0].recipe)).values()
    # A cache that was there before may hold rows that this recipe does not have.
    share = pair.counts.distinct_positions / max(sum(record.positions for record in records), 1)
    took = BuildTime.of(records)
    return CacheCost(
        tokens=pair.counts.distinct_tokens,
        flops=PairFlops.of(pair).cache(pair),
        seconds=None if took.seconds is None else share * took.seconds,
        cpu_seconds=None if took.cpu_seconds is None else share * took.cpu_seconds,
        sharers=sum(job.row.reads_cache for job in jobs),
    )


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
    recipe = placed(load_recipe(source, overrides), source)
    rows = compared_rows(settings.objectives, recipe.objective)
    check_recipe(recipe, rows)
    settings = _asked_as_taught(recipe, _with_export(recipe, rows, settings))
    folder = CompareFolder(output or recipe.output / "compare")
    with study(folder, command, console or _console()) as begun:
        with one_thread():
            pair = _check(recipe, rows, settings, begun.console)
        jobs = make_jobs(pair, rows, settings, folder)
        runs = begun.run(jobs, workers=workers, prepare=lambda todo: fill_cache(todo, begun.console))
        result = CompareResult(
            settings=settings,
            recipe=recipe.to_yaml(),
            pair=_pair_info(pair, settings),
            rows={row.name: _row_info(row) for row in rows},
            runs=runs,
            cache=cache_cost(pair, jobs),
            **begun.record(),
        )
        folder.save(result)
    return result, folder


def _asked_as_taught(recipe: Recipe, settings: CompareSettings) -> CompareSettings:
    """`settings` in which files of rows are read by the recipe's columns, as its training rows are."""
    evaluation = settings.evaluation
    if evaluation is None:
        return settings
    return dataclasses.replace(settings, evaluation=dataclasses.replace(evaluation, columns=columns_of(recipe.data)))


def _with_export(recipe: Recipe, rows: Sequence[ComparedRow], settings: CompareSettings) -> CompareSettings:
    """`settings` with the file as which students are measured, where the recipe says for which they are trained.

    Raises:
        ConfigError: no such type, rows that are trained for a file which nobody names, or GGUF cannot be written here.
    """
    trained_for = recipe.training.quantised
    if trained_for is not None and (named := [row.name for row in rows if row.for_file]):
        raise ConfigError(
            f"--objectives: {named[0]!r} is trained for a file, and training.quantised of the recipe trains every row "
            f"for {trained_for.kind}. Leave it out (--set training.quantised=null), and say which with --export."
        )
    if settings.export is None and trained_for is not None:
        settings = dataclasses.replace(settings, export=trained_for.kind)
    if settings.export is None:
        if named := [row.name for row in rows if row.for_file]:
            raise ConfigError(
                f"--objectives: {named[0]!r} is trained for a file, and nothing says which: add --export Q4_0, or "
                "another type."
            )
        return settings
    check_kind(settings.export, "--export")
    check_installed("gguf", "--export")
    if any(row.for_file for row in rows) and settings.export not in QUANTISED:
        raise ConfigError(
            f"--export: {settings.export} rounds nothing to blocks, so no row can be trained for it; expected one of "
            f"{', '.join(QUANTISED)}."
        )
    return settings


def _console() -> "Console":
    """Bound to stderr as it is now: what libraries say there while a student is measured is swallowed."""
    return plain_console(file=sys.stderr, force_terminal=None if sys.stderr.isatty() else False, highlight=False)


def _check(recipe: Recipe, rows: Sequence[ComparedRow], settings: CompareSettings, console: "Console") -> Pair:
    """Everything that can be found wrong before the first step, told to `console`."""
    from rich.text import Text

    from bridgegarden.compare.student import read_held_out
    from bridgegarden.evaluation.lm_eval import prepare_tasks

    console.print("checking models and rows")
    for seed in settings.seeds[1:]:
        check_student(recipe, seed)
    pair, _ = check_pair(recipe, settings.seeds, console, rows)
    for warning in pair.endings.warnings:
        console.print(Text.assemble(("warning: ", "yellow"), warning), soft_wrap=True)
    for row in rows:
        check_probes(
            build_objective(row.objective),
            (pair.teacher,),
            tokenizer=pair.endings.tokenizer,
            vocab_size=pair.vocab_size,
        )
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
    """Make sure that there is a student for `seed`; the one that is cut out of the teacher is for all.

    Raises:
        ModelError: there is none.
    """
    from bridgegarden.preflight import load_facts
    from bridgegarden.run.pair import student_reference

    if recipe.student.from_ is None:
        load_facts(student_reference(seeded(recipe, seed)))


def _row_info(row: ComparedRow) -> RowInfo:
    return RowInfo(
        label=row.label,
        objective=describe_objective(build_objective(row.objective)),
        lmbda=row.lmbda,
        asks_teacher=row.asks_teacher,
    )


def _pair_info(pair: Pair, settings: CompareSettings) -> PairInfo:
    from bridgegarden.compare.student import device_of, read_held_out

    return PairInfo(
        teacher=Path(pair.recipe.teacher.model).name,
        teacher_parameters=parameter_count(meta_model(pair.teacher.config)),
        student=_student_name(pair),
        student_parameters=parameter_count(meta_model(pair.student.config)),
        rows=pair.counts.rows,
        row_tokens=pair.counts.tokens,
        row_positions=pair.counts.positions,
        prompts=len(read_held_out(pair, settings).ids),
        held_out=pair.recipe.data.eval is not None,
        device=device_of(pair),
        translated=pair.tokens is not None,
    )


def _student_name(pair: Pair) -> str:
    """What a report calls the student."""
    if pair.recipe.student.from_ is not None:
        return sizes_text(pair.student.config, Shape.of(pair.teacher.config))
    return Path(pair.recipe.student.model).name.replace(SEED, "").strip("-_.") or "student"


# Trainings of one process share what they do not change.
_meters: dict[str, "Meter"] = {}


def _meter(recipe: Recipe, settings: CompareSettings) -> "Meter":
    from bridgegarden.compare.student import Meter

    place = f"{recipe.to_yaml()}{settings.to_dict()}"
    if place not in _meters:
        _meters.clear()
        _meters[place] = Meter.of(check_pair(recipe, settings.seeds)[0], settings)
    return _meters[place]
