import json
import signal
from typing import NamedTuple

import pytest
import yaml
from click.testing import CliRunner

from bridgegarden.cli.main import cli
from bridgegarden.errors import ModelError, Stopped
from bridgegarden.recipe import Recipe, list_recipes, load_recipe, read_recipe_text
from tests.plan.conftest import recipe_file  # noqa: F401  the fixture

RECIPE = "llama3.1-8b-1b"


class Summary(NamedTuple):
    """As much of ``TrainSummary`` as the command uses."""

    is_main: bool

    def __str__(self) -> str:
        return "trained 3 steps"


@pytest.fixture
def calls(monkeypatch):
    """What the command asked of ``bridgegarden.run``, whose functions are replaced."""
    seen = []

    def train(recipe: Recipe, *, stop_in_order: bool = False) -> Summary:
        assert stop_in_order
        seen.append(("train", recipe))
        return Summary(is_main=recipe.training.arguments["seed"] == 0)

    def audit(recipe: Recipe) -> str:
        seen.append(("audit", recipe))
        return "row 0: what is 2 + 2? «4»"

    monkeypatch.setattr("bridgegarden.run.train.train", train)
    monkeypatch.setattr("bridgegarden.run.checked.audit", audit)
    monkeypatch.setattr("bridgegarden.run.rehearsal.check_settings", lambda recipe: None)
    return seen


def invoke(*arguments: str):
    return CliRunner().invoke(cli, ["train", *arguments])


def test_train_hands_over_the_recipe_and_prints_the_summary(calls):
    result = invoke(RECIPE, "--set", "training.seed=0")
    assert (result.exit_code, result.stdout) == (0, "trained 3 steps\n")
    assert calls == [("train", load_recipe(RECIPE, ["training.seed=0"]))]


def test_only_the_main_process_of_a_distributed_run_prints_the_summary(calls):
    assert invoke(RECIPE, "--set", "training.seed=1").stdout == ""


def test_audit_prints_rows_and_does_not_train(calls):
    result = invoke(RECIPE, "--audit")
    assert result.stdout == "row 0: what is 2 + 2? «4»\n"
    assert [name for name, *_ in calls] == ["audit"]


def test_a_dry_run_does_neither(calls):
    result = invoke(RECIPE, "--dry-run")
    assert result.exit_code == 0
    assert calls == []


def test_set_changes_what_is_run(calls):
    changes = ("training.max_steps=3", "objective.soft_weight.rule=confidence", "training.seed=0")
    result = invoke(RECIPE, *(part for change in changes for part in ("--set", change)))
    assert result.exit_code == 0, result.output
    ((_, recipe),) = calls
    assert recipe.training.arguments["max_steps"] == 3
    assert recipe.objective.soft_weight == {"rule": "confidence"}


def test_what_a_dry_run_prints_can_be_run_and_means_the_same(tmp_path):
    result = invoke(RECIPE, "--dry-run", "--set", "objective.divergence=skewed_forward_kl", "--set", "training.seed=7")
    (tmp_path / "resolved.yaml").write_text(result.stdout)
    again = invoke(str(tmp_path / "resolved.yaml"), "--dry-run")
    assert again.stdout == result.stdout
    assert yaml.safe_load(result.stdout)["training"]["seed"] == 7


def test_a_dry_run_says_what_the_objective_amounts_to():
    result = invoke(
        RECIPE,
        "--dry-run",
        "--set",
        "objective={preset: risk_guided, divergence: jensen_shannon, divergence_options: {beta: 0.3}}",
    )
    assert result.stdout.splitlines()[0] == (
        "# objective: divergence=jensen_shannon(beta=0.3), soft_weight=StaticWeight(value=0.5), "
        "hard_target=teacher_argmax, temperature=1.0, sharpening=1.0, risk_alpha=0.1, risk_weight=hard"
    )


