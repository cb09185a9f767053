"""The map: which labels are better where, decided on students that are trained many at once.

A cell of the map is a teacher, a student's size, a number of rows and a number of steps. In every cell each arm's
learning rate, weight decay and step to stop are chosen on worlds and problems of their own, once for the lowest loss
and once for the most right answers; then the arms are trained on other seeds, with these choices and with one fixed
setting for all. A seed decides the world (how wordings are preferred, where a teacher is wrong), the problems, the
answers and their order, and the first weights; the arms of a seed share all of it, so their differences are paired.
"""

import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from bridgegarden.exact.tasks.chain import ChainWorld, Expression
from bridgegarden.lab.map.cells import ARMS, BUDGETS, FAIRNESS, ROWS, STUDENTS, Cell, CellRun, MapSettings, Setting
from bridgegarden.lab.map.findings import CLAIMS, MapResult, pooled_effects
from bridgegarden.lab.map.measure import (
    PREDICTORS,
    READINGS,
    Measures,
    held_out,
    kappa_of_rows,
    measure,
    predicted_kappa,
)
from bridgegarden.lab.map.rows import Rows, Worlds, draw_order, draw_rows, draw_uniform
from bridgegarden.lab.map.students import Weights, new_weights, train
from bridgegarden.study.kept import StudyFolder, to_tree
from bridgegarden.study.run import Job, Tell, study

if TYPE_CHECKING:
    from rich.console import Console

BLOCK = 16
"""Seeds that are trained at once: more are hardly faster. The numbers do not depend on it."""
TUNING_SEEDS = 100_000
"""The first seed of those that settings are chosen on; none of them is trained on again."""


class MapFolder(StudyFolder):
    """With ``cells.csv``, ``claims.csv`` and ``tables.md`` beside the result."""

    command = "bridgegarden lab map"

    def run(self, cell: Cell) -> Path:
        """One finished cell."""
        return self.path / "cells" / f"{cell.name}.json"

    def save(self, result: MapResult) -> None:
        """Write what a finished map leaves."""
        from bridgegarden.lab.map.report import cells_csv, claims_csv, report_page, tables_markdown

        tree = {f.name: to_tree(getattr(result, f.name)) for f in fields(result) if f.name != "runs"}
        # A claim is said once, and named where an effect is one of its.
        named = {
            kind: [{**to_tree(one), "claim": one.claim.name} for one in found]
            for kind, found in (("effects", result.effects), ("pooled", pooled_effects(result.effects)))
        }
        self.finish(
            {**tree, "claims": to_tree(CLAIMS), **named},
            report_page(result),
            {
                "cells.csv": cells_csv(result.runs),
                "claims.csv": claims_csv(result.effects, pooled_effects(result.effects)),
                "tables.md": tables_markdown(result),
            },
        )


@dataclass(frozen=True, kw_only=True)
class CellJob(Job[MapSettings, MapFolder, CellRun]):
    """One cell to do."""

    makes = CellRun

    cell: Cell
    """Which."""

    @property
    def name(self) -> str:
        return self.cell.name

    @property
    def path(self) -> Path:
        return self.folder.run(self.cell)

    @property
    def decided_by(self) -> dict[str, Any]:
        from bridgegarden.recipe import describe_objective

        shared = {f.name: getattr(self.settings, f.name) for f in fields(self.settings)}
        for name in ("teachers", "students", "rows", "budgets"):
            del shared[name]
        objectives = {name: describe_objective(ARMS[name].arm(0.0, 0.0).objective) for name in self.settings.arms}
        sizes = {"student": STUDENTS[self.cell.student], "rows": ROWS[self.cell.rows], "steps": self.steps}
        arms = {name: asdict(ARMS[name]) for name in self.settings.arms}
        return {"cell": asdict(self.cell), **sizes, "settings": shared, "arms": arms, "objectives": objectives}

    @property
    def steps(self) -> int:
        """Of a whole training."""
        return BUDGETS[self.cell.budget]

    @property
    def units(self) -> int:
        # Of one student, counting three settings where there may be fewer.
        settings, grid = self.settings, len(self.settings.learning_rates) * len(self.settings.weight_decays)
        students = settings.tuning_seeds * grid + settings.seeds * len(FAIRNESS)
        return self.steps * len(settings.arms) * students

    def run(self, tell: Tell) -> CellRun:
        return run_cell(self, tell)

    def told(self, run: CellRun) -> str:
        means = {name: statistics.fmean(found["right_greedy"]) for name, found in run.measures[FAIRNESS[-1]].items()}
        best = max(means, key=means.__getitem__)
        return f"{self.cell.label}: right most often with {ARMS[best].label}, {100 * means[best]:.0f} % greedy"


Asked = tuple[str, float, float]
"""An arm's name, its learning rate and weight decay."""
_Known = tuple[Tensor, Tensor]
KAPPA_OF = "soft"
"""The arm whose kappa is held against what the teacher's distribution tells, as in the paper."""


