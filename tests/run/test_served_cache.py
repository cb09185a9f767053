"""A server's answers to a cache."""

import json
import math

import numpy as np
import pytest

from bridgegarden.teacher.cache.reader import TeacherCache
from bridgegarden.teacher.cache.shard import documents_of
from tests.run.served import K, as_live, ask, plain_rows, run
from tests.teacher.servers import changed

pytestmark = pytest.mark.slow


def rewrite(tmp_path, rows):
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("manner", ["token_ids", "llama.cpp", "bytes"])
def test_every_signal_is_the_live_teacher_s_top_k_within_the_encoding(served_recipe, tmp_path, model_server, manner):
    model_server.answer.manner = manner
    ask(served_recipe)
    result = run("cache", "build", served_recipe, "--bits", "16")
    assert result.exit_code == 0, result.output
    cache, compared = TeacherCache(tmp_path / "cache"), 0
    for document in documents_of(plain_rows(served_recipe)):
        ours = cache.signals(document.key)
        live, labels = as_live(ours, document, model_server.answer.model)
        assert any(label not in kept for label, kept in zip(labels, ours.ids, strict=True))
        gap = live.entropy.numpy() - ours.entropy
        most = np.exp(ours.log_tail) * math.log(259 - K)
        assert (gap > -1e-5).all()
        assert (gap < most).all()
        compared += len(labels)
    assert compared > 150


def test_samples_are_rows_each_with_its_own_signal(served_recipe, tmp_path):
    rows = ask(served_recipe, "--n", 3, "--temperature", 1.0, "--limit", 5)
    assert len(rows) == 15
    result = run("cache", "build", served_recipe)
    assert result.exit_code == 0, result.output
    distinct = {(row["question"], row["answer"]) for row in rows}
    assert f"{len(distinct)} rows added" in result.stdout
    assert len(distinct) > 10
    assert run("cache", "check", served_recipe).exit_code == 0


def test_rows_without_log_probabilities_are_named_and_refused_unless_they_may_be_left_out(
    served_recipe, tmp_path, model_server
):
    silent = changed(lambda choice: choice.update(logprobs=None))
    model_server.always = lambda content: silent if content["messages"][-1]["content"].startswith("2 + ") else None
    ask(served_recipe)
    refused = run("cache", "build", served_recipe)
    assert refused.exit_code == 2
    assert (
        "train answers.jsonl: 6 of 30 rows give no signal: 6 for no log-probabilities (row 12, 13, 14, 15, 16, ..."
        in (refused.stderr)
    )
    assert "--skip-unusable" in refused.stderr
    assert not (tmp_path / "cache").exists()
    built = run("cache", "build", served_recipe, "--skip-unusable")
    assert built.exit_code == 0, built.output
    assert "24 rows added" in built.stdout
    assert "left out: train answers.jsonl: 6 of 30" in built.stdout
    assert run("train", served_recipe).exit_code == 0


def test_the_manifest_and_info_say_what_a_server_cannot(served_recipe, tmp_path):
    ask(served_recipe)
    assert run("cache", "build", served_recipe).exit_code == 0
    spec = json.loads((tmp_path / "cache" / "cache.json").read_text())["spec"]
    assert spec["served"] == {"temperature": 0.0, "entropy": "lower bound", "smallest_tail": 1e-7}
    assert (spec["teacher"], spec["exponents"], spec["support"]["k"]) == ("big", [], K)
    text = run("cache", "info", served_recipe).stdout
    assert "sampled at temperature 0" in text
    tree = json.loads(run("cache", "info", served_recipe, "--json").stdout)
    assert tree["entropy"] < tree["served"]["entropy_at_most"] < tree["entropy"] + (1 - tree["captured_mass"]) * 5.6


def test_log_probabilities_at_another_temperature_are_refused_unless_vouched_for(served_recipe, tmp_path):
    ask(served_recipe, "--temperature", 0.7)
    refused = run("cache", "build", served_recipe)
    assert refused.exit_code == 2
    assert "sampled at temperature 0.7, and some servers" in refused.stderr
    assert run("cache", "build", served_recipe, "--raw-logprobs").exit_code == 0
    assert "sampled at temperature 0.7" in run("cache", "info", served_recipe).stdout


def test_building_again_adds_new_rows_and_other_answers_are_refused(served_recipe, tmp_path):
    ask(served_recipe)
    assert "10 rows added" in run("cache", "build", served_recipe, "--limit", 10).stdout
    assert "20 rows added, 10 were there" in run("cache", "build", served_recipe).stdout
    refused = run("cache", "build", served_recipe, "--top-k", 5)
    assert "support top 20, not top 5" in refused.stderr
    assert "30 rows added" in run("cache", "build", served_recipe, "--top-k", 5, "--replace").stdout
    assert "are to be kept, and the answers list 20" in run("cache", "build", served_recipe, "--top-k", 50).stderr
    assert run("cache", "check", served_recipe).exit_code == 0


