"""A probe from a diagnosis to a training: where its file lies, what it is held against, and what changes with it."""

import json
import shutil

import pytest
import yaml
from click.testing import CliRunner

from bridgegarden.cli.main import cli
from bridgegarden.errors import ConfigError
from bridgegarden.objective.kappa_probe import FEATURES
from bridgegarden.recipe import build_objective, load_recipe
from tests.run.test_diagnose import SMALL
from tests.run.test_train import interrupt_at
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.slow


def bridgegarden(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture
def probed(write_recipe, tmp_path):
    """A recipe with a probe that a diagnosis of its pair wrote, named by its place beside the recipe."""
    recipe = write_recipe(training={"save_steps": 2})
    result = bridgegarden("diagnose", recipe, *SMALL, "--output", tmp_path / "found")
    assert result.exit_code == 0, result.output
    assert f"It is in {tmp_path / 'found' / 'kappa_probe.json'}" in result.stdout.replace("\n", "")
    tree = yaml.safe_load(recipe.read_text())
    tree["objective"] = {"soft_weight": {"rule": "kappa_probe", "file": "found/kappa_probe.json"}}
    recipe.write_text(yaml.safe_dump(tree))
    return recipe


def change(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_diagnosis_writes_a_probe_that_a_recipe_beside_it_trains_with(probed, tmp_path):
    path = tmp_path / "found" / "kappa_probe.json"
    tree, found = (json.loads((tmp_path / "found" / name).read_text()) for name in (path.name, "result.json"))
    assert set(tree["weights"]) == set(FEATURES)
    assert tree["weights"] == found["findings"]["students"][0]["probe"]["weights"]
    tokens = tiny_tokenizer().convert_ids_to_tokens(list(range(259)))
    assert [tree["kinds"][tokens.index(token)] for token in ("7", "a", "+", "Ġ", "<|im_end|>")] == list("dlmos")
    result = bridgegarden("train", probed)
    assert result.exit_code == 0, result.output
    assert "too few to say whether it predicts anything" in " ".join(result.stderr.split())
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    (rule,) = build_objective(load_recipe(probed).objective).probes
    assert record["probes"] == {str(path): rule.held.sha256}
    assert rule.held.sha256[:12] in record["objective"]
    weights = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert any(0 < line.get("soft_weight", 0) < 1 for line in weights)


def test_a_run_does_not_go_on_with_another_probe(probed, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(patch, step=3)
        bridgegarden("train", probed)
    change(tmp_path / "found" / "kappa_probe.json", center=5.0)
    result = bridgegarden("train", probed)
    assert result.exit_code == 2
    assert "was trained with another content of" in result.stderr
    assert "kappa_probe.json" in result.stderr


def test_a_probe_of_another_teacher_or_tokenizer_is_refused_before_training(probed, tmp_path):
    path = tmp_path / "found" / "kappa_probe.json"
    whole = path.read_text()
    save_tiny(tmp_path / "teacher", tiny_model("llama", 264, hidden_size=48, seed=7))
    result = bridgegarden("train", probed)
    assert result.exit_code == 2
    assert f"was fitted on the teacher {tmp_path / 'teacher'}, whose weights are not those of" in result.stderr
    change(path, vocabulary="another")
    result = bridgegarden("train", probed)
    assert result.exit_code == 2
    assert "was fitted on a pair with another tokenizer" in result.stderr
    path.write_text(whole)
    change(path, kinds=json.loads(whole)["kinds"][:-1])
    assert "another tokenizer (258 tokens; here 259)" in bridgegarden("train", probed).stderr
    assert not (tmp_path / "out").exists()


def test_a_teacher_of_which_too_little_is_kept_is_refused_when_the_recipe_is_read(probed):
    load_recipe(probed, ["teacher.top_k=2"])
    with pytest.raises(ConfigError, match=r"teacher.top_k is 1: the rule kappa_probe looks at the teacher's two like"):
        load_recipe(probed, ["teacher.top_k=1"])
    rules = ["objective.soft_weight=1.0", "teacher.top_k=1"]
    load_recipe(probed, rules)
    probe = {"rule": "kappa_probe", "file": str(probed.parent / "found" / "kappa_probe.json")}
    mixed = {"first": "reverse_kl", "second": "forward_kl", "rule": probe}
    for field, value in (("position_weight", probe), ("divergence", mixed)):
        with pytest.raises(ConfigError, match=r"teacher\.top_k is 1"):
            load_recipe(probed, [*rules, f"objective.{field}={json.dumps(value)}"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--samples", "8"], "8 draws a position would be of no use for this recipe: the rule kappa_probe"),
        (["--top-k", "1"], "top 1 a position would be of no use for this recipe: the rule kappa_probe"),
    ],
)
def test_a_cache_that_its_rule_cannot_read_is_refused_before_the_teacher_is_asked(probed, tmp_path, options, said):
    result = bridgegarden("cache", "build", probed, "--set", f"teacher.cache={tmp_path / 'kept'}", *options)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())
    assert "loading teacher" not in result.stderr
    assert not (tmp_path / "kept").exists()


def test_a_cache_that_is_there_and_says_too_little_is_refused_before_training(probed, tmp_path):
    at = ("--set", f"teacher.cache={tmp_path / 'kept'}")
    alone = ("--set", "objective={preset: soft}")
    assert bridgegarden("cache", "build", probed, *at, *alone, "--top-k", "1").exit_code == 0
    for command in (("train",), ("cache", "check")):
        result = bridgegarden(*command, probed, *at)
        assert result.exit_code == 2
        assert "holds top 1; the rule kappa_probe looks at the teacher's two likeliest tokens" in " ".join(
            result.stderr.split()
        )


def test_a_recipe_whose_probe_is_gone_says_where_it_was_looked_for(probed, tmp_path):
    shutil.rmtree(tmp_path / "found")
    with pytest.raises(ConfigError, match=r"recipe.yaml: kappa probe found/kappa_probe.json: cannot be read"):
        load_recipe(probed)


def test_of_several_students_each_has_a_probe_of_its_own(write_recipe, tmp_path):
    recipe, found = write_recipe(), tmp_path / "found"
    student = ("--student", f"a b={tmp_path / 'student'}")
    found.mkdir()
    (found / "kappa_probe-2-of-an-earlier-diagnosis.json").write_text("{}")
    assert bridgegarden("diagnose", recipe, *student, *SMALL, "--output", found).exit_code == 0
    names = sorted(path.name for path in found.glob("*.json"))
    assert names == ["kappa_probe-0-student.json", "kappa_probe-1-a-b.json", "result.json"]
    assert json.loads((found / "kappa_probe-1-a-b.json").read_text())["fitted"]["student"] == "a b"