def test_an_error_of_the_run_is_the_user_s(calls, monkeypatch):
    def train(recipe, *, stop_in_order):
        raise ModelError("student.model: 'x/y' is not on this machine.")

    monkeypatch.setattr("bridgegarden.run.train.train", train)
    result = invoke(RECIPE)
    assert result.exit_code == 2
    assert result.stderr == "Error: student.model: 'x/y' is not on this machine. [docs/errors.md#bg300]\n"


def test_flags_that_exclude_each_other_are_refused(calls):
    result = invoke(RECIPE, "--dry-run", "--audit")
    assert result.exit_code == 2
    assert "exclude each other" in result.stderr
    assert calls == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_was_stopped_is_one_line_and_the_shell_s_status(calls, monkeypatch, number, status):
    def train(recipe, *, stop_in_order):
        raise Stopped(number, "stopped at step 7 of 9, which is saved.")

    monkeypatch.setattr("bridgegarden.run.train.train", train)
    result = invoke(RECIPE)
    assert result.exit_code == status
    assert result.stderr == "Error: stopped at step 7 of 9, which is saved.\n"


def test_a_missing_recipe_is_answered_with_the_closest(calls):
    result = invoke("llama3.1-8b-2b", "--dry-run")
    assert result.exit_code == 2
    assert "Did you mean 'llama3.1-8b" in result.stderr
    assert result.stderr.count("\n") == 1


def run(*arguments):
    return CliRunner().invoke(cli, ["plan", *map(str, arguments)])


def test_the_command_prints_the_plan(recipe_file):  # noqa: F811
    result = run(recipe_file, "--gpus", "2", "--memory", "80GiB", "--sharding", "fsdp")
    assert result.exit_code == 0, result.output
    assert "2 x H100, 80.0 GiB each, the student sharded by FSDP2" in " ".join(result.stdout.split())
    assert "Fits" in result.stdout


def test_json_is_a_tree_of_the_same_numbers(recipe_file):  # noqa: F811
    tree = json.loads(run(recipe_file, "--gpus", "1", "--json").stdout)
    assert tree["machine"]["memory"] == 80 * 2**30
    assert tree["fits"]
    assert set(tree["memory"]) == {"teacher", "loss", "backward", "update"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.yaml"], "missing.yaml: no such file"),
        (["RECIPE", "--memory", "80 apples"], "--memory: '80 apples' is not a size"),
        (["RECIPE", "--gpu", "voodoo2"], "--gpu: unknown name 'voodoo2'"),
        (["RECIPE", "--set", "student.model=nobody/nothing"], "student.model 'nobody/nothing': "),
        (["RECIPE", "--set", "data.train=/nowhere.jsonl"], "/nowhere.jsonl"),
    ],
)
def test_a_mistake_is_one_line(recipe_file, arguments, message):  # noqa: F811
    result = run(*(recipe_file if argument == "RECIPE" else argument for argument in arguments))
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_list_prints_one_recipe_a_line_with_its_name_first():
    result = CliRunner().invoke(cli, ["recipes", "list"])
    assert result.exit_code == 0
    assert [line.split("\t")[0] for line in result.stdout.splitlines()] == list(list_recipes())


@pytest.mark.parametrize("name", ["qwen2.5-7b-3b", "llama3.1-8b-1b"])
def test_what_show_prints_is_a_recipe_that_loads_to_the_same(name, tmp_path):
    result = CliRunner().invoke(cli, ["recipes", "show", name])
    assert result.stdout == read_recipe_text(name)
    (tmp_path / "mine.yaml").write_text(result.stdout)
    assert load_recipe(tmp_path / "mine.yaml") == load_recipe(name)


@pytest.mark.parametrize("name", ["qwen2.5-7b-3", "../cli/main", ""])
def test_show_refuses_a_name_that_is_not_shipped(name):
    result = CliRunner().invoke(cli, ["recipes", "show", name])
    assert result.exit_code == 2
    assert f"unknown recipe {name!r}" in result.stderr
