"""What a person sees while jobs run: one bar with the time left, and what came of those that are done."""

import time
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.text import Text

from bridgegarden.terminal import TimeLeft

EVERY = 15.0
"""Seconds between lines where there is no terminal."""


class JobsDisplay:
    """A live bar on a terminal, plain lines elsewhere. A context manager."""

    def __init__(self, console: Console, total: int) -> None:
        """
        Args:
            console: where to.
            total: units of work in all.
        """
        self.console, self.total = console, total
        self.interactive = console.is_terminal and not console.is_dumb_terminal
        self._done: dict[str, int] = {}
        self._finished = 0
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

    def finished(self, name: str, units: int, line: str) -> None:
        """A job is done; `units` is all the work it had, `line` what came of it."""
        self.advance(name, units)
        self._finished += 1
        if not self.interactive:
            self._say(f"{line}{self._time_left()}")

    def above(self) -> RenderableType | None:
        """What a terminal shows above the bar; nothing unless a subclass has something to show."""
        return None

    def _say(self, line: str) -> None:
        self.console.print(Text(line), soft_wrap=True)
        self._spoke = time.monotonic()

    def _screen(self) -> Group:
        self._bar.update(self._task, description=f"{self._finished} trained{self._time_left()}")
        above = self.above()
        return Group(*([] if above is None else [above]), self._bar.get_renderable())

    def _time_left(self) -> str:
        left = self._clock.text()
        return left and f", {left}"
