import os
from pathlib import Path

import pytest

from bridgegarden.errors import ConfigError
from bridgegarden.objective.divergences import DIVERGENCES
from bridgegarden.objective.soft_weight import StaticWeight
from bridgegarden.recipe import build_objective, describe_objective, load_recipe
from bridgegarden.training.on_policy import OnPolicy

TEXT = """
teacher: {model: big}
student: {model: small}
data: {train: rows.jsonl}
training: {max_steps: 5}
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with a recipe in a folder below it."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "pair.yaml").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_recipe_without_output_writes_to_a_folder_of_its_name(here):
    assert load_recipe("mine/pair.yaml").output == Path("runs/pair")
    assert load_recipe(here / "mine" / "pair.yaml").output == Path("runs/pair")


def test_a_path_is_taken_from_the_recipe_s_folder_if_something_is_there(here):
    (here / "rows.jsonl").touch()
    (here / "mine" / "rows.jsonl").touch()
    (here / "mine" / "big").mkdir()
    (here / "mine" / "signals").mkdir()
    recipe = load_recipe("mine/pair.yaml")
    with_cache = (here / "mine" / "pair.yaml").read_text().replace("{model: big}", "{model: big, cache: signals}")
    (here / "mine" / "cached.yaml").write_text(with_cache)
    assert load_recipe("mine/cached.yaml").teacher.cache == str(here / "mine" / "signals")
    assert recipe.data.train == str(here / "mine" / "rows.jsonl")
    assert recipe.teacher.model == str(here / "mine" / "big")
    assert recipe.student.model == "small"


def test_paths_of_several_sources_are_taken_from_the_recipe_s_folder_too(here):
    (here / "mine" / "rows.jsonl").touch()
    for given in ("[rows.jsonl, other.jsonl]", "[{path: rows.jsonl}, {path: other.jsonl}]"):
        (here / "mine" / "pair.yaml").write_text(TEXT.replace("rows.jsonl", given))
        sources = load_recipe("mine/pair.yaml").data.sources
        assert [source.path for source in sources] == [str(here / "mine" / "rows.jsonl"), "other.jsonl"]


def test_a_path_that_is_not_beside_the_recipe_is_left_for_the_working_directory_or_the_hub(here):
    (here / "rows.jsonl").touch()
    assert load_recipe("mine/pair.yaml").data.train == "rows.jsonl"


def test_a_path_given_on_the_command_line_is_taken_from_the_working_directory(here):
    (here / "mine" / "other.jsonl").touch()
    assert load_recipe("mine/pair.yaml", ["data.train=other.jsonl"]).data.train == "other.jsonl"


def test_a_path_may_begin_at_home(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    (here / "rows.jsonl").touch()
    (here / "mine" / "pair.yaml").write_text(TEXT.replace("rows.jsonl", "~/rows.jsonl") + "output: ~/out\n")
    recipe = load_recipe("~/mine/pair.yaml")
    assert recipe.data.train == str(here / "rows.jsonl")
    assert recipe.output == here / "out"


def test_overrides_replace_add_and_reach_inside(here):
    recipe = load_recipe(
        "mine/pair.yaml",
        [
            "training.max_steps=7",
            "training.max_steps=8",
            "objective.soft_weight.rule=entropy",
            "objective.soft_weight.kind=power",
            "student.lora={r: 4}",
            "output=elsewhere",
            "training.run_name=a=b",
            "training.learning_rate=3e-6",
        ],
    )
    assert recipe.training.arguments["max_steps"] == 8
    assert recipe.training.arguments["run_name"] == "a=b"
    assert recipe.training.arguments["learning_rate"] == 3e-6
    assert recipe.objective.soft_weight == {"rule": "entropy", "kind": "power"}
    assert recipe.student.lora is not None
    assert recipe.student.lora.r == 4
    assert recipe.output == Path("elsewhere")


def test_an_override_may_take_a_setting_back(here):
    (here / "mine" / "pair.yaml").write_text(TEXT.replace("{model: big}", "{model: big, top_k: 4}"))
    assert load_recipe("mine/pair.yaml", ["teacher.top_k=null"]).teacher.top_k is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.max_steps", r"^--set training.max_steps: expected KEY=VALUE"),
        ("=3", r"^--set =3: expected KEY=VALUE"),
        ("training..x=3", r"expected KEY=VALUE"),
        ("training.max_steps=[1", r"^--set training.max_steps:1:3: "),
        ("training.max_steps.x=1", r"training.max_steps is 5, not a section; set training.max_steps as a whole"),
        ("trainin.max_steps=1", r"^mine/pair.yaml: recipe: unknown key 'trainin'. Did you mean 'training'\?"),
        ("training.max_steps=", r"^mine/pair.yaml: training.max_steps: expected a whole number, got nothing"),
        ("data.train=!!python/name:os.system x", r"tags .* are not accepted"),
    ],
)
def test_an_override_that_says_nothing_is_refused(here, override, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe("mine/pair.yaml", [override])


def test_an_error_names_the_file_and_the_place(here):
    (here / "mine" / "pair.yaml").write_text(TEXT + "objective: {divergence: foward_kl}")
    with pytest.raises(ConfigError, match=r"^mine/pair.yaml: objective.divergence: unknown name 'foward_kl'. Did you"):
        load_recipe("mine/pair.yaml")


@pytest.mark.parametrize(("text", "got"), [("", "nothing"), ("- a\n- b", "list"), ("just words", "str")])
def test_a_file_without_sections_is_refused(here, text, got):
    (here / "mine" / "pair.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"^mine/pair.yaml: expected sections .* got {got}\."):
        load_recipe("mine/pair.yaml")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("mine/pai.yaml", r"^mine/pai.yaml: no such file, and no shipped recipe. Did you mean 'mine/pair.yaml'\?"),
        ("qwen2.5-7b-3b.yaml", r"Did you mean 'qwen2.5-7b-3b'\?"),
        ("mine", r"^mine: is a folder; expected a recipe's file"),
        ("nowhere/at/all.yaml", r"^nowhere/at/all.yaml: no such file"),
        ("../recipes/qwen2.5-7b-3b", r"no such file"),
    ],
)
def test_a_recipe_that_is_not_there_is_answered_with_what_is(here, source, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe(source)


def test_a_file_comes_before_a_shipped_recipe_of_the_same_name(here):
    (here / "qwen2.5-7b-3b").write_text(TEXT)
    assert load_recipe("qwen2.5-7b-3b").teacher.model == "big"
    os.remove(here / "qwen2.5-7b-3b")
    assert load_recipe("qwen2.5-7b-3b").teacher.model == "Qwen/Qwen2.5-7B-Instruct"


@pytest.mark.parametrize("name", DIVERGENCES)
def test_every_divergence_is_one_flag_away_alone_and_inside_a_hybrid(here, name):
    needed = ["objective.divergence_options={alpha: 0.5, beta: 0.5}"] if name == "alpha_beta" else []
    for weight, setting in (
        (StaticWeight(1.0), "objective.soft_weight=1.0"),
        (StaticWeight(0.5), "objective.preset=static"),
    ):
        recipe = load_recipe("mine/pair.yaml", [setting, f"objective.divergence={name}", *needed])
        objective = build_objective(recipe.objective)
        assert objective.soft_weight == weight
        assert describe_objective(objective).startswith(f"divergence={name}")


def test_the_student_answers_when_one_flag_says_so(here):
    recipe = load_recipe("mine/pair.yaml", ["on_policy.lmbda=0.5"])
    assert recipe.on_policy == OnPolicy(lmbda=0.5)
