import json
import os
import sys

import pytest
import yaml
from click.testing import CliRunner

from bridgegarden.cli.main import cli
from bridgegarden.recipe.values import REMOVED
from bridgegarden.run import environment as module
from bridgegarden.run.environment import environment, recipe_without_secrets

SECRET = "s3cr3t-Value_9"
"""Looks like nothing in particular: what is around it must give it away."""
PAIR = {"teacher": {"model": "a"}, "student": {"model": "b"}, "data": {"train": "rows.jsonl"}, "output": "runs/x"}


def written(folder, **changes) -> str:
    path = folder / "my.yaml"
    path.write_text(yaml.safe_dump(PAIR | changes), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    "hiding",
    [
        {"training": {"hub_token": SECRET}},
        {"teacher": {"model": "a", "api_key": SECRET}},
        {"teacher": {"model": "a", "server": f"https://bob:{SECRET}@host:8000/v1"}},
        {"teacher": {"model": "a", "server": f"https://host/v1?key={SECRET}"}},
        {"teacher": {"model": "a", "server": f"https://[{SECRET}/v1"}},
        {"student": {"model": f"hf_{SECRET}"}},
        {"student": {"model": "b", "lora": {"password": [SECRET, SECRET]}}},
        {"data": {"train": [{"path": "x", "credentials": {"weight": SECRET, "token": SECRET}}]}},
        {"nobody": {"knows": {"the": [f"Bearer {SECRET}"]}}},
        {"training": {"max_steps": f"sk-{SECRET}"}},  # the error names the value
        {"hub_token": SECRET},
        {"teacher": {"model": "a", "headers": {"X-Api-Key": SECRET, "Authorization": f"Basic {SECRET}"}}},
        {"teacher": {"model": "a", "accessToken": SECRET}},
        {"teacher": {"model": "a", "note": f"Basic {SECRET}"}},
    ],
    ids=lambda hiding: json.dumps(hiding)[:60],
)
def test_no_secret_of_a_recipe_is_shown(tmp_path, hiding):
    recipe = written(tmp_path, **hiding)
    shown = recipe_without_secrets(recipe)
    for output in (json.dumps(shown), CliRunner().invoke(cli, ["env", recipe]).output):
        assert SECRET not in output
    assert REMOVED in shown["text"]


def test_a_secret_that_the_error_repeats_is_removed_from_it_too(tmp_path, monkeypatch):
    monkeypatch.setattr(
        module, "load_recipe", lambda _: (_ for _ in ()).throw(module.BridgegardenError(f"no {SECRET}."))
    )
    shown = recipe_without_secrets(written(tmp_path, training={"hub_token": SECRET}))
    assert shown["read"] == f"no {REMOVED}."


def test_a_recipe_that_is_no_yaml_is_not_shown(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(f"training: {{hub_token: '{SECRET}", encoding="utf-8")
    shown = recipe_without_secrets(str(path))
    assert shown["text"] == "(not shown)"
    assert SECRET not in shown["read"]
    assert "my.yaml" in shown["read"]


def test_what_is_no_secret_stays(tmp_path):
    training = {"pad_token": "<pad>", "max_steps": 3}
    teacher = {"model": "a", "server": "http://localhost:8000/v1", "cache": "c"}
    shown = recipe_without_secrets(written(tmp_path, training=training, teacher=teacher))
    assert yaml.safe_load(shown["text"]) == PAIR | {"training": training, "teacher": teacher}
    assert shown["read"] == "can be read"


def test_the_home_folder_is_not_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/alice")
    shown = recipe_without_secrets(written(tmp_path, output="/home/alice/runs", data={"train": "/home/alicette/rows"}))
    tree = yaml.safe_load(shown["text"])
    assert tree["output"] == "~/runs"
    assert tree["data"]["train"] == "/home/alicette/rows"


def test_the_environment_says_what_a_report_needs():
    facts = environment()
    assert facts["packages"]["torch"]
    assert facts["processors"]["usable"] == len(os.sched_getaffinity(0))
    assert facts["threads"]["intra-op"] >= 1
    assert facts["devices"]
    assert facts["variables"]["OMP_NUM_THREADS"] == "1"


def test_a_pytorch_that_cannot_be_imported_is_said_and_not_the_end(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (device,) = environment()["devices"]
    assert device.startswith("PyTorch does not work here: ModuleNotFoundError")


def test_the_command_prints_json_and_names_a_recipe_that_is_not_there():
    done = CliRunner().invoke(cli, ["env", "qwen2.5-7b-3b", "--json"])
    assert json.loads(done.stdout)["recipe"]["read"] == "can be read"
    done = CliRunner().invoke(cli, ["env", "qwen2.5-7b-3B"])
    assert done.exit_code == 2
    assert "no such file" in done.stderr
