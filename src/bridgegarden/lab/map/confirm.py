"""Some of the map's cells again, with tiny transformers and the package's own trainer.

Is what the map says of its small networks true of another kind of student? Transformers hardly train faster many at a
time, so there are two cells, one setting for all arms, and training stops by each arm's own held-out loss. The worlds
have fewer wordings than the map's, because a transformer is solved prefix by prefix.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from markupsafe import Markup

from bridgegarden.exact.tasks.chain import ChainWorld
from bridgegarden.lab.map.cells import ARMS, FAIRNESS, Cell, CellRun, Setting
from bridgegarden.lab.map.findings import CLAIMS, MEASURES, MapClaim, MapEffect, effects, values_of, verdict_in
from bridgegarden.lab.map.report import (
    SHARES,
    cells_csv,
    cells_table,
    claimed_section,
    claims_csv,
    difference_cell,
    titled,
)
from bridgegarden.report.page import Page, Section
from bridgegarden.statistics import Estimate
from bridgegarden.study.arms import LlamaSize, StoppingSettings
from bridgegarden.study.kept import StudyFolder, StudyResult, to_tree
from bridgegarden.study.run import Job, Tell, steps_told, study
from bridgegarden.table import Cell as Written
from bridgegarden.table import Column, Table, mean_cell

if TYPE_CHECKING:
    from rich.console import Console

CONFIRMED = (
    Cell(teacher="slips", student="too small", rows="many", budget="long"),
    Cell(teacher="unsure", student="room enough", rows="few", budget="long"),
)
"""Named before the map was made: where another study of such networks found a hybrid to be right more often than labels
of both pure kinds."""
SIZES: Mapping[str, LlamaSize] = MappingProxyType(
    {
        "room enough": LlamaSize(hidden=32, layers=2, heads=4, feed_forward=64),
        "too small": LlamaSize(hidden=16, layers=2, heads=4, feed_forward=32),
    }
)
"""Of a student, by key of `bridgegarden.lab.map.cells.STUDENTS`."""
ROWS: Mapping[str, int] = MappingProxyType({"few": 320, "many": 2000})
"""Answers of the teacher, by key of `bridgegarden.lab.map.cells.ROWS`: from 240, transformers learn nothing."""
MEASURED = tuple(name for name in MEASURES if name not in ("right, T = 0.5", "right, equally varied"))
"""What is measured here; students are decoded greedily and at temperature 1."""
CONFIRMED_CLAIMS = tuple(claim for claim in CLAIMS if claim.measure in MEASURED)
WAY = FAIRNESS[0]
MEASURING = 200
"""What measuring a student costs, in training steps, for the progress bar."""


@dataclass(frozen=True, kw_only=True)
class ConfirmSettings(StoppingSettings):
    """Everything that the numbers depend on besides the worlds and the libraries' versions."""

    arms: tuple[str, ...] = ("hard", "soft", "static", "confidence", "entropy", "risk_guided", "sharpened")
    """Keys of `ARMS`."""
    seeds: int = 24
    """Students of every arm and cell: first weights, world, problems, answers and their order are a seed's."""
    steps: int = 1000
    batch: int = 16
    learning_rate: float = 1e-2
    evaluate_every: int = 50
    patience: int = 6
    wordings: int = 3
    """Of the world."""
    validation_problems: int = 48
    """Whose answers decide when to stop."""
    judged_problems: int = 8
    """Of these, on which the better pure kind is chosen, exactly."""
    test_problems: int = 24
    """On which students are measured, exactly."""


@dataclass(frozen=True, kw_only=True)
class StudentRun:
    """One student."""

    measures: Mapping[str, float]
    """By name, as in :class:`bridgegarden.lab.map.measure.Measures`."""
    held_out_loss: float
    """L_dT on problems of its own, by which the better pure kind is chosen."""
    held_out_right: float
    """Greedy, likewise."""
    off_script: float
    """Probability that its answer leaves the script."""
    kept_step: int
    """After which it was best."""
    cpu_seconds: float
    """To train and measure it."""


