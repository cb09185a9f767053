"""What goes to a terminal: text of models, data and servers, with nothing in it that a terminal would obey.

An escape sequence in a token, a row or a file's name could move the cursor, change the title or hide what follows. Here
every such character is replaced by a visible one; what Rich writes for colours and movement is its own and stays.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

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


def say(text: object, *, err: bool = False) -> None:
    """Print a result on stdout, for a person; with `err`, what stands beside it on stderr."""
    import click

    click.echo(plain(str(text)), err=err)


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


def listed(parts: Sequence[str]) -> str:
    """``a, b and c``; empty where there is none."""
    return " and ".join(part for part in (", ".join(parts[:-1]), *parts[-1:]) if part)


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


class Display:
    """How far work is: a bar with the time left on a terminal, a plain line now and then elsewhere.

    A context manager, so that whatever ends the work, an interruption too, gives the terminal back.
    """

    def __init__(
        self,
        console: "Console",
        words: str = "",
        total: float | None = None,
        *,
        percent: bool = False,
        lasting: bool = True,
        every: float = 10.0,
        frame: "Callable[[RenderableType], RenderableType]" = lambda bar: bar,
    ) -> None:
        """
        Args:
            console: where to.
            words: what is being done; without any there is no bar until `restart`.
            total: units of work; None if nobody knows.
            percent: whether units mean nothing to a reader.
            lasting: whether the bar stays when all is done.
            every: seconds between lines where there is no terminal.
            frame: what a terminal shows, made of the bar.
        """
        from rich.live import Live
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
        )

        self.console, self.every = console, every
        self.interactive = console.is_terminal and not console.is_dumb_terminal
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TaskProgressColumn() if percent else MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            console=console,
        )
        self._words, self._total = words, total
        self._task = self.bar.add_task(plain(words), total=total, left="", visible=bool(words))
        self._clock = TimeLeft(total or 0)
        self._spoke = time.monotonic()
        self._live = Live(
            console=console,
            get_renderable=lambda: frame(self.bar.get_renderable()),
            refresh_per_second=4,
            transient=not lasting,
        )

    def __enter__(self) -> Self:
        if self.interactive:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.interactive:
            self._live.stop()

    @property
    def left(self) -> str:
        """``3m 20s left``; empty while nobody can say."""
        return self._clock.text()

    def restart(self, words: str, total: float | None, done: float = 0) -> None:
        """Work of `total` units begins, `done` of which were done before."""
        self._words, self._total, self._clock = words, total, TimeLeft(total or 0)
        self.bar.reset(self._task, description=plain(words), total=total, completed=int(done), visible=True)

    def update(
        self,
        done: float,
        *,
        total: float | None = None,
        words: str | None = None,
        line: str | None = None,
        now: bool = False,
    ) -> None:
        """So many units are done in all.

        Args:
            done: in all.
            total: if it has become known.
            words: what is being done, if that has changed.
            line: where there is no terminal, instead of words and numbers; the time left follows it.
            now: whether that line is due whenever the last one was.
        """
        self._words, self._total = words or self._words, total or self._total
        self._clock.total = self._total or 0
        self._clock.update(done)
        left = self.left
        # What is drawn live does not go through the console's own filter.
        self.bar.update(self._task, description=plain(self._words), total=self._total, completed=done, left=left)
        due = now or time.monotonic() - self._spoke >= self.every
        if due and not self.interactive and (line is not None or self._total):
            told = line if line is not None else f"{self._words}: {done:,} of {self._total:,}"
            self.say(f"{told}, {left}" if left else told)

    def say(self, line: str) -> None:
        """A line where there is no terminal."""
        if not self.interactive:
            from rich.text import Text

            self.console.print(Text(line), soft_wrap=True)
            self._spoke = time.monotonic()
