"""A recipe from a stranger: refused in one line, or no more than a run in the folder it names."""

import random
from collections.abc import Callable
from functools import partial

import pytest
import yaml

from bridgegarden.errors import BridgegardenError, ConfigError
from bridgegarden.recipe import load_recipe
from bridgegarden.run.output import OutputFolder
from bridgegarden.terminal import one_line

RECIPE = {
    "teacher": {"model": "teacher", "revision": None, "top_k": 8, "device": "cpu", "cache": None},
    "student": {"model": "student", "dtype": "float32", "lora": {"r": 4, "lora_alpha": 8.0}},
    "data": {"train": "rows.jsonl", "eval": None, "prompt": "p", "completion": "c", "limit": 3},
    "objective": {"preset": "static", "kd_ratio": 0.5, "temperature": 1.0},
    "training": {
        "max_steps": 10,
        "learning_rate": 1e-5,
        "seed": 0,
        "dataloader_num_workers": 0,
        "optim": "adamw_torch",
    },
    "output": "out",
}


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load a recipe of this text."""
    monkeypatch.chdir(tmp_path)

    def load(text: str):
        (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
        return load_recipe(tmp_path / "recipe.yaml")

    return load


def changed(place: str, value: str) -> str:
    """The recipe with YAML `value` at `place`."""
    section, _, key = place.partition(".")
    tree = {name: dict(part) if isinstance(part, dict) else part for name, part in RECIPE.items()}
    (tree if not key else tree[section])[key or section] = "PLACE"
    return yaml.safe_dump(tree).replace("PLACE", value, 1)


LAUGHS = "\n".join(
    ["a: &a [lol, lol]", *(f"{b}: &{b} [*{a}, *{a}, *{a}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True))]
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (changed("output", "!!python/object/apply:os.system ['touch planted']"), "tags .* are not accepted"),
        (changed("data.train", "!!python/name:os.system"), "tags .* are not accepted"),
        (changed("training.max_steps", "!!int '3'"), "tags .* are not accepted"),
        (LAUGHS, "anchors and aliases are not accepted"),
        ("a: &a\n  b: *a", "anchors and aliases are not accepted"),
        ("[" * 5000, "nested more than 20 levels deep"),
        ("{a: " * 30 + "1" + "}" * 30, "nested more than 20 levels deep"),
        ("? [1, 2]\n: x", "a key must be text"),
        ("1: x", "a key must be text"),
        ("\0", "not readable as YAML"),
        ("x" * 300_000, "larger than 256 KiB"),
        (changed("training.max_steps", "9" * 5000), "not readable as YAML|too large"),
        (changed("training.max_steps", str(10**30)), r"training\.max_steps: expected a whole number.*too large"),
        (changed("training.max_steps", "1.0e+30"), r"training\.max_steps: expected a whole number"),
        (changed("training.learning_rate", "1e999"), r"training\.learning_rate: expected a finite number"),
        (changed("training.learning_rate", ".nan"), r"training\.learning_rate: expected a finite number"),
        (changed("training.seed", str(2**32)), r"training\.seed must be in \[0, 4294967295\]"),
        (changed("training.seed", "-1"), r"training\.seed must be in"),
        (changed("training.dataloader_num_workers", "100000"), r"dataloader_num_workers must be in \[0, 256\]"),
        (changed("student.lora", "{r: 1000000000}"), r"student\.lora\.r must be <= 65536"),
        (changed("training.output_dir", "/tmp"), "output_dir cannot be set"),
        (changed("training.trust_remote_code", "true"), "code from the hub is never run"),
        (changed("training.model_init_kwargs", "{attn_implementation: evil/kernel}"), "cannot be set"),
        (changed("output", "../../outside"), "leads elsewhere from each working directory"),
        (changed("output", "runs/../../outside"), "leads elsewhere from each working directory"),
        (changed("output", '"a\\0b"'), "output: expected a path.*holds a character that no text has"),
        (changed("data.train", '"a\\0b"'), r"data\.train: expected text.*holds a character that no text has"),
        (changed("student.model", '"\\ud800"'), "holds a character that no text has|not readable as YAML"),
        (changed("student.model", "x" * 300), r"student\.model is longer than any name or path"),
        (changed("output", "/".join(["x" * 200] * 40)), "output is longer than any name or path"),
    ],
)
def test_what_a_recipe_must_not_hold_is_one_line(load, tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as error:
        load(text)
    assert len(one_line(str(error.value))) < 700
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_on_the_command_line_an_output_may_climb_and_is_kept_as_an_absolute_path(load, tmp_path):
    load(yaml.safe_dump(RECIPE))
    recipe = load_recipe(tmp_path / "recipe.yaml", ["output=../elsewhere"])
    assert recipe.output == tmp_path.parent / "elsewhere"


def test_a_folder_of_somebody_else_s_is_not_written_to(load, tmp_path):
    (tmp_path / "out" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ConfigError, match="nothing of it is ours to replace"):
        OutputFolder(load(yaml.safe_dump(RECIPE)).output).check(load(yaml.safe_dump(RECIPE)))


HOSTILE = (
    *("~", "~nobody/x", "/", "..", ".", "", "null", "yes", "1e999", "-.inf", "0x10", "12:30:45", "2026-11-26", "-5"),
    *("[]", "{}", "[1, [2]]", "{a: {b: c}}", "'<script>'", "'{{ 7 * 7 }}'", "'$(touch planted)'", "'*'", "'(a+)+$'"),
    *('"\\x1b[2J"', '"\\u202e"', "'" + "x" * 5000 + "'", "http://[::1", "|\n  x"),
    *(str(2**63), str(-(2**63)), str(10**100), "1e308"),
)


def refused(work: Callable[[], object]) -> bool:
    try:
        work()
    except BridgegardenError as error:
        return len(one_line(str(error))) < 4000 or pytest.fail(str(error))
    return False


def test_any_value_anywhere_is_accepted_or_refused_in_one_line(load, capsys):
    sections = {name: part for name, part in RECIPE.items() if isinstance(part, dict)}
    places = [*RECIPE, *(f"{name}.{key}" for name, part in sections.items() for key in part)]
    rng = random.Random(0)
    recipes = [changed(place, value) for place in places for value in rng.sample(HOSTILE, 14)]
    count = sum(refused(partial(load, recipe)) for recipe in recipes)
    with capsys.disabled():
        print(f"\n{len(recipes)} recipes with a hostile value: {count} refused, the others are recipes")
    assert count > len(recipes) / 2