class Found(NamedTuple):
    """What was measured of the students of one arm and setting after some step."""

    measures: Measures
    """Columns ``(S, 1)``."""
    kappa: Mapping[tuple[str, str], Tensor]
    """How well it is predicted, ``(S,)``; empty unless the arm is `KAPPA_OF`."""


def run_cell(job: CellJob, tell: Tell) -> CellRun:
    """Choose settings, train and measure one cell."""
    started, settings = time.process_time(), job.settings
    world, done = world_of(job.cell, 0), 0

    def on_students(count: int) -> None:
        nonlocal done
        done += count * job.steps
        tell(min(done, job.units))

    grid = list(product(settings.arms, settings.learning_rates, settings.weight_decays))
    stops = tuple(max(1, round(share * job.steps)) for share in settings.stops)
    problems = world.problems(settings.validation_problems, 0, split="validation")
    tuning_seeds = range(TUNING_SEEDS, TUNING_SEEDS + settings.tuning_seeds)
    judged: dict[str, list[Setting]] = {name: [] for name in settings.arms}
    for stack in _trained(job, tuning_seeds, dict.fromkeys(grid, stops)):
        loss, right = (column.mean(0).tolist() for column in held_out(stack.worlds, stack.weights, problems))
        for place, (name, rate, decay) in enumerate(stack.asked):
            judged[name].append(
                Setting(
                    learning_rate=rate,
                    weight_decay=decay,
                    steps=stack.steps,
                    held_out_loss=loss[place],
                    held_out_right=right[place],
                )
            )
    on_students(settings.tuning_seeds * len(grid))
    chosen = _choose(job, judged)
    wanted: dict[Asked, tuple[int, ...]] = {}
    for by_arm in chosen.values():
        for name, one in by_arm.items():
            asked = name, one.learning_rate, one.weight_decay
            wanted[asked] = tuple(sorted({*wanted.get(asked, ()), one.steps}))
    problems = world.problems(settings.test_problems, 0, split="test")
    blocks: list[dict[tuple[Asked, int], Found]] = []
    for start in range(0, settings.seeds, BLOCK):
        seeds = range(start, min(start + BLOCK, settings.seeds))
        blocks.append(
            {key: found for stack in _trained(job, seeds, wanted) for key, found in _measured(stack, problems)}
        )
        on_students(len(seeds) * len(settings.arms) * len(FAIRNESS))

    def found(name: str, one: Setting) -> list[Found]:
        return [block[(name, one.learning_rate, one.weight_decay), one.steps] for block in blocks]

    # The oracle needs one student more of every seed.
    for_kappa = int(_kappa_is_asked_for(settings.arms))
    return CellRun(
        cell=job.cell,
        settings=chosen,
        measures={
            way: {name: _columns(found(name, one)) for name, one in by_arm.items()} for way, by_arm in chosen.items()
        },
        kappa={way: _kappa_columns(found(KAPPA_OF, by_arm[KAPPA_OF])) for way, by_arm in chosen.items()},
        students=settings.tuning_seeds * (len(grid) + for_kappa) + settings.seeds * (len(wanted) + for_kappa),
        cpu_seconds=time.process_time() - started,
    )


def _kappa_is_asked_for(arms: Iterable[str]) -> bool:
    return any(ARMS[name].weighs_by == "kappa" for name in arms)


def world_of(cell: Cell, seed: int) -> ChainWorld:
    """The world of one seed."""
    return ChainWorld(teacher=cell.teacher, seed=seed)


class _Stack(NamedTuple):
    """Students of some seeds after some step."""

    worlds: Worlds
    asked: list[Asked]
    """One for each column of the weights."""
    steps: int
    weights: Weights

    def alone(self, place: int) -> Weights:
        """One column."""
        return Weights(*(tensor[:, place : place + 1] for tensor in self.weights))


def _trained(job: CellJob, seeds: Sequence[int], wanted: Mapping[Asked, tuple[int, ...]]) -> Iterator[_Stack]:
    """Of every arm asked for, its students after the steps wanted."""
    worlds = Worlds.of([world_of(job.cell, seed) for seed in seeds])
    rows = draw_rows(worlds, seeds, ROWS[job.cell.rows])
    order = draw_order(seeds, ROWS[job.cell.rows], job.steps, job.settings.batch)
    known = _known(job, worlds, rows, seeds, order)
    for on_policy in (False, True):
        group = [asked for asked in wanted if ARMS[asked[0]].on_policy == on_policy]
        if not group:
            continue
        uniform = draw_uniform(seeds, 3, job.steps, job.settings.batch, 2 * worlds.size.steps) if on_policy else None
        weights = new_weights(worlds.size, STUDENTS[job.cell.student], seeds, len(group))
        arms = [ARMS[name].arm(rate, decay, known.get(ARMS[name].weighs_by)) for name, rate, decay in group]
        steps = sorted({step for asked in group for step in wanted[asked]})
        stacks = train(worlds, rows, arms, weights, order, uniform=uniform, keep=steps)
        for step in steps:
            places = [place for place, asked in enumerate(group) if step in wanted[asked]]
            columns = Weights(*(tensor[:, places] for tensor in stacks[step]))
            yield _Stack(worlds, [group[place] for place in places], step, columns)


