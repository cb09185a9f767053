"""A recipe whose teacher reads another prompt: built, trained from, shown, and refused where it makes no sense."""

import json

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from bridgegarden.cli.main import cli
from bridgegarden.recipe import load_recipe
from bridgegarden.run.pair import recipe_pair
from bridgegarden.run.teachers import teacher_of
from bridgegarden.teacher.cache.ray_engine import _asked, _table
from bridgegarden.teacher.cache.reader import TeacherCache
from bridgegarden.teacher.cache.shard import documents_of

pytestmark = pytest.mark.slow

PROMPT = {"system": "You know.", "suffix": " (it is {answer})"}


def run(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture
def recipe(write_recipe, tmp_path):
    """A recipe with a prompt for the teacher and a cache, which is not built yet."""
    return write_recipe(
        teacher_vocab=259,
        teacher={"cache": str(tmp_path / "cache"), "prompt": PROMPT},
        data={"eval": str(tmp_path / "eval.jsonl")},
        objective={"preset": "soft"},
    )


def test_a_cache_gives_the_training_that_the_live_teacher_gives(recipe, tmp_path):
    live = run("train", recipe, "--set", "teacher.cache=null")
    assert live.exit_code == 0, live.output
    (tmp_path / "out").rename(tmp_path / "live")
    plain = run("train", recipe, "--set", "teacher.cache=null", "--set", "teacher.prompt=null")
    assert plain.exit_code == 0, plain.output
    (tmp_path / "out").rename(tmp_path / "plain")
    build = run("cache", "build", recipe, "--top-k", "1000", "--bits", "16")
    assert build.exit_code == 0, build.output
    assert run("cache", "check", recipe).exit_code == 0
    cached = run("train", recipe)
    assert cached.exit_code == 0, cached.output
    records = {name: json.loads((tmp_path / name / "run.json").read_text()) for name in ("out", "live", "plain")}
    soft = {name: record["evaluation"]["soft_loss"] for name, record in records.items()}
    assert soft["out"] == pytest.approx(soft["live"], rel=1e-3)
    assert soft["plain"] != pytest.approx(soft["live"], rel=1e-3)
    assert records["live"]["data"] != records["plain"]["data"]
    shown = "system 'You know.', suffix ' (it is {answer})'"
    assert records["out"]["teacher"]["prompt"] == shown
    assert f"`{shown}`" in (tmp_path / "out" / "model" / "README.md").read_text()
    info = run("cache", "info", tmp_path / "cache")
    assert f"its prompt     {shown}\n" in info.stdout


def test_a_cache_of_another_prompt_is_refused_with_both(recipe, tmp_path):
    assert run("cache", "build", recipe).exit_code == 0
    for change, now in (("teacher.prompt=null", "the row's own"), ("teacher.prompt.system=Know!", "system 'Know!'")):
        for command in (("train",), ("cache", "check"), ("cache", "build")):
            refused = run(*command, recipe, "--set", change)
            assert refused.exit_code == 2, refused.output
            assert "prompt system 'You know.', suffix ' (it is {answer})', not " + now in refused.stderr
    # And the other way round.
    assert run("cache", "build", recipe, "--set", "teacher.prompt=null", "--replace").exit_code == 0
    refused = run("train", recipe)
    assert refused.exit_code == 2
    assert "teacher.prompt: the cache" in refused.stderr
    assert "prompt the row's own, not system 'You know.'" in refused.stderr


def test_what_the_templates_columns_held_is_part_of_what_is_looked_up(recipe, tmp_path):
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(json.dumps({**row, "hint": "a"}) for row in rows))
    (tmp_path / "eval.jsonl").write_text("\n".join(json.dumps({**row, "hint": "a"}) for row in rows[:3]))
    hint = ("--set", 'teacher.prompt.suffix=" {hint}"')
    assert run("cache", "build", recipe, *hint).exit_code == 0
    path.write_text("\n".join(json.dumps({**row, "hint": "b" if n == 7 else "a"}) for n, row in enumerate(rows)))
    refused = run("train", recipe, *hint)
    assert refused.exit_code == 2
    assert "train data: 1 of 30 rows are not in it (row 7)" in refused.stderr
    path.write_text("\n".join(json.dumps(row) for row in rows))
    refused = run("train", recipe, *hint)
    assert "row 0: teacher.prompt.suffix: unknown column 'hint'" in refused.stderr


