"""A recipe whose teacher is a mixture: live, cached in one cache, and said wherever the teacher is named."""

import json

import pytest
import yaml
from click.testing import CliRunner

from bridgegarden.cli.main import cli
from bridgegarden.teacher.cache.reader import TeacherCache
from bridgegarden.teacher.cache.spec import CacheSpec
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.slow


def run(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture
def recipe(write_recipe, tmp_path):
    """Two teachers, of which one has rows to spare, and a cache that is not built yet."""
    path = write_recipe(teacher_vocab=259, objective={"preset": "soft"}, data={"eval": str(tmp_path / "eval.jsonl")})
    save_tiny(tmp_path / "other", tiny_model("llama", 264, hidden_size=48, seed=5))
    tree = yaml.safe_load(path.read_text())
    of = {name: {"model": str(tmp_path / name)} for name in ("teacher", "other")}
    tree["teacher"] = {"mix": {"teacher": 0.7, "other": 0.3}, "of": of, "cache": str(tmp_path / "cache")}
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def build(recipe, *options):
    result = run("cache", "build", recipe, "--top-k", "1000", "--bits", "16", *options)
    assert result.exit_code == 0, result.output
    return result


def test_one_cache_of_the_mixture_gives_the_training_that_all_models_in_memory_give(recipe, tmp_path):
    live = run("train", recipe, "--set", "teacher.cache=null")
    assert live.exit_code == 0, live.output
    name = f"0.7 x {tmp_path / 'teacher'} + 0.3 x {tmp_path / 'other'}"
    assert live.stderr.count("loading teacher ") == 2
    assert live.stderr.count("teacher weights") == 2
    (tmp_path / "out").rename(tmp_path / "live")
    assert f"loading teacher {name}" in build(recipe).stderr
    assert run("cache", "check", recipe).exit_code == 0
    cached = run("train", recipe)
    assert cached.exit_code == 0, cached.output
    assert f"reading teacher {name} from" in cached.stderr
    assert "teacher weights" not in cached.stderr
    ours, theirs = (json.loads((tmp_path / folder / "run.json").read_text()) for folder in ("out", "live"))
    assert ours["evaluation"]["soft_loss"] == pytest.approx(theirs["evaluation"]["soft_loss"], rel=1e-3)
    assert ours["teacher"]["model"] == name
    assert [one["model"] for one in ours["teacher"]["mixed"]] == [str(tmp_path / one) for one in ("teacher", "other")]
    card = (tmp_path / "out" / "model" / "README.md").read_text()
    assert "distilled from a mixture of teachers, 0.7 x `teacher` (local) + 0.3 x `other` (local), with" in card
    info = run("cache", "info", tmp_path / "cache").stdout
    assert f"teacher        {name}, float32\n  mixed of     0.7 x {tmp_path / 'teacher'} (" in info


def test_a_cache_of_other_weights_or_members_is_refused_with_both_and_a_moved_folder_is_not(recipe, tmp_path):
    build(recipe)
    tree = yaml.safe_load(recipe.read_text())

    def refused(teacher):
        other = tmp_path / "changed.yaml"
        other.write_text(
            yaml.safe_dump({**tree, "teacher": {**teacher, "cache": tree["teacher"]["cache"]}}, sort_keys=False)
        )
        for command in (("train",), ("cache", "build")):
            result = run(*command, other)
            assert result.exit_code == 2, result.output
            yield result.stderr

    for said in refused({**tree["teacher"], "mix": {"teacher": 0.6, "other": 0.4}}):
        assert f"mix 0.7 x {tmp_path / 'teacher'}" in said
        assert f"not 0.6 x {tmp_path / 'teacher'}" in said
    for said in refused({"model": str(tmp_path / "teacher")}):
        assert "not none" in said
    (tmp_path / "other").rename(tmp_path / "moved")
    tree["teacher"]["of"]["other"]["model"] = str(tmp_path / "moved")
    recipe.write_text(yaml.safe_dump(tree, sort_keys=False))
    assert "0 rows added, 36 were there" in build(recipe).stdout
    assert run("train", recipe).exit_code == 0


def test_what_a_mixture_is_goes_through_the_file_and_old_caches_know_nothing_of_it(recipe, tmp_path):
    build(recipe, "--limit", "4")
    spec = TeacherCache(tmp_path / "cache").spec
    assert CacheSpec.from_dict(spec.to_dict()) == spec
    assert [(one.weight, one.dtype) for one in spec.mix] == [(0.7, "float32"), (0.3, "float32")]
    assert (spec.vocab_size, spec.teacher_width) == (259, 264)
    assert "mix" not in CacheSpec.from_dict({**spec.to_dict(), "mix": None}).to_dict()


def test_every_teacher_is_checked_against_the_student(recipe, tmp_path):
    changed = tiny_tokenizer(turn_ids=(258, 257))
    save_tiny(tmp_path / "other", tiny_model("llama", 264, seed=5), changed)
    for command in (("train",), ("cache", "build")):
        result = run(*command, recipe)
        assert result.exit_code == 2
        assert "teacher.of.other.model" in result.stderr or "tokenizer" in result.stderr
    tree = yaml.safe_load(recipe.read_text())
    tree["teacher"]["of"]["other"]["model"] = str(tmp_path / "nowhere")
    recipe.write_text(yaml.safe_dump(tree, sort_keys=False))
    assert f"teacher.of.other.model '{tmp_path / 'nowhere'}'" in run("train", recipe).stderr


def test_commands_that_need_one_teacher_say_so(recipe):
    for command in (("diagnose",), ("compare",), ("generate",)):
        result = run(*command, recipe)
        assert result.exit_code == 2, result.output
        assert "teacher.mix: " in result.stderr
    assert "teacher.mix: what is imported is what one teacher said" in run("cache", "import", recipe, recipe).stderr
    planned = run("plan", recipe)
    assert planned.exit_code == 0, planned.output
    live = run("plan", recipe, "--set", "teacher.cache=null")
    assert live.exit_code == 2
    assert "teacher.mix: several teachers in memory cannot be planned" in live.stderr