def _measured(stack: _Stack, problems: Sequence[Expression]) -> Iterator[tuple[tuple[Asked, int], Found]]:
    measured = measure(stack.worlds, stack.weights, problems)
    for place, asked in enumerate(stack.asked):
        kappa = predicted_kappa(stack.worlds, stack.alone(place), problems) if asked[0] == KAPPA_OF else {}
        yield (asked, stack.steps), Found(measured.of_arm(place), kappa)


def _known(job: CellJob, worlds: Worlds, rows: Rows, seeds: Sequence[int], order: Tensor) -> dict[str, _Known]:
    """By oracle, the soft weights at the wordings and the values of all rows."""
    shape, settings = rows.values.shape, job.settings
    known = {"role": (torch.ones(shape), torch.zeros(shape))}
    if _kappa_is_asked_for(settings.arms):
        arm = ARMS[KAPPA_OF].arm(settings.fixed_rate, settings.fixed_decay)
        weights = new_weights(worlds.size, STUDENTS[job.cell.student], seeds, 1)
        soft = train(worlds, rows, [arm], weights, order)[job.steps]
        known["kappa"] = soft_where_kappa_is_low(*kappa_of_rows(worlds, soft, rows))
    return known


def soft_where_kappa_is_low(wordings: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Soft weights ``(S, n, steps)`` from kappa: 1 at the lowest of a seed's positions, 0 at the highest, by rank."""
    together = torch.cat([wordings, values], -1).flatten(1)
    ranks = together.argsort(1).argsort(1).double() / (together.shape[1] - 1)
    weights = (1 - ranks).unflatten(1, (wordings.shape[1], -1))
    return weights[..., : wordings.shape[2]], weights[..., wordings.shape[2] :]


def _choose(job: CellJob, judged: Mapping[str, Sequence[Setting]]) -> dict[str, dict[str, Setting]]:
    settings = job.settings
    chosen: dict[str, dict[str, Setting]] = {way: {} for way in FAIRNESS}
    alike = settings.fixed_rate, settings.fixed_decay, job.steps
    for name, tried in judged.items():
        chosen["one setting"][name] = next(
            one for one in tried if (one.learning_rate, one.weight_decay, one.steps) == alike
        )
        chosen["tuned by loss"][name] = min(tried, key=lambda one: one.held_out_loss)
        chosen["tuned by right answers"][name] = min(tried, key=lambda one: (-one.held_out_right, one.held_out_loss))
    return chosen


def _columns(blocks: Sequence[Found]) -> dict[str, tuple[float, ...]]:
    together = Measures.joined([block.measures for block in blocks])
    return {f.name: _rounded(getattr(together, f.name)) for f in fields(Measures)}


def _kappa_columns(blocks: Sequence[Found]) -> dict[str, dict[str, tuple[float, ...]]]:
    return {
        name: {reading: _rounded(torch.cat([block.kappa[name, reading] for block in blocks])) for reading in READINGS}
        for name in PREDICTORS
    }


def _rounded(column: Tensor) -> tuple[float, ...]:
    # Six digits are more than the seeds leave certain, and the numbers are kept as text.
    return tuple(float(f"{x:.6g}") for x in column.flatten().tolist())


def lab_map(
    output: Path,
    settings: MapSettings,
    *,
    command: str,
    workers: int | None = None,
    console: "Console | None" = None,
) -> MapResult:
    """Make the map, and leave ``result.json``, ``report.html``, ``tables.md``, ``cells.csv`` and ``claims.csv``.

    They appear at the very end; until then, and after an interrupt, a file ``INCOMPLETE`` lies in `output`. Cells that
    an earlier run finished there with the same settings are kept. The numbers depend on the settings, the libraries'
    versions and the machine, not on the number of workers.

    Args:
        output: folder; made if need be.
        settings: what to run.
        command: what was typed, for the record.
        workers: processes of one thread each; the processors there are, at most 4, if None.
        console: for progress; stderr if None.

    Raises:
        ConfigError: `output` is a file, a setting is wrong, or a worker was ended from outside.
    """
    folder = MapFolder(output)
    with study(folder, command, console) as begun:
        jobs = [CellJob(cell=cell, settings=settings, folder=folder) for cell in settings.cells]
        runs = begun.run(jobs, workers=workers, noun="cell")
        result = MapResult(settings=settings, runs=runs, **begun.record())
        folder.save(result)
    return result
