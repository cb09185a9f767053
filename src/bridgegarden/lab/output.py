"""The output folder of the lab."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from bridgegarden.exact.world import World
from bridgegarden.lab.findings import findings, summaries
from bridgegarden.lab.result import LabResult, LabRun
from bridgegarden.lab.settings import REGIMES, Arm, LabSettings
from bridgegarden.study.arms import ALL_OBJECTIVES, LlamaSize
from bridgegarden.study.kept import StudyFolder, deciding_versions, keep, kept, key_of, to_tree

STUDY = ("worlds", "objectives", "seeds", "sweep")
"""Settings that say what is run, not how."""


class LabFolder(StudyFolder):
    """With ``findings.csv``, ``means.csv`` and ``tables.md`` beside result and report."""

    command = "bridgegarden lab run"

    def run(self, world: str, arm: Arm, seed: int) -> Path:
        """One finished training and its measurement."""
        return self.path / "runs" / world / f"{arm.regime}-{arm.objective}-seed{seed}.json"

    def save_run(self, run: LabRun, key: str) -> None:
        """Keep a finished training."""
        keep(self.run(run.world, Arm(regime=run.regime, objective=run.objective), run.seed), key, run)

    def finished_run(self, world: str, arm: Arm, seed: int, key: str) -> LabRun | None:
        """A training that was finished here with everything as `key` has it."""
        return kept(self.run(world, arm, seed), key, LabRun)

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


def run_key(world: World, size: LlamaSize, arm: Arm, seed: int, settings: LabSettings) -> str:
    """A hash of everything that the numbers of one training depend on."""
    from bridgegarden.recipe import describe_objective

    parts: dict[str, Any] = {
        "world": {"name": world.name, "vocabulary": world.vocabulary, **asdict(cast(Any, world))},
        "student": asdict(size),
        "regime": asdict(REGIMES[arm.regime]),
        "objective": describe_objective(ALL_OBJECTIVES[arm.objective].build()),
        "seed": seed,
        "settings": {name: value for name, value in settings.to_dict().items() if name not in STUDY},
        "versions": dict(deciding_versions()),
    }
    return key_of(parts)
