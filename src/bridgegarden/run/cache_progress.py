"""What a person sees while a cache is built."""

import time
from typing import TYPE_CHECKING

from bridgegarden.terminal import TimeLeft

if TYPE_CHECKING:
    from rich.console import Console

SECONDS_BETWEEN_LINES = 10.0
"""How often progress is told where there is no terminal."""


class BuildDisplay:
    """A bar with the time left on a terminal; elsewhere a plain line now and then.

    Called with the positions done and all there are. A context manager, since a build may end by an exception.
    """

    def __init__(self, console: "Console") -> None:
        """
        Args:
            console: where to.
        """
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self.console = console
        self.interactive = console.file.isatty() and not console.is_dumb_terminal
        columns = (
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self._bar = Progress(TextColumn("positions"), *columns, console=console)
        self._task = self._bar.add_task("positions", total=None, left="")
        self._told = time.monotonic()
        self._clock = TimeLeft(0)

    def __enter__(self) -> "BuildDisplay":
        if self.interactive:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.interactive:
            self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        self._clock.total = total
        self._clock.update(done)
        self._bar.update(self._task, completed=done, total=total, left=self._clock.text())
        now = time.monotonic()
        if not self.interactive and now - self._told >= SECONDS_BETWEEN_LINES:
            self._told = now
            left = self._clock.text()
            self.console.print(f"{done:,} of {total:,} positions{left and ', ' + left}", soft_wrap=True)
