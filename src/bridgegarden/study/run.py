"""The trainings of a study: side by side in processes of one thread, shown while they run, never done twice."""

import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.queues import Queue
from typing import Any, Protocol, TypeVar

import torch
from rich.console import Console, Group, RenderableType

from bridgegarden.errors import ConfigError, stopped_by_sigterm
from bridgegarden.run.quiet import quiet_libraries
from bridgegarden.run.record import git_commit, now
from bridgegarden.study.kept import StudyFolder, deciding_versions
from bridgegarden.terminal import Display, counted, stderr_console

EVERY = 15.0
"""Seconds between lines where there is no terminal."""

TELL_EVERY = 10
"""Steps between two signs of life from a training."""


MOST = 4
"""Processes by default at most: each holds PyTorch and TRL, half a gigabyte."""


Tell = Callable[[str, int], None]
"""Called by a job with its own name and the number of steps done."""


class Job(Protocol):
    """One training and its measurement, with everything that decides its numbers. Picklable."""

    @property
    def name(self) -> str:
        """For the display; each job has its own."""
        ...

    @property
    def units(self) -> int:
        """All its work, in training steps."""
        ...

    def kept(self) -> Any:
        """What came of it in an earlier run of everything as it is here; None if there is nothing."""
        ...

    def told(self, run: Any, /) -> str:
        """What came of it, on one line."""
        ...


JobT = TypeVar("JobT", bound=Job)


RunT = TypeVar("RunT")


ResultT = TypeVar("ResultT")


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study under way."""

    console: Console
    """For progress."""
    command: str
    """What was typed."""
    started: str
    """When."""
    began: float
    """The same, by `time.perf_counter`."""

    def record(self) -> dict[str, Any]:
        """How a result was made, for its fields of these names."""
        return {
            "versions": deciding_versions(),
            "commit": git_commit(),
            "command": self.command,
            "started": self.started,
            "seconds": time.perf_counter() - self.began,
        }


@contextmanager
def study(folder: StudyFolder, command: str, console: Console | None) -> Iterator[Study]:
    """Mark `folder` as one in which a study is under way; its ``save`` takes the mark away.

    Args:
        folder: made if need be.
        command: what was typed, for the record.
        console: for progress; stderr if None.

    Raises:
        ConfigError: nothing can be written there.
    """
    begun = Study(console=console or stderr_console(), command=command, started=now(), began=time.perf_counter())
    with studying(begun.console):
        folder.begin()
        yield begun


@contextmanager
def studying(console: Console) -> Iterator[None]:
    """SIGTERM ends it as Ctrl-C does, and libraries are heard where somebody watches."""
    with stopped_by_sigterm(), quiet_libraries(interactive=console.is_terminal):
        yield


def run_jobs(
    run_one: Callable[[JobT, Tell], RunT],
    jobs: Sequence[JobT],
    console: Console,
    *,
    workers: int | None,
    noun: str = "student",
    resume: bool = True,
    prepare: Callable[[Sequence[JobT]], None] | None = None,
    above: "Callable[[Sequence[Any]], RenderableType] | None" = None,
) -> dict[str, RunT]:
    """What came of every job, by its name, in the order of `jobs`.

    Args:
        run_one: importable by name; does a job and keeps what came of it.
        jobs: those that come first are done first, so that an interrupted study has whole comparisons.
        console: for progress.
        workers: processes of one thread each; the processors there are, at most 4, if None.
        noun: what a job trains, one of them.
        resume: whether what an earlier run kept is taken.
        prepare: called with the jobs that are left to do, if there are any.
        above: what a terminal shows above the bar of the runs so far.
    """
    workers = workers or min(available_processors(), MOST)
    before = {job.name: job.kept() for job in jobs} if resume else {}
    found: dict[str, RunT] = {name: run for name, run in before.items() if run is not None}
    if found:
        console.print(f"{len(found)} of {counted(len(jobs), noun)} were finished before and are kept")
    todo = [job for job in jobs if job.name not in found]
    if todo:
        console.print(f"{counted(len(todo), noun)} to train, {min(workers, len(todo))} at a time")
        if prepare is not None:
            prepare(todo)
    with JobsDisplay(console, sum(job.units for job in todo), above) as display:
        # Closed at once on an interrupt, which ends the workers.
        with closing(work(run_one, todo, workers=workers, tell=display.advance)) as finished:
            for job, run in finished:
                found[job.name] = run
                display.finished(job, run, job.told(run))
    return {job.name: found[job.name] for job in jobs}


def steps_told(job: Job, tell: Tell, *, weight: int = 1) -> Callable[[int], None]:
    """For a training to call after every step; `weight` is the units of one."""

    def on_step(step: int) -> None:
        if step % TELL_EVERY == 0:
            tell(job.name, step * weight)

    return on_step


class JobsDisplay(Display):
    """One bar with the time left, and what came of those that are done."""

    def __init__(
        self, console: Console, total: int, above: "Callable[[Sequence[Any]], RenderableType] | None" = None
    ) -> None:
        """
        Args:
            console: where to.
            total: units of work in all.
            above: what a terminal shows above the bar of the runs so far.
        """
        self._above = above
        self._done: dict[str, int] = {}
        self._runs: list[Any] = []
        super().__init__(console, "getting ready", total, percent=True, lasting=False, every=EVERY, frame=self._screen)

    def advance(self, name: str, units: int) -> None:
        """The job called `name` has done `units` of its work."""
        self._done[name] = units
        done = sum(self._done.values())
        self.update(done, words=f"{len(self._runs)} trained", line=f"{done / (self._total or 1):.0%}")

    def finished(self, job: Job, run: Any, line: str) -> None:
        """A job is done; `line` is what came of it."""
        self._runs.append(run)
        self.advance(job.name, job.units)
        self.say(f"{line}, {self.left}" if self.left else line)

    def _screen(self, bar: RenderableType) -> RenderableType:
        return Group(self._above(self._runs), bar) if self._above is not None and self._runs else bar


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
