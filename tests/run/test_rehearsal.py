import gc
import os
import random
from dataclasses import replace
from enum import Enum
from typing import Any, get_args, get_origin

import pytest
import torch

from bridgegarden.errors import BridgegardenError, ConfigError, NonFiniteError
from bridgegarden.recipe import Recipe, load_recipe
from bridgegarden.recipe.training import RESERVED, _sft_fields
from bridgegarden.run.rehearsal import _undisturbed, check_settings
from bridgegarden.run.train import train

REFUSED = {
    "neftune_noise_alpha": -1.0,
    "learning_rate": -1.0,
    "optim": "adamw_bnb_8bit",
    "lr_scheduler_type": "warmup_stable_decay",
    "optim_args": "evil",
    "activation_offloading": True,
    "dataloader_persistent_workers": True,
    "save_strategy": "best",
    "fsdp": "full_shard",
}


@pytest.fixture
def rehearsed_once():
    """Not here."""


def with_training(tmp_path, *changes: str) -> Recipe:
    """Few settings beside the one that is wrong: whom to blame is found by trying without each of them."""
    settings = ["max_steps=4", "use_cpu=true", *changes]
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "teacher: {model: big}\nstudent: {model: small}\ndata: {train: rows.jsonl, eval: rows.jsonl}\noutput: out\n"
    )
    return load_recipe(path, [f"training.{change}" for change in settings])


def changed(recipe: Recipe, **arguments: Any) -> Recipe:
    training = replace(recipe.training, arguments={**recipe.training.arguments, **arguments})
    return replace(recipe, training=training)


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_a_setting_that_a_library_would_refuse_later_is_named_before_anything_is_loaded(tmp_path, name):
    with pytest.raises(ConfigError, match=rf"^training\.{name}: ") as refused:
        check_settings(changed(with_training(tmp_path), **{name: REFUSED[name]}))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore")
def test_a_compiler_that_is_not_installed_is_missed_before_anything_is_loaded(tmp_path, monkeypatch):
    import torch._inductor.config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    torch._dynamo.reset()
    # monkeypatch would take the setting away when it is done, for all tests that come after.
    compiler = torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)})
    with compiler, pytest.raises(ConfigError, match=r"^training\.torch_compile: True ") as refused:
        check_settings(changed(with_training(tmp_path), torch_compile=True))
    assert "\n" not in str(refused.value)


def test_kernels_that_cannot_run_here_are_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(pytest.importorskip("bridgegarden.objective.kernels"), "INTERPRETED", False)
    recipe = with_training(tmp_path, "loss_kernel=triton")
    with pytest.raises(ConfigError, match=r"^training\.loss_kernel: triton needs a CUDA GPU, and the student is on"):
        check_settings(recipe)


def test_settings_that_only_together_cannot_be_trained_with_are_both_named(tmp_path):
    recipe = changed(with_training(tmp_path), lr_scheduler_type="linear", lr_scheduler_kwargs={"num_cycles": 2})
    with pytest.raises(ConfigError, match=r"training\.lr_scheduler_type and training\.lr_scheduler_kwargs: "):
        check_settings(recipe)


@pytest.mark.slow
@pytest.mark.parametrize("tracker", ["wandb", "trackio"])
def test_a_tracker_that_is_not_installed_is_said_in_its_own_words(tmp_path, tracker):
    with pytest.raises(ConfigError, match=rf"training\.report_to: '{tracker}' .*pip install"):
        check_settings(changed(with_training(tmp_path), report_to=tracker))


def test_a_run_that_is_to_be_published_finds_out_first_whether_the_hub_knows_the_user(tmp_path):
    with pytest.raises(ConfigError, match=r"training\.push_to_hub: the model could not be published"):
        check_settings(changed(with_training(tmp_path), push_to_hub=True))


def test_evaluation_at_the_start_without_rows_is_refused(tmp_path):
    recipe = with_training(tmp_path, "eval_on_start=true")
    with pytest.raises(ConfigError, match=r"training\.eval_on_start: there are no rows"):
        check_settings(replace(recipe, data=replace(recipe.data, eval=None)))


