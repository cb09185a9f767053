"""The recipes that come with the package."""

import socket

import pytest
import yaml
from click.testing import CliRunner

from bridgegarden.cli.main import cli
from bridgegarden.errors import ConfigError
from bridgegarden.recipe import Recipe, build_objective, describe_recipe, list_recipes, load_recipe, read_recipe_text
from bridgegarden.teacher.translated import check_translated_objective
from docs.write_recipe_reference import PAGE, reference, sections

PAIRS = [
    "qwen2.5-7b-3b",
    "qwen2.5-7b-1.5b",
    "llama3.1-8b-3b",
    "llama3.1-8b-1b",
    "gemma2-9b-2b",
    "deepseek-coder-6.7b-1.3b",
    "qwen2.5-coder-7b-1.5b",
]


FAMILIES = ["qwen2.5-7b-llama3.2-1b", "llama3.1-8b-qwen2.5-1.5b", "gpt-oss-20b-qwen3-1.7b"]
"""Pairs with different tokenizers."""


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a dry run must not open a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_every_pair_of_the_paper_has_a_recipe_and_so_have_pairs_of_two_families():
    assert sorted([*PAIRS, *FAMILIES]) == list(list_recipes())


@pytest.mark.parametrize("name", list_recipes())
def test_a_shipped_recipe_loads_and_dry_runs_without_network(name, no_network):
    result = CliRunner().invoke(cli, ["train", name, "--dry-run"])
    assert result.exit_code == 0, result.output
    assert Recipe.from_dict(yaml.safe_load(result.stdout)) == load_recipe(name)


@pytest.mark.parametrize("name", list_recipes())
def test_a_shipped_recipe_names_a_teacher_of_its_own_or_another_family_and_writes_below_runs(name):
    recipe = load_recipe(name)
    same = recipe.teacher.model.split("/")[0] == recipe.student.model.split("/")[0]
    assert same == (name in PAIRS)
    assert recipe.teacher.model != recipe.student.model
    assert str(recipe.output) == f"runs/{name}"


@pytest.mark.parametrize("name", list_recipes())
def test_a_shipped_recipe_uses_hard_and_soft_labels(name):
    objective = build_objective(load_recipe(name).objective)
    assert objective.risk_alpha > 0 or type(objective.soft_weight).__name__ == "EntropyWeight"


@pytest.mark.parametrize("name", FAMILIES)
def test_the_objective_of_a_pair_of_two_families_can_be_computed_from_translated_signals(name):
    recipe = load_recipe(name)
    check_translated_objective(build_objective(recipe.objective))
    assert recipe.teacher.top_k == 64
    assert "another tokenizer" in describe_recipe(name)
    assert not recipe.training.arguments.get("packing")


@pytest.mark.parametrize("name", list_recipes())
def test_a_shipped_recipe_says_what_it_is_and_why(name):
    assert len(describe_recipe(name)) > 20
    assert read_recipe_text(name).count("#") >= 3


def test_an_unknown_recipe_is_answered_with_the_closest():
    with pytest.raises(ConfigError, match=r"unknown recipe 'qwen2.5-7b-3B'. Did you mean 'qwen2.5-7b-3b'\?"):
        read_recipe_text("qwen2.5-7b-3B")


def test_the_page_of_all_keys_is_what_the_code_says():
    assert PAGE.read_text(encoding="utf-8") == reference(), "docs/recipe.md is out of date; run: make docs"


def test_the_page_has_every_key_with_its_meaning():
    page = reference()
    for path, section in sections("", Recipe):
        if path == "training":
            continue
        for name in section.__dataclass_fields__:
            key = f"| `{f'{path}.{name}'.strip('._')}` | "
            row = next(line for line in page.splitlines() if line.startswith(key))
            assert len(row.split(" | ")) == 4
            assert len(row.rpartition(" | ")[2]) > 5