class ConfirmFolder(StudyFolder):
    """With ``cells.csv``, ``claims.csv`` and ``tables.md`` beside the result."""

    command = "bridgegarden lab confirm"

    def save(self, result: "ConfirmResult") -> None:
        """Write what a finished study leaves."""
        tree = {f.name: to_tree(getattr(result, f.name)) for f in fields(result) if f.name != "students"}
        texts = {
            "cells.csv": cells_csv(result.runs, MEASURED),
            "claims.csv": claims_csv(result.effects, ()),
            "tables.md": "\n".join(f"## {one.title}\n\n{one.markdown()}\n\n{one.note}\n" for one in tables(result)),
        }
        self.finish(tree, _page(result), texts)


@dataclass(frozen=True, kw_only=True)
class ConfirmJob(Job[ConfirmSettings, ConfirmFolder, StudentRun]):
    """One student to train and measure."""

    makes = StudentRun

    cell: Cell
    """Where."""
    arm: str
    """Key of `ARMS`."""
    seed: int
    """From 0."""

    @property
    def name(self) -> str:
        return f"{self.cell.label}, {ARMS[self.arm].label}, seed {self.seed}"

    @property
    def path(self) -> Path:
        return self.folder.path / "students" / self.cell.name / f"{self.arm}-seed{self.seed}.json"

    @property
    def decided_by(self) -> dict[str, Any]:
        from bridgegarden.recipe import describe_objective

        shared = {name: value for name, value in self.settings.to_dict().items() if name not in ("arms", "seeds")}
        parts = {"cell": asdict(self.cell), "arm": self.arm, "seed": self.seed, "settings": shared}
        sizes = {"student": asdict(SIZES[self.cell.student]), "rows": ROWS[self.cell.rows]}
        return {**parts, **sizes, "objective": describe_objective(ARMS[self.arm].objective)}

    @property
    def units(self) -> int:
        return self.settings.steps + MEASURING

    @property
    def turn(self) -> int:
        return self.seed

    def run(self, tell: Tell) -> StudentRun:
        from bridgegarden.lab.student import measured, solve_problems, train_student
        from bridgegarden.lab.worlds import draw_data, tabulated

        settings, began = self.settings, time.process_time()
        world = ChainWorld(teacher=self.cell.teacher, seed=self.seed, wordings=settings.wordings)
        data = draw_data(
            world,
            self.seed,
            train=ROWS[self.cell.rows],
            validation=settings.validation_problems,
            test=settings.test_problems,
        )
        trained = train_student(
            ARMS[self.arm].objective, SIZES[self.cell.student], self.seed, settings, data, steps_told(tell)
        )
        tell(settings.steps)
        generator = torch.Generator().manual_seed(self.seed)
        judged = [
            tabulated(world, problem, world.prompt_ids(problem, generator))
            for problem in world.problems(settings.judged_problems, self.seed, split="validation")
        ]
        held_out = measured(solve_problems(trained.model, world, judged))
        found = measured(solve_problems(trained.model, world, data.test))
        return StudentRun(
            measures={
                "teacher_loss": found.teacher_loss,
                "student_loss": found.student_loss,
                "teacher_loss_bridges": found.teacher_loss_by_role["bridge"],
                "student_loss_bridges": found.student_loss_by_role["bridge"],
                "drift_bridges": found.exposure_bias_by_role["bridge"],
                "drift_gardens": found.exposure_bias_by_role["garden"],
                "variety": found.diversity,
                "right": found.success,
                "right_greedy": found.success_greedy,
            },
            held_out_loss=held_out.teacher_loss,
            held_out_right=held_out.success_greedy,
            off_script=found.violation,
            kept_step=trained.kept_step,
            cpu_seconds=time.process_time() - began,
        )

    def told(self, run: StudentRun) -> str:
        right, loss = run.measures["right_greedy"], run.measures["student_loss"]
        return f"{self.name}: right {100 * right:.0f} % greedy, L_dθ {loss:.3g}"


