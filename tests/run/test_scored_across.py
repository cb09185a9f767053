"""A server with another tokenizer than the student's: it scores the rows in its own tokens, and that is translated."""

import json
import os
import shutil
import signal
import time
from copy import deepcopy

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from bridgegarden.data.teacher_prompt import TEACHER_IDS, TEACHER_LABELS
from bridgegarden.objective.alignment import SupervisedPositions
from bridgegarden.recipe import load_recipe
from bridgegarden.run.cache import CacheOptions, build_recipe_cache
from bridgegarden.run.pair import filed_rows, recipe_pair
from bridgegarden.run.teachers import teacher_of
from bridgegarden.teacher.cache.reader import TeacherCache
from bridgegarden.teacher.cache.shard import documents_of
from bridgegarden.teacher.live import LiveTeacher
from bridgegarden.teacher.translated import SHARES, TranslatedCache, TranslatedModel
from tests.run.conftest import ROWS
from tests.run.killed import ended, finished, in_child
from tests.run.served import K, run
from tests.teacher.scoring_servers import ScoringModel, scoring
from tests.teacher.served_model import sharp_teacher
from tests.tiny import CHAT_TEMPLATE, save_tiny, tiny_model, tiny_tokenizer
from tests.tokenizer_pairs import HEADERS, ones, thinks, threes
from tests.tokenizer_pairs import ROWS as WORDS

pytestmark = pytest.mark.slow

STUDENTS = {"bytes": tiny_tokenizer, "ones": ones, "thinks": thinks}


def served():
    """What is behind the server: sharp enough for its likeliest tokens to have most of the mass."""
    model = sharp_teacher(len(threes()))
    with torch.no_grad():
        model.lm_head.weight *= 8
    return model


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """Start a server whose model has a tokenizer of three digits, and write a recipe; returns its model, the recipe and
    the server."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    running = []

    def start(kind="vllm", student="bytes", rows=WORDS, **changes):
        model = ScoringModel(served(), kind)
        model.tokenizer = model.spelling = threes()
        model.template = HEADERS
        context = scoring(model)
        server = context.__enter__()
        running.append(context)
        threes().save_pretrained(tmp_path / "tokens")
        tokenizer = STUDENTS[student]()
        save_tiny(tmp_path / "student", tiny_model("qwen2", len(tokenizer) + 5, seed=2), tokenizer)
        (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
        tree = {
            "teacher": {"server": server.url, "model": "big", "cache": str(tmp_path / "cache")}
            | {"tokenizer": str(tmp_path / "tokens")}
            | changes,
            "student": {"model": str(tmp_path / "student")},
            "data": {"train": str(tmp_path / "train.jsonl"), "prompt": "question", "completion": "answer"},
            "objective": {"preset": "confidence"},
            "training": {"max_steps": 2, "per_device_train_batch_size": 4, "logging_steps": 1},
            "output": str(tmp_path / "out"),
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(tree))
        return model, path, server

    yield start
    for context in running:
        context.__exit__(None, None, None)


def changed(*changes):
    return [part for one in changes for part in ("--set", one)]


def prepared(document, cache):
    """A row as Axolotl prepares them: a list a token, those before the answer of no use."""
    said = cache.signals(document.key)
    ids, logps = np.zeros((len(document.ids), K), int), np.full((len(document.ids), K), -1e9)
    ids[:] = np.arange(K)
    supervised = np.flatnonzero(document.labels[1:] != -100)
    ids[supervised], logps[supervised] = said.ids, said.logp
    return {
        "input_ids": document.ids.tolist(),
        "target_token_ids": ids.tolist(),
        "target_logprobs": logps.tolist(),
    }


def as_masses(parts, size):
    """``(M, V + 1)`` what a translated signal gives every token of the student's, and the tail."""
    masses = torch.zeros(len(parts["ids"]), size + 1)
    ids = parts["ids"].long()
    masses.scatter_add_(1, torch.where(ids < 0, size, ids), torch.where(ids < 0, 0.0, parts["logp"].exp()))
    masses[:, size] += parts["log_tail"].exp()
    return masses


