"""What goes to a terminal: text of models, data and servers, with nothing in it that a terminal would obey.

An escape sequence in a token, a row or a file's name could move the cursor, change the title or hide what follows. Here
every such character is replaced by a visible one; what Rich writes for colours and movement is its own and stays.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

REPLACEMENT = "\ufffd"
_PICTURES = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: "\u2421"}
_HIDDEN = (*range(0x80, 0xA0), 0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x2028, 0x2029)
"""C1 controls (among them the one-character form of ESC [), marks that turn the order of text, and line breaks in
disguise."""
TABLE = _PICTURES | dict.fromkeys(_HIDDEN, REPLACEMENT)


def plain(text: str) -> str:
    """`text` with a visible character for each that a terminal would obey; line breaks and tabs are kept."""
    return text.translate(TABLE)


def plain_json(text: str) -> str:
    """JSON that means the same, with the characters escaped that a terminal would obey."""
    return text.translate({code: f"\\u{code:04x}" for code in TABLE})


def one_line(message: str) -> str:
    """`message` on one line, with whatever cannot be printed shown as its escape."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(message.split()))


def say(text: object) -> None:
    """Print a result on stdout, for a person."""
    import click

    click.echo(plain(str(text)))


def plain_console(**options: Any) -> "Console":
    """A Rich console, with the options of ``rich.console.Console``, that shows everything through :func:`plain`."""
    from rich.console import Console, ConsoleOptions, RenderableType, RenderHook
    from rich.segment import Segment

    class Plain:
        def __init__(self, renderable: RenderableType) -> None:
            self.renderable = renderable

        def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[Segment]:
            for segment in console.render(self.renderable, options):
                yield segment if segment.control else Segment(plain(segment.text), segment.style)

    class Hook(RenderHook):
        def process_renderables(self, renderables: list[Any]) -> list[Any]:
            return [Plain(renderable) for renderable in renderables]

    class Lasting(Console):
        def on_broken_pipe(self) -> None:
            """Nobody reads what is told of a run any more: no reason to end it."""
            self.quiet = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())

    console = (Lasting if options.get("stderr") else Console)(**options)
    console.push_render_hook(Hook())
    return console


def stderr_console() -> "Console":
    """A console on stderr that writes plain text wherever stderr is no terminal, whatever the environment says."""
    return plain_console(stderr=True, force_terminal=None if sys.stderr.isatty() else False, highlight=False)


class PlainLines(logging.Formatter):
    """Messages of the log as single lines."""

    def format(self, record: logging.LogRecord) -> str:
        return one_line(super().format(record))


def counted(count: int, noun: str) -> str:
    """``1 row``, ``2,000 rows``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """``8s``, ``3m 20s``, ``2h 05m``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"


class TimeLeft:
    """How long work will still take, told only once that is worth something.

    What comes before the first progress (loading, compiling) says nothing of what follows, and the first steps are
    slow. So the pace is that of the last quarter of the time so far, and it is told when the pace of the quarter before
    agrees with it, or a quarter of the work has been seen.
    """

    PATIENCE = 3.0
    """Seconds of progress that are watched at least."""
    AGREEMENT = 1.5
    """Ratio of two paces up to which they agree."""

    def __init__(self, total: float, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            total: units of work, those included that were done before.
            clock: seconds.
        """
        self.total = total
        self._clock = clock
        self._marks: list[tuple[float, float]] = []

    def update(self, done: float) -> None:
        """So many units are done in all."""
        if not self._marks or done > self._marks[-1][1]:
            self._marks.append((self._clock(), done))
        if len(self._marks) > 1000:
            # The first one stays, and of the others every second.
            del self._marks[1:-1:2]

    def seconds(self) -> float | None:
        """Seconds left; None while nobody can say, and when all is done."""
        if len(self._marks) < 3 or self._marks[-1][1] >= self.total:
            return None
        (began, before), (now, done) = self._marks[0], self._marks[-1]
        half, last = self._mark((now - began) / 2), self._mark(3 * (now - began) / 4)
        if now - began < self.PATIENCE or last == half:
            return None
        early, late = (last[1] - half[1]) / (last[0] - half[0]), (done - last[1]) / (now - last[0])
        seen = (done - before) / (self.total - before)
        if seen < 0.25 and not 1 / self.AGREEMENT <= early / late <= self.AGREEMENT:
            return None
        return max((self.total - done) / late - (self._clock() - now), 0.0)

    def _mark(self, passed: float) -> tuple[float, float]:
        """The last mark, but the newest, before so many seconds had passed since the first."""
        began = self._marks[0][0]
        return max(mark for mark in self._marks[:-1] if mark[0] <= began + passed)

    def text(self) -> str:
        """``3m 20s left``; empty while nobody can say."""
        seconds = self.seconds()
        return "" if seconds is None else f"{duration(seconds)} left"
