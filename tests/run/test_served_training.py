"""A training from a server's answers."""

import json
import math

import numpy as np
import pytest
import yaml

from bridgegarden.recipe import load_recipe
from bridgegarden.run.train import train
from bridgegarden.teacher.cache.reader import TeacherCache
from bridgegarden.teacher.cache.shard import documents_of
from tests.run.served import K, ask, plain_rows, run

pytestmark = pytest.mark.slow


def losses(tmp_path, name):
    lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
    return [(line["loss"], line.get("soft_loss", 0.0), line["hard_loss"]) for line in lines if "hard_loss" in line]


@pytest.mark.parametrize(
    "objective",
    [
        {"preset": "static", "hard_target": "data"},
        {"preset": "confidence", "hard_target": "teacher_argmax", "divergence": "jensen_shannon"},
        {"preset": "risk_guided", "hard_target": "data", "divergence": "reverse_kl"},
    ],
)
def test_training_from_answers_has_the_loss_of_the_live_teacher_with_as_many_tokens(served_recipe, tmp_path, objective):
    ask(served_recipe)
    tree = yaml.safe_load(served_recipe.read_text()) | {"objective": objective}
    served_recipe.write_text(yaml.safe_dump(tree))
    assert run("cache", "build", served_recipe).exit_code == 0
    result = run("train", served_recipe)
    assert result.exit_code == 0, result.output
    assert "reading teacher big from" in result.stderr
    (tmp_path / "out").rename(tmp_path / "served")
    live = tmp_path / "live.yaml"
    live.write_text(yaml.safe_dump(tree | {"teacher": {"model": str(tmp_path / "teacher"), "top_k": K}}))
    assert run("train", live).exit_code == 0
    ours, theirs = losses(tmp_path, "served"), losses(tmp_path, "out")
    assert len(ours) == 6
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)
    assert ours[-1][0] < ours[0][0]


def test_an_end_of_turn_that_the_server_keeps_to_itself_is_taught_by_its_hard_label(
    served_recipe, tmp_path, model_server
):
    model_server.answer.manner = "without_end"
    ask(served_recipe)
    result = run("cache", "build", served_recipe)
    assert "30 ends of turn without log-probabilities: the hard label stands there alone" in result.stdout
    end, cache = model_server.answer.end, TeacherCache(tmp_path / "cache")
    for document in documents_of(plain_rows(served_recipe)):
        last = cache.signals(document.key)
        assert (document.ids[-1], last.argmax[-1]) == (end, end)
        assert last.logp[-1].max() == pytest.approx(0, abs=1e-6)
        assert last.log_tail[-1] == pytest.approx(math.log(1e-7), abs=1e-5)
    assert "30 positions with the hard label alone" in run("cache", "info", served_recipe).stdout
    assert run("train", served_recipe).exit_code == 0


def test_an_answer_that_was_cut_off_teaches_no_end(served_recipe, tmp_path, model_server):
    ask(served_recipe, "--keep-truncated", "--max-new-tokens", 3)
    assert run("cache", "build", served_recipe).exit_code == 0
    cache = TeacherCache(tmp_path / "cache")
    assert len(cache) == 30
    # Read as plain rows they are the very same, so they have no end either.
    documents = list(documents_of(plain_rows(served_recipe)))
    assert all(document.key in cache for document in documents)
    assert all(document.ids[-1] != model_server.answer.end for document in documents)
    result = run("train", served_recipe)
    assert result.exit_code == 0, result.output
    assert "«" in run("train", served_recipe, "--audit").stdout


def test_an_objective_that_a_server_cannot_serve_is_refused_and_the_entropy_rule_is_not(served_recipe):
    ask(served_recipe)
    assert run("cache", "build", served_recipe).exit_code == 0
    for change in ("objective.temperature=2.0", "objective.soft_weight={rule: entropy, kind: power}"):
        for command in (("train",), ("cache", "check")):
            result = run(*command, served_recipe, "--set", change)
            assert result.exit_code == 2
            assert "which a server does not give and likeliest tokens do not determine" in result.stderr
    assert run("train", served_recipe, "--set", "objective.soft_weight=entropy").exit_code == 0


def test_answers_without_log_probabilities_are_learnt_as_hard_labels_with_no_teacher(
    served_recipe, tmp_path, model_server
):
    ask(served_recipe, top=0)
    assert all("top_logprobs" not in json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines())
    tree = yaml.safe_load(served_recipe.read_text())
    del tree["teacher"]["cache"]
    hard = {"preset": "hard", "hard_target": "data"}
    served_recipe.write_text(yaml.safe_dump(tree | {"objective": hard}))
    (tmp_path / "teacher").rename(tmp_path / "elsewhere")  # nobody needs it
    for command in (["train", "--dry-run"], ["train", "--audit"], ["plan"]):
        result = run(command[0], served_recipe, *command[1:])
        assert result.exit_code == 0, result.output
    assert "no teacher in memory" in result.stdout
    result = run("train", served_recipe)
    assert result.exit_code == 0, result.output
    assert "no teacher is asked about the rows" in result.stderr
    ours = losses(tmp_path, "out")
    assert ours[-1][0] < ours[0][0]
    np.testing.assert_allclose([o[0] for o in ours], [o[2] for o in ours], rtol=1e-6)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["cost"]["teacher_tokens"] == 0

    (tmp_path / "out").rename(tmp_path / "served")
    (tmp_path / "elsewhere").rename(tmp_path / "teacher")
    live = tmp_path / "live.yaml"
    live.write_text(yaml.safe_dump(tree | {"teacher": {"model": str(tmp_path / "teacher")}, "objective": hard}))
    train(load_recipe(live), asked=True)
    np.testing.assert_allclose([o[0] for o in ours], [o[0] for o in losses(tmp_path, "out")], rtol=1e-5)


@pytest.mark.parametrize("objective", [{"preset": "hard"}, {"preset": "static", "hard_target": "data"}])
def test_any_other_objective_needs_what_a_server_s_answers_do_not_hold(served_recipe, objective):
    tree = yaml.safe_load(served_recipe.read_text())
    del tree["teacher"]["cache"]
    served_recipe.write_text(yaml.safe_dump(tree | {"objective": objective}))
    result = run("train", served_recipe)
    assert result.exit_code == 2
    assert "learn answers without log-probabilities as hard labels (--set data.train=ANSWERS" in result.stderr
