import json

import pytest
from click.testing import CliRunner

from bridgegarden.cli.main import cli
from tests.plan.conftest import recipe_file  # noqa: F401  the fixture


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
