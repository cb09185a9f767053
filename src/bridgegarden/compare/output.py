"""The output folder of a comparison."""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bridgegarden.compare.pair import Pair, student_fingerprint
from bridgegarden.compare.result import CompareResult, CompareRun, Spent, run_from_tree
from bridgegarden.compare.rows import ComparedRow
from bridgegarden.compare.settings import CompareSettings
from bridgegarden.jobs.kept import begin_folder, deciding_versions, keep, kept, key_of, mark_of
from bridgegarden.recipe import Recipe
from bridgegarden.run.output import write_json, write_text


@dataclass(frozen=True)
class CompareFolder:
    """``OUTPUT``. While a comparison is under way, or if it was interrupted, the file ``INCOMPLETE`` lies in it."""

    path: Path

    @property
    def result(self) -> Path:
        """All numbers, and what they say of each pair of objectives."""
        return self.path / "result.json"

    @property
    def table(self) -> Path:
        """One line an objective."""
        return self.path / "objectives.csv"

    @property
    def tables(self) -> Path:
        """Tables for a reader."""
        return self.path / "tables.md"

    @property
    def report(self) -> Path:
        """The page that shows it."""
        return self.path / "report.html"

    @property
    def cache(self) -> Path:
        """The teacher's signals, if the recipe names no folder for them."""
        return self.path / "teacher_cache"

    def run(self, row: ComparedRow, seed: int) -> Path:
        """The folder of one training, as ``bridgegarden train`` writes it."""
        return self.path / "runs" / f"{row.file_name}-seed{seed}"

    def begin(self) -> None:
        """Make the folder and mark it.

        Raises:
            ConfigError: the path is taken by a file.
        """
        begin_folder(self.path, command="bridgegarden compare", results="result.json and what was made from it")

    def save_training(self, row: ComparedRow, seed: int, spent: Spent, held_out: dict[str, float], key: str) -> None:
        """Keep what a training cost, so that an interrupted measurement does not cost it again."""
        keep(self.run(row, seed) / "trained.json", key, {"spent": asdict(spent), "held_out": held_out})

    def finished_training(self, row: ComparedRow, seed: int, key: str) -> tuple[Spent, dict[str, float]] | None:
        """A training that was finished here, its model included, with everything as `key` has it."""
        folder = self.run(row, seed)
        if not (folder / "model").is_dir():
            return None
        return kept(folder / "trained.json", key, lambda tree: (Spent(**tree["spent"]), dict(tree["held_out"])))

    def save_run(self, row: ComparedRow, run: CompareRun, key: str, *, keep_model: bool) -> None:
        """Keep a measured training."""
        folder = self.run(row, run.seed)
        folder.mkdir(parents=True, exist_ok=True)
        keep(folder / "measured.json", key, asdict(run))
        if not keep_model:
            for name in ("model", "adapter"):
                shutil.rmtree(folder / name, ignore_errors=True)

    def finished_run(self, row: ComparedRow, seed: int, key: str) -> CompareRun | None:
        """A training that was finished and measured here with everything as `key` has it."""
        return kept(self.run(row, seed) / "measured.json", key, run_from_tree)

    def finish(self, result: CompareResult) -> None:
        """Write what a finished comparison leaves, each file whole or not at all, and take the mark away."""
        from bridgegarden.compare.findings import all_differences
        from bridgegarden.compare.report import write_report
        from bridgegarden.compare.tables import objectives_csv, tables_markdown

        write_text(self.table, objectives_csv(result))
        write_text(self.tables, tables_markdown(result))
        write_json(self.result, {**result.to_dict(), "differences": all_differences(result)})
        write_report(result, self.report)
        mark_of(self.path).unlink()


def run_key(pair: Pair, recipe: Recipe, settings: CompareSettings) -> str:
    """A hash of everything that the numbers of one training and its measurement depend on.

    Args:
        pair: what all runs share.
        recipe: of the run.
        settings: of the comparison.
    """
    tree: dict[str, Any] = recipe.to_dict()
    del tree["output"]
    tree["teacher"].pop("cache", None)
    parts = {
        "recipe": tree,
        "content": pair.fingerprints,
        "student": student_fingerprint(recipe, recipe.training.arguments["seed"]),
        "cached": recipe.teacher.is_cached,
        "measuring": settings.measuring,
        "versions": dict(deciding_versions()),
    }
    return key_of(parts)
