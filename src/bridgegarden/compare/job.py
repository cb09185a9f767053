"""The trainings of a comparison, each with everything that decides its numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bridgegarden.compare.flops import PairFlops, steps_of
from bridgegarden.compare.output import CompareFolder, run_key
from bridgegarden.compare.pair import Pair
from bridgegarden.compare.result import CompareRun
from bridgegarden.compare.rows import DATA_ROWS, ComparedRow
from bridgegarden.compare.settings import CompareSettings
from bridgegarden.recipe import Recipe

WRITING = 5
"""What a step costs on the student's own text, in steps on fixed data, for the progress bar."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training and its measurement."""

    row: ComparedRow
    seed: int
    steps: int
    """Optimiser steps."""
    recipe: Recipe
    """Of this run."""
    base: Recipe
    """Of the comparison."""
    settings: CompareSettings
    folder: CompareFolder
    key: str
    """Of everything the numbers depend on."""

    @property
    def name(self) -> str:
        """For the display."""
        return f"{self.row.label}, seed {self.seed}"

    @property
    def units(self) -> int:
        """Work, in training steps on fixed data; measuring costs about as much as a third of a training."""
        return self.steps * self.weight + max(1, self.steps // 3)

    def kept(self) -> CompareRun | None:
        """What an earlier run found with everything as it is here."""
        return self.folder.finished_run(self.row, self.seed, self.key)

    @property
    def weight(self) -> int:
        """Units of a step."""
        return WRITING if self.row.on_policy else 1


def make_jobs(
    pair: Pair, rows: Sequence[ComparedRow], settings: CompareSettings, folder: CompareFolder
) -> tuple[Job, ...]:
    """Seed by seed, so that an interrupted comparison has whole ones."""
    from bridgegarden.compare.train_one import run_recipe

    flops = PairFlops.of(pair)
    sharers = len(settings.seeds) * sum(reads_cache(row) for row in rows)
    cache = folder.cache if pair.recipe.teacher.cache is None else Path(pair.recipe.teacher.cache)
    jobs = []
    for seed in settings.seeds:
        for row in rows:
            steps = steps_of(pair, flops, row, sharers=sharers) if settings.budget == "compute" else pair.steps
            where = None if row.on_policy else cache
            recipe = run_recipe(pair.recipe, row, seed, steps=steps, cache=where, output=folder.run(row, seed))
            key = run_key(pair, recipe, settings)
            jobs.append(
                Job(
                    row=row,
                    seed=seed,
                    steps=steps,
                    recipe=recipe,
                    base=pair.recipe,
                    settings=settings,
                    folder=folder,
                    key=key,
                )
            )
    return tuple(jobs)


def reads_cache(row: ComparedRow) -> bool:
    """Whether the teacher's distribution is part of the loss, and can be read from disk."""
    return not row.on_policy and row.name not in DATA_ROWS
