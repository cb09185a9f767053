"""Tiny runs of the whole path: real teacher, real trainer, report and all."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from bridgegarden.errors import ConfigError
from bridgegarden.quickstart import student
from bridgegarden.quickstart.result import QuickstartResult, QuickstartSettings
from bridgegarden.quickstart.run import FULL_SEEDS, QuickstartFolder, QuickstartJob, plan, quickstart
from bridgegarden.study.arms import OBJECTIVES
from bridgegarden.teacher.cache.reader import TeacherCache
from bridgegarden.teacher.cache.writer import build_cache

TINY = QuickstartSettings(objectives=("hard", "entropy"), steps=3, batch=4, train_problems=12, test_problems=8)


def silent():
    return Console(quiet=True)


def run(folder, settings=TINY, **options):
    return quickstart(folder, settings=settings, console=silent(), **{"workers": 1, **options})


def numbers(result: QuickstartResult):
    """Everything but times."""
    runs = tuple(replace(run, seconds=0.0, cpu_seconds=0.0) for run in result.runs)
    return replace(result, runs=runs, seconds=0.0, started="", command="", full=False)


def job(objective, seed=0, settings=TINY, folder=Path("x")):
    return QuickstartJob(objective=objective, seed=seed, settings=settings, folder=QuickstartFolder(folder))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "deep" / "out"
    return QuickstartFolder(folder), run(folder)


@pytest.fixture
def trained(monkeypatch):
    """Objectives in the order in which they are trained; one in `interrupt` is interrupted instead."""
    seen, interrupt = [], set()
    original = student.train_student

    def train(objective, seed, settings, rows, teacher, on_step):
        seen.append(objective.label)
        assert isinstance(teacher, TeacherCache)
        if objective.label in interrupt:
            raise KeyboardInterrupt
        return original(objective, seed, settings, rows, teacher, on_step)

    monkeypatch.setattr(student, "train_student", train)
    return seen, interrupt


def test_a_finished_run_leaves_result_report_and_students(finished):
    folder, result = finished
    assert QuickstartResult.from_dict(json.loads(folder.result.read_text())) == result
    assert "<html" in folder.report.read_text()
    assert not folder.marker.exists()
    assert [(run.objective, run.seed) for run in result.runs] == [("hard", 0), ("entropy", 0)]
    assert result.runs[0].tokens > TINY.steps * TINY.batch * 30
    for run_ in result.runs:
        kept = folder.student(run_.objective, run_.seed)
        assert AutoModelForCausalLM.from_pretrained(kept).config.use_cache
        assert len(AutoTokenizer.from_pretrained(kept)) == AutoModelForCausalLM.from_pretrained(kept).config.vocab_size


def test_nothing_else_is_left(finished):
    folder, _ = finished
    assert {path.name for path in folder.path.iterdir()} == {"result.json", "report.html", "caches", "runs", "students"}


def test_the_answer_is_looked_at_by_every_student(finished):
    _, result = finished
    assert result.answer.tokens
    for token in result.answer.tokens:
        assert set(token.student_surprise) == set(token.student_tops) == {"hard", "entropy"}
        assert set(token.soft_weights) == {"static", "confidence", "entropy"}
        assert sum(share for _, share in token.teacher_top) <= 1 + 1e-9


def test_the_same_seed_gives_the_same_numbers(finished, tmp_path):
    assert numbers(run(tmp_path)) == numbers(finished[1])


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing(finished, tmp_path):
    assert numbers(run(tmp_path, workers=2)) == numbers(finished[1])


def test_another_seed_gives_other_numbers(finished, tmp_path):
    other = run(tmp_path, replace(TINY, objectives=("hard",), seeds=(1,)))
    assert other.runs[0].final_loss != finished[1].runs[0].final_loss


def test_an_interrupted_run_leaves_nothing_that_looks_finished(trained, tmp_path):
    trained[1].add("entropy")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    folder = QuickstartFolder(tmp_path)
    assert folder.marker.exists()
    assert not folder.result.exists()
    assert not folder.report.exists()


def test_an_interrupted_full_run_goes_on_where_it_stopped(finished, trained, tmp_path):
    seen, interrupt = trained
    interrupt.add("entropy")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, full=True)
    interrupt.clear()
    seen.clear()
    result = run(tmp_path, full=True)
    assert seen == ["entropy"]
    assert numbers(result) == numbers(finished[1])
    assert not QuickstartFolder(tmp_path).marker.exists()


@pytest.mark.slow
def test_the_teacher_is_asked_once_a_seed_whatever_the_objectives_and_interruptions(trained, monkeypatch, tmp_path):
    asked = []

    def count(folder, model, data, spec):
        built = build_cache(folder, model, data, spec)
        asked.append(built.positions)
        return built

    monkeypatch.setattr(student, "build_cache", count)
    trained[1].add("entropy")
    settings = replace(TINY, seeds=(0, 1))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, settings, full=True)
    trained[1].clear()
    result = run(tmp_path, settings, full=True)
    tokens = {run.seed: run.teacher_tokens for run in result.runs}
    assert asked == [tokens[0], tokens[1], 0, 0]
    assert result.teacher_tokens == tokens[0] + tokens[1]
    run(tmp_path, settings, full=True)
    assert len(asked) == 4


def test_a_run_that_is_not_full_begins_again(trained, tmp_path):
    settings = replace(TINY, objectives=("hard",))
    run(tmp_path, settings)
    run(tmp_path, settings)
    assert trained[0] == ["hard (argmax)", "hard (argmax)"]


def test_a_training_with_other_settings_is_not_taken_for_the_same(trained, tmp_path):
    run(tmp_path, replace(TINY, objectives=("hard",)), full=True)
    run(tmp_path, replace(TINY, objectives=("hard",), steps=2), full=True)
    assert len(trained[0]) == 2


def test_an_earlier_result_outlives_an_interrupted_run_that_is_marked(trained, tmp_path):
    settings = replace(TINY, objectives=("hard",))
    run(tmp_path, settings)
    folder = QuickstartFolder(tmp_path)
    before = folder.result.read_text()
    trained[1].add("hard (argmax)")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, settings)
    assert folder.result.read_text() == before
    assert "earlier run" in folder.marker.read_text()


@pytest.mark.parametrize("broken", ["", "{}", '{"key": 3', "[]", '{"key": "KEY", "run": {}}'])
def test_a_damaged_record_is_not_a_finished_training(tmp_path, broken):
    made = job("hard", folder=tmp_path)
    made.folder.student("hard", 0).mkdir(parents=True)
    made.path.parent.mkdir()
    made.path.write_text(broken.replace("KEY", made.key))
    assert made.kept() is None


def test_the_key_knows_what_decides_the_numbers():
    keys = {job(name).key for name in OBJECTIVES} | {
        job("hard", 1).key,
        job("hard", settings=replace(TINY, steps=2)).key,
    }
    assert len(keys) == len(OBJECTIVES) + 2
    assert job("hard").key == job("hard", settings=replace(TINY, objectives=("hard",), seeds=(0, 7))).key


def test_a_file_in_the_way_is_left_alone(tmp_path):
    path = tmp_path / "taken"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="is a file; expected a folder"):
        run(path)
    assert path.read_text() == "mine"


def test_full_is_every_objective_with_several_seeds():
    assert plan(full=True, seed=3).seeds == tuple(range(3, 3 + FULL_SEEDS))
    assert plan(full=True).objectives == tuple(OBJECTIVES)
    assert plan(seed=3).seeds == (3,)


def test_progress_is_told_line_by_line_where_there_is_no_terminal(tmp_path):
    console = Console(file=(tmp_path / "log").open("w+"), force_terminal=False, width=200)
    quickstart(tmp_path / "out", settings=replace(TINY, objectives=("soft",)), workers=1, console=console)
    console.file.seek(0)
    assert re.fullmatch(
        r"1 student to train, 1 at a time\n"
        r"teacher asked once for \d{3} tokens, in \d s \(seed 0\)\n"
        r"soft, seed 0: \d+\.\d % right when sampling, \d+\.\d % of the variety kept\n",
        console.file.read(),
    )
    console.file.close()


@pytest.mark.slow
def test_a_signal_ends_every_process_and_leaves_the_mark(tmp_path):
    command = [sys.executable, "-m", "bridgegarden", "quickstart", "--workers", "2", "--output", str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    line = process.stderr.readline()
    assert "to train" in line, line + process.stderr.read()
    deadline = time.monotonic() + 60
    while not (children := psutil.Process(process.pid).children(recursive=True)) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 143, stderr
    assert stderr.splitlines()[-1] == "Error: stopped by SIGTERM. The same command goes on."
    assert stdout == ""
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {"INCOMPLETE", "caches", "runs", "students"}
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