def test_parts_are_merged(served_recipe, tmp_path):
    ask(served_recipe)
    parts = [tmp_path / "1", tmp_path / "2"]
    for number, part in enumerate(parts, start=1):
        built = run("cache", "build", served_recipe, "--shard", f"{number}/2", "--set", f"teacher.cache={part}")
        assert built.exit_code == 0, built.output
    assert "30 rows added" in run("cache", "merge", tmp_path / "cache", *parts).stdout
    assert run("cache", "check", served_recipe).exit_code == 0


def test_answers_that_servers_of_several_nodes_gave_to_parts_of_the_rows_are_one_cache(served_recipe, tmp_path):
    rows = (tmp_path / "train.jsonl").read_text().splitlines(keepends=True)
    joined = tmp_path / "answers.jsonl"
    for number, part in enumerate((rows[:11], rows[11:]), start=1):
        source, answers = tmp_path / f"part-{number}.jsonl", tmp_path / f"answers-{number}.jsonl"
        source.write_text("".join(part))
        options = ("--max-new-tokens", 12, "--top-logprobs", K, "--set", f"data.train={source}", "--output", answers)
        assert run("generate", served_recipe, *options).exit_code == 0
        folder = ("--set", f"data.train={answers}", "--set", f"teacher.cache={tmp_path / str(number)}")
        assert run("cache", "build", served_recipe, *folder).exit_code == 0
        with joined.open("a") as file:
            file.write(answers.read_text())
    (tmp_path / "answers.jsonl.settings").write_bytes((tmp_path / "answers-1.jsonl.settings").read_bytes())
    assert "30 rows added" in run("cache", "merge", tmp_path / "cache", tmp_path / "1", tmp_path / "2").stdout
    checked = run("cache", "check", served_recipe)
    assert checked.exit_code == 0, checked.output
    again = run("cache", "build", served_recipe)
    assert "0 rows added, 30 were there" in again.stdout, again.output


def test_answers_of_two_models_are_not_one_teacher(served_recipe, tmp_path):
    rows = ask(served_recipe)
    rewrite(tmp_path, rows[:20] + [row | {"generated_by": "big-2027"} for row in rows[20:]])
    assert "come from several models (big, big-2027)" in run("cache", "build", served_recipe).stderr
    rewrite(tmp_path, [row | {"generated_by": "big-2027"} for row in rows])
    assert run("cache", "build", served_recipe).exit_code == 0
    assert TeacherCache(tmp_path / "cache").spec.revision == "big-2027"


def test_what_makes_no_sense_is_refused(served_recipe, tmp_path, write_recipe):
    prompts = run("cache", "build", served_recipe, "--set", f"data.train={tmp_path / 'train.jsonl'}")
    assert "of which kind this server is cannot be told" in prompts.stderr
    ask(served_recipe, top=0)
    assert "of which kind this server is cannot be told" in run("cache", "build", served_recipe).stderr
    mixed = ("--set", f"data.train=[{tmp_path / 'answers.jsonl'}, {tmp_path / 'train.jsonl'}]")
    settings = tmp_path / "answers.jsonl.settings"
    settings.write_text(settings.read_text().replace('"top_logprobs": 0', '"top_logprobs": 20'))
    assert "train.jsonl.settings: missing" in run("cache", "build", served_recipe, *mixed).stderr
    (tmp_path / "answers.jsonl").unlink()
    (tmp_path / "answers.jsonl.settings").unlink()
    ask(served_recipe)
    assert "need the whole distribution" in run("cache", "build", served_recipe, "--samples", 4).stderr
    against = run("cache", "build", served_recipe, "--set", f"teacher.check_against={tmp_path}/teacher")
    assert "teacher.check_against: a server that scores rows is tested" in against.stderr
    assert "no cache there" in run("train", served_recipe).stderr
    assert run("cache", "build", served_recipe).exit_code == 0
    assert "holds what 'big' said, not 'other'" in run("train", served_recipe, "--set", "teacher.model=other").stderr
    local = write_recipe(teacher={"cache": str(tmp_path / "local")})
    assert "--raw-logprobs goes with a teacher on a server" in run("cache", "build", local, "--raw-logprobs").stderr
    assert run("cache", "build", local).exit_code == 0
    changes = ("--set", "teacher.server=http://localhost:1/v1", "--set", f"data.train={tmp_path / 'answers.jsonl'}")
    assert "not from what a server says" in run("train", local, *changes).stderr
