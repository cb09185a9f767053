"""A recipe to a cache, and a training from it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from bridgegarden.cli.main import cli
from bridgegarden.errors import ConfigError
from bridgegarden.recipe import load_recipe
from bridgegarden.run.cache import CacheOptions, build_recipe_cache, check_recipe_cache
from bridgegarden.run.models import check_processes, load_model
from bridgegarden.teacher.cache.manifest import finished_shards
from bridgegarden.teacher.cache.reader import TeacherCache
from bridgegarden.teacher.cache.shard import document_key
from tests.tiny import CHAT_TEMPLATE, save_tiny, tiny_model, tiny_tokenizer


def run(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture
def recipe(write_recipe, tmp_path):
    """A recipe with a cache, which is not built yet."""
    return write_recipe(teacher={"cache": str(tmp_path / "cache")}, data={"eval": str(tmp_path / "eval.jsonl")})


@pytest.fixture
def built(recipe):
    build_recipe_cache(load_recipe(recipe), CacheOptions(top_k=32))
    return recipe


def test_train_from_a_cache_gives_the_student_that_the_live_teacher_gives(built, tmp_path, monkeypatch):
    live = run("train", built, "--set", "teacher.cache=null", "--set", "teacher.top_k=32")
    assert live.exit_code == 0, live.output
    (tmp_path / "out").rename(tmp_path / "live")
    loaded = []
    monkeypatch.setattr(
        sys.modules["bridgegarden.run.train"],
        "load_model",
        lambda facts, **how: loaded.append(facts.reference.role) or load_model(facts, **how),
    )
    result = run("train", built)
    assert result.exit_code == 0, result.output
    assert f"reading teacher {tmp_path / 'teacher'} from {tmp_path / 'cache'} (36 rows)" in result.stderr
    assert loaded == ["student"]
    assert "teacher weights" not in result.stderr
    ours, theirs = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("out", "live"))
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], atol=2e-3, rtol=0)


def test_a_tokenizer_with_a_hole_in_its_ids_is_cached_up_to_its_last_id(recipe, tmp_path):
    tokenizer = tiny_tokenizer(turn_ids=(300, 301))
    for role, seed in (("teacher", 1), ("student", 2)):
        save_tiny(tmp_path / role, tiny_model("llama", 304, seed=seed), tokenizer)
    live = run("train", recipe, "--set", "teacher.cache=null")
    assert live.exit_code == 0, live.output
    (tmp_path / "out").rename(tmp_path / "live")
    assert run("cache", "build", recipe, "--top-k", "1000").exit_code == 0
    spec = TeacherCache(tmp_path / "cache").spec
    assert (spec.vocab_size, spec.teacher_width) == (302, 304)
    assert run("train", recipe).exit_code == 0
    ours, theirs = (json.loads((tmp_path / name / "run.json").read_text())["evaluation"] for name in ("out", "live"))
    assert ours["soft_loss"] == pytest.approx(theirs["soft_loss"], rel=1e-2)


def test_build_tells_what_it_did_and_again_does_nothing(recipe, tmp_path):
    result = run("cache", "build", recipe, "--top-k", "16", "--limit", "10")
    assert result.exit_code == 0, result.output
    assert "cache: 16 rows added;" in result.stdout
    assert "16 rows were there" not in result.stdout
    second = run("cache", "build", recipe)
    assert "cache: 20 rows added, 16 were there;" in second.stdout
    assert "loading teacher" in second.stderr
    third = run("cache", "build", recipe, "--top-k", "16")
    assert "cache: 0 rows added, 36 were there;" in third.stdout
    assert "loading teacher" not in third.stderr
    refused = run("cache", "build", recipe, "--top-k", "8")
    assert "signals of another kind than asked for: support top 16, not top 8" in refused.stderr
    checked = run("cache", "check", recipe)
    assert (checked.exit_code, "36 rows" in checked.stdout) == (0, True), checked.output


def test_parts_are_built_apart_and_merged(recipe, tmp_path):
    for part in (1, 2):
        result = run("cache", "build", recipe, "--shard", f"{part}/2", "--set", f"teacher.cache={tmp_path / str(part)}")
        assert result.exit_code == 0, result.output
    assert "are not in it" in run("cache", "check", recipe, "--set", f"teacher.cache={tmp_path / '1'}").stderr
    merged = run("cache", "merge", tmp_path / "cache", tmp_path / "1", tmp_path / "2")
    assert "36 rows added" in merged.stdout
    assert run("cache", "check", recipe).exit_code == 0
    assert run("train", recipe).exit_code == 0


@pytest.mark.parametrize("options", [("--mass", "0.9"), ("--samples", "12"), ("--top-k", "500", "--bits", "16")])
def test_every_support_can_be_trained_from(recipe, options):
    assert run("cache", "build", recipe, *options).exit_code == 0
    result = run("train", recipe)
    assert result.exit_code == 0, result.output


def test_what_the_objective_needs_is_stored(recipe, tmp_path):
    changes = ("--set", "objective.temperature=4.0")
    assert run("cache", "build", recipe, *changes).exit_code == 0
    assert TeacherCache(tmp_path / "cache").spec.exponents == (0.1, 0.25, 0.5, 2.0)
    assert run("train", recipe, *changes).exit_code == 0
    refused = run("cache", "check", recipe, "--set", "objective.temperature=3.0")
    assert refused.exit_code == 2
    assert "the tail's sum of p^0.333333, and stored are those of exponents 0.1, 0.25, 0.5, 2" in refused.stderr


def test_info_prints_numbers_for_people_and_machines(built, tmp_path):
    assert "top 32 of 259 tokens" in run("cache", "info", built).stdout
    tree = json.loads(run("cache", "info", tmp_path / "cache", "--json").stdout)
    assert tree["documents"] == 36
    assert 0 < tree["captured_mass"] < 1


def test_info_waits_for_no_library_that_trains(built, tmp_path):
    """Loading these takes seconds, in which nothing is said."""
    program = (
        "import sys; from bridgegarden.cli.main import cli; "
        f"cli(['cache', 'info', {str(built)!r}, '--html', {str(tmp_path / 'page.html')!r}, "
        "'--set', 'objective.preset=hard'], standalone_mode=False); "
        "print(*sorted({'transformers', 'trl', 'peft', 'datasets'} & sys.modules.keys()), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "captured mass" in result.stdout
    assert result.stderr.strip() == ""


def test_whoever_reads_the_tail_of_a_truncated_cache_is_told_what_that_costs(built, tmp_path):
    reverse = ("--set", "objective.divergence=reverse_kl")
    said = "warning: objective: reverse_kl depends on what is not kept of the teacher. Kept is top 32, with 0."
    for command in (("cache", "info"), ("train", "--dry-run"), ("train",)):
        assert "warning: objective" not in run(*command, built, "--set", "objective.preset=hard").stderr
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        result = run(*command, built, *reverse)
        assert result.exit_code == 0, result.output
        assert result.stderr.count(said) == 1
        assert "docs/cache.md" in result.stderr
    live = run(
        "train",
        built,
        *reverse,
        "--set",
        "teacher.cache=null",
        "--set",
        "teacher.top_k=32",
        "--set",
        f"output={tmp_path / 'live'}",
    )
    assert "reverse_kl depends on what is not kept of the teacher. Kept is top 32. Where" in live.stderr


def test_a_build_says_what_it_keeps_too_little_for_before_the_teacher_is_asked(recipe):
    result = run("cache", "build", recipe, "--top-k", "16", "--set", "objective.temperature=2.0")
    assert result.exit_code == 0, result.output
    assert result.stderr.index("forward_kl at temperature 2 depends") < result.stderr.index("loading teacher")
    whole = run("cache", "build", recipe, "--top-k", "259", "--replace", "--set", "objective.temperature=2.0")
    assert "warning: objective" not in whole.stderr


def test_another_teacher_in_the_same_place_is_refused_with_both_fingerprints(built, tmp_path):
    path = tmp_path / "teacher" / "model.safetensors"
    save_file({name: weight + 0.01 for name, weight in load_file(path).items()}, path, metadata={"format": "pt"})
    for command in (("train",), ("cache", "check")):
        result = run(*command, built)
        assert result.exit_code == 2
        old = TeacherCache(tmp_path / "cache").spec.weights or ""
        assert f"weights {old[:12]}, not " in result.stderr
        assert (
            f"bridgegarden cache build RECIPE --set teacher.cache={tmp_path / 'cache'} --top-k 32 --replace"
            in result.stderr
        )
    assert run("cache", "build", built, "--top-k", "32", "--replace").exit_code == 0
    assert run("train", built).exit_code == 0


def test_another_template_or_length_is_refused_with_both_values(built, tmp_path):
    changed = run("train", built, "--set", "training.max_length=40")
    assert changed.exit_code == 2
    assert "built with training.max_length 1024, but it is now 40" in changed.stderr
    template = CHAT_TEMPLATE.replace("'] }}\n", "'] }}:").replace("assistant\n", "assistant:")
    (tmp_path / "student" / "chat_template.jinja").write_text(template)
    result = run("train", built)
    assert result.exit_code == 2
    assert "built with chat template " in result.stderr
    assert not (tmp_path / "out" / "model").exists()


def test_a_moved_teacher_and_a_moved_cache_are_the_same(built, tmp_path):
    shutil.move(tmp_path / "teacher", tmp_path / "elsewhere")
    shutil.move(tmp_path / "cache", tmp_path / "there")
    changes = {"teacher.model": tmp_path / "elsewhere", "teacher.cache": tmp_path / "there"}
    result = check_recipe_cache(str(built), [f"{key}={value}" for key, value in changes.items()])
    assert result.documents == 36


def test_a_damaged_byte_is_one_line_and_its_advice_mends_it(built, tmp_path):
    path = next(iter(finished_shards(tmp_path / "cache")))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    result = run("cache", "check", tmp_path / "cache")
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert f"rm {path.with_suffix('')}.* && bridgegarden cache build RECIPE" in result.stderr
    for part in (path, path.with_suffix(".json")):
        part.unlink()
    assert "36 rows added" in run("cache", "build", built).stdout
    assert TeacherCache(tmp_path / "cache").spec.support.k == 32
    assert run("cache", "check", built).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("build", "RECIPE", "--set", "teacher.cache=null"), "teacher.cache: the recipe names no folder for it"),
        (("build", "RECIPE", "--samples", "4", "--top-k", "4"), "draws (--samples) exclude kept tokens"),
        (("build", "RECIPE", "--mass", "0.9", "--top-k", "500"), "keeps fewer tokens than the vocabulary's 259"),
        (("build", "RECIPE", "--shard", "5/4"), "expected such as 1/4"),
        (("info", "RECIPE"), "no cache there"),
        (("check", "RECIPE"), "no cache there"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(recipe, tmp_path, arguments, message):
    result = run("cache", *(recipe if argument == "RECIPE" else argument for argument in arguments))
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "cache" / "cache.json").exists()


def test_a_number_of_tokens_other_than_the_cache_keeps_is_refused(built):
    result = run("train", built, "--set", "teacher.top_k=8")
    assert result.exit_code == 2
    assert "teacher.top_k is 8, but the cache" in result.stderr
    assert "keeps top 32" in result.stderr


def test_a_recipe_s_cache_is_exported_with_the_ids_of_its_rows(built, tmp_path):
    result = run("cache", "export", built, tmp_path / "cache.parquet")
    assert result.exit_code == 0, result.output
    assert f"{tmp_path / 'cache.parquet'}: 36 rows with " in result.stdout
    table = pq.read_table(tmp_path / "cache.parquet")
    assert table.num_rows == 36
    for row in table.select(["key", "input_ids", "labels"]).to_pylist():
        ids, labels = (np.asarray(row[name], np.int32) for name in ("input_ids", "labels"))
        assert document_key(ids, labels).hex() == row["key"]
    alone = run("cache", "export", tmp_path / "cache", tmp_path / "alone.parquet")
    assert "without token ids and labels" in alone.stdout
    again = run("cache", "export", built, tmp_path / "cache.parquet")
    assert again.exit_code == 2
    assert "is there, and is not written over" in again.stderr


def test_a_teacher_that_is_gone_is_learnt_from_its_cache_alone(built, tmp_path):
    assert run("train", built).exit_code == 0
    (tmp_path / "out").rename(tmp_path / "with")
    shutil.rmtree(tmp_path / "teacher")
    assert run("train", built).exit_code == 2
    alone = "--set", "teacher.only_cache=true"
    result = run("train", built, *alone)
    assert result.exit_code == 0, result.output
    ours, theirs = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("out", "with"))
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], atol=0, rtol=0)
    assert run("cache", "check", built, *alone).exit_code == 0
    assert run("cache", "export", built, tmp_path / "alone.parquet", *alone).exit_code == 0
    other = run("cache", "check", built, *alone, "--set", "teacher.model=other")
    assert f"holds what '{tmp_path / 'teacher'}' said, not 'other'" in other.stderr
    asked = run("cache", "build", built, *alone)
    assert asked.exit_code == 2
    assert "is not to be had, so that it cannot be asked" in asked.stderr
    assert "is not to be had, so that it cannot answer" in run("generate", built, *alone).stderr


def test_the_teachers_own_loss_is_said_by_build_info_and_train(recipe, tmp_path):
    build = run("cache", "build", recipe)
    own = re.search(
        r"\nthe teacher's own loss on the rows there: (\S+ ± \S+ nats a token, over \d+ tokens)\n", build.stdout
    )
    assert own, build.stdout
    again = run("cache", "build", recipe)
    assert own.group(1) in again.stdout
    assert f"its own loss   {own.group(1)} of these rows" in run("cache", "info", recipe).stdout
    loss = json.loads(run("cache", "info", recipe, "--json").stdout)["loss"]
    assert own.group(1).startswith(f"{loss['mean']:.3f} ")
    trained = run("train", recipe, "--set", "training.per_device_train_batch_size=30", "--set", "training.max_steps=1")
    assert f"(36 rows); its own loss on them is {own.group(1)}" in trained.stderr
    assert "before training, on the first step's rows (30 rows" in trained.stderr


def test_a_device_map_changes_nothing_where_there_is_one_device(recipe, tmp_path, monkeypatch):
    mapped = ("--set", "teacher.device_map=auto")
    for name, arguments in (("whole", ()), ("mapped", mapped)):
        result = run("train", recipe, "--set", "teacher.cache=null", *arguments, "--set", f"output={tmp_path / name}")
        assert result.exit_code == 0, result.output
    assert "teacher weights, where teacher.device_map has them" in result.stderr
    ours, theirs = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("mapped", "whole"))
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], atol=0, rtol=0)
    assert run("cache", "build", recipe, *mapped).exit_code == 0
    assert "36 were there" in run("cache", "build", recipe).stdout
    assert run("generate", recipe, *mapped, "--limit", 2, "--max-new-tokens", 2, "--keep-truncated").exit_code == 0
    ray = run("cache", "build", recipe, *mapped, "--engine", "ray")
    assert ray.exit_code == 2
    with pytest.raises(ConfigError, match=r"teacher.device_map: .* each of the 4 processes"):
        check_processes(load_recipe(recipe, [mapped[1]]), 4)
    check_processes(load_recipe(recipe), 4)


def test_sigterm_ends_a_build_with_one_line_and_its_status(recipe, monkeypatch):
    def build(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)

    monkeypatch.setattr("bridgegarden.run.cache.build_recipe_cache", build)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        stopped = run("cache", "build", recipe)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stopped.exit_code == 143, stopped.output
    assert stopped.stderr == "Error: stopped by SIGTERM. The same command goes on.\n"
