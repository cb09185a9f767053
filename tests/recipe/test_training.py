from dataclasses import fields

import pytest
import torch
from trl.trainer.sft_config import SFTConfig

from bridgegarden.errors import ConfigError
from bridgegarden.recipe import LoraSection, TrainingSection, build_lora_config, build_sft_config
from bridgegarden.recipe.training import DEFAULTS, RESERVED, EarlyStoppingSection, checked_arguments


def test_defaults_fill_what_is_left_out_and_only_that():
    assert checked_arguments({}) == dict(DEFAULTS)
    assert checked_arguments({"learning_rate": 2e-4, "max_steps": 5}) == {
        **DEFAULTS,
        "learning_rate": 2e-4,
        "max_steps": 5,
    }


def test_checking_twice_changes_nothing():
    once = checked_arguments({"learning_rate": "1e-4", "max_steps": 1e3, "report_to": ["none"]})
    assert checked_arguments(once) == once


def test_defaults_and_reserved_names_are_fields_that_exist():
    known = {f.name for f in fields(SFTConfig)}
    assert set(DEFAULTS) <= known
    # transformers 5.23 has these names in place of others.
    assert {name for name in RESERVED if not name.startswith("activation_")} <= known
    assert not set(DEFAULTS) & set(RESERVED)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rat": 1}, r"training: unknown key 'learning_rat'. Did you mean 'learning_rate'\?"),
        ({"learning_rate": "fast"}, r"training.learning_rate: expected a finite number, got 'fast'"),
        ({"max_steps": True}, r"training.max_steps: expected a whole number, got true"),
        ({"bf16": 1}, r"training.bf16: expected true or false or null, got 1"),
        ({"lr_scheduler_type": "cosin"}, r"lr_scheduler_type: unknown value 'cosin'. Did you mean 'cosine'\?"),
        ({"eval_strategy": False}, r"training.eval_strategy: expected text, got false. YAML reads yes, no"),
        ({"max_steps": 0}, r"training.max_steps must be at least 1, got 0"),
        ({"max_steps": -7}, r"training.max_steps must be at least 1, got -7"),
        ({"num_train_epochs": 0}, r"training.num_train_epochs must be above 0, got 0"),
        ({"num_train_epochs": -1, "max_steps": -1}, r"training.num_train_epochs must be above 0, got -1"),
        ({"gradient_accumulation_steps": 0}, r"training.gradient_accumulation_steps must be at least 1, got 0"),
        ({"max_length": 1}, r"training.max_length must be at least 2, got 1"),
        ({"seed": -1}, r"training.seed must be in \[0, 4294967295\], got -1"),
        ({"log_level": "evil"}, r"training.log_level: unknown value 'evil'\. .*Known: critical, debug"),
        ({"output_dir": "x"}, r"training.output_dir cannot be set: set output instead"),
        ({"hub_token": "hf_x"}, r"training.hub_token cannot be set: .* no secret"),
        ({"trust_remote_code": True}, r"training.trust_remote_code cannot be set: code from the hub is never run"),
    ],
)
def test_an_argument_that_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        TrainingSection(arguments=arguments)


def test_a_reserved_name_is_not_offered_as_what_was_meant():
    with pytest.raises(ConfigError) as caught:
        TrainingSection(arguments={"output_di": "x"})
    assert "output_dir" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        ({"warmup_steps": -1.0, "seed": 3}, r"training\.warmup_steps: -1\.0"),
        ({"accelerator_config": {"evil": 1}}, r"training\.accelerator_config: \{'evil': 1\}"),
        ({"debug": "evil"}, r"training\.debug: 'evil'"),
        ({"logging_steps": 0}, r"training\.logging_steps: 0\.0"),
        ({"pad_to_multiple_of": "evil"}, r"training\.pad_to_multiple_of: 'evil'"),
        (
            {"save_strategy": "steps", "eval_strategy": "epoch", "load_best_model_at_end": True, "use_cpu": True},
            r"training\.load_best_model_at_end: True",
        ),
        ({"debug": "evil", "warmup_steps": -1.0}, r"training\.(debug|warmup_steps): ('evil'|-1\.0)"),
    ],
)
def test_a_value_that_trl_refuses_is_said_with_its_key(arguments, place, tmp_path):
    with pytest.raises(ConfigError, match=f"^{place} cannot be trained with: .* Change it, or leave it out"):
        build_sft_config(TrainingSection(arguments=arguments), tmp_path)


