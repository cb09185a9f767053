"""One training of a comparison: what ``bridgegarden train`` does, on the clock."""

import dataclasses
import gc
import shutil
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from bridgegarden.compare.flops import PairFlops, Work
from bridgegarden.compare.pair import Pair, seeded
from bridgegarden.compare.result import Spent
from bridgegarden.compare.rows import ComparedRow
from bridgegarden.recipe import Recipe, TrainingSection
from bridgegarden.run.record import TrainSummary
from bridgegarden.run.train import train
from bridgegarden.study.students import Clock
from bridgegarden.training.on_policy import OnPolicy

WITHOUT = ("load_best_model_at_end", "metric_for_best_model", "greater_is_better", "eval_steps", "save_steps")
"""Settings that mean nothing in a comparison, where every student is taken as it is after the last step; nor is it
watched on its way there (`free_running`), which would be part of its cost."""


def run_recipe(recipe: Recipe, row: ComparedRow, seed: int, *, steps: int, cache: Path | None, output: Path) -> Recipe:
    """`recipe` for one training of the comparison.

    Args:
        recipe: the comparison's.
        row: what is minimised.
        seed: of the student, the order of the rows and what is sampled.
        steps: optimiser steps.
        cache: the teacher's signals; None for rows that ask it as they go.
        output: folder of the run.
    """
    recipe = seeded(recipe, seed)
    kept = {name: value for name, value in recipe.training.arguments.items() if name not in WITHOUT}
    arguments = {**kept, "max_steps": steps, "seed": seed, "eval_strategy": "no", "save_strategy": "no"}
    on_policy = None
    if row.on_policy:
        on_policy = dataclasses.replace(recipe.on_policy or OnPolicy(lmbda=row.lmbda), lmbda=row.lmbda)
    return dataclasses.replace(
        recipe,
        teacher=dataclasses.replace(recipe.teacher, cache=None if cache is None else str(cache)),
        objective=row.objective,
        on_policy=on_policy,
        free_running=None,
        training=TrainingSection(arguments=arguments),
        output=output,
    )


def train_one(
    recipe: Recipe, pair: Pair, flops: PairFlops, *, on_step: Callable[[int], None]
) -> tuple[TrainSummary, Spent]:
    """Train as `recipe` (of :func:`run_recipe`) says; what an interrupted attempt left in its folder goes first.

    Raises:
        BridgegardenError: as ``bridgegarden train``.
    """
    shutil.rmtree(recipe.output, ignore_errors=True)
    clock = Clock(on_step)
    _forget_peak()
    summary = train(recipe, console=Console(quiet=True), callbacks=[clock])
    cost, counts = summary.cost, pair.counts
    # Rows of the data that were learnt from: those that the student did not answer.
    fixed = summary.steps * pair.rows_a_step - cost.answers
    positions = cost.generated_tokens + fixed * counts.positions
    work = Work(
        student_tokens=cost.student_tokens,
        student_positions=positions,
        teacher_tokens=cost.teacher_tokens,
        teacher_positions=positions if cost.teacher_tokens else 0,
        generated_tokens=cost.generated_tokens,
        prompt_tokens=cost.prompt_tokens,
    )
    spent = Spent(
        steps=summary.steps,
        seconds=clock.seconds,
        cpu_seconds=clock.cpu_seconds,
        teacher_tokens=cost.teacher_tokens,
        student_tokens=cost.student_tokens,
        prompt_tokens=cost.prompt_tokens,
        generated_tokens=cost.generated_tokens,
        flops=flops.training(work),
        peak_memory=summary.peak_memory,
    )
    return summary, spent


def _forget_peak() -> None:
    """Let the process' peak of memory start from what it holds now; where that cannot be, it is the peak so far."""
    gc.collect()
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        pass