@pytest.mark.parametrize(("kind", "student"), [("vllm", "bytes"), ("sglang", "ones"), ("trl", "thinks")])
def test_what_a_server_says_is_translated_as_the_same_model_here_is(serve, tmp_path, kind, student):
    model, path, _ = serve(kind, student)
    built = run("cache", "build", path, "--bits", "16")
    assert built.exit_code == 0, built.output
    assert "different tokenizers, the teacher's distribution is translated (teacher: 379 tokens" in built.stderr
    recipe = load_recipe(path)
    pair, cache = recipe_pair(recipe, translates=True), TeacherCache(tmp_path / "cache")
    assert cache.spec.vocab_size == len(threes())
    assert pair.tokens is not None
    size = len(pair.tokens.translation.student)
    ours, live = TranslatedCache(cache, pair.tokens), LiveTeacher(model.model, top_k=K)
    kinds = set()
    for row in map(dict, teacher_of(recipe).rows(pair).train):
        found = ours.collate([row])
        ids, labels = torch.tensor([row[TEACHER_IDS]]), torch.tensor([row[TEACHER_LABELS]])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | pair.tokens.aligned([row])
        said = TranslatedModel(live, pair.tokens).at(
            SupervisedPositions.from_labels(labels), inputs, vocab_size=size, exponents=()
        )
        expected = {name: getattr(said.signal, name) for name in ("ids", "logp", "log_tail", "argmax", "label_logp")}
        torch.testing.assert_close(as_masses(found, size), as_masses(expected, size), atol=2e-4, rtol=0)
        torch.testing.assert_close(found["facts"], said.facts, atol=2e-4, rtol=0)
        torch.testing.assert_close(found["label_logp"], expected["label_logp"], atol=2e-4, rtol=1e-3, equal_nan=True)
        torch.testing.assert_close(found["argmax"].long(), expected["argmax"], rtol=0, atol=0)
        kinds |= set(found["facts"][:, :3].argmax(1).tolist())
    assert {0, 2} <= kinds


def test_it_is_checked_shown_planned_and_trained_from_without_the_server(serve, tmp_path):
    _, recipe, server = serve(rows=ROWS[:12])
    assert run("cache", "build", recipe).exit_code == 0
    server.seen.clear()
    assert run("cache", "check", recipe).exit_code == 0
    shown = run("cache", "info", recipe, "--student", tmp_path / "student", "--json")
    assert shown.exit_code == 0, shown.output
    [test] = [line for line in run("cache", "info", recipe).stdout.splitlines() if "vocabulary: " in line]
    assert f"ids are spelt as by the tokenizer {tmp_path}/tokens" in test
    planned = run("plan", recipe)
    assert "no teacher in memory" in planned.stdout
    assert "The teacher has another tokenizer and reads rows of" in planned.stdout
    assert "as the teacher reads it: " in run("train", recipe, "--audit").stdout
    trained = run("train", recipe, *changed("training.per_device_train_batch_size=12", "training.max_steps=1"))
    assert trained.exit_code == 0, trained.output
    assert "loading teacher" not in trained.stderr
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["tokenizers"] == "translated"
    assert record["teacher"]["tokenizer"] == str(tmp_path / "tokens")
    shares = json.loads(shown.stdout)["student"]["shares"]
    assert shares == pytest.approx({name: record["training"][name] for name in SHARES}, abs=1e-6)
    assert 0 < shares["exact_mass"] < 1
    assert server.seen == []


def test_a_build_that_is_killed_asks_nothing_twice(serve, tmp_path):
    model, recipe, server = serve(rows=ROWS[:12])
    server.always = lambda content: time.sleep(0.03)
    child = in_child(lambda: build_recipe_cache(load_recipe(recipe), CacheOptions(concurrency=1)))
    journal = tmp_path / "cache" / "scored.jsonl"
    while not journal.exists() or journal.read_bytes().count(b"\n") < 4:
        assert not finished(child)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    assert ended(child) == -signal.SIGKILL
    whole = journal.read_bytes()
    kept = {json.loads(line)["key"] for line in whole.splitlines()[: whole.count(b"\n")]}
    loaded = load_recipe(recipe)
    pair = recipe_pair(loaded, translates=True)
    filed = filed_rows(teacher_of(loaded).rows(pair), pair)["train"]
    documents = {tuple(document.ids.tolist()): document.key.hex() for document in documents_of(filed)}
    assert kept <= set(documents.values())
    model.asked.clear()
    built = run("cache", "build", recipe)
    assert built.exit_code == 0, built.output
    assert "12 rows added" in built.stdout
    asked = [documents[tuple(ids)] for ids in model.asked if tuple(ids) in documents]
    tested = {key for key in asked if asked.count(key) > 1}  # by the self-test
    assert not kept & (set(asked) - tested)
    assert len(set(asked)) >= 12 - len(kept) - 1
    assert run("cache", "check", recipe).exit_code == 0


