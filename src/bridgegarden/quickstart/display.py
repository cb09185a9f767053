"""What a person sees while the quickstart works, and the table at its end."""

import time
from collections.abc import Sequence

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

from bridgegarden.estimate import Estimate
from bridgegarden.quickstart.result import Measured, ObjectiveRun, QuickstartResult
from bridgegarden.training.progress import duration

EVERY = 15.0
"""Seconds between lines where there is no terminal."""

COLUMNS = {
    "accuracy_sampled": "right, sampled",
    "accuracy_greedy": "right, greedy",
    "diversity": "variety kept",
    "kl_bridge": "KL Bridges",
    "kl_garden": "KL Gardens",
    "exposure_bias": "exposure bias",
}
"""Fields of `Measured` in the table, with their heads."""

ROOMY = 118
"""Columns of a terminal from which on a number and its error fit on one line."""

SHARES = ("accuracy_sampled", "accuracy_greedy", "diversity")


class QuickstartDisplay:
    """One bar over the whole run with the time left, and a row for each finished training. A context manager."""

    def __init__(self, console: Console, total: int) -> None:
        """
        Args:
            console: where to; a terminal gets a live display, anything else plain lines.
            total: units of work in all.
        """
        self.console, self.total = console, total
        self.interactive = console.is_terminal and not console.is_dumb_terminal
        self._done: dict[str, int] = {}
        self._rows: list[ObjectiveRun] = []
        self._first: tuple[float, int] | None = None
        self._spoke = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=None), TaskProgressColumn(), console=console
        )
        self._task = self._bar.add_task("getting ready", total=total)
        self._live = Live(console=console, get_renderable=self._screen, refresh_per_second=4, transient=True)

    def __enter__(self) -> "QuickstartDisplay":
        if self.interactive:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.interactive:
            self._live.stop()

    def advance(self, name: str, units: int) -> None:
        """The part called `name` has done `units` of its work."""
        self._done[name] = units
        if self._first is None:
            # From here: what comes before is the loading of libraries, which tells nothing about speed.
            self._first = (time.monotonic(), units)
        self._bar.update(self._task, completed=sum(self._done.values()))
        if not self.interactive and time.monotonic() - self._spoke > EVERY:
            self._say(f"{sum(self._done.values()) / self.total:.0%}{self._time_left()}")

    def finished(self, name: str, units: int, run: ObjectiveRun) -> None:
        """A training and its measurement are done; `units` is all the work it had."""
        self.advance(name, units)
        self._rows.append(run)
        if not self.interactive:
            found = run.measured
            self._say(
                f"{run.label}, seed {run.seed}: {100 * found.accuracy_sampled.mean:.1f} % right when sampling, "
                f"{100 * found.diversity.mean:.1f} % of the variety kept{self._time_left()}"
            )

    def _say(self, line: str) -> None:
        self.console.print(Text(line), soft_wrap=True)
        self._spoke = time.monotonic()

    def _screen(self) -> Group:
        self._bar.update(self._task, description=f"{len(self._rows)} trained{self._time_left()}")
        parts = (
            [measured_table([(_named(run), run.measured) for run in self._rows], self.console.width)]
            if self._rows
            else []
        )
        return Group(*parts, self._bar.get_renderable())

    def _time_left(self) -> str:
        done = sum(self._done.values())
        if self._first is None or not self._first[1] < done < self.total:
            return ""
        since, before = self._first
        return f", {duration((time.monotonic() - since) / (done - before) * (self.total - done))} left"


def measured_table(rows: Sequence[tuple[str, Measured]], width: int) -> Table:
    """Single models, with standard errors over problems, for a terminal of `width` columns."""
    table = _empty_table("")
    for name, measured in rows:
        table.add_row(name, *(written(getattr(measured, field), field, width) for field in COLUMNS))
    return table


def result_table(result: QuickstartResult, kept: Sequence[str], width: int) -> Table:
    """Every objective, with standard errors; those in `kept` (the frontier) are starred."""
    table = _empty_table("objective")
    for name in result.objectives:
        summaries = {field: result.summary(name, field) for field in COLUMNS}
        cells = [written(Estimate(s.mean, s.stderr, s.n), field, width) for field, s in summaries.items()]
        table.add_row(result.label(name) + (" *" if name in kept else ""), *cells)
    table.add_section()
    table.add_row("teacher", *(written(getattr(result.teacher, field), field, width) for field in COLUMNS))
    seeds = len(result.settings.seeds)
    over = f"{seeds} seeds" if seeds > 1 else f"{result.settings.test_problems:,} held-out problems"
    table.caption = (
        f"± one standard error over {over}. KL in nats a token on the teacher's answers, exposure bias in nats an "
        "answer. * on the frontier: no other objective is better at sampled accuracy and at variety."
    )
    table.caption_justify, table.caption_style = "left", ""
    return table


def written(estimate: Estimate, field: str, width: int) -> str:
    """`estimate` with its standard error, below it where the terminal is narrow; shares in per cent."""
    gap = " " if width >= ROOMY else "\n"
    if field in SHARES:
        return f"{100 * estimate.mean:.1f}{gap}± {100 * estimate.stderr:.1f} %"
    return f"{estimate.mean:.3g}{gap}± {estimate.stderr:.1g}"


def _empty_table(first: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(first, no_wrap=True)
    for head in COLUMNS.values():
        table.add_column(head, justify="right")
    return table


def _named(run: ObjectiveRun) -> str:
    return f"{run.label}, seed {run.seed}"
