"""A recipe in which every row has one of several teachers: each is asked about its own rows and has a cache of them."""

import json

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from bridgegarden.cli.main import cli
from bridgegarden.teacher.cache.reader import TeacherCache
from tests.run.conftest import ROWS
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer


def run(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def write_rows(tmp_path, rows=ROWS):
    """Sums below five are one teacher's, the others the other's."""
    routed = [{**row, "source": "small" if int(row["answer"]) < 5 else "large"} for row in rows]
    for name, part in (("train", routed[:30]), ("eval", routed[30:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)))
    return routed


@pytest.fixture
def recipe(write_recipe, tmp_path):
    """Two teachers; paths are written as from the recipe's folder, and the caches are not built yet."""
    path = write_recipe(objective={"preset": "soft"}, data={"eval": str(tmp_path / "eval.jsonl")})
    write_rows(tmp_path)
    save_tiny(tmp_path / "other", tiny_model("llama", 264, hidden_size=48, seed=5))
    tree = yaml.safe_load(path.read_text())
    tree["teacher"] = {
        "by": "source",
        "of": {
            "small": {"model": "teacher", "cache": str(tmp_path / "small")},
            "large": {"model": "other", "cache": str(tmp_path / "large")},
        },
    }
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def changed(recipe, **teacher):
    tree = yaml.safe_load(recipe.read_text())
    other = recipe.with_name("changed.yaml")
    other.write_text(yaml.safe_dump({**tree, "teacher": {**tree["teacher"], **teacher}}, sort_keys=False))
    return other


def build(recipe, *options):
    result = run("cache", "build", recipe, *options)
    assert result.exit_code == 0, result.output
    return result


def test_each_cache_holds_what_its_teacher_says_of_its_own_rows_and_is_trained_from(recipe, tmp_path):
    result = build(recipe)
    count = sum(int(row["answer"]) < 5 for row in ROWS)
    assert f"small: {tmp_path / 'small'}: {count} rows added" in result.stdout
    assert f"large: {tmp_path / 'large'}: {len(ROWS) - count} rows added" in result.stdout
    assert result.stderr.count("loading teacher ") == 2
    again = build(recipe).stdout
    assert f"0 rows added, {count} were there" in again
    assert f"0 rows added, {len(ROWS) - count} were there" in again
    trained = run("train", recipe)
    assert trained.exit_code == 0, trained.output
    for name, model in (("small", "teacher"), ("large", "other")):
        assert f"reading teacher {tmp_path / model} from {tmp_path / name}" in trained.stderr
        alone = TeacherCache(tmp_path / name)
        # The same rows read by that teacher as the only one.
        single = build(recipe_of_one(recipe, tmp_path / model), "--set", f"teacher.cache={tmp_path / 'whole' / name}")
        assert f"{len(ROWS)} rows added" in single.stdout
        whole = TeacherCache(tmp_path / "whole" / name)
        for key in alone:
            ours, theirs = alone.signals(key), whole.signals(key)
            np.testing.assert_allclose(ours.label_logp, theirs.label_logp, atol=1e-3)
            np.testing.assert_allclose(ours.entropy, theirs.entropy, atol=1e-3)
    record = json.loads((tmp_path / "out" / "run.json").read_text())["teacher"]
    assert record["model"] == f"{tmp_path / 'teacher'} (small), {tmp_path / 'other'} (large)"
    assert {name: one["model"] for name, one in record["by_row"].items()} == {
        "small": str(tmp_path / "teacher"),
        "large": str(tmp_path / "other"),
    }
    card = (tmp_path / "out" / "model" / "README.md").read_text()
    assert "from several teachers, each for rows of its own (`teacher` (local), `other` (local))," in card
    packed = run("train", recipe, "--set", f"output={tmp_path / 'packed'}", "--set", "training.packing=true")
    assert packed.exit_code == 0, packed.output


def recipe_of_one(recipe, model):
    tree = yaml.safe_load(recipe.read_text())
    other = recipe.with_name("one.yaml")
    other.write_text(yaml.safe_dump({**tree, "teacher": {"model": str(model)}}, sort_keys=False))
    return other


def test_rows_that_change_their_teacher_are_missing_by_number_and_a_name_of_nobody_is_refused(recipe, tmp_path):
    build(recipe)
    rows = write_rows(tmp_path)
    rows[3]["source"] = "large"
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows[:30])))
    result = run("train", recipe)
    assert result.exit_code == 2
    assert f"teacher cache {tmp_path / 'large'}: train data: 1 of" in result.stderr
    assert "rows are not in it (row 3)" in result.stderr
    assert "1 row added" in build(recipe).stdout
    rows[3]["source"] = "smal"
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows[:30])))
    for command in (("train",), ("cache", "build")):
        result = run(*command, recipe)
        assert result.exit_code == 2
        assert "train.jsonl, row 3: the column 'source' (teacher.by): unknown teacher 'smal'. Did you mean" in (
            " ".join(result.stderr.split())
        )


