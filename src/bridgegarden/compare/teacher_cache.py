"""The teacher asked once for all objectives on fixed rows, and what that cost."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bridgegarden.compare.flops import PairFlops
from bridgegarden.compare.job import Job, reads_cache
from bridgegarden.compare.output import CompareFolder
from bridgegarden.compare.pair import Pair, seeded
from bridgegarden.compare.result import CacheCost
from bridgegarden.terminal import counted

if TYPE_CHECKING:
    from rich.console import Console


def fill_cache(pair: Pair, jobs: Sequence[Job], folder: CompareFolder, console: "Console") -> CacheCost | None:
    """Fill the teacher's cache with what it lacks, if a training reads it; and what that cost."""
    from bridgegarden.run.cache import CacheOptions, build_recipe_cache
    from bridgegarden.run.teacher import cache_folder
    from bridgegarden.teacher.cache.manifest import BuildTime, finished_shards
    from bridgegarden.teacher.cache.writer import BuildResult

    cached = [job for job in jobs if job.recipe.teacher.is_cached]
    if not cached:
        return None
    todo = [job for job in cached if job.kept() is None]
    if todo:
        recipe = seeded(pair.recipe, jobs[0].seed)
        teacher = dataclasses.replace(recipe.teacher, cache=todo[0].recipe.teacher.cache)
        recipe = dataclasses.replace(recipe, teacher=teacher, on_policy=None)
        built = build_recipe_cache(recipe, CacheOptions())
        if isinstance(built, BuildResult) and built.documents:
            console.print(f"teacher asked once about {counted(built.documents, 'row')}")
    records = finished_shards(cache_folder(cached[0].recipe)).values()
    # A cache that was there before may hold rows that this recipe does not have.
    share = pair.counts.distinct_positions / max(sum(record.positions for record in records), 1)
    took = BuildTime.of(records)
    return CacheCost(
        tokens=pair.counts.distinct_tokens,
        flops=PairFlops.of(pair).cache(pair),
        seconds=None if took.seconds is None else share * took.seconds,
        cpu_seconds=None if took.cpu_seconds is None else share * took.cpu_seconds,
        sharers=sum(reads_cache(job.row) for job in jobs),
    )
