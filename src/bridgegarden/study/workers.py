"""Jobs spread over processes of one thread each, none of which outlives the one that asked; how all are ended."""

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing.queues import Queue
from typing import TypeVar

import torch

from bridgegarden.errors import ConfigError

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")

Tell = Callable[[str, int], None]
"""Called by a job with its own name and the number of steps done."""

MOST = 4
"""Processes by default at most: each holds PyTorch and TRL, half a gigabyte."""


def available_processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def work(
    function: Callable[[JobT, Tell], ResultT], jobs: Sequence[JobT], *, workers: int, tell: Tell
) -> Generator[tuple[JobT, ResultT], None, None]:
    """Each job with its result, as they finish. One worker means this very process, which then uses one thread.

    Close the generator to end what still runs.

    Args:
        function: importable by name; called with a job and a way to tell steps.
        jobs: picklable.
        workers: processes.
        tell: called here with what the jobs tell, between results.

    Raises:
        ConfigError: a process was ended from outside, as the system does when memory runs out.
        Exception: whatever a job raised.
    """
    if min(workers, len(jobs)) <= 1:
        with one_thread():
            for job in jobs:
                yield job, function(job, tell)
        return
    context = multiprocessing.get_context("spawn")
    told: Queue = context.Queue()
    ours = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, initializer=_begin_worker, initargs=(told,))
    complete = False
    try:
        with interrupts_wait():
            waiting: dict[Future, JobT] = {pool.submit(partial(_run, function), job): job for job in jobs}
        while waiting:
            done, _ = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            _pass_on(told, tell)
            for future in done:
                result = future.result()
                yield waiting.pop(future), result
        complete = True
    except BrokenProcessPool:
        raise ConfigError(
            "workers: a process was ended from outside; most likely memory ran out. Use fewer processes "
            "(--workers 1), or free memory."
        ) from None
    finally:
        if not complete:
            # An interrupt or an error: what still runs is of no use to anybody.
            for child in set(multiprocessing.active_children()) - ours:
                child.terminate()
        pool.shutdown(cancel_futures=True)


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread: sums then come out the same on every run, and small models are fastest so."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_told: "Queue | None" = None


def _begin_worker(told: Queue) -> None:
    """In a new process: one thread, silence on Ctrl-C (the parent speaks), and an end when the parent ends."""
    global _told
    _told = told
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(function: Callable[[JobT, Tell], ResultT], job: JobT) -> ResultT:
    assert _told is not None
    told = _told
    return function(job, lambda name, step: told.put((name, step)))


def _pass_on(told: Queue, tell: Tell) -> None:
    while True:
        try:
            tell(*told.get_nowait())
        except queue.Empty:
            return


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM ends the run as Ctrl-C does, workers included; from a thread, signals are left as they are."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """SIGINT and SIGTERM are acted on at the end.

    A process that is being started reads from its parent what to run; were the parent interrupted just then, the child
    would say so with a traceback of its own.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])
