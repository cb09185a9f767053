"""What a person sees while a diagnosis runs: the phase, how far it is, and the time left."""

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.text import Text

from bridgegarden.terminal import TimeLeft

EVERY = 10.0
"""Seconds between lines where there is no terminal."""


class DiagnoseDisplay:
    """A bar on a terminal, plain lines elsewhere; a :class:`~bridgegarden.diagnostics.diagnose.Watcher`.

    A context manager. A phase that takes fewer tokens than were expected counts as whole once the next one begins.
    """

    def __init__(self, console: Console, total: int) -> None:
        """
        Args:
            console: where to.
            total: tokens of all phases, as far as is known.
        """
        self.console, self.total = console, max(total, 1)
        self.interactive = console.is_terminal and not console.is_dumb_terminal
        self._phase, self._planned, self._done, self._before = "", 0, 0, 0
        self._spoke = time.monotonic()
        self._clock = TimeLeft(self.total)
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            console=console,
            transient=True,
            disable=not self.interactive,
        )
        self._task = self._bar.add_task("", total=self.total, left="")

    def __enter__(self) -> "DiagnoseDisplay":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def begin(self, phase: str, tokens: int) -> None:
        """A phase begins, which will take about so many tokens."""
        self._before += self._planned
        self._phase, self._planned, self._done = phase, tokens, 0
        self._show(force=True)

    def advance(self, tokens: int) -> None:
        """So many tokens more are done."""
        self._done += tokens
        self._show(force=False)

    @property
    def share(self) -> float:
        """How much of everything is done, from 0 to 1."""
        return min((self._before + min(self._done, self._planned)) / self.total, 1.0)

    def _show(self, *, force: bool) -> None:
        self._clock.update(self.share * self.total)
        left = self._clock.text()
        self._bar.update(self._task, description=self._phase, completed=self.share * self.total, left=left)
        now = time.monotonic()
        if self.interactive or (not force and now - self._spoke < EVERY):
            return
        self._spoke = now
        at = f"{self._done:,} of {self._planned:,} tokens" if self._done else f"up to {self._planned:,} tokens"
        self.console.print(Text(f"[{self.share:4.0%}] {self._phase}: {at}{left and ', ' + left}"), soft_wrap=True)