def test_rows_that_it_refuses_are_left_out_of_the_training_and_of_a_copy_of_the_cache(serve, tmp_path):
    long = {"question": "9 + 9 = " * 40, "answer": "18"}
    model, recipe, _ = serve(rows=[*ROWS[:6], long])
    model.longest = 100
    built = run("cache", "build", recipe, "--skip-unusable")
    assert built.exit_code == 0, built.output
    assert "left out: the server did not score 1 row" in built.stdout
    trained = run("train", recipe)
    assert trained.exit_code == 0, trained.output
    shutil.copytree(tmp_path / "cache", tmp_path / "copy")
    alone = ("teacher.server=null", f"teacher.cache={tmp_path}/copy", "teacher.only_cache=true", f"output={tmp_path}/b")
    learnt = run("train", recipe, *changed(*alone))
    assert learnt.exit_code == 0, learnt.output
    records = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("out", "b")]
    assert [record["rows"]["train"] for record in records] == [6, 6]
    assert records[0]["training"]["soft_loss"] == records[1]["training"]["soft_loss"]
    assert run("cache", "check", recipe, *changed(*alone)).exit_code == 0


def test_its_weights_are_held_against_it_in_its_own_tokens(serve, tmp_path):
    save_tiny(tmp_path / "weights", served(), threes())
    _, recipe, _ = serve(rows=ROWS[:4], check_against=str(tmp_path / "weights"))
    built = run("cache", "build", recipe)
    assert built.exit_code == 0, built.output
    assert f"the weights that are here, {tmp_path}/weights: " in built.stderr
    refused = run("cache", "build", recipe, *changed(f"teacher.check_against={tmp_path}/student"), "--replace")
    assert refused.exit_code == 2
    assert (
        f"teacher.check_against '{tmp_path}/student': '{tmp_path}/student' and '{tmp_path}/tokens' have"
        in refused.stderr
    )
    assert f"teacher.tokenizer is '{tmp_path}/tokens'; name weights that have it" in refused.stderr
    unnamed = run("cache", "build", recipe, *changed("teacher.tokenizer=null"), "--replace")
    assert unnamed.exit_code == 2
    assert f"--set teacher.tokenizer={tmp_path}/weights" in unnamed.stderr


def test_one_of_the_student_s_family_is_named_and_nothing_is_translated(serve, tmp_path):
    model, recipe, _ = serve(rows=ROWS[:4])
    model.model = sharp_teacher()
    model.tokenizer = model.spelling = tiny_tokenizer()
    model.template = CHAT_TEMPLATE
    tiny_tokenizer().save_pretrained(tmp_path / "same")
    named = changed(f"teacher.tokenizer={tmp_path}/same")
    built = run("cache", "build", recipe, *named)
    assert built.exit_code == 0, built.output
    assert "different tokenizers" not in built.stderr
    for change in (named, changed("teacher.tokenizer=null")):
        checked = run("cache", "check", recipe, *change)
        assert checked.exit_code == 0, checked.output
    extra = run("train", recipe, *named, *changed("teacher.translation.threshold=0.1"))
    assert "teacher and student have the same tokenizer, so nothing is translated" in extra.stderr


