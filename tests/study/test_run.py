import multiprocessing
import os
import signal
import time

import pytest
import torch

from bridgegarden.errors import ConfigError, DataError
from bridgegarden.study.run import work
from tests.study.examples import fail_on_one, killed, threads


def test_one_worker_is_this_process_and_uses_one_thread():
    before, told = torch.get_num_threads(), []
    results = list(work(threads, [3, 4], workers=1, tell=lambda name, step: told.append((name, step))))
    assert results == [(3, (3, os.getpid(), 1)), (4, (4, os.getpid(), 1))]
    assert told == [("job 3", 3), ("job 4", 4)]
    assert torch.get_num_threads() == before


def test_two_workers_are_other_processes_with_one_thread_each():
    told = []
    results = dict(work(threads, [3, 4, 5], workers=2, tell=lambda name, step: told.append((name, step))))
    assert sorted(results) == [3, 4, 5]
    assert all(os.getpid() != process and count == 1 for _, process, count in results.values())
    assert set(told) <= {("job 3", 3), ("job 4", 4), ("job 5", 5)}


def test_an_error_in_a_worker_arrives_as_it_was_and_ends_the_others():
    began = time.monotonic()
    with pytest.raises(DataError, match="job 1: a row is wrong"):
        list(work(fail_on_one, [0, 1], workers=2, tell=lambda name, step: None))
    assert time.monotonic() - began < 55
    assert not multiprocessing.active_children()


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
