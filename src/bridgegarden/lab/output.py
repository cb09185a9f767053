"""The output folder of the lab."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from bridgegarden.exact.world import World
from bridgegarden.jobs.kept import begin_folder, deciding_versions, keep, kept, key_of, mark_of
from bridgegarden.lab.findings import findings, summaries
from bridgegarden.lab.objectives import ALL_OBJECTIVES
from bridgegarden.lab.result import LabResult, LabRun, run_from_tree, to_tree
from bridgegarden.lab.settings import REGIMES, Arm, LabSettings, LlamaSize
from bridgegarden.run.output import write_json, write_text

STUDY = ("worlds", "objectives", "seeds", "sweep")
"""Settings that say what is run, not how."""


@dataclass(frozen=True)
class LabFolder:
    """``OUTPUT``. While a run is under way, or if it was interrupted, the file ``INCOMPLETE`` lies in it."""

    path: Path

    @property
    def result(self) -> Path:
        """All numbers, and what they say of the claims."""
        return self.path / "result.json"

    @property
    def findings(self) -> Path:
        """What is said of each claim, one line each."""
        return self.path / "findings.csv"

    @property
    def means(self) -> Path:
        """Means over seeds, one line each."""
        return self.path / "means.csv"

    @property
    def tables(self) -> Path:
        """Both for a reader."""
        return self.path / "tables.md"

    @property
    def report(self) -> Path:
        """The page that shows it."""
        return self.path / "report.html"

    def run(self, world: str, arm: Arm, seed: int) -> Path:
        """One finished training and its measurement."""
        return self.path / "runs" / world / f"{arm.regime}-{arm.objective}-seed{seed}.json"

    def begin(self) -> None:
        """Make the folder and mark it.

        Raises:
            ConfigError: the path is taken by a file.
        """
        begin_folder(self.path, command="bridgegarden lab run", results="result.json and what was made from it")

    def save_run(self, run: LabRun, key: str) -> None:
        """Keep a finished training."""
        path = self.run(run.world, Arm(regime=run.regime, objective=run.objective), run.seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        keep(path, key, to_tree(run))

    def finished_run(self, world: str, arm: Arm, seed: int, key: str) -> LabRun | None:
        """A training that was finished here with everything as `key` has it."""
        return kept(self.run(world, arm, seed), key, run_from_tree)

    def finish(self, result: LabResult) -> None:
        """Write what a finished run leaves, each file whole or not at all, and take the mark away."""
        from bridgegarden.lab.report import write_report
        from bridgegarden.lab.tables import findings_csv, means_csv, tables_markdown

        write_text(self.findings, findings_csv(result))
        write_text(self.means, means_csv(result))
        write_text(self.tables, tables_markdown(result))
        found = findings(result)
        tree = {**result.to_dict(), "findings": to_tree(found), "summaries": to_tree(summaries(found))}
        write_json(self.result, tree)
        write_report(result, self.report)
        mark_of(self.path).unlink()


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
