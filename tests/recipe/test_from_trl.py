import dataclasses
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner

from bridgegarden.cli.main import cli
from bridgegarden.errors import ConfigError
from bridgegarden.objective.hybrid import hybrid_loss_from_logits
from bridgegarden.recipe import Recipe, build_objective, load_recipe
from bridgegarden.recipe.from_trl import _class_of, _known, convert, recipe_from_trl

LEAST = {"model_name_or_path": "S", "teacher_model_name_or_path": "T", "dataset_name": "rows.jsonl"}
GKD = LEAST | {"lmbda": 0.7}
TRAINERS = ("gkd", "distillation", "sft")


def written(folder, options: Any) -> str:
    path = folder / "trl.yaml"
    path.write_text(yaml.safe_dump(options), encoding="utf-8")
    return str(path)


def unlike(default: Any) -> Any:
    """A value that an option does not have by itself."""
    if isinstance(default, bool):
        return not default
    if isinstance(default, int | float):
        return default + 17
    return "something"


def leaves(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        return [leaf for value in tree.values() for leaf in leaves(value)]
    return [leaf for value in tree for leaf in leaves(value)] if isinstance(tree, list) else [tree]


@pytest.mark.parametrize("trainer", TRAINERS)
def test_no_option_is_dropped_without_a_word(trainer):
    """Of all that each of TRL's configurations has: it changes the recipe, or is named."""
    teacher = "T" if trainer == "sft" else None
    least = {name: value for name, value in LEAST.items() if trainer != "sft" or "teacher" not in name}
    before = convert(dict(least), trainer, teacher)
    known = _known(trainer)
    assert len(known) > 130
    for name, default in known.items():
        if name in least:
            continue
        value: Any = {"datasets": [{"path": "x"}], "env": {"A": "b"}}.get(name, unlike(default))
        after = convert(least | {name: value}, trainer, teacher)
        named = any(note.startswith(f"not taken over: {name}: ") for note in after.notes)
        assert named or after.tree != before.tree or name == "dataset_config", name
        if not named and name not in ("datasets", "use_peft", "eval_strategy"):
            assert any(value == leaf or str(value) in str(leaf) for leaf in leaves(after.tree)), name


def test_every_unknown_option_is_named_and_the_closest_with_it(tmp_path):
    path = written(tmp_path, GKD | {"learning_rat": 1, "kd_ratio": 0.5, "uld_crossentropy_weight": 1.0})
    with pytest.raises(ConfigError, match=r"trl\.yaml: GKDConfig has no such options: ") as refused:
        recipe_from_trl(path)
    for name in ("learning_rat (did you mean learning_rate?)", "kd_ratio", "uld_crossentropy_weight"):
        assert name in str(refused.value)


@pytest.mark.parametrize("options", [{"hub_token": "s3cret"}, {"chat_template_path": "hf_s3cretS3cret"}])
def test_a_secret_is_neither_in_the_recipe_nor_in_what_is_said(tmp_path, options):
    converted = recipe_from_trl(written(tmp_path, GKD | options))
    said = "".join(converted.notes)
    assert "(removed)" in said
    assert "s3cret" not in converted.to_yaml() + said


def test_a_variable_of_the_environment_is_named_without_its_value(tmp_path):
    converted = recipe_from_trl(written(tmp_path, GKD | {"env": {"WANDB_API_KEY": "s3cret"}}))
    assert "WANDB_API_KEY" in converted.to_yaml()
    assert "s3cret" not in converted.to_yaml()


@pytest.mark.parametrize("trainer", ["gkd", "distillation", "sft"])
def test_what_trl_does_where_nothing_is_said_is_written_out(tmp_path, trainer):
    options = LEAST if trainer != "sft" else {k: v for k, v in LEAST.items() if "teacher" not in k}
    converted = recipe_from_trl(written(tmp_path, options), trainer=trainer, teacher="T")
    defaults = {one.name: one.default for one in dataclasses.fields(_class_of(trainer))}
    training = Recipe.from_dict(converted.tree).training.arguments
    for name in ("num_train_epochs", "per_device_train_batch_size", "learning_rate", "warmup_steps"):
        assert training[name] == defaults[name], name
    assert training["lr_scheduler_type"] == "linear"
    on_policy = converted.tree.get("on_policy")
    assert (
        on_policy
        == {
            "gkd": {"lmbda": 0.5, "temperature": 0.9, "max_new_tokens": 128},
            "distillation": {"lmbda": 1.0, "temperature": 1.0, "max_new_tokens": 512},
            "sft": None,
        }[trainer]
    )


def test_what_is_printed_is_a_recipe_with_the_notes_above_it(tmp_path):
    options = GKD | {"beta": 0.0, "eval_strategy": "epoch", "use_peft": True, "lora_r": 4, "seq_kd": True}
    done = CliRunner().invoke(cli, ["recipes", "from-trl", written(tmp_path, options)])
    assert done.exit_code == 0, done.output
    notes = done.stderr.splitlines()
    assert [line.removeprefix("# ") for line in done.stdout.splitlines() if line.startswith("#")] == notes
    assert any(note.startswith("not taken over: seq_kd: True: ") for note in notes)
    (tmp_path / "my.yaml").write_text(done.stdout, encoding="utf-8")
    recipe = load_recipe(tmp_path / "my.yaml")
    assert recipe.student.lora is not None
    assert (recipe.student.lora.r, recipe.student.lora.lora_dropout) == (4, 0.05)
    assert (recipe.data.eval, recipe.data.eval_split) == ("rows.jsonl", "test")


@pytest.mark.parametrize("beta", [0, 0.0, 0.3, 0.5, 1, 1.0])
def test_the_loss_is_that_of_trl(beta):
    from trl.experimental.gkd import GKDTrainer

    generator = torch.Generator().manual_seed(3)
    student, teacher = (torch.randn(2, 5, 11, generator=generator, dtype=torch.float64) for _ in range(2))
    labels = torch.randint(11, (2, 5), generator=generator)
    labels[:, :2] = -100
    objective = build_objective(Recipe.from_dict(convert(GKD | {"beta": beta}, "gkd").tree).objective)
    ours = hybrid_loss_from_logits(student, teacher, labels, objective)
    theirs = GKDTrainer.generalized_jsd_loss(student[:, :-1], teacher[:, :-1], labels[:, 1:], beta=beta)
    assert ours.total[ours.mask].mean().item() == pytest.approx(theirs.item(), abs=1e-9)


def test_mixtures_become_sources_with_weights(tmp_path):
    mixture = [
        {"path": "a", "name": "main", "split": "train[:9]", "fraction": 0.75},
        {"path": "b", "fraction": 0.25, "columns": ["messages"], "data_dir": "d"},
    ]
    options = {name: value for name, value in GKD.items() if name != "dataset_name"}
    converted = recipe_from_trl(written(tmp_path, options | {"datasets": mixture}))
    assert converted.tree["data"]["train"] == [
        {"path": "a:main", "split": "train[:9]", "weight": 0.75},
        {"path": "b", "weight": 0.25},
    ]
    for left in ("datasets[1].columns", "datasets[1].data_dir"):
        assert any(note.startswith(f"not taken over: {left}: ") for note in converted.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "expected options of TRL"),
        ({"lmbda": 1.0, "dataset_name": "r"}, "model_name_or_path: names no student"),
        ({"model_name_or_path": "S", "dataset_name": "r"}, "names no teacher; say which with --teacher"),
        ({"model_name_or_path": "S", "lmbda": 1.0}, "dataset_name: names no rows"),
        (LEAST, "say which with --trainer gkd or --trainer distillation"),
        (GKD | {"beta": "half"}, "beta: expected a number, got 'half'"),
        (GKD | {"beta": 3}, "a recipe would refuse what became of it: .*beta"),
        (GKD | {"lmbda": 1.5}, "a recipe would refuse what became of it: on_policy.lmbda"),
        (GKD | {"datasets": "rows"}, "datasets: expected a list of mappings"),
    ],
)
def test_what_cannot_be_converted_is_said_with_the_file(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message) as refused:
        recipe_from_trl(written(tmp_path, options))
    assert "trl.yaml: " in str(refused.value)
