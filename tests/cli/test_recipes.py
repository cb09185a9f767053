import pytest
from click.testing import CliRunner

from bridgegarden.cli.main import cli
from bridgegarden.recipe import list_recipes, load_recipe, read_recipe_text


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
