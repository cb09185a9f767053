"""The output folder of a comparison."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bridgegarden.compare.pair import Pair, student_fingerprint
from bridgegarden.compare.result import CompareResult, CompareRun, Spent
from bridgegarden.compare.rows import ComparedRow
from bridgegarden.compare.settings import CompareSettings
from bridgegarden.recipe import Recipe
from bridgegarden.study.kept import StudyFolder, deciding_versions, keep, kept, key_of


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

    def save_training(self, row: ComparedRow, seed: int, trained: Trained, key: str) -> None:
        """Keep what a training cost, so that an interrupted measurement does not cost it again."""
        keep(self.run(row, seed) / "trained.json", key, trained)

    def finished_training(self, row: ComparedRow, seed: int, key: str) -> Trained | None:
        """A training that was finished here, its model included, with everything as `key` has it."""
        folder = self.run(row, seed)
        if not (folder / "model").is_dir():
            return None
        return kept(folder / "trained.json", key, Trained)

    def save_run(self, row: ComparedRow, run: CompareRun, key: str, *, keep_model: bool) -> None:
        """Keep a measured training."""
        folder = self.run(row, run.seed)
        keep(folder / "measured.json", key, run)
        if not keep_model:
            for name in ("model", "adapter"):
                shutil.rmtree(folder / name, ignore_errors=True)

    def finished_run(self, row: ComparedRow, seed: int, key: str) -> CompareRun | None:
        """A training that was finished and measured here with everything as `key` has it."""
        return kept(self.run(row, seed) / "measured.json", key, CompareRun)

    def save(self, result: CompareResult) -> None:
        """Write what a finished comparison leaves."""
        from bridgegarden.compare.findings import all_differences
        from bridgegarden.compare.report import report_page
        from bridgegarden.compare.tables import objectives_csv, tables_markdown

        self.finish(
            {**result.to_dict(), "differences": all_differences(result)},
            report_page(result),
            {"objectives.csv": objectives_csv(result), "tables.md": tables_markdown(result)},
        )


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
