"""``bridgegarden lab run``: train, measure and keep a student for every world, arm and seed, and judge the claims."""

import time
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from bridgegarden.exact.tasks import WORLDS
from bridgegarden.exact.world import World
from bridgegarden.lab.findings import findings, summaries
from bridgegarden.lab.result import REGIMES, STUDENTS, Arm, LabResult, LabRun, LabSettings, Training
from bridgegarden.study.arms import ALL_OBJECTIVES, LlamaSize
from bridgegarden.study.kept import StudyFolder, to_tree
from bridgegarden.study.run import Job, Tell, steps_told, study

if TYPE_CHECKING:
    from rich.console import Console

    from bridgegarden.lab.worlds import LabData

STUDY = ("worlds", "objectives", "seeds", "sweep")
"""Settings that say what is run, not how."""


class LabFolder(StudyFolder):
    """With ``findings.csv``, ``means.csv`` and ``tables.md`` beside result and report."""

    command = "bridgegarden lab run"

    def run(self, world: str, arm: Arm, seed: int) -> Path:
        """One finished training and its measurement."""
        return self.path / "runs" / world / f"{arm.regime}-{arm.objective}-seed{seed}.json"

    def save(self, result: LabResult) -> None:
        """Write what a finished run leaves."""
        from bridgegarden.lab.report import report_page
        from bridgegarden.lab.tables import findings_csv, means_csv, tables_markdown

        found = findings(result)
        self.finish(
            {**result.to_dict(), "findings": to_tree(found), "summaries": to_tree(summaries(found))},
            report_page(result),
            {
                "findings.csv": findings_csv(result),
                "means.csv": means_csv(result),
                "tables.md": tables_markdown(result),
            },
        )


MEASURING = 100
"""What measuring a student costs, in training steps, for the progress bar."""


@dataclass(frozen=True, kw_only=True)
class LabJob(Job[LabSettings, LabFolder, LabRun]):
    """One training and its measurement."""

    makes = LabRun

    world: str
    """Key of `WORLDS`."""

    arm: Arm
    """Regime and objective."""

    seed: int
    """Of the first weights, the problems, the answers and their order."""

    @property
    def name(self) -> str:
        return f"{self.world}, {self.arm.regime}, {self.arm.objective}, seed {self.seed}"

    @property
    def path(self) -> Path:
        return self.folder.run(self.world, self.arm, self.seed)

    @property
    def decided_by(self) -> dict[str, Any]:
        from bridgegarden.recipe import describe_objective

        world, size = world_of(self.world, self.arm.regime), size_of(self.world, self.arm.regime)
        return {
            "world": {"name": world.name, "vocabulary": world.vocabulary, **asdict(cast(Any, world))},
            "student": asdict(size),
            "regime": asdict(REGIMES[self.arm.regime]),
            "objective": describe_objective(ALL_OBJECTIVES[self.arm.objective].build()),
            "seed": self.seed,
            "settings": {name: value for name, value in self.settings.to_dict().items() if name not in STUDY},
        }

    @property
    def units(self) -> int:
        return self.settings.steps + MEASURING

    @property
    def turn(self) -> int:
        settings = self.settings
        return settings.worlds.index(self.world) * len(settings.seeds) + settings.seeds.index(self.seed)

    def run(self, tell: Tell) -> LabRun:
        from bridgegarden.lab.student import measured, solve_problems, train_student, view_example

        settings, regime = self.settings, self.arm.regime
        data = _data(self.world, regime, self.seed, settings)
        objective = ALL_OBJECTIVES[self.arm.objective].build()
        trained = train_student(objective, size_of(self.world, regime), self.seed, settings, data, steps_told(tell))
        tell(settings.steps)
        cpu = time.process_time()
        solved = solve_problems(trained.model, data.world, data.test)
        return LabRun(
            world=self.world,
            regime=regime,
            objective=self.arm.objective,
            seed=self.seed,
            measured=measured(solved),
            training=Training(
                steps=trained.steps,
                kept_step=trained.kept_step,
                validation=trained.validation,
                seconds=trained.seconds,
                cpu_seconds=trained.cpu_seconds,
                measuring_seconds=time.process_time() - cpu,
            ),
            example=view_example(solved[0].solution, data.world, solved[0].test.prompt),
        )

    def told(self, run: LabRun) -> str:
        found = run.measured
        return (
            f"{self.name}: L_dT {found.teacher_loss:.3g}, exposure bias {found.exposure_bias:+.3g}, "
            f"right {100 * found.success:.1f} %, off script {100 * found.violation:.1f} %"
        )


def lab(
    output: Path,
    settings: LabSettings,
    *,
    command: str,
    workers: int | None = None,
    console: "Console | None" = None,
) -> LabResult:
    """Run the study, and leave ``result.json`` in `output`.

    It appears at the very end; until then, and after an interrupt, a file ``INCOMPLETE`` lies there. Trainings that an
    earlier run finished in `output` with the same settings are kept. The numbers depend on the settings, the libraries'
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
    folder = LabFolder(output)
    with study(folder, command, console) as begun:
        jobs = [
            LabJob(world=world, arm=arm, seed=seed, settings=settings, folder=folder)
            for world in settings.worlds
            for arm in sorted(arms_in(world, settings), key=_place)
            for seed in settings.seeds
        ]
        result = LabResult(settings=settings, runs=begun.run(jobs, workers=workers), **begun.record())
        folder.save(result)
    return result


def arms_in(world: str, settings: LabSettings) -> tuple[Arm, ...]:
    """What is trained in `world`: a regime whose teacher slips needs a world where that can be done."""
    return tuple(arm for arm in settings.arms if not REGIMES[arm.regime].slip_rate or _slips(world))


def world_of(name: str, regime: str) -> World:
    """The world called `name` with the teacher of `regime`."""
    return WORLDS[name](slip_rate=REGIMES[regime].slip_rate) if _slips(name) else WORLDS[name]()


def size_of(world: str, regime: str) -> LlamaSize:
    """What the students of `regime` are like in `world`."""
    sizes = STUDENTS[world]
    return sizes.small if REGIMES[regime].student == "small" else sizes.large


def _place(arm: Arm) -> tuple[int, int]:
    return list(REGIMES).index(arm.regime), list(ALL_OBJECTIVES).index(arm.objective)


def _slips(world: str) -> bool:
    """Whether the teacher of `world` can be made to slip; where nothing can be wrong it cannot."""
    return any(field.name == "slip_rate" for field in fields(cast(Any, WORLDS[world]())))


# Trainings of one process share what they do not change.
@lru_cache(maxsize=4)
def _data(world: str, regime: str, seed: int, settings: LabSettings) -> "LabData":
    from bridgegarden.lab.worlds import draw_data

    return draw_data(
        world_of(world, regime),
        seed,
        train=REGIMES[regime].answers,
        validation=settings.validation_problems,
        test=settings.test_problems,
    )
