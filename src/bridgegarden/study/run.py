"""The trainings of a study: side by side in processes of one thread, shown while they run, never done twice."""

import multiprocessing
import os
import queue
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from rich.console import Console, Group, RenderableType

from bridgegarden.errors import ConfigError, stopped_by_sigterm
from bridgegarden.run.output import check_writable
from bridgegarden.run.quiet import quiet_libraries
from bridgegarden.run.record import git_commit, now
from bridgegarden.study.kept import StudyFolder, deciding_versions, keep, kept, key_of
from bridgegarden.terminal import Display, counted, stderr_console

EVERY = 15.0
"""Seconds between lines where there is no terminal."""

TELL_EVERY = 10
"""Steps between two signs of life from a training."""


MOST = 4
"""Processes by default at most: each holds PyTorch and TRL, half a gigabyte."""


Tell = Callable[[int], None]
"""Called by a job with the units of its work that are done."""
Telling = Callable[[str, int], None]
"""The same with the name of the job before."""

SettingsT = TypeVar("SettingsT")
FolderT = TypeVar("FolderT", bound=StudyFolder)
RunT = TypeVar("RunT")
ResultT = TypeVar("ResultT")
WorkT = TypeVar("WorkT")


@dataclass(frozen=True, kw_only=True)
class Job(ABC, Generic[SettingsT, FolderT, RunT]):
    """One training and its measurement, with everything that decides its numbers. Picklable."""

    makes: ClassVar[type]
    """What comes of it: plain data."""

    settings: SettingsT
    """Of the study; the numbers depend on some of them."""
    folder: FolderT
    """Of the study."""

    @property
    @abstractmethod
    def name(self) -> str:
        """For the display; each job has its own."""

    @property
    @abstractmethod
    def path(self) -> Path:
        """The file in which what came of it is kept."""

    @property
    @abstractmethod
    def decided_by(self) -> Mapping[str, Any]:
        """Everything that its numbers depend on, but for versions: what JSON can say, the same in every process."""

    @property
    @abstractmethod
    def units(self) -> int:
        """All its work, in training steps."""

    @property
    def turn(self) -> int:
        """Jobs of a lower turn are done first, so that an interrupted study has whole comparisons."""
        return 0

    @abstractmethod
    def run(self, tell: Tell) -> RunT:
        """Train and measure; nothing else that lasts is changed but what lies in the folder under its own name."""

    @abstractmethod
    def told(self, run: RunT) -> str:
        """What came of it, on one line."""

    @cached_property
    def key(self) -> str:
        """A hash of everything that decides the numbers."""
        return key_of({**self.decided_by, "versions": dict(deciding_versions())})

    def kept(self) -> RunT | None:
        """What an earlier run found with everything as it is here; None if there is nothing."""
        return kept(self.path, self.key, self.makes)

    def keep(self, run: RunT) -> None:
        """Write what came of it."""
        keep(self.path, self.key, run)


JobT = TypeVar("JobT", bound=Job)


def do(job: Job, tell: Telling) -> Any:
    """Do a job, and keep what came of it."""
    with quiet_libraries(interactive=False):
        run = job.run(partial(tell, job.name))
        job.keep(run)
    return run


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study under way."""

    folder: StudyFolder
    """Where it leaves what it finds."""
    console: Console
    """For progress."""
    command: str
    """What was typed."""
    started: str
    """When."""
    began: float
    """The same, by `time.perf_counter`."""

    def record(self) -> dict[str, Any]:
        """How a result was made, as :class:`bridgegarden.study.kept.StudyResult` has it."""
        return {
            "versions": deciding_versions(),
            "commit": git_commit(),
            "command": self.command,
            "started": self.started,
            "seconds": time.perf_counter() - self.began,
        }

    def run(
        self,
        jobs: Sequence[JobT],
        *,
        workers: int | None,
        noun: str = "student",
        resume: bool = True,
        prepare: Callable[[Sequence[JobT]], None] | None = None,
        above: "Callable[[Sequence[Any]], RenderableType] | None" = None,
    ) -> tuple[Any, ...]:
        """What came of every job, in the order of `jobs`. The folder is marked until the study is saved.

        Args:
            jobs: of one study, with names of their own.
            workers: processes of one thread each; the processors there are, at most 4, if None.
            noun: what a job trains, one of them.
            resume: whether what an earlier run kept is taken.
            prepare: called with the jobs that are left to do, if there are any.
            above: what a terminal shows above the bar of the runs so far.

        Raises:
            ConfigError: nothing can be written in the folder, or a worker was ended from outside.
        """
        self.folder.begin()
        workers = workers or min(available_processors(), MOST)
        before = {job.name: job.kept() for job in jobs} if resume else {}
        found = {name: run for name, run in before.items() if run is not None}
        if found:
            self.console.print(f"{len(found)} of {counted(len(jobs), noun)} were finished before and are kept")
        todo = sorted((job for job in jobs if job.name not in found), key=lambda job: job.turn)
        if todo:
            self.console.print(f"{counted(len(todo), noun)} to train, {min(workers, len(todo))} at a time")
            if prepare is not None:
                prepare(todo)
        with JobsDisplay(self.console, sum(job.units for job in todo), above) as display:
            # Closed at once on an interrupt, which ends the workers.
            with closing(work(do, todo, workers=workers, tell=display.advance)) as finished:
                for job, run in finished:
                    found[job.name] = run
                    display.finished(job, run, job.told(run))
        return tuple(found[job.name] for job in jobs)


@contextmanager
def study(folder: StudyFolder, command: str, console: Console | None) -> Iterator[Study]:
    """A study that begins; SIGTERM ends it as Ctrl-C does, and libraries are heard where somebody watches.

    Args:
        folder: where it leaves what it finds; made with the first job.
        command: what was typed, for the record.
        console: for progress; stderr if None.

    Raises:
        ConfigError: nothing can be written in the folder.
    """
    console = console or stderr_console()
    check_writable(folder.path, "output")
    with stopped_by_sigterm(), quiet_libraries(interactive=console.is_terminal):
        yield Study(folder=folder, console=console, command=command, started=now(), began=time.perf_counter())


def steps_told(tell: Tell, *, weight: int = 1) -> Callable[[int], None]:
    """For a training to call after every step; `weight` is the units of one."""

    def on_step(step: int) -> None:
        if step % TELL_EVERY == 0:
            tell(step * weight)

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
    function: Callable[[WorkT, Telling], ResultT], jobs: Sequence[WorkT], *, workers: int, tell: Telling
) -> Generator[tuple[WorkT, ResultT], None, None]:
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
            waiting: dict[Future, WorkT] = {pool.submit(partial(_run, function), job): job for job in jobs}
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


def _run(function: Callable[[WorkT, Telling], ResultT], job: WorkT) -> ResultT:
    assert _told is not None
    told = _told
    return function(job, lambda name, step: told.put((name, step)))


def _pass_on(told: Queue, tell: Telling) -> None:
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
