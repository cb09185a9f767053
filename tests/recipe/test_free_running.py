"""The section that watches the student on its own texts."""

from typing import Any, get_args, get_type_hints

import pytest

from bridgegarden.errors import ConfigError
from bridgegarden.recipe import FreeRunningSection, Recipe, TrainingSection, build_sft_config
from bridgegarden.recipe.values import read_yaml
from bridgegarden.training.callbacks import SELECT_BY

TREE = {
    "teacher": {"model": "t"},
    "student": {"model": "s"},
    "data": {"train": "rows.jsonl", "eval": "held_out.jsonl"},
    "output": "runs/x",
}


def recipe(**changes: Any) -> Recipe:
    return Recipe.from_dict(TREE | changes)


def sft(tmp_path, select_by: str = "free_running_loss", **arguments: Any):
    section = TrainingSection(arguments={"use_cpu": True, "report_to": "none", **arguments})
    return build_sft_config(section, tmp_path, evaluate=True, select_by=select_by)


def test_it_is_off_unless_it_is_asked_for_and_survives_a_round_trip():
    assert recipe().free_running is None
    assert "free_running" not in recipe().to_dict()
    assert recipe(free_running={}).free_running == FreeRunningSection()
    given = recipe(free_running={"every": 50, "select_by": "exposure_bias", "max_new_tokens": 32})
    assert Recipe.from_dict(read_yaml(given.to_yaml(), "x")) == given


def test_the_ways_to_select_are_those_of_the_callback():
    chosen = get_type_hints(FreeRunningSection)["select_by"]
    (names,) = [get_args(member) for member in get_args(chosen) if get_args(member)]
    assert set(names) == set(SELECT_BY)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"free_running": {"every": 0}}, r"free_running.every must be >= 1, got 0"),
        ({"free_running": {"prompts": 1}}, r"free_running.prompts must be >= 2, got 1"),
        ({"free_running": {"temperature": -1}}, r"free_running.temperature must be 0 \(greedy\) or in .*, got -1"),
        ({"free_running": {"evry": 5}}, r"free_running: unknown key 'evry'. Did you mean 'every'\?"),
        ({"free_running": {"select_by": "exposure"}}, r"free_running.select_by: unknown value 'exposure'"),
        ({"free_running": {}, "data": {"train": "r.jsonl"}}, r"free_running: its prompts are .* set data.eval"),
        (
            {"free_running": {}, "teacher": {"model": "t", "server": "http://x/v1", "cache": "c"}},
            r"teacher.server: a server does not give its distribution",
        ),
        (
            {"free_running": {"select_by": "exposure_bias"}, "training": {"metric_for_best_model": "loss"}},
            r"training.metric_for_best_model: free_running.select_by decides it",
        ),
        ({"free_running": {}, "training": {"eval_strategy": "no"}}, r"is 'no', but free_running measures at eval"),
        (
            {"free_running": {"every": 2, "select_by": "exposure_bias"}, "training": {"eval_strategy": "no"}},
            r"free_running measures, and selects, at evaluations",
        ),
    ],
)
def test_what_cannot_work_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        recipe(**changes)


def test_without_evaluations_it_can_still_measure_every_so_many_steps():
    assert recipe(free_running={"every": 5}, training={"eval_strategy": "no"}).free_running is not None


@pytest.mark.parametrize("select_by", SELECT_BY)
def test_the_checkpoint_with_the_least_value_is_kept_one_for_every_evaluation(tmp_path, select_by):
    config = sft(tmp_path, select_by)
    assert (config.load_best_model_at_end, config.greater_is_better) == (True, False)
    assert config.metric_for_best_model == f"eval_{select_by}"
    assert config.save_strategy == config.eval_strategy == "epoch"
    config = sft(tmp_path, select_by, eval_strategy="steps", eval_steps=5)
    assert (config.save_strategy, config.save_steps) == ("steps", 5)
    config = sft(tmp_path, select_by, eval_strategy="steps", logging_steps=3)
    assert config.save_steps == config.eval_steps == 3


def test_checkpoints_at_other_times_than_evaluations_are_refused(tmp_path):
    with pytest.raises(
        ConfigError, match=r"^training\.eval_strategy and training\.save_strategy: .*save and eval strategy"
    ):
        sft(tmp_path, eval_strategy="steps", eval_steps=5, save_strategy="epoch")
