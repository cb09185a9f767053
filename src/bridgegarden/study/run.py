"""The trainings of a study, one after the other or side by side, shown while they run and never done twice."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, Protocol, Self, TypeVar

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.text import Text

from bridgegarden.run.quiet import quiet_libraries
from bridgegarden.study.workers import Tell, terminated_as_interrupted, work
from bridgegarden.terminal import TimeLeft, counted

EVERY = 15.0
"""Seconds between lines where there is no terminal."""

TELL_EVERY = 10
"""Steps between two signs of life from a training."""


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


JobT = TypeVar("JobT", bound=Job)
RunT = TypeVar("RunT")


@contextmanager
def studying(console: Console) -> Iterator[None]:
    """SIGTERM ends it as Ctrl-C does, and libraries are heard where somebody watches."""
    with terminated_as_interrupted(), quiet_libraries(interactive=console.is_terminal):
        yield


def run_jobs(
    run_one: Callable[[JobT, Tell], RunT],
    jobs: Sequence[JobT],
    console: Console,
    *,
    workers: int,
    told: Callable[[JobT, RunT], str],
    resume: bool = True,
    prepare: Callable[[Sequence[JobT]], None] | None = None,
    above: "Callable[[Sequence[Any]], RenderableType] | None" = None,
) -> dict[str, RunT]:
    """What came of every job, by its name, in the order of `jobs`.

    Args:
        run_one: importable by name; does a job and keeps what came of it.
        jobs: those that come first are done first, so that an interrupted study has whole comparisons.
        console: for progress.
        workers: processes of one thread each.
        told: what came of a job on one line.
        resume: whether what an earlier run kept is taken.
        prepare: called with the jobs that are left to do, if there are any.
        above: what a terminal shows above the bar of the runs so far.
    """
    before = {job.name: job.kept() for job in jobs} if resume else {}
    found: dict[str, RunT] = {name: run for name, run in before.items() if run is not None}
    if found:
        console.print(f"{len(found)} of {len(jobs)} trainings were finished before and are kept")
    todo = [job for job in jobs if job.name not in found]
    if todo:
        console.print(f"{counted(len(todo), 'student')} to train, {min(workers, len(todo))} at a time")
        if prepare is not None:
            prepare(todo)
    with JobsDisplay(console, sum(job.units for job in todo), above) as display:
        # Closed at once on an interrupt, which ends the workers.
        with closing(work(run_one, todo, workers=workers, tell=display.advance)) as finished:
            for job, run in finished:
                found[job.name] = run
                display.finished(job, run, told(job, run))
    return {job.name: found[job.name] for job in jobs}


def steps_told(job: Job, tell: Tell, *, weight: int = 1) -> Callable[[int], None]:
    """For a training to call after every step; `weight` is the units of one."""

    def on_step(step: int) -> None:
        if step % TELL_EVERY == 0:
            tell(job.name, step * weight)

    return on_step


class JobsDisplay:
    """One bar with the time left, and what came of those that are done: live on a terminal, plain lines elsewhere."""

    def __init__(
        self, console: Console, total: int, above: "Callable[[Sequence[Any]], RenderableType] | None" = None
    ) -> None:
        """
        Args:
            console: where to.
            total: units of work in all.
            above: what a terminal shows above the bar of the runs so far.
        """
        self.console, self.total = console, total
        self.interactive = console.is_terminal and not console.is_dumb_terminal
        self._above = above
        self._done: dict[str, int] = {}
        self._runs: list[Any] = []
        self._clock = TimeLeft(total)
        self._spoke = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=None), TaskProgressColumn(), console=console
        )
        self._task = self._bar.add_task("getting ready", total=total)
        self._live = Live(console=console, get_renderable=self._screen, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        if self.interactive:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.interactive:
            self._live.stop()

    def advance(self, name: str, units: int) -> None:
        """The job called `name` has done `units` of its work."""
        self._done[name] = units
        done = sum(self._done.values())
        self._clock.update(done)
        self._bar.update(self._task, completed=done)
        if not self.interactive and time.monotonic() - self._spoke > EVERY:
            self._say(f"{done / self.total:.0%}{self._time_left()}")

    def finished(self, job: Job, run: Any, line: str) -> None:
        """A job is done; `line` is what came of it."""
        self.advance(job.name, job.units)
        self._runs.append(run)
        if not self.interactive:
            self._say(f"{line}{self._time_left()}")

    def _say(self, line: str) -> None:
        self.console.print(Text(line), soft_wrap=True)
        self._spoke = time.monotonic()

    def _screen(self) -> Group:
        self._bar.update(self._task, description=f"{len(self._runs)} trained{self._time_left()}")
        above = [self._above(self._runs)] if self._above is not None and self._runs else []
        return Group(*above, self._bar.get_renderable())

    def _time_left(self) -> str:
        left = self._clock.text()
        return left and f", {left}"
