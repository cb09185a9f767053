"""Hard labels of the data are all that is learnt: whatever the recipe's teacher is, it is neither loaded nor asked."""

import io
import json

import pytest
import yaml
from click.testing import CliRunner
from rich.console import Console

from bridgegarden.cli.main import cli
from bridgegarden.recipe import load_recipe
from bridgegarden.run.checked import check_run, training_arguments
from bridgegarden.run.output import OutputFolder
from bridgegarden.run.teachers import signals_of
from bridgegarden.run.train import train
from bridgegarden.teacher.protocol import DataTokens
from bridgegarden.training.measured import OF_TEACHER
from tests.run.conftest import ROWS, recipe_writer
from tests.tiny import save_tiny, tiny_model

HARD = {"preset": "hard", "hard_target": "data"}
TEACHERS = {
    "live": {"model": "teacher"},
    "quantised": {"model": "teacher", "quantization": {"load_in_4bit": True}},
    "cached": {"model": "teacher", "cache": "cache"},
    "told more": {"model": "teacher", "prompt": {"suffix": " ({answer})"}},
    "mixed": {"mix": {"a": 0.7, "b": 0.3}, "of": {"a": {"model": "teacher"}, "b": {"model": "other"}}},
    "by row": {"by": "subject", "of": {"a": {"model": "teacher"}, "b": {"model": "other"}}},
    "by row, together": {
        "by": "subject",
        "together": True,
        "of": {"a": {"model": "teacher"}, "b": {"model": "other"}},
    },
    "recorded": {"model": "big", "cache": "cache", "only_cache": True},
    "scoring server": {"server": "http://127.0.0.1:9/v1", "model": "big", "cache": "cache"},
    "server": {"server": "http://127.0.0.1:9/v1", "model": "big"},
}