def test_metrics_of_a_run_may_choose_its_best_model(tmp_path):
    recipe = with_training(tmp_path, "load_best_model_at_end=true", "eval_strategy=steps", "save_strategy=steps")
    recipe = replace(changed(recipe, eval_steps=2, save_steps=2), data=replace(recipe.data, eval="rows.jsonl"))
    check_settings(changed(recipe, metric_for_best_model="soft_loss"))


def test_settings_that_were_refused_leave_nothing_behind_in_the_environment(tmp_path):
    before = dict(os.environ)
    with pytest.raises(ConfigError, match=r"^training\.fsdp: "):
        check_settings(changed(with_training(tmp_path), fsdp="full_shard"))
    assert dict(os.environ) == before


def test_training_checks_its_settings_before_it_looks_for_the_models(tmp_path):
    recipe = changed(with_training(tmp_path), adam_beta2=2.0)
    with pytest.raises(ConfigError, match=r"training\.adam_beta2: 2\.0 "):
        train(replace(recipe, student=replace(recipe.student, model=str(tmp_path / "nothing"))))


def test_a_rehearsal_leaves_random_numbers_as_they_were(tmp_path):
    recipe = with_training(tmp_path)  # the tests' type checks draw items of tuples that are looked at
    torch.manual_seed(3)
    random.seed(3)
    before = torch.get_rng_state(), random.getstate()
    check_settings(recipe)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


@pytest.mark.parametrize("device", ["cuda:77", "evil", "meta"])
def test_a_teacher_s_device_that_is_not_there_is_named(tmp_path, device):
    recipe = with_training(tmp_path)
    with pytest.raises(ConfigError, match=rf"teacher\.device: '{device}' is no device of this machine .*It has: cpu"):
        check_settings(replace(recipe, teacher=replace(recipe.teacher, device=device)))


def hostile_values(annotation: Any) -> list[Any]:
    """Of the right type, and out of every range."""
    found: list[Any] = []
    for member in get_args(annotation) or (annotation,):
        origin = get_origin(member) or member
        if origin is bool:
            found += [True, False]
        elif origin is int:
            found += [0, -1]
        elif origin is float:
            found += [0.0, -1.0, 1e300]
        elif origin is str:
            found += ["evil", ""]
        elif origin is dict:
            found += [{"evil": 1}]
        elif origin is list:
            found += [["evil"], []]
        elif isinstance(origin, type) and issubclass(origin, Enum):
            found += [choice.value for choice in origin]
    return found


SETTABLE = sorted(name for name in _sft_fields() if name not in RESERVED and name != "torch_compile")


@pytest.mark.slow
@pytest.mark.usefixtures("rehearse_once")
@pytest.mark.parametrize("name", SETTABLE)
def test_what_a_rehearsal_accepts_is_trained_with_and_the_rest_is_one_line(write_recipe, tmp_path, name):
    path = write_recipe(
        data={"eval": str(tmp_path / "eval.jsonl"), "limit": 4, "eval_limit": 2},
        training={"max_steps": 1, "per_device_train_batch_size": 2},
    )
    lines: list[str] = []
    for number, value in enumerate(hostile_values(_sft_fields()[name])):
        try:
            recipe = replace(changed(load_recipe(path), **{name: value}), output=tmp_path / f"out{number}")
            check_settings(recipe)
            train(recipe)
        except NonFiniteError:
            continue
        except BridgegardenError as error:
            lines.append(str(error))
    assert [line for line in lines if f"training.{name}" not in line or "\n" in line] == []


def test_what_the_process_itself_keeps_from_the_collector_stays_kept(monkeypatch):
    gc.freeze()
    with _undisturbed():
        pass
    assert gc.get_freeze_count() > 0
    called = []
    monkeypatch.setattr(gc, "get_freeze_count", lambda: 0)
    monkeypatch.setattr(gc, "freeze", lambda: called.append("freeze"))
    monkeypatch.setattr(gc, "unfreeze", lambda: called.append("unfreeze"))
    with _undisturbed():
        assert called == ["freeze"]
    assert called == ["freeze", "unfreeze"]
