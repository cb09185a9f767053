"""A recipe that watches the student on its own texts, and keeps the checkpoint that does best there."""

import json

import pytest
from click.testing import CliRunner

from bridgegarden.cli.main import cli
from bridgegarden.recipe import load_recipe
from bridgegarden.run.train import train

pytestmark = pytest.mark.slow

SECTION = {"prompts": 4, "max_new_tokens": 6}
DIVERGES = {
    "max_steps": 5,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "learning_rate": 0.5,
    "lr_scheduler_type": "constant",
}
"""A rate so high that the student gets worse again."""


def run(command, *arguments):
    return CliRunner().invoke(cli, [*command.split(), *map(str, arguments)])


@pytest.fixture
def watched(write_recipe, tmp_path):
    """A recipe with evaluation rows and the section, which is given as options of the command line."""

    def write(training=None, **section):
        path = write_recipe(data={"eval": str(tmp_path / "eval.jsonl")}, training=training or {})
        given = SECTION | section
        return path, [part for key, value in given.items() for part in ("--set", f"free_running.{key}={value}")]

    return write


def values(output, name):
    """By step; the evaluation after training, which repeats the last step with the model that is kept, left out."""
    found = {}
    log = output / "metrics.jsonl"
    for line in map(json.loads, log.read_text().splitlines() if log.exists() else ()):
        if name in line:
            found.setdefault(line["step"], line[name])
    return found


def test_it_is_measured_every_so_many_steps_and_told(watched, tmp_path):
    recipe, options = watched(every=1)
    result = run("train", recipe, *options)
    assert result.exit_code == 0, result.output
    assert list(values(tmp_path / "out", "eval_free_running_loss")) == [1, 2, 3, 4]
    assert "own texts at step 1/4: loss" in result.stderr
    assert "On texts of its own the student loses" in result.stdout
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    last = values(tmp_path / "out", "eval_exposure_bias")[4]
    assert record["free_running"]["exposure_bias"] == last


@pytest.mark.parametrize("select_by", ["free_running_loss", "exposure_bias"])
def test_the_checkpoint_that_is_kept_is_the_best_on_its_own_texts(watched, tmp_path, select_by):
    recipe, options = watched(DIVERGES, select_by=select_by)
    summary = train(load_recipe(recipe, options[1::2]))
    found = values(tmp_path / "out", f"eval_{select_by}")
    best = min(found.values())
    assert found[5] > best, "the last would have been kept in any case"
    assert summary.free_running[select_by] == pytest.approx(best, rel=1e-4)
    assert not (tmp_path / "out" / "checkpoints").exists()
    if select_by == "exposure_bias":
        # The signed difference is least where the student has fallen apart, since the teacher's texts cost it more.
        assert best < -10
        assert summary.free_running["free_running_loss"] > 5 * min(
            values(tmp_path / "out", "eval_free_running_loss").values()
        )


def test_a_cached_teacher_is_loaded_to_judge_the_students_texts(watched, tmp_path):
    recipe, options = watched(every=4)
    cache = ("--set", f"teacher.cache={tmp_path / 'cache'}")
    built = run("cache build", recipe, *cache, *options)
    assert built.exit_code == 0, built.output
    result = run("train", recipe, *cache, *options)
    assert result.exit_code == 0, result.output
    assert "which judges the student's own texts" in result.stderr
    cached = values(tmp_path / "out", "eval_teacher_forced_loss")
    assert run("train", recipe, *options, "--set", f"output={tmp_path / 'live'}").exit_code == 0
    assert cached[4] == pytest.approx(values(tmp_path / "live", "eval_teacher_forced_loss")[4], rel=0.03)


def test_texts_longer_than_a_model_can_read_are_refused_before_training(watched, tmp_path):
    recipe, options = watched(every=1, max_new_tokens=600)
    result = run("train", recipe, *options)
    assert result.exit_code == 2
    assert "are longer than the 512 that LlamaForCausalLM can read. Lower max_new_tokens" in result.stderr
    assert values(tmp_path / "out", "loss") == {}
