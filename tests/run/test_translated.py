"""Recipes whose teacher has another tokenizer: built, trained from, shown, and refused where that makes no sense."""

import json

import pytest
import yaml
from click.testing import CliRunner
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from bridgegarden.cli.main import cli
from bridgegarden.recipe import load_recipe
from bridgegarden.run.pair import recipe_pair
from bridgegarden.run.teachers import signals_of
from bridgegarden.teacher.cache.reader import TeacherCache
from bridgegarden.teacher.live import LiveTeacher
from bridgegarden.teacher.translated import SHARES
from tests.run.conftest import ROWS
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer
from tests.tokenizer_pairs import ones, threes

pytestmark = pytest.mark.slow


def run(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture
def recipe(tmp_path):
    """A teacher of tokens of three digits, a student of bytes, and a cache that is not built yet."""
    teacher = tiny_model("llama", len(threes()) + 5, hidden_size=48, seed=1)
    teacher.get_output_embeddings().weight.data *= 40
    save_tiny(tmp_path / "teacher", teacher, threes())
    save_tiny(tmp_path / "student", tiny_model("qwen2", 264, seed=2))
    for name, rows in (("train", ROWS[:30]), ("eval", ROWS[30:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tree = {
        "teacher": {"model": str(tmp_path / "teacher"), "cache": str(tmp_path / "cache")},
        "student": {"model": str(tmp_path / "student")},
        "data": {
            **{name: str(tmp_path / f"{name}.jsonl") for name in ("train", "eval")},
            **{"prompt": "question", "completion": "answer"},
        },
        "objective": {"preset": "confidence"},
        "training": {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 5e-3, "logging_steps": 2},
        "output": str(tmp_path / "out"),
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path / "recipe.yaml"


def test_a_cache_gives_the_training_that_the_live_teacher_gives(recipe, tmp_path):
    live = run("train", recipe, "--set", "teacher.cache=null", "--set", "teacher.top_k=1000")
    assert live.exit_code == 0, live.output
    assert "different tokenizers, the teacher's distribution is translated (teacher: 379 tokens, its own" in live.stderr
    assert "a turn ends with '<|eot|>'; student: 259 tokens, its own chat template, a turn ends with" in live.stderr
    (tmp_path / "out").rename(tmp_path / "live")
    build = run("cache", "build", recipe, "--top-k", "1000", "--bits", "16")
    assert build.exit_code == 0, build.output
    assert "different tokenizers, the teacher's distribution is translated" in build.stderr
    assert run("cache", "check", recipe).exit_code == 0
    cached = run("train", recipe)
    assert cached.exit_code == 0, cached.output
    records = {name: json.loads((tmp_path / name / "run.json").read_text()) for name in ("out", "live")}
    for term in ("soft_loss", "hard_loss", "soft_weight", *SHARES):
        theirs = {name: record["evaluation"][term] for name, record in records.items()}
        assert theirs["out"] == pytest.approx(theirs["live"], rel=2e-3, abs=1e-3), term
    record = records["out"]
    assert record["tokenizers"] == "translated"
    assert record["translation"] == {"threshold": 0.5, "tolerance": 0.02}
    assert "two, threshold 0.5, tolerance 0.02" in (tmp_path / "out" / "model" / "README.md").read_text()
    assert 0.5 < record["training"]["exact_mass"] <= 1
    for name in SHARES:
        assert name in cached.stdout
    assert "hard only 0.0%" in cached.stderr
    assert records["live"]["data"] == record["data"]


def test_the_cache_is_in_the_teachers_own_tokens_and_serves_its_own_family_too(recipe, tmp_path):
    assert run("cache", "build", recipe).exit_code == 0
    cache = TeacherCache(tmp_path / "cache")
    assert cache.width == len(threes())
    save_tiny(tmp_path / "sibling", tiny_model("llama", len(threes()), seed=3), threes())
    save_tiny(tmp_path / "other", tiny_model("qwen2", len(ones()), seed=4), ones())
    for name, relation in (("sibling", "padded"), ("other", "translated")):
        change = ("--set", f"student.model={tmp_path / name}", "--set", f"output={tmp_path / f'run-{name}'}")
        assert run("cache", "check", recipe, *change).exit_code == 0
        again = run("cache", "build", recipe, *change)
        assert again.exit_code == 0, again.output
        assert "0 rows added" in again.stdout or "nothing" in again.stdout
        trained = run("train", recipe, *change)
        assert trained.exit_code == 0, trained.output
        assert json.loads((tmp_path / f"run-{name}" / "run.json").read_text())["tokenizers"] == relation


def test_the_shares_for_any_student_are_those_that_its_training_logs(recipe, tmp_path):
    assert run("cache", "build", recipe, "--top-k", "8").exit_code == 0
    save_tiny(tmp_path / "other", tiny_model("qwen2", len(ones()), seed=4), ones())
    save_tiny(tmp_path / "sibling", tiny_model("llama", len(threes()), seed=3), threes())
    told = run("cache", "info", recipe, "--student", tmp_path / "other", "--json")
    assert told.exit_code == 0, told.output
    known = json.loads(told.stdout)["student"]
    # An epoch on rows that no step changes: what is logged of it is the mean over all of them.
    change = ("--set", f"student.model={tmp_path / 'other'}", "--set", "training.per_device_train_batch_size=30")
    trained = run("train", recipe, *change, "--set", "training.max_steps=1", "--set", "training.logging_steps=1")
    assert trained.exit_code == 0, trained.output
    logged = json.loads((tmp_path / "out" / "run.json").read_text())["training"]
    assert known["shares"] == pytest.approx({name: logged[name] for name in SHARES}, abs=1e-6)
    assert (known["rows"], known["threshold"]) == (30, 0.5)
    text = run("cache", "info", recipe, "--student", tmp_path / "other").stdout
    assert f"for a student  {tmp_path / 'other'}: {known['positions']} tokens of the first 30 training rows" in text
    assert f"{known['shares']['hard_only_share']:.1%} hard labels only" in text
    same = run("cache", "info", recipe, "--student", tmp_path / "sibling")
    assert "it has the teacher's tokenizer, so that nothing is translated" in same.stdout
    refused = run("cache", "info", tmp_path / "cache", "--student", tmp_path / "other")
    assert refused.exit_code == 2
    assert "--student needs the rows, which a cache does not hold. Give the recipe" in refused.stderr


def test_how_much_the_tokenizers_decide_is_said_before_anything_is_loaded(recipe):
    """Of a teacher of letters and a student of bytes: all of it, wherever a token has one letter."""
    done = run("cache", "build", recipe)
    assert done.exit_code == 0, done.output
    said = done.stderr.partition("loading teacher")[0]
    answers = [row["answer"] for row in ROWS[:16]]
    assert (
        f"of the student's {sum(len(text) + 1 for text in answers)} tokens in the answers of the first 16 rows" in said
    )
    assert "the teacher's token decides which of the student's comes" in said


def test_of_long_rows_fewer_are_looked_at_beforehand(recipe, tmp_path):
    rows = [{"question": "count", "answer": "1" * 900} for _ in range(10)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    built = run("cache", "build", recipe)
    assert built.exit_code == 0, built.output
    assert "of the student's 2,703 tokens in the answers of the first 3 rows" in built.stderr


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("turns", [1, 2])
def test_rows_that_are_cut_for_one_of_them_alone_are_trained_on(recipe, tmp_path, cached, turns):
    """The student, of bytes, reads the beginning of the last answer or of an earlier one; the teacher all of them."""
    asked = [{"role": "user", "content": "count"}, {"role": "assistant", "content": "123" * 30}]
    rows = [{"messages": asked * turns} for _ in range(4)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    changes = ("data.eval=null", "data.prompt=null", "data.completion=null", "data.messages=messages")
    changes += ("training.max_length=96", *(() if cached else ("teacher.cache=null",)))
    settings = [part for one in changes for part in ("--set", one)]
    if cached:
        built = run("cache", "build", recipe, *settings)
        assert built.exit_code == 0, built.output
    done = run("train", recipe, *settings)
    assert done.exit_code == 0, done.output


def test_the_teacher_is_told_more_in_its_own_template(recipe, tmp_path):
    told = ("--set", 'teacher.prompt.suffix=" (it is {answer})"')
    shown = run("train", recipe, "--audit", *told)
    assert "(it is 0)" in shown.stdout.partition("as the teacher reads it: ")[2]
    assert "(it is 0)" not in shown.stdout.partition("as the teacher reads it: ")[0]
    assert run("cache", "build", recipe, "--top-k", "1000", "--bits", "16", *told).exit_code == 0
    losses = {}
    for name, change in (("cached", ()), ("live", ("teacher.cache=null", "teacher.top_k=1000"))):
        output = ("--set", f"output={tmp_path / name}")
        done = run("train", recipe, *told, *output, *(part for one in change for part in ("--set", one)))
        assert done.exit_code == 0, done.output
        losses[name] = json.loads((tmp_path / name / "run.json").read_text())["evaluation"]["soft_loss"]
    assert losses["cached"] == pytest.approx(losses["live"], rel=2e-3)
    plain = run("train", recipe)
    assert plain.exit_code == 2
    assert "teacher.prompt: the cache" in plain.stderr


def test_of_tokens_that_write_nobody_knows_what_the_labels_of_the_data_alone_can_be_learnt(recipe, tmp_path):
    pieces = {"[UNK]": 0, "[SEP]": 1, "a": 2, "##b": 3}
    backend = Tokenizer(models.WordPiece(pieces, unk_token="[UNK]"))
    save_tiny(
        tmp_path / "pieces",
        tiny_model("llama", 8, hidden_size=48, seed=1),
        PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", eos_token="[SEP]"),
    )
    change = ("--set", f"teacher.model={tmp_path / 'pieces'}", "--set", "teacher.cache=null")
    refused = run("train", recipe, *change)
    assert refused.exit_code == 2
    assert f"teacher.model '{tmp_path}/pieces': its vocabulary is WordPiece, of which it is not known" in refused.stderr
    hard = ("--set", "objective.preset=hard", "--set", "objective.hard_target=data")
    done = run("train", recipe, *change, *hard)
    assert done.exit_code == 0, done.output


def test_a_plan_counts_what_the_teacher_reads_and_the_size_of_its_own_cache(recipe):
    told = {}
    for name, change in (("translated", "output=x"), ("live", "teacher.cache=null")):
        done = run("plan", recipe, "--set", change, "--json")
        assert done.exit_code == 0, done.output
        told[name] = json.loads(done.stdout)
    assert told["live"]["flops"]["teacher"] > 0
    assert run("cache", "build", recipe).exit_code == 0
    built = json.loads(run("cache", "info", recipe, "--json").stdout)
    assert told["translated"]["cache"]["positions"] == built["positions"]
    assert told["translated"]["cache"]["bytes"] == pytest.approx(built["bytes"], rel=0.5)
    assert "The teacher has another tokenizer and reads rows of" in run("plan", recipe).stdout


def test_a_threshold_decides_what_is_soft_and_is_written_down(recipe, tmp_path):
    assert run("cache", "build", recipe, "--top-k", "4").exit_code == 0
    shares = {}
    for threshold in (0.1, 0.999):
        done = run("train", recipe, "--set", f"teacher.translation.threshold={threshold}")
        assert done.exit_code == 0, done.output
        record = json.loads((tmp_path / "out" / "run.json").read_text())
        shares[threshold] = record["evaluation"]["hard_only_share"]
        assert record["translation"]["threshold"] == threshold
        (tmp_path / "out").rename(tmp_path / f"out-{threshold}")
    assert shares[0.1] < shares[0.999]


def test_labels_of_the_data_alone_need_neither_a_cache_nor_tokens_that_can_be_translated(recipe, tmp_path):
    hard = ("--set", "objective.preset=hard", "--set", "objective.hard_target=data")
    done = run("train", recipe, *hard)
    assert done.exit_code == 0, done.output
    assert "no teacher is asked about the rows: the hard labels of the data are all that is learnt" in done.stderr
    refused = run("cache", "build", recipe, *hard)
    assert refused.exit_code == 2
    assert "objective: learns the labels of the data alone" in refused.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["training.packing=true"], "training.packing: teacher and student have different tokenizers"),
        (["training.padding_free=true"], "training.padding_free: teacher and student have different tokenizers"),
        (
            ["free_running.prompts=2", "objective.preset=hard", "objective.hard_target=data"],
            "free_running: teacher and student have different tokenizers, and where hard labels",
        ),
        (["objective.temperature=2"], "objective: the teacher has another tokenizer"),
        (["teacher.translation.threshold=2"], "teacher.translation.threshold must be in [0, 1], got 2"),
    ],
)
def test_what_does_not_go_with_two_tokenizers_is_refused_before_anything_is_loaded(recipe, changes, message):
    refused = run("train", recipe, *(part for change in changes for part in ("--set", change)))
    assert refused.exit_code == 2, refused.output
    assert message in refused.stderr
    assert "loading" not in refused.stderr


def test_the_student_is_watched_on_its_own_texts_by_a_teacher_in_memory_and_by_one_that_is_cached(recipe, tmp_path):
    section = {"every": "2", "prompts": "2", "max_new_tokens": "8", "select_by": "free_running_loss"}
    asked = [part for name, value in section.items() for part in ("--set", f"free_running.{name}={value}")]
    found = {}
    assert run("cache", "build", recipe).exit_code == 0
    for kind, change in (("cached", ()), ("live", ("--set", "teacher.cache=null"))):
        done = run("train", recipe, *asked, *change, "--set", f"output={tmp_path / kind}")
        assert done.exit_code == 0, done.output
        assert ("which judges the student's own texts" in done.stderr) == (kind == "cached")
        lines = map(json.loads, (tmp_path / kind / "metrics.jsonl").read_text().splitlines())
        watched = {line["step"]: line for line in lines if "eval_free_running_loss" in line}
        assert {2, 4} <= set(watched)
        for line in watched.values():
            assert 0.3 < line["eval_free_running_known"] <= 1
            gap = line["eval_free_running_loss"] - line["eval_teacher_forced_loss"]
            assert line["eval_exposure_bias"] == pytest.approx(gap, abs=1e-4)
        found[kind] = watched[2]["eval_teacher_forced_loss"]
    # Trained on nearly the same signals, and held against the same texts of the same teacher.
    assert found["cached"] == pytest.approx(found["live"], rel=0.05)


def test_the_student_answers_batches_itself(recipe, tmp_path):
    change = ("teacher.cache=null", "on_policy.lmbda=1", "on_policy.max_new_tokens=8", "data.eval=null")
    done = run("train", recipe, *(part for one in change for part in ("--set", one)))
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["cost"]["generated_tokens"] > 0
    assert record["training"]["loss"] > 0
    assert record["training"]["exact_mass"] > 0.5


def test_with_the_same_tokenizer_there_is_nothing_to_translate(recipe, tmp_path):
    save_tiny(tmp_path / "teacher", tiny_model("llama", 264, seed=1), tiny_tokenizer())
    refused = run("train", recipe, "--set", "teacher.cache=null", "--set", "teacher.translation.threshold=0.4")
    assert refused.exit_code == 2
    assert "teacher.translation: teacher and student have the same tokenizer" in refused.stderr
    done = run("train", recipe, "--set", "teacher.cache=null")
    assert done.exit_code == 0, done.output
    assert "aligned_share" not in done.stdout
    loaded = load_recipe(recipe, ["teacher.cache=null"])  # the step is the one of a teacher that never was translated
    pair = recipe_pair(loaded, translates=True)
    assert pair.tokens is None
    assert type(signals_of(loaded, pair, print)) is LiveTeacher
    assert run("cache", "build", recipe, "--replace").exit_code == 0
    assert type(signals_of(load_recipe(recipe), pair, print)) is TeacherCache


def test_the_audit_shows_what_each_of_them_reads(recipe):
    shown = run("train", recipe, "--audit")
    assert shown.exit_code == 0, shown.output
    student, _, teacher = shown.stdout.partition("as the teacher reads it: ")
    assert "<|im_start|>user" in student
    assert "<|begin|><|head|>user<|/head|>" in teacher


def test_a_mixture_of_one_family_is_translated_and_one_of_two_is_refused(recipe, tmp_path):
    save_tiny(tmp_path / "second", tiny_model("llama", len(threes()), hidden_size=48, seed=5), threes())
    tree = yaml.safe_load(recipe.read_text())
    of = {"a": {"model": str(tmp_path / "teacher")}, "b": {"model": str(tmp_path / "second")}}
    tree["teacher"] = {"mix": {"a": 0.5, "b": 0.5}, "of": of, "top_k": 20}
    recipe.write_text(yaml.safe_dump(tree))
    done = run("train", recipe)
    assert done.exit_code == 0, done.output
    assert "aligned_share" in done.stdout
    other = ("--set", f"teacher.of.b.model={tmp_path / 'student'}", "--set", f"output={tmp_path / 'other'}")
    refused = run("train", recipe, *other)
    assert refused.exit_code == 2
    assert "have different tokenizers; several teachers need one" in refused.stderr
    save_tiny(tmp_path / "third", tiny_model("llama", len(ones()), hidden_size=48, seed=5), ones())
    third = run("train", recipe, "--set", f"teacher.of.b.model={tmp_path / 'third'}", *other[2:])
    assert f"'{tmp_path}/teacher' and '{tmp_path}/third' have different tokenizers; several" in third.stderr


def test_teachers_of_single_rows_need_the_students_tokenizer(recipe, tmp_path):
    tree = yaml.safe_load(recipe.read_text())
    of = {"a": {"model": str(tmp_path / "teacher")}, "b": {"model": str(tmp_path / "teacher")}}
    tree["teacher"] = {"by": "domain", "of": of}
    recipe.write_text(yaml.safe_dump(tree))
    for command in (("train",), ("cache", "build"), ("plan",), ("train", "--set", "teacher.together=true")):
        refused = run(*command, recipe)
        assert refused.exit_code == 2
        assert (
            "teacher.by: teacher and student have different tokenizers, and teachers of single rows" in refused.stderr
        )
        assert "Train from one teacher, or from teachers of the student's family" in refused.stderr
        assert "loading" not in refused.stderr


def test_draws_are_not_asked_for_where_they_could_not_be_translated(recipe):
    refused = run("cache", "build", recipe, "--samples", "4")
    assert refused.exit_code == 2
    assert "cache: 4 draws a position cannot be translated for a student with another tokenizer" in refused.stderr
    assert "loading" not in refused.stderr


def test_a_run_that_learns_hard_labels_alone_at_most_positions_says_so_once(recipe):
    all_known = ("--set", "teacher.top_k=4", "--set", "teacher.translation.threshold=1")
    few = run("train", recipe, "--set", "teacher.cache=null", *all_known)
    assert few.exit_code == 0, few.output
    said = " ".join(few.stderr.split())
    assert said.count("too little is known of the teacher, whose tokenizer is another one") == 1
    many = run("train", recipe, "--set", "teacher.cache=null", "--set", "output=" + str(recipe.parent / "many"))
    assert many.exit_code == 0, many.output
    assert "too little is known" not in many.stderr