@dataclass(frozen=True, kw_only=True)
class ConfirmResult(StudyResult):
    """What came of it."""

    settings: ConfirmSettings
    """What was run."""
    runs: tuple[CellRun, ...]
    """Each cell's students, as the map has them."""
    off_script: Mapping[str, Mapping[str, float]]
    """Probability that an answer leaves the script, by cell and arm, mean over seeds."""

    @property
    def effects(self) -> list[MapEffect]:
        """Every claim that can be told here, in every cell."""
        return effects(self.runs, CONFIRMED_CLAIMS)


def lab_confirm(
    output: Path,
    settings: ConfirmSettings,
    *,
    command: str,
    workers: int | None = None,
    console: "Console | None" = None,
) -> ConfirmResult:
    """Train and measure every student, and leave ``result.json``, ``report.html``, ``tables.md`` and two CSV files.

    As :func:`bridgegarden.lab.map.run.lab_map` does, with the same arguments; students finished in `output` are kept.
    """
    folder = ConfirmFolder(output)
    with study(folder, command, console) as begun:
        jobs = [
            ConfirmJob(cell=cell, arm=arm, seed=seed, settings=settings, folder=folder)
            for cell in CONFIRMED
            for arm in settings.arms
            for seed in range(settings.seeds)
        ]
        by_cell: dict[Cell, dict[str, list[StudentRun]]] = {
            cell: {arm: [] for arm in settings.arms} for cell in CONFIRMED
        }
        for job, run in zip(jobs, begun.run(jobs, workers=workers), strict=True):
            by_cell[job.cell][job.arm].append(run)
        result = ConfirmResult(
            settings=settings,
            runs=tuple(_cell_run(cell, students, settings) for cell, students in by_cell.items()),
            off_script={
                cell.name: {arm: statistics.fmean(one.off_script for one in runs) for arm, runs in students.items()}
                for cell, students in by_cell.items()
            },
            **begun.record(),
        )
        folder.save(result)
    return result


def _cell_run(cell: Cell, students: Mapping[str, Sequence[StudentRun]], settings: ConfirmSettings) -> CellRun:
    chosen = {
        arm: Setting(
            learning_rate=settings.learning_rate,
            weight_decay=0.01,
            steps=settings.steps,
            held_out_loss=statistics.fmean(run.held_out_loss for run in runs),
            held_out_right=statistics.fmean(run.held_out_right for run in runs),
        )
        for arm, runs in students.items()
    }
    measures = {
        arm: {name: tuple(run.measures[name] for run in runs) for name in runs[0].measures}
        for arm, runs in students.items()
    }
    everyone = [run for runs in students.values() for run in runs]
    return CellRun(
        cell=cell,
        settings={WAY: chosen},
        measures={WAY: measures},
        kappa={},
        students=len(everyone),
        cpu_seconds=sum(run.cpu_seconds for run in everyone),
    )


def tables(result: ConfirmResult) -> list[Table]:
    """The claims in each cell, then every measure."""
    return [
        *(_effects_table(result, cell) for cell in CONFIRMED),
        *(cells_table(result.runs, WAY, measure) for measure in MEASURED),
    ]


def terminal_tables(result: ConfirmResult) -> list[Table]:
    """What a terminal shows, in 80 columns: what is claimed, and in each cell what came of it."""
    words = Table(
        columns=["claim", Column("what is claimed", words=True)],
        rows=[[claim.name, claim.text] for claim in told_claims(result)],
    )
    return [words, *short_tables(result)]


def told_claims(result: ConfirmResult) -> tuple[MapClaim, ...]:
    """Those that the arms of a study can tell."""
    told = {one.claim.name for one in result.effects}
    return tuple(claim for claim in CONFIRMED_CLAIMS if claim.name in told)


