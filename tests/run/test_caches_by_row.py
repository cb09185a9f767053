"""A recipe in which every row has one of several teachers: each is asked about its own rows and has a cache of them."""

import json
import shutil
import weakref

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from bridgegarden.cli.main import cli
from bridgegarden.errors import ConfigError
from bridgegarden.recipe import load_recipe
from bridgegarden.run.models import check_processes
from bridgegarden.teacher.cache.reader import TeacherCache
from tests.run.conftest import ROWS
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.slow


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


def without_caches(recipe, *names, **teacher):
    """The recipe with no folder for the caches of `names`."""
    of = yaml.safe_load(recipe.read_text())["teacher"]["of"]
    bare = {name: {"model": one["model"]} if name in names else one for name, one in of.items()}
    return changed(recipe, of=bare, **teacher)


@pytest.fixture
def loads(monkeypatch):
    """What was loaded, and how many of the teachers before were still there then."""
    from bridgegarden.run import models, teachers, train

    alive, seen = [], []

    def loading(facts, **options):
        seen.append((facts.reference.model.rsplit("/")[-1], sum(one() is not None for one in alive)))
        model = load(facts, **options)
        alive.append(weakref.ref(model))
        return model

    load = models.load_model
    for module in (models, teachers, train):
        monkeypatch.setattr(module, "load_model", loading)
    return seen


def test_training_asks_teachers_without_a_cache_one_after_the_other_and_none_twice(recipe, tmp_path, loads):
    live = without_caches(recipe, "small", "large")
    weights = next((tmp_path / "other").glob("*.safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4000])  # it dies between two teachers
    assert run("train", live).exit_code == 2
    weights.write_bytes(whole)
    assert loads.pop(0) == ("teacher", 0)
    del loads[:]
    trained = run("train", live)
    assert trained.exit_code == 0, trained.output
    assert loads == [("other", 0), ("student", 0)]
    kept = tmp_path / "out" / "teachers"
    build(recipe)
    for name in ("small", "large"):
        ours, theirs = TeacherCache(kept / name), TeacherCache(tmp_path / name)
        assert set(ours) == set(theirs)
        for key in ours:
            np.testing.assert_array_equal(ours.signals(key).logp, theirs.signals(key).logp)
    del loads[:]
    shutil.rmtree(tmp_path / "out" / "model")
    for left in ("run.json", "recipe.yaml", "metrics.jsonl"):
        (tmp_path / "out" / left).unlink()
    assert run("train", live).exit_code == 0
    assert loads == [("student", 0)]


def test_caches_that_are_named_are_complete_before_any_other_teacher_is_asked(recipe, tmp_path, loads):
    half = without_caches(recipe, "small")
    result = run("train", half)
    assert result.exit_code == 2
    assert str(tmp_path / "large") in result.stderr
    build(recipe, "--top-k", "8", "--limit", "3")
    del loads[:]
    result = run("train", half)
    assert result.exit_code == 2
    assert "teacher cache " + str(tmp_path / "large") in result.stderr
    assert "rows are not in it" in result.stderr
    assert loads == []
    build(recipe)
    assert run("train", half).exit_code == 0
    assert TeacherCache(tmp_path / "out" / "teachers" / "small").spec.support.k == 8


def test_all_in_memory_train_as_from_whole_caches_and_judge_what_the_student_writes(recipe, tmp_path, loads):
    together = without_caches(recipe, "small", "large", together=True)
    losses = []
    for source, name in ((together, "together"), (recipe, "cached")):
        if source is recipe:
            build(recipe, "--top-k", "264", "--bits", "16")
        trained = run("train", source, "--set", f"output={tmp_path / name}")
        assert trained.exit_code == 0, trained.output
        losses.append(json.loads((tmp_path / name / "run.json").read_text())["evaluation"]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert loads[:3] == [("teacher", 0), ("other", 1), ("student", 2)]
    assert not (tmp_path / "together" / "teachers").exists()
    tree = yaml.safe_load(together.read_text())
    written = recipe.with_name("written.yaml")
    written.write_text(yaml.safe_dump({**tree, "on_policy": {"lmbda": 1.0, "max_new_tokens": 4}}, sort_keys=False))
    trained = run("train", written, "--set", f"output={tmp_path / 'written'}")
    assert trained.exit_code == 0, trained.output
    assert "written by the student" in trained.stdout
    refused = run("train", written, "--set", "teacher.together=false")
    assert refused.exit_code == 2
    assert "on_policy: a row's own teacher has to judge what the student writes" in refused.stderr
    for command in (("plan", together), ("cache", "build", together), ("cache", "info", together)):
        result = run(*command)
        assert result.exit_code == 2, result.output
        assert "teacher.together: " in result.stderr


def test_several_processes_need_folders_or_all_teachers_in_memory(recipe):
    live = without_caches(recipe, "large")
    check_processes(load_recipe(str(live)), 1)
    check_processes(load_recipe(str(recipe)), 2)
    check_processes(load_recipe(str(without_caches(recipe, "small", "large", together=True))), 2)
    live = without_caches(recipe, "large")
    with pytest.raises(ConfigError, match=r"^teacher.of.large.cache: is missing\. .* this run has 2\."):
        check_processes(load_recipe(str(live)), 2)