def test_what_is_another_tokenizer_than_is_named_is_refused(serve, tmp_path):
    model, recipe, _ = serve(rows=ROWS[:4])
    unnamed = changed("teacher.tokenizer=null")
    wrong = run("cache", "build", recipe, *unnamed)  # its ids are spelt otherwise there
    assert wrong.exit_code == 2
    assert "it has another vocabulary than the student: id" in wrong.stderr
    assert "or name that tokenizer (teacher.tokenizer)" in wrong.stderr
    model.spelling = tiny_tokenizer()
    other = run("cache", "build", recipe, "--replace")
    assert other.exit_code == 2
    assert f"it has another vocabulary than the tokenizer {tmp_path}/tokens: id" in other.stderr
    assert "Name the tokenizer of the model that is served (teacher.tokenizer)" in other.stderr
    assert list((tmp_path / "cache" / "shards").iterdir()) == []
    model.spelling, model.template = threes(), "{{ messages[0].content }}"
    warned = run("cache", "build", recipe)
    assert warned.exit_code == 0, warned.output
    assert "save that with the tokenizer (teacher.tokenizer)" in warned.stderr
    for command in (("train",), ("cache", "check")):
        missing = run(*command, recipe, *unnamed)
        assert missing.exit_code == 2
        assert "is about the tokens of another tokenizer" in missing.stderr
        assert "(--set teacher.tokenizer=NAME), or take a student that has it" in missing.stderr
    ones().save_pretrained(tmp_path / "ones")
    ones_named = changed(f"teacher.tokenizer={tmp_path}/ones")
    another = run("train", recipe, *ones_named)
    assert another.exit_code == 2
    assert "with which the cache was built" in another.stderr
    save_tiny(tmp_path / "of-ones", tiny_model("qwen2", len(ones()), seed=3), ones())
    for student in ("student", "of-ones"):  # of which the second has the tokenizer that is named
        shown = run("cache", "info", recipe, "--student", tmp_path / student, *ones_named)
        assert shown.exit_code == 2
        assert "built with tokenizer" in shown.stderr
        assert "belong together" in shown.stderr
    shares = run("cache", "info", recipe, "--student", tmp_path / "student", *unnamed)
    assert "Name it (--set teacher.tokenizer=NAME: a folder, or a name on the hub)" in shares.stderr


def test_a_cache_of_rows_in_another_chat_template_is_refused_before_weights_are_loaded(serve, tmp_path):
    _, recipe, _ = serve(rows=ROWS[:4])
    assert run("cache", "build", recipe).exit_code == 0
    bare = deepcopy(threes())
    bare.chat_template = None
    bare.save_pretrained(tmp_path / "bare")
    refused = run("train", recipe, *changed(f"teacher.tokenizer={tmp_path}/bare"))
    assert refused.exit_code == 2
    assert "built with chat template" in refused.stderr
    assert f"but rows are read with that of teacher.tokenizer '{tmp_path}/bare'" in refused.stderr
    assert "loading student" not in refused.stderr


def test_the_student_s_own_tokenizer_named_for_another_server_is_refused_by_that_name(serve, tmp_path):
    _, recipe, _ = serve(rows=ROWS[:4])
    refused = run("cache", "build", recipe, *changed(f"teacher.tokenizer={tmp_path}/student"))
    assert refused.exit_code == 2
    assert f"it has another vocabulary than the tokenizer {tmp_path}/student: id" in refused.stderr
    assert "Name the tokenizer of the model that is served (teacher.tokenizer)" in refused.stderr


@pytest.mark.parametrize("named", ["bytes", None])
def test_a_server_that_spells_no_ids_and_expects_those_that_nobody_has_is_refused(serve, tmp_path, named):
    model, recipe, _ = serve("trl", rows=ROWS[:4])  # the student has 259 tokens, and the server 379
    tiny_tokenizer().save_pretrained(tmp_path / "bytes")
    name = "null" if named is None else f"{tmp_path}/{named}"
    model.change = lambda logits: torch.cat([logits[:, :259], logits[:, 259:] + 8], 1)
    refused = run("cache", "build", recipe, *changed(f"teacher.tokenizer={name}"))
    assert refused.exit_code == 2
    whose = "the student" if named is None else f"the tokenizer {tmp_path}/bytes"
    assert f"of the probability that it gives is on ids that {whose} does not have, such as" in refused.stderr
    assert "the last one here is 258" in refused.stderr
    assert ("Take a student with" if named is None else "Name the tokenizer of the model") in refused.stderr
    assert list((tmp_path / "cache" / "shards").iterdir()) == []
    right = run("cache", "build", recipe, "--replace")
    assert right.exit_code == 0, right.output


def test_a_teacher_that_finds_the_rows_less_likely_than_chance_is_doubted(serve):
    model, recipe, _ = serve("trl", rows=ROWS[:4])
    doubted = run("cache", "build", recipe)
    assert "warning: that is more than the 5.9 nats of all 379 tokens being equally likely" in doubted.stdout
    model.change = torch.zeros_like
    chance = run("cache", "build", recipe, "--replace")
    assert chance.exit_code == 0, chance.output
    assert "warning" not in chance.stdout


