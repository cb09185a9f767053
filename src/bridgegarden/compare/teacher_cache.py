"""The teacher asked once for all objectives on fixed rows, and what that cost."""

import dataclasses
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bridgegarden.compare.flops import PairFlops
from bridgegarden.compare.job import Job, reads_cache
from bridgegarden.compare.output import CompareFolder
from bridgegarden.compare.pair import Pair, seeded
from bridgegarden.compare.result import CacheCost

if TYPE_CHECKING:
    from rich.console import Console


def fill_cache(pair: Pair, jobs: Sequence[Job], folder: CompareFolder, console: "Console") -> CacheCost | None:
    """Fill the teacher's cache with what it lacks, if a training reads it; and what that cost."""
    from bridgegarden.run.cache import CacheOptions, build_recipe_cache
    from bridgegarden.teacher.cache.writer import BuildResult

    cached = [job for job in jobs if job.recipe.teacher.cache is not None]
    if not cached:
        return None
    built_here = pair.recipe.teacher.cache is None
    todo = [job for job in cached if job.folder.finished_run(job.row, job.seed, job.key) is None]
    if todo:
        recipe = seeded(pair.recipe, jobs[0].seed)
        teacher = dataclasses.replace(recipe.teacher, cache=todo[0].recipe.teacher.cache)
        recipe = dataclasses.replace(recipe, teacher=teacher, on_policy=None)
        wall, cpu = time.perf_counter(), time.process_time()
        built = build_recipe_cache(recipe, CacheOptions())
        added = built.documents if isinstance(built, BuildResult) else 0
        if built_here and added:
            # Finding that nothing is missing is part of resuming, not of what the teacher costs.
            folder.save_cache_cost(time.perf_counter() - wall, time.process_time() - cpu)
        if added:
            console.print(f"teacher asked once about {added:,} rows")
    seconds = folder.finished_cache_cost() if built_here else None
    return CacheCost(
        tokens=pair.counts.distinct_tokens,
        flops=PairFlops.of(pair).cache(pair),
        seconds=None if seconds is None else seconds[0],
        cpu_seconds=None if seconds is None else seconds[1],
        sharers=sum(reads_cache(job.row) for job in jobs),
    )
