"""A run that is killed, and started again by the same command, ends with the weights it would have had."""

import dataclasses
import json
import os
import shutil
import signal
import time
from functools import partial

import pytest
import torch
from transformers import PreTrainedModel, TrainerState

from bridgegarden.recipe import Recipe
from bridgegarden.run.cache import CacheOptions, build_recipe_cache
from bridgegarden.run.output import OutputFolder
from bridgegarden.run.train import train
from bridgegarden.training.trainer import HybridDistillationTrainer
from tests.run.killed import ended, in_child, killed_after, metrics, moments, weights

pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # fork, from Python 3.12
SLOW = pytest.mark.slow
KILLS = {False: 6, True: 20}
"""Of a live teacher, and of a cached one, which has more that can be caught in the middle."""


def elsewhere(recipe: Recipe, name: str) -> Recipe:
    return dataclasses.replace(recipe, output=recipe.output.parent / name)


def from_cache(recipe: Recipe) -> Recipe:
    """The same, with the teacher's signals read by two workers."""
    cached = dataclasses.replace(
        recipe, teacher=dataclasses.replace(recipe.teacher, cache=str(recipe.output) + "-cache")
    )
    build_recipe_cache(cached, CacheOptions())
    arguments = dict(cached.training.arguments) | {"dataloader_num_workers": 2, "dataloader_prefetch_factor": 2}
    return dataclasses.replace(cached, training=dataclasses.replace(cached.training, arguments=arguments))


def train_killing_itself(recipe: Recipe, target: object, method: str, call: int, *, after: bool = False) -> None:
    """Train in a process that gets SIGKILL at the `call`-th call of `method`, before or after it does its work."""
    original, calls = getattr(target, method), []

    def deadly(*args, **kwargs):
        calls.append(None)
        if len(calls) == call and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    def work():
        setattr(target, method, deadly)
        train(recipe)

    assert ended(in_child(work)) == -signal.SIGKILL


def assert_same(recipe: Recipe, whole: Recipe) -> None:
    assert weights(recipe.output) == weights(whole.output)
    assert metrics(recipe.output) == metrics(whole.output)


@SLOW
@pytest.mark.parametrize("cached", [False, True], ids=["live teacher", "cached teacher, two workers"])
def test_kills_at_random_moments_change_no_bit(recipe, cached, capsys):
    recipe = from_cache(recipe) if cached else recipe
    whole = elsewhere(recipe, "whole")
    assert ended(in_child(lambda: train(whole))) == 0
    kills = KILLS[cached]
    runs, resumed = train_and_kill(recipe, whole, kills=kills, seed=11 + cached, least=kills // 4)
    assert resumed >= kills // 4
    with capsys.disabled():
        print(f"\n{kills} kills, {resumed} of them after a checkpoint; {runs} of {runs} runs ended bit-identical")


def train_and_kill(recipe: Recipe, whole: Recipe, *, kills: int, seed: int, least: int = 0) -> tuple[int, int]:
    """Kill so often, at random moments of as many runs as that takes; how many runs there were, and resumptions.

    On a machine that is busy for a while few moments fall behind a checkpoint: then up to three times as often, until
    there are `least` resumptions.
    """
    began = time.monotonic()
    assert ended(in_child(lambda: train(elsewhere(recipe, "timed")))) == 0
    moment = moments(time.monotonic() - began, seed)
    killed = runs = resumed = 0
    while killed < kills or (resumed < least and killed < 3 * kills):
        runs += 1
        one = elsewhere(recipe, f"run-{runs}")
        wanted = max(kills, killed + 1)
        while killed < wanted and killed_after(one, moment()):
            killed += 1
        assert ended(in_child(partial(train, one))) == 0
        assert_same(one, whole)
        resumed += len(json.loads((one.output / "run.json").read_text())["went_on_from"])
        shutil.rmtree(one.output)
    return runs, resumed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "method", "call", "after"),
    [
        pytest.param(PreTrainedModel, "save_pretrained", 2, True, id="of a checkpoint only the weights", marks=SLOW),
        pytest.param(torch, "save", 8, True, id="of a checkpoint weights and optimiser", marks=SLOW),
        pytest.param(TrainerState, "save_to_json", 2, False, id="all but what makes it whole", marks=SLOW),
        pytest.param(TrainerState, "save_to_json", 2, True, id="before the seal"),
        pytest.param(OutputFolder, "begin", 1, True, id="before the first step", marks=SLOW),
        pytest.param(HybridDistillationTrainer, "prediction_step", 2, False, id="in an evaluation", marks=SLOW),
        pytest.param(
            HybridDistillationTrainer, "evaluate", 2, True, id="between evaluation and checkpoint", marks=SLOW
        ),
        pytest.param(HybridDistillationTrainer, "save_model", 6, True, id="the final model is written", marks=SLOW),
        pytest.param(OutputFolder, "publish", 1, False, id="before it gets its name", marks=SLOW),
        pytest.param(OutputFolder, "publish", 1, True, id="after it got its name"),
    ],
)
def test_a_run_killed_at_the_worst_moment_ends_with_the_same_bits(recipe, whole, target, method, call, after):
    train_killing_itself(recipe, target, method, call, after=after)
    assert ended(in_child(lambda: train(recipe))) == 0
    assert_same(recipe, whole)
    assert (recipe.output / "checkpoints").exists()
