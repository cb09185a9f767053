"""Rows that are there already, scored by a server, to a cache and to a student."""

import json
import os
import re
import signal
import time
from functools import partial

import numpy as np
import pytest
import torch
import yaml

from bridgegarden.recipe import load_recipe
from bridgegarden.run.cache import CacheOptions, build_recipe_cache
from bridgegarden.run.pair import recipe_pair
from bridgegarden.run.teachers import teacher_of
from bridgegarden.teacher.cache.reader import TeacherCache
from bridgegarden.teacher.cache.shard import documents_of
from bridgegarden.teacher.cache.spec import SMALLEST_TAIL
from tests.run.killed import ended, in_child
from tests.run.served import K, as_live, run
from tests.teacher.scoring_servers import ScoringModel, scoring
from tests.teacher.served_model import sharp_teacher
from tests.teacher.servers import status
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.slow

KINDS = ("vllm", "sglang", "llama.cpp", "trl")


@pytest.fixture
def score(write_recipe, tmp_path, monkeypatch):
    """Start a server of some kind, and write a recipe of it; returns the server's model, the recipe and the server."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    running = []

    def start(kind="vllm", **changes):
        model = ScoringModel(sharp_teacher(), kind)
        context = scoring(model)
        server = context.__enter__()
        running.append(context)
        path = write_recipe(training={"max_steps": 3, "logging_steps": 1, "max_length": 1024})
        tree = yaml.safe_load(path.read_text())
        tree["teacher"] = {"server": server.url, "model": "big", "cache": str(tmp_path / "cache")} | changes
        path.write_text(yaml.safe_dump(tree))
        return model, path, server

    yield start
    for context in running:
        context.__exit__(None, None, None)


def rows_of(recipe):
    loaded = load_recipe(recipe)
    return teacher_of(loaded).rows(recipe_pair(loaded)).train


@pytest.mark.parametrize("kind", KINDS)
def test_every_signal_is_the_live_teacher_s_within_the_encoding(score, tmp_path, kind):
    model, recipe, _ = score(kind)
    result = run("cache", "build", recipe, "--bits", "16", "--limit", 6)
    assert result.exit_code == 0, result.output
    cache, outside = TeacherCache(tmp_path / "cache"), 0
    assert cache.spec.served is not None
    assert (cache.spec.served.source, cache.spec.served.api, cache.spec.support.k) == ("scored", kind, K)
    for document in list(documents_of(rows_of(recipe)))[:6]:
        ours = cache.signals(document.key)
        live, labels = as_live(ours, document, model.model)
        outside += sum(int(label) not in kept for label, kept in zip(labels, ours.ids, strict=True))
        gap = live.entropy.numpy() - ours.entropy
        assert (gap > -1e-5).all()
    assert outside > 3
    checked = run("cache", "check", tmp_path / "cache")
    assert checked.exit_code == 0, checked.output


def test_it_is_trained_from_checked_and_shown_like_any_cache(score, tmp_path):
    _, recipe, server = score()
    built = run("cache", "build", recipe)
    assert built.exit_code == 0, built.output
    assert "testing the server: vLLM 0.22.1" in built.stderr
    assert "30 rows added" in built.stdout
    assert "waiting for the server" in built.stdout
    assert run("cache", "check", recipe).exit_code == 0
    shown = run("cache", "info", recipe).stdout
    assert "scored by      vLLM 0.22.1" in shown
    assert "its greedy answer, as it was written and scored: " in shown
    assert "the server would write the prompt in the same ids" in shown
    assert not (tmp_path / "cache" / "scored.jsonl").exists()
    server.seen.clear()
    again = run("cache", "build", recipe)
    assert "0 rows added, 30 were there" in again.stdout, again.output
    trained = run("train", recipe)
    assert trained.exit_code == 0, trained.output
    assert server.seen == []


BAD = {
    "temperature 2": (
        lambda m: setattr(m, "change", lambda logits: logits / 2),
        "what it says of the tokens it writes",
    ),
    "renormalised": (lambda m: setattr(m, "renormalised", True), "depends on how many are listed"),
    "off by one": (lambda m: setattr(m, "shift", 1), "what it says of the tokens it writes"),
    "fewer": (lambda m: setattr(m, "short_of", 1), "19 tokens are listed, and 20 were asked for"),
    "a limit": (lambda m: setattr(m, "most_listed", 5), "start it with --max-logprobs 20 or more"),
    "text": (lambda m: setattr(m, "as_text", True), "named as text, and ids are needed"),
    "other vocabulary": (lambda m: setattr(m, "spelling", tiny_tokenizer(turn_ids=(258, 257))), "another vocabulary"),
    "NaN": (lambda m: setattr(m, "change", lambda logits: logits * float("nan")), "expected log-probabilities"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_server_that_contradicts_itself_or_the_student_is_refused_before_anything_is_kept(score, tmp_path, fault):
    model, recipe, _ = score()
    spoil, words = BAD[fault]
    spoil(model)
    refused = run("cache", "build", recipe)
    assert refused.exit_code == 2, refused.output
    assert words in refused.stderr
    assert list((tmp_path / "cache" / "shards").iterdir()) == []
    assert not (tmp_path / "cache" / "scored.jsonl").exists()


@pytest.mark.parametrize("says", ["Requested {wanted}, max allowed {most}", "K must be in [0, {most}]", "no"])
def test_a_limit_of_listed_tokens_is_told_from_other_refusals_whatever_the_server_calls_it(score, says):
    model, recipe, _ = score()
    model.most_listed, model.says_of_limit = 5, says
    assert (
        "To list more, start it with --max-logprobs 20 or more; or keep fewer" in run("cache", "build", recipe).stderr
    )
    model.most_listed = 0  # which is another fault: not one is listed
    refused = run("cache", "build", recipe).stderr
    assert "the self-test of the server failed: HTTP 400" in refused
    assert "To list more" not in refused


def test_replicas_that_disagree_are_refused_with_both_values(score):
    model, recipe, _ = score()
    calls = iter(range(1000))
    model.change = lambda logits: logits if next(calls) % 2 else logits.flip(-1)
    refused = run("cache", "build", recipe)
    assert refused.exit_code == 2
    assert "its replies to the same text differ" in refused.stderr
    first, second = map(float, re.search(r": (-[\d.]+) and (-[\d.]+) nats; over ", refused.stderr).groups())
    assert abs(first - second) > 0.1


def test_text_without_a_prompt_and_rows_with_tools_are_scored_and_no_template_is_compared(score, tmp_path):
    model, recipe, _ = score()
    model.template = "{{ messages[0].content }} of another kind"
    tree = yaml.safe_load(recipe.read_text())
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    talk = {
        "messages": [{"role": "user", "content": "1 + 1"}, {"role": "assistant", "content": "two"}],
        "tools": [tool],
    }
    for number, row in enumerate(({"text": "a text of some words that is learnt wholly"}, talk)):
        (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
        tree["data"] = {"train": str(tmp_path / "train.jsonl")}
        tree["teacher"]["cache"] = str(tmp_path / f"cache-{number}")
        recipe.write_text(yaml.safe_dump(tree))
        built = run("cache", "build", recipe)
        assert built.exit_code == 0, built.output
        assert "chat template is not the one" not in built.stderr
        assert "chat template: not compared (the row has no plain prompt)" in run("cache", "info", recipe).stdout


def test_sglang_s_text_for_ids_and_other_ids_than_were_sent_are_refused(score):
    model, recipe, _ = score("sglang")
    model.as_text = True
    assert "a token is named as text" in run("cache", "build", recipe).stderr
    model.as_text = False
    scored = model._sglang
    model._sglang = lambda content: scored(content | {"input_ids": [7, *content["input_ids"][:-1]]})
    assert "it scores other ids" in run("cache", "build", recipe).stderr


def test_llama_cpp_s_answer_in_characters_of_several_tokens_is_not_taken_for_what_it_wrote(score):
    model, recipe, _ = score("llama.cpp")
    model.unsaid = 2
    built = run("cache", "build", recipe, "--limit", 3)
    assert built.exit_code == 0, built.output
    assert "its greedy answer, as it was written and scored: not compared" in built.stderr
    assert "its greedy answer, as it was written and scored: not compared" in run("cache", "info", recipe).stdout


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_server_with_the_weights_that_are_here_is_held_against_them_and_the_gap_is_shown(score, tmp_path, dtype):
    save_tiny(tmp_path / "served", sharp_teacher())
    _, recipe, _ = score(check_against=str(tmp_path / "served"), dtype=dtype)
    built = run("cache", "build", recipe)
    assert built.exit_code == 0, built.output
    for said in (built.stderr, run("cache", "info", recipe).stdout):
        found = re.search(rf"the weights that are here, {tmp_path}/served: ([\d.e-]+) nats apart on average, ", said)
        assert found is not None, said
        assert (float(found[1]) < 1e-5) == (dtype == "float32")
    assert run("train", recipe).exit_code == 0


def test_a_server_with_other_weights_than_those_here_is_refused_with_both_values(score, tmp_path):
    other = sharp_teacher()
    with torch.no_grad():
        other.lm_head.weight *= 1.5
    save_tiny(tmp_path / "other", other)
    _, recipe, _ = score(check_against=str(tmp_path / "other"))
    refused = run("cache", "build", recipe)
    assert refused.exit_code == 2
    assert f"what it says is not what {tmp_path}/other says here (teacher.check_against)" in refused.stderr
    theirs, ours = map(float, re.search(r": (-[\d.]+) and (-[\d.]+) nats; over ", refused.stderr).groups())
    assert abs(theirs - ours) > 0.1
    assert "where 0.1 and 0.6 are taken for rounding" in refused.stderr
    assert list((tmp_path / "cache" / "shards").iterdir()) == []


def test_weights_that_say_no_numbers_or_lack_a_token_are_no_proof_of_a_server(score, tmp_path):
    broken = sharp_teacher()
    with torch.no_grad():
        broken.lm_head.weight[0] = float("nan")
    save_tiny(tmp_path / "broken", broken)
    model, recipe, _ = score(check_against=str(tmp_path / "broken"))
    assert "nats; over" in run("cache", "build", recipe).stderr
    save_tiny(tmp_path / "served", tiny_model("llama", 259, hidden_size=48))
    model.model = sharp_teacher(300)
    with torch.no_grad():
        model.model.lm_head.weight[280] *= 20
    narrow = run("cache", "build", recipe, "--set", f"teacher.check_against={tmp_path}/served")
    assert narrow.exit_code == 2
    assert "has logits for 259" in narrow.stderr


def test_weights_that_cannot_be_compared_are_refused_before_the_server_is_asked(score, tmp_path):
    _, recipe, server = score(check_against=str(tmp_path / "nothing"))
    assert "teacher.check_against" in run("cache", "build", recipe).stderr
    assert server.seen == []
    alone = run("cache", "build", recipe, "--set", "teacher.server=null")
    assert "teacher.check_against: names the weights that teacher.server should have" in alone.stderr


def test_another_chat_template_is_a_warning_that_names_the_first_token(score):
    model, recipe, _ = score()
    assert model.template is not None
    model.template = model.template.replace("<|im_start|>{{", "<|im_start|>x{{")
    built = run("cache", "build", recipe)
    assert built.exit_code == 0
    assert "chat template is not the one that the rows are written with: token 1 of the first row" in built.stderr
    assert "data.chat_template" in run("cache", "info", recipe).stdout


def test_rows_that_the_server_refuses_are_named_and_others_go_on(score, tmp_path):
    model, recipe, _ = score()
    long = {"question": "9 + 9 = " * 20, "answer": "18"}
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write("\n" + json.dumps(long) + "\n")
    model.longest = 100
    refused = run("cache", "build", recipe)
    assert refused.exit_code == 2
    assert "did not score 1 row (row 30; the first: HTTP 400: maximum context length is 100 tokens" in refused.stderr
    assert "30 rows were added" in refused.stderr
    assert "--skip-unusable" in refused.stderr
    assert run("train", recipe).exit_code == 2
    built = run("cache", "build", recipe, "--skip-unusable")
    assert built.exit_code == 0, built.output
    assert "left out: the server did not score 1 row" in built.stdout
    assert run("train", recipe).exit_code == 0
    model.longest = 10**6
    assert "1 row added, 30 were there" in run("cache", "build", recipe).stdout
    assert json.loads((tmp_path / "cache" / "left-out.json").read_text()) == {}


def test_a_row_that_is_scored_after_all_is_learnt_though_another_is_still_refused(score, tmp_path):
    model, recipe, _ = score()
    with (tmp_path / "train.jsonl").open("a") as file:
        for times in (20, 60):
            file.write("\n" + json.dumps({"question": "9 + 9 = " * times, "answer": "18"}) + "\n")
    model.longest = 100
    assert run("cache", "build", recipe, "--skip-unusable").exit_code == 0
    model.longest = 300
    again = run("cache", "build", recipe, "--skip-unusable")
    assert "1 row added, 30 were there" in again.stdout
    assert len(json.loads((tmp_path / "cache" / "left-out.json").read_text())) == 1
    assert len(rows_of(recipe)) == 31


def test_which_rows_were_refused_goes_with_the_cache_when_it_is_merged_or_shared(score, tmp_path):
    model, recipe, _ = score()
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"question": "9 + 9 = " * 20, "answer": "18"}) + "\n")
    model.longest = 100
    for part in ("1/2", "2/2"):
        options = ("--shard", part, "--set", f"teacher.cache={tmp_path}/part-{part[0]}", "--skip-unusable")
        built = run("cache", "build", recipe, *options)
        assert built.exit_code == 0, built.output
    merged = run("cache", "merge", tmp_path / "cache", tmp_path / "part-1", tmp_path / "part-2")
    assert merged.exit_code == 0, merged.output
    assert len(json.loads((tmp_path / "cache" / "left-out.json").read_text())) == 1
    assert "scored by      vLLM" in run("cache", "info", tmp_path / "cache").stdout
    assert run("train", recipe).exit_code == 0
    assert run("cache", "push", tmp_path / "cache", f"{tmp_path}/shared").exit_code == 0
    assert run("cache", "pull", f"{tmp_path}/shared", tmp_path / "pulled").exit_code == 0
    alone = ("teacher.server=null", f"teacher.cache={tmp_path}/pulled", "teacher.only_cache=true")
    learnt = run("train", recipe, *(part for one in alone for part in ("--set", one)), "--set", f"output={tmp_path}/b")
    assert learnt.exit_code == 0, learnt.output


def test_a_server_that_refuses_everything_is_given_up(score, tmp_path):
    _, recipe, server = score()
    tested = []
    server.always = lambda content: status(400, "no more") if len(server.seen) > 8 else tested.append(1)
    refused = run("cache", "build", recipe)
    assert refused.exit_code == 2
    # Several may be under way when it is enough.
    assert re.search(
        r"2\d rows were refused one after the other, the last one because: HTTP 400: no more", refused.stderr
    )


def test_a_build_that_is_killed_asks_nothing_twice(score, tmp_path):
    model, recipe, server = score()

    def slowly(content):
        time.sleep(0.05)

    server.always = slowly
    child = in_child(lambda: build_recipe_cache(load_recipe(recipe), CacheOptions(concurrency=1)))
    journal = tmp_path / "cache" / "scored.jsonl"
    while not journal.exists() or journal.read_bytes().count(b"\n") < 5:
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    assert ended(child) == -signal.SIGKILL
    whole = journal.read_bytes()
    kept = {json.loads(line)["key"] for line in whole.splitlines()[: whole.count(b"\n")]}
    journal.write_bytes(whole[: whole.rfind(b"\n") + 1] + b'{"spec": "torn')
    documents = {bytes(document.ids): document for document in documents_of(rows_of(recipe))}
    model.asked.clear()
    built = run("cache", "build", recipe)
    assert built.exit_code == 0, built.output
    assert "30 rows added" in built.stdout
    asked = [documents[text].key.hex() for ids in model.asked if (text := bytes(np.array(ids, np.int32))) in documents]
    assert len(kept) >= 5
    # The text of the self-test may be a row's.
    tested = {key for key in asked if asked.count(key) > 1}
    assert len(tested) <= 1
    assert not kept & (set(asked) - tested)
    assert run("cache", "check", recipe).exit_code == 0


def test_killed_at_any_request_it_has_kept_all_that_was_answered_before(score, tmp_path):
    """One request at a time: when the server gets the next one, what it replied to the one before is written down."""
    _, recipe, server = score()
    assert run("cache", "build", recipe, "--limit", 10, "--concurrency", 1).exit_code == 0
    first = len(server.seen) - 10  # of the rows: before them the server is tested
    rows, whole = [content["prompt"] for content in server.seen[first:]], shards(tmp_path / "cache")
    changes, kept = [f"teacher.cache={tmp_path / 'killed'}"], 0
    for at in (0, first - 1, first, first + 1, first + 2, first + 3):
        server.seen.clear()
        child: list[int] = []
        server.always = partial(_kill_at, server.seen, at, child)
        child.append(
            in_child(lambda: build_recipe_cache(load_recipe(recipe, changes), CacheOptions(limit=10, concurrency=1)))
        )
        assert ended(child[0]) == -signal.SIGKILL
        asked = [content["prompt"] for content in server.seen[first:]]
        assert asked == rows[kept : kept + len(asked)]
        kept += max(0, len(asked) - 1)
    assert kept == 6
    server.always = lambda content: None
    server.seen.clear()
    assert run("cache", "build", recipe, "--limit", 10, "--concurrency", 1, "--set", changes[0]).exit_code == 0
    assert [content["prompt"] for content in server.seen[first:]] == rows[kept:]
    assert shards(tmp_path / "killed") == whole


def shards(cache):
    return {path.name: path.read_bytes() for path in (cache / "shards").glob("*.arrow")}


def _kill_at(seen, number, child, content):
    """Before it is replied to request `number`, counted from 0."""
    if len(seen) == number + 1:
        while not child:
            time.sleep(0.001)
        os.kill(child[0], signal.SIGKILL)


def test_a_server_that_is_away_for_a_moment_is_waited_for(score):
    _, recipe, server = score()
    server.faults = [status(503), status(429, retry_after="0")]
    assert run("cache", "build", recipe, "--limit", 3).exit_code == 0


def test_what_is_no_server_that_scores_is_refused_and_what_makes_no_sense_too(score, tmp_path):
    model, recipe, _ = score()
    model.about = {}
    refused = run("cache", "build", recipe)
    assert refused.exit_code == 2
    assert "of which kind this server is cannot be told" in refused.stderr
    assert run("cache", "build", recipe, "--set", "teacher.api=vllm").exit_code == 0
    other = run("cache", "build", recipe, "--set", "teacher.api=sglang")
    assert "rows scored by vllm, not rows scored by sglang" in other.stderr
    assert "need the whole distribution" in run("cache", "build", recipe, "--samples", 4).stderr
    assert "here it scores rows" in run("cache", "build", recipe, "--raw-logprobs").stderr
    alone = run("cache", "build", recipe, "--set", "teacher.server=null", "--set", "teacher.api=vllm")
    assert "teacher.api: says of which kind teacher.server is" in alone.stderr
    assert SMALLEST_TAIL == 1e-7