def test_a_refusal_costs_one_attempt_for_each_setting_and_no_more(tmp_path, monkeypatch):
    attempts = []

    def refuse(**arguments):
        attempts.append(arguments)
        if arguments["bf16"]:
            raise ValueError("no bf16 here")

    monkeypatch.setattr("trl.trainer.sft_config.SFTConfig", refuse)
    # As many settings as a recipe has: were each attempt to look for the culprit in its turn, this would never end.
    settings = {"bf16": True, "max_steps": 3, "seed": 3, "logging_steps": 5, "save_steps": 10, "save_total_limit": 2}
    with pytest.raises(ConfigError, match=r"^training\.bf16: True cannot be trained with: no bf16 here"):
        build_sft_config(TrainingSection(arguments=settings), tmp_path)
    assert len(attempts) <= 1 + len(settings)


def test_the_configuration_holds_the_arguments_and_where_to_write(tmp_path):
    config = build_sft_config(TrainingSection(arguments={"max_steps": 3, "use_cpu": True}), tmp_path / "run")
    assert isinstance(config, SFTConfig)
    assert (config.max_steps, config.learning_rate, config.max_length) == (3, 1e-5, 1024)
    assert config.output_dir == str(tmp_path / "run")
    assert config.gradient_checkpointing is False
    assert config.report_to == []


@pytest.mark.parametrize("wanted", [True, False])
def test_gradient_checkpointing_is_what_the_recipe_says(tmp_path, wanted):
    arguments = {"gradient_checkpointing": wanted, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    config = build_sft_config(TrainingSection(arguments={**arguments, "use_cpu": True}), tmp_path)
    assert config.gradient_checkpointing is wanted
    assert config.gradient_checkpointing_kwargs == {"use_reentrant": False}


def test_bfloat16_is_off_without_cuda_and_on_with_it_unless_the_recipe_says(tmp_path, monkeypatch):
    made = {}
    monkeypatch.setattr("trl.trainer.sft_config.SFTConfig", lambda **arguments: made.update(arguments))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    for cuda, given, expected in [
        (False, {}, False),
        (True, {}, True),
        (True, {"bf16": False}, False),
        (True, {"fp16": True}, False),
        (True, {"use_cpu": True}, False),
    ]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        build_sft_config(TrainingSection(arguments=given), tmp_path)
        assert made["bf16"] is expected, (cuda, given)


def test_rows_to_evaluate_on_are_used_after_each_epoch_unless_the_recipe_says(tmp_path):
    cpu = {"use_cpu": True}
    assert build_sft_config(TrainingSection(arguments=cpu), tmp_path).eval_strategy == "no"
    assert build_sft_config(TrainingSection(arguments=cpu), tmp_path, evaluate=True).eval_strategy == "epoch"
    given = TrainingSection(arguments={**cpu, "eval_strategy": "steps", "eval_steps": 5})
    assert build_sft_config(given, tmp_path, evaluate=True).eval_strategy == "steps"


@pytest.mark.parametrize(
    ("given", "saved", "steps"),
    [
        ({}, "epoch", 500),
        ({"eval_strategy": "steps", "eval_steps": 7}, "steps", 7),
        ({"save_strategy": "best"}, "best", 500),
    ],
)
def test_early_stopping_keeps_the_best_of_what_is_evaluated(tmp_path, given, saved, steps):
    section = TrainingSection(arguments=given, early_stopping=EarlyStoppingSection())
    config = build_sft_config(section, tmp_path, evaluate=True)
    assert config.load_best_model_at_end
    assert (config.metric_for_best_model, config.greater_is_better) == ("eval_loss", False)
    assert (config.save_strategy, config.save_steps) == (saved, steps)


def test_early_stopping_leaves_what_the_recipe_says_of_the_best_model(tmp_path):
    given = {"load_best_model_at_end": False, "metric_for_best_model": "eval_mean_token_accuracy"}
    config = build_sft_config(
        TrainingSection(arguments=given, early_stopping=EarlyStoppingSection()), tmp_path, evaluate=True
    )
    assert not config.load_best_model_at_end
    assert (config.metric_for_best_model, config.greater_is_better) == ("eval_mean_token_accuracy", True)


def test_a_combination_that_trl_refuses_is_the_user_s_error(tmp_path):
    arguments = {"use_cpu": True, "load_best_model_at_end": True, "save_strategy": "epoch", "eval_strategy": "no"}
    with pytest.raises(ConfigError, match=r"^training\.load_best_model_at_end: "):
        build_sft_config(TrainingSection(arguments=arguments), tmp_path)


def test_lora_fields_reach_peft():
    config = build_lora_config(LoraSection(r=8, lora_alpha=4, lora_dropout=0.25, target_modules=("q_proj", "v_proj")))
    assert (config.r, config.lora_alpha, config.lora_dropout, config.task_type) == (8, 4.0, 0.25, "CAUSAL_LM")
    assert config.target_modules == {"q_proj", "v_proj"}
    assert build_lora_config(LoraSection()).target_modules == "all-linear"