def test_the_audit_shows_what_the_teacher_reads(recipe):
    shown = run("train", recipe, "--audit")
    assert shown.exit_code == 0, shown.output
    assert "as the teacher reads it: " in shown.stdout
    assert "0 + 0 = (it is 0)" in shown.stdout


def test_a_plan_counts_what_the_teacher_reads(recipe):
    flops = []
    for change in ("output=x", "teacher.prompt=null"):
        told = run("plan", recipe, "--set", "teacher.cache=null", "--set", change, "--json")
        assert told.exit_code == 0, told.output
        flops.append(json.loads(told.stdout)["flops"])
    assert flops[0]["teacher"] > 1.5 * flops[1]["teacher"]
    assert flops[0]["student"] == flops[1]["student"]
    text = run("plan", recipe)
    assert text.exit_code == 0, text.output
    assert "The teacher reads another prompt (teacher.prompt), rows of" in text.stdout


def test_commands_that_ask_both_models_behind_one_prompt_say_so(recipe):
    for command in ("diagnose", "compare"):
        refused = run(command, recipe)
        assert refused.exit_code == 2
        assert "teacher.prompt: " in refused.stderr
        assert "--set teacher.prompt=null" in refused.stderr


def test_answers_are_written_behind_the_teachers_prompt_and_the_rows_keep_their_own(recipe, tmp_path):
    answers = {}
    for name, change in (("told", ()), ("plain", ("--set", "teacher.prompt=null"))):
        output = tmp_path / f"{name}.jsonl"
        options = ("--limit", 4, "--max-new-tokens", 6, "--keep-truncated", "--output", output)
        result = run("generate", recipe, *options, *change)
        assert result.exit_code == 0, result.output
        answers[name] = [json.loads(line) for line in output.read_text().splitlines()]
        assert run("generate", recipe, *options, *change).stdout.startswith("4 of 4 answers")
    told, plain = answers["told"], answers["plain"]
    assert [row["question"] for row in told] == [row["question"] for row in plain]
    assert [row["answer"] for row in told] != [row["answer"] for row in plain]
    mixed = run("generate", recipe, *options)
    assert mixed.exit_code == 2
    assert "teacher_prompt" in mixed.stderr


def test_a_prompt_longer_than_the_teachers_window_is_refused_before_it_is_loaded(write_recipe, tmp_path):
    from tests.tiny import save_tiny
    from tests.training.test_batches import learned_positions

    path = write_recipe(teacher={"prompt": {"prefix": "word " * 10}}, training={"max_length": 48})
    save_tiny(tmp_path / "teacher", learned_positions(64))
    for command in (("train",), ("cache", "build", "--set", f"teacher.cache={tmp_path / 'cache'}")):
        refused = run(*command, path)
        assert refused.exit_code == 2
        assert "looks positions up in a table of 64, but with teacher.prompt" in refused.stderr


def test_a_recipe_goes_through_its_text_unchanged_and_old_caches_keep_their_digest(recipe, tmp_path):
    loaded = load_recipe(recipe)
    assert yaml.safe_load(loaded.to_yaml())["teacher"]["prompt"] == PROMPT
    assert run("cache", "build", recipe, "--set", "teacher.prompt=null").exit_code == 0
    assert "prompt" not in TeacherCache(tmp_path / "cache").spec.to_dict()


def test_what_travels_to_an_actor_comes_back_whole(recipe):
    loaded = load_recipe(recipe)
    documents = list(documents_of(teacher_of(loaded).rows(recipe_pair(loaded)).train))
    plain = [document.teacher for document in documents[:2] if document.teacher is not None]
    for batch in (documents, plain):
        (got,) = _asked(_table([(0, batch)]))
        for ours, theirs in zip(batch, got, strict=True):
            assert ours.key == theirs.key
            assert np.array_equal(ours.as_read.ids, theirs.as_read.ids)