def test_caches_of_other_teachers_are_refused_where_the_recipe_names_them(recipe, tmp_path):
    build(recipe)
    of = yaml.safe_load(recipe.read_text())["teacher"]["of"]
    swapped = {
        name: {**of[name], "cache": of[other]["cache"]} for name, other in (("small", "large"), ("large", "small"))
    }
    result = run("train", changed(recipe, of=swapped))
    assert result.exit_code == 2
    assert "teacher.of.small.model" in result.stderr
    assert "is another teacher's" in result.stderr
    save_tiny(tmp_path / "other", tiny_model("llama", 264, seed=5), tiny_tokenizer(turn_ids=(258, 257)))
    for command in (("train",), ("cache", "build")):
        result = run(*command, recipe)
        assert result.exit_code == 2
        assert "teacher.of.large.model" in result.stderr or "tokenizer" in result.stderr


def test_a_teacher_of_no_row_is_not_loaded_and_said(recipe, tmp_path):
    of = yaml.safe_load(recipe.read_text())["teacher"]["of"]
    more = changed(recipe, of={**of, "huge": {"model": "other", "cache": str(tmp_path / "huge")}})
    result = build(more)
    assert "huge: no row of the data is its" in result.stdout
    assert result.stderr.count("loading teacher ") == 2
    assert run("train", more).exit_code == 0


def test_commands_that_need_one_teacher_or_one_cache_say_so_and_a_plan_counts_each_on_its_own_rows(recipe, tmp_path):
    for command in (("diagnose",), ("compare",), ("generate",), ("cache", "info"), ("cache", "check")):
        result = run(*command, recipe)
        assert result.exit_code == 2, result.output
        assert "teacher.by: " in result.stderr
    assert "teacher.by: what is imported is what one teacher said" in run("cache", "import", recipe, recipe).stderr
    planned = run("plan", recipe, "--json")
    assert planned.exit_code == 0, planned.output
    flops = []
    for model in ("teacher", "other"):
        one = run("plan", recipe_of_one(recipe, tmp_path / model), "--json")
        flops.append(json.loads(one.stdout)["cache"]["flops"])
    assert flops[0] == flops[1]
    assert json.loads(planned.stdout)["cache"]["flops"] == pytest.approx(flops[0], rel=0.05)


def test_every_teacher_may_be_told_more_than_the_student_and_a_limit_goes_for_all_of_them(recipe, tmp_path):
    told = changed(recipe, prompt={"suffix": " (Say {answer}.)"})
    first = build(told, "--limit", "3", "--set", "data.eval=null", "--top-k", "8").stdout
    assert f"small: {tmp_path / 'small'}: 3 rows added" in first
    assert "large: no row of the data is its" in first
    build(told)
    assert [TeacherCache(tmp_path / name).spec.support.k for name in ("small", "large")] == [8, 8]
    assert run("train", told).exit_code == 0
    other = run("train", recipe, "--set", f"output={tmp_path / 'bare'}")
    assert other.exit_code == 2
    assert f"teacher.prompt: the cache {tmp_path / 'small'} was built with another" in other.stderr
    audit = run("train", told, "--audit")
    assert audit.exit_code == 0, audit.output
    assert "(Say 0.)" in audit.stdout
