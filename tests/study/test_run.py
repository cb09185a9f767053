import io
import json
import multiprocessing
import os
import signal
import time
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from bridgegarden.errors import ConfigError, DataError
from bridgegarden.study.run import study, work
from tests.study.examples import Count, CountFolder, fail_on_one, killed, threads


def test_one_worker_is_this_process_and_uses_one_thread():
    before, told = torch.get_num_threads(), []
    results = list(work(threads, [3, 4], workers=1, tell=lambda name, step: told.append((name, step))))
    assert results == [(3, (3, os.getpid(), 1)), (4, (4, os.getpid(), 1))]
    assert told == [("job 3", 3), ("job 4", 4)]
    assert torch.get_num_threads() == before


@pytest.mark.slow
def test_two_workers_are_other_processes_with_one_thread_each():
    told = []
    results = dict(work(threads, [3, 4, 5], workers=2, tell=lambda name, step: told.append((name, step))))
    assert sorted(results) == [3, 4, 5]
    assert all(os.getpid() != process and count == 1 for _, process, count in results.values())
    assert set(told) <= {("job 3", 3), ("job 4", 4), ("job 5", 5)}


@pytest.mark.slow
def test_an_error_in_a_worker_arrives_as_it_was_and_ends_the_others():
    began = time.monotonic()
    with pytest.raises(DataError, match="job 1: a row is wrong"):
        list(work(fail_on_one, [0, 1], workers=2, tell=lambda name, step: None))
    assert time.monotonic() - began < 55
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_worker_that_was_killed_is_said_to_be():
    with pytest.raises(ConfigError, match="ended from outside; most likely memory ran out"):
        list(work(killed, [0, 1], workers=2, tell=lambda name, step: None))


def test_an_interrupt_waits_until_every_process_has_been_started(request):
    """In the middle of a start it would leave a child without what it is to run."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that are spread over processes ignore it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    began, ended = [], []
    start = multiprocessing.context.SpawnProcess.start

    def interrupted_start(process):
        began.append(process)
        signal.raise_signal(signal.SIGINT)
        start(process)
        ended.append(process)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiprocessing.context.SpawnProcess, "start", interrupted_start)
        with pytest.raises(KeyboardInterrupt):
            list(work(fail_on_one, [2, 3], workers=2, tell=lambda name, step: None))
    assert len(began) == len(ended) == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not multiprocessing.active_children()


def test_closing_ends_what_still_runs():
    jobs = work(fail_on_one, [1, 2, 3], workers=1, tell=lambda name, step: None)
    jobs.close()
    assert not multiprocessing.active_children()


def counted(folder, numbers, settings=("a",), **options):
    """What came of the jobs of these numbers, and what was said."""
    text = io.StringIO()
    jobs = [Count(number=number, settings=settings, folder=CountFolder(folder)) for number in numbers]
    with study(CountFolder(folder), "typed", Console(file=text, width=100)) as begun:
        return begun.run(jobs, **{"workers": 1, **options}), text.getvalue().splitlines()


def done(folder):
    """The jobs that were done, in order."""
    return [int(line) for line in (folder / "done").read_text().split()]


def test_results_come_in_the_order_of_the_jobs_and_work_is_done_turn_by_turn(tmp_path):
    found, said = counted(tmp_path, [1, 2, 3, 4])
    assert found == (1, 4, 9, 16)
    assert done(tmp_path) == [2, 4, 1, 3]
    assert said[0] == "4 students to train, 1 at a time"
    assert (tmp_path / "INCOMPLETE").exists()


def test_what_was_finished_is_not_done_again_unless_something_else_decides_it(tmp_path):
    counted(tmp_path, [1, 2])
    prepared = []
    found, said = counted(tmp_path, [1, 2, 3], prepare=lambda todo: prepared.append([job.number for job in todo]))
    assert (found, done(tmp_path), prepared) == ((1, 4, 9), [2, 1, 3], [[3]])
    assert said[:2] == ["2 of 3 students were finished before and are kept", "1 student to train, 1 at a time"]
    counted(tmp_path, [1, 2, 3], prepare=lambda todo: prepared.append(todo))
    assert len(prepared) == 1
    counted(tmp_path, [1], settings=("b",))
    counted(tmp_path, [1], settings=("b",), resume=False)
    assert done(tmp_path) == [2, 1, 3, 1, 1]


def test_a_key_is_of_what_decides_and_of_the_versions(tmp_path, monkeypatch):
    job = Count(number=1, settings=("a",), folder=CountFolder(tmp_path))
    others = [replace(job, number=2), replace(job, settings=("b",))]
    assert len({job.key, *(other.key for other in others)}) == 3
    assert replace(job, folder=CountFolder(tmp_path / "elsewhere")).key == job.key
    monkeypatch.setattr("bridgegarden.study.run.deciding_versions", lambda: {"torch": "another"})
    assert replace(job).key != job.key


def test_a_damaged_record_is_done_again(tmp_path):
    counted(tmp_path, [1])
    path = tmp_path / "runs" / "1.json"
    key = json.loads(path.read_text())["key"]
    for broken in ("", "[]", json.dumps({"key": key}), json.dumps({"key": key[:-1], "run": 1})):
        path.write_text(broken)
        assert counted(tmp_path, [1])[0] == (1,)
    assert len(done(tmp_path)) == 5


def test_a_folder_that_cannot_be_written_is_found_out_before_anything_is_done(tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(ConfigError, match="is a file; expected a folder"):
        with study(CountFolder(tmp_path / "taken"), "typed", Console(quiet=True)):
            pytest.fail("the study began")