@pytest.mark.parametrize("kind", ["export", "axolotl"])
def test_what_somebody_else_kept_in_the_teacher_s_tokens_is_imported_and_translated(serve, tmp_path, kind):
    _, recipe, _ = serve(rows=ROWS[:12])
    assert run("cache", "build", recipe, "--bits", "16").exit_code == 0
    assert run("cache", "export", recipe, tmp_path / "said.parquet").exit_code == 0
    built, loaded = TeacherCache(tmp_path / "cache"), load_recipe(recipe)
    pair = recipe_pair(loaded, translates=True)
    filed = list(documents_of(filed_rows(teacher_of(loaded).rows(pair), pair)["train"]))
    file = tmp_path / "said.parquet"
    if kind == "axolotl":
        file = tmp_path / "prepared.parquet"
        pq.write_table(pa.Table.from_pylist([prepared(document, built) for document in filed]), file)
    alone = changed("teacher.server=null", "teacher.only_cache=true", f"teacher.cache={tmp_path}/brought")
    brought = run("cache", "import", recipe, file, "--bits", "16", *alone)
    assert brought.exit_code == 0, brought.output
    assert f"{tmp_path}/brought: 12 rows added" in brought.stdout
    theirs = TeacherCache(tmp_path / "brought")
    assert theirs.spec.vocab_size == len(threes())
    for document in filed:
        ours, again = built.signals(document.key), theirs.signals(document.key)
        np.testing.assert_array_equal(ours.ids, again.ids)
        np.testing.assert_allclose(ours.logp, again.logp, atol=2e-4)
    assert run("cache", "check", recipe, *alone).exit_code == 0
    trained = [run("train", recipe, *where, *changed(f"output={tmp_path}/{n}")) for n, where in enumerate(((), alone))]
    assert [done.exit_code for done in trained] == [0, 0], trained[1].output
    records = [json.loads((tmp_path / str(n) / "run.json").read_text())["training"] for n in range(2)]
    for name in ("soft_loss", *SHARES):
        assert records[0][name] == pytest.approx(records[1][name], abs=2e-3), name
    unnamed = run("cache", "import", recipe, file, "--replace", *alone, *changed("teacher.tokenizer=null"))
    assert unnamed.exit_code == 2
    assert "name it (--set teacher.tokenizer=NAME)" in unnamed.stderr
    ones().save_pretrained(tmp_path / "ones")
    other = run("cache", "import", recipe, file, "--replace", *alone, *changed(f"teacher.tokenizer={tmp_path}/ones"))
    assert f"They were read with another tokenizer than '{tmp_path}/ones'" in other.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("teacher.server=null",), "teacher.tokenizer: names the tokenizer of a teacher whose model is not here"),
        (("teacher.tokenizer={}/train.jsonl",), "is a file; expected a folder with tokenizer.json, or a name on"),
        (("teacher.tokenizer={}",), "holds no tokenizer.json"),
        (("teacher.tokenizer={}/nothing",), "no such folder"),
        (("teacher.tokenizer=null", "teacher.translation.threshold=0.1"), "which tokenizer the teacher has is not"),
        (("objective.temperature=2",), "objective: the teacher has another tokenizer"),
        (("training.packing=true",), "training.packing: teacher and student have different tokenizers"),
    ],
)
def test_what_does_not_go_with_it_is_refused_before_the_server_is_asked(serve, tmp_path, changes, message):
    _, recipe, server = serve(rows=ROWS[:4])
    refused = run("cache", "build", recipe, *changed(*(change.format(tmp_path) for change in changes)))
    assert refused.exit_code == 2, refused.output
    assert message in refused.stderr
    assert server.seen == []


def test_answers_with_log_probabilities_are_not_translated_and_a_copy_of_them_is_scored(serve, tmp_path):
    _, recipe, server = serve(rows=ROWS[:4])
    data = tmp_path / "train.jsonl"
    answers_settings = {"temperature": 1.0, "max_new_tokens": 12, "top_logprobs": K}
    data.with_name("train.jsonl.settings").write_text(json.dumps(answers_settings))
    for command in (("cache", "build"), ("train",)):
        refused = run(*command, recipe)
        assert refused.exit_code == 2
        assert "the rows are answers with log-probabilities, which name the teacher's tokens by" in refused.stderr
    assert server.seen == []
    hard = changed("objective.preset=hard", "objective.hard_target=data")
    assert run("train", recipe, *hard).exit_code == 0
    shutil.copy(data, tmp_path / "copy.jsonl")
    assert run("cache", "build", recipe, *changed(f"data.train={tmp_path}/copy.jsonl")).exit_code == 0