def run(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A student, rows, and two teachers of which there is everything but the weights; a recipe for each kind."""
    folder = tmp_path_factory.mktemp("alone")
    written = recipe_writer(folder)(objective=HARD)
    save_tiny(folder / "other", tiny_model("llama", 264, hidden_size=48, seed=5))
    rows = [row | {"subject": "ab"[number % 2]} for number, row in enumerate(ROWS)]
    for name, part in (("train", rows[:30]), ("eval", rows[30:])):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)))
    tree = yaml.safe_load(written.read_text())
    tree["objective"] = HARD
    tree["data"]["eval"] = str(folder / "eval.jsonl")
    tree["training"] = {**tree["training"], "max_steps": 2, "logging_steps": 1}
    for name, teacher in TEACHERS.items():
        recipe = tree | {"teacher": _placed(teacher, folder), "output": str(folder / "out" / name)}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    whole = load_recipe(folder / "live.yaml", [f"output={folder / 'asked'}"])
    train(whole, asked=True)
    for name in ("teacher", "other"):
        (folder / name / "model.safetensors").unlink()
    return folder


def _placed(tree, folder):
    if isinstance(tree, dict):
        return {key: _placed(value, folder) for key, value in tree.items()}
    return str(folder / tree) if tree in ("teacher", "other", "cache") else tree


def logs(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", sorted(TEACHERS))
def test_of_no_kind_of_teacher_weights_a_cache_or_a_server_are_needed(pair, name):
    recipe = load_recipe(pair / f"{name}.yaml", [f"output={pair / 'checked' / name}"])
    folder, said = OutputFolder(recipe.output), io.StringIO()
    checked = check_run(recipe, folder, training_arguments(recipe, folder), Console(file=said, width=200)).preflight
    assert isinstance(signals_of(recipe, checked, lambda line: None), DataTokens)
    assert "quantised" not in said.getvalue()
    assert not any(part.name.startswith("teacher") for part in checked.memory.parts)


@pytest.mark.parametrize("name", ["by row", "quantised", "server"])
def test_training_needs_no_weights_of_the_teacher_no_cache_and_no_server(pair, name):
    done = run("train", pair / f"{name}.yaml")
    assert done.exit_code == 0, done.output
    assert "no teacher is asked about the rows: the hard labels of the data are all that is learnt" in done.stderr
    assert "loading teacher" not in done.stderr
    assert "teacher weights" not in done.stderr

    out = pair / "out" / name
    ours, theirs = logs(out), logs(pair / "asked")
    assert [line["loss"] for line in ours if "loss" in line] == pytest.approx(
        [line["loss"] for line in theirs if "loss" in line], rel=1e-5
    )
    assert any("teacher_entropy" in line for line in theirs)
    named = {term for line in ours for term in line}
    assert not named & {prefix + term for term in OF_TEACHER for prefix in ("", "eval_")}
    assert {"hard_loss", "student_entropy", "eval_loss", "eval_hard_loss"} <= named
    assert not (out / "teachers").exists()

    record = json.loads((out / "run.json").read_text())
    assert record["teacher"]["asked"] is False
    assert record["cost"]["teacher_tokens"] == 0
    assert "asked" not in json.loads((pair / "asked" / "run.json").read_text())["teacher"]
    card = (out / "model" / "README.md").read_text()
    assert "on hard labels of the data alone, without asking" in card
    assert "soft labels" not in card
    assert ("- distillation" in card) == ("server" in name)


@pytest.mark.parametrize("name", ["by row, together", "mixed", "told more"])
def test_a_plan_has_no_memory_and_no_operations_of_the_teacher(pair, name):
    plan = run("plan", pair / f"{name}.yaml", "--json")
    assert plan.exit_code == 0, plan.output
    told = json.loads(plan.stdout)
    assert told["parameters"]["teacher"] is None
    assert told["cache"] is None
    assert "teacher" not in told["flops"]
    assert not any("teacher" in part for moment in told["memory"].values() for part in moment)


def test_a_person_is_told_by_plan_and_dry_run_and_audit_needs_no_weights(pair):
    plan = run("plan", pair / "live.yaml")
    said = " ".join(plan.stdout.split())
    assert "no teacher in memory" in said
    assert "The teacher is not asked about the rows: hard labels of the data are all that is learnt." in said
    for options in (["--dry-run"], ["--audit"]):
        done = run("train", pair / "live.yaml", *options)
        assert done.exit_code == 0, done.output


@pytest.mark.parametrize("objective", [{"preset": "soft"}, {"preset": "hard"}, {"preset": "label_corrected"}])
def test_an_objective_that_reads_the_teacher_still_needs_its_weights(pair, objective):
    changed = pair / "reads.yaml"
    changed.write_text(yaml.safe_dump(yaml.safe_load((pair / "live.yaml").read_text()) | {"objective": objective}))
    refused = run("train", changed, "--set", f"output={pair / 'none'}")
    assert refused.exit_code == 2
    assert "teacher" in refused.stderr
    assert "safetensors" in refused.stderr


def test_texts_of_the_students_own_still_have_the_teacher_judge_them(write_recipe, tmp_path):
    path = write_recipe(
        objective=HARD,
        data={"eval": str(tmp_path / "eval.jsonl")},
        free_running={"prompts": 2, "max_new_tokens": 4},
        training={"max_steps": 1},
    )
    done = run("train", path)
    assert done.exit_code == 0, done.output
    assert "no teacher is asked about the rows" in done.stderr
    assert "which judges the student's own texts" in done.stderr
    assert "teacher weights" in done.stderr
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["free_running"]["free_running_loss"] > 0
    assert "soft_loss" not in record["training"]
    (tmp_path / "teacher" / "model.safetensors").unlink()
    refused = run("train", path, "--set", f"output={tmp_path / 'again'}")
    assert refused.exit_code == 2
    assert "safetensors" in refused.stderr


def test_a_best_checkpoint_by_what_only_a_teacher_says_is_refused(pair):
    refused = run(
        *("train", pair / "live.yaml", "--set", f"output={pair / 'best'}"),
        *("--set", "training.metric_for_best_model=eval_soft_loss"),
    )
    assert refused.exit_code == 2
    assert "training.metric_for_best_model: 'soft_loss' is about the teacher, which is not asked" in refused.stderr