def short_tables(result: ConfirmResult) -> list[Table]:
    """In each cell what came of every claim, then of every arm."""
    return [table for cell in CONFIRMED for table in (verdict_table(result, cell), arms_table(result, cell))]


def verdict_table(result: ConfirmResult, cell: Cell) -> Table:
    """Of each claim in a cell whether some arm does what is claimed, and the arm that does most."""
    rows = []
    for claim in CONFIRMED_CLAIMS:
        here = [one for one in result.effects if one.cell == cell and one.claim.name == claim.name]
        if here:
            best, verdict = max(here, key=lambda one: one.difference.mean), verdict_in(here)
            needed = f"needs {best.decision.needed} seeds" if verdict == "undecided" else ""
            shown = difference_cell(claim, best.difference, best.decision, len(here))
            rows.append([claim.name, Written(verdict, needed), shown, ARMS[best.arm].label])
    return Table(
        columns=["claim", "verdict", "difference", "by"],
        rows=rows,
        title=cell.label,
        note=(
            "The arm with the largest difference, positive as claimed, ± half the 95 % interval (widened for the "
            "claim's arms); losses in nats an answer, right answers in points."
        ),
    )


def arms_table(result: ConfirmResult, cell: Cell) -> Table:
    """What came of every arm in a cell, with 95 % intervals over seeds."""
    (run,) = (run for run in result.runs if run.cell == cell)
    measures = ("right, greedy", "right, sampled", "exposure bias", "L_dθ")
    rows = []
    for arm in result.settings.arms:
        found = [Estimate.over(values_of(run, WAY, arm, measure)) for measure in measures]
        times = [100.0 if measure in SHARES else 1.0 for measure in measures]
        cells = [mean_cell(one.mean, one.interval(), times=by) for one, by in zip(found, times, strict=True)]
        rows.append([ARMS[arm].label, *cells])
    heads = [f"{measure}, %" if measure in SHARES else measure for measure in measures]
    note = f"Means over {result.settings.seeds} seeds, nats an answer, ± half the 95 % interval."
    return Table(columns=["", *heads], rows=rows, title=f"{cell.label}: every kind of labels", note=note)


def _effects_table(result: ConfirmResult, cell: Cell) -> Table:
    here = [one for one in result.effects if one.cell == cell]
    arms = [arm for arm in result.settings.arms if any(one.arm == arm for one in here)]
    rows = []
    for claim in CONFIRMED_CLAIMS:
        by_arm = {one.arm: one for one in here if one.claim.name == claim.name}
        if by_arm:
            against = ARMS[next(iter(by_arm.values())).other].label
            cells = [
                difference_cell(claim, by_arm[arm].difference, by_arm[arm].decision, len(by_arm))
                if arm in by_arm
                else None
                for arm in arms
            ]
            rows.append([claim.name, against, *cells])
    return Table(
        columns=["claim", "against", *(ARMS[arm].label for arm in arms)],
        rows=rows,
        title=cell.label,
        note=(
            "Differences, positive as claimed, ± half the 95 % interval (over seeds, widened for the claim's "
            "arms). Bold where the claim holds."
        ),
    )


def _page(result: ConfirmResult) -> Page:
    claims, measured = tables(result)[: len(CONFIRMED)], tables(result)[len(CONFIRMED) :]
    short = short_tables(result)
    lead = Markup("<p>{} tiny transformers, {} seeds of {} arms in {} cells of the map; exact measures.</p>").format(
        sum(run.students for run in result.runs), result.settings.seeds, len(result.settings.arms), len(CONFIRMED)
    )
    sections = (
        claimed_section(told_claims(result)),
        Section(anchor="claims", title="What came of the claims", body=Markup("").join(map(titled, short))),
        Section(anchor="arms", title="Arm by arm", body=Markup("").join(map(titled, claims))),
        Section(anchor="measures", title="Every measure", body=Markup("").join(map(titled, measured))),
    )
    return Page(
        title="The map's main cells, with transformers", kicker="bridgegarden lab confirm", lead=lead, sections=sections
    )
