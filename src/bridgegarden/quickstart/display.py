"""What a person sees while the quickstart works, and the table at its end."""

from collections.abc import Sequence

from rich import box
from rich.table import Table

from bridgegarden.quickstart.result import Measured, ObjectiveRun, QuickstartResult
from bridgegarden.statistics import Estimate, Interval
from bridgegarden.table import share_parts

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


def told(run: ObjectiveRun) -> str:
    """One finished training on one line."""
    found = run.measured
    return (
        f"{_named(run)}: {100 * found.accuracy_sampled.mean:.1f} % right when sampling, "
        f"{100 * found.diversity.mean:.1f} % of the variety kept"
    )


def runs_table(runs: Sequence[ObjectiveRun], width: int) -> Table:
    """The trainings so far, for a terminal of `width` columns."""
    return measured_table([(_named(run), run.measured) for run in runs], width)


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
        cells = [written(Estimate(s.mean, s.stderr, s.n), field, width, s.interval) for field, s in summaries.items()]
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


def written(estimate: Estimate, field: str, width: int, interval: Interval | None = None) -> str:
    """`estimate` with its standard error, below it where the terminal is narrow; shares in per cent.

    Where all answers were right, or wrong, and there is no spread to take an error from, the end of `interval` instead.
    """
    gap = " " if width >= ROOMY else "\n"
    if field.startswith("accuracy") and estimate.mean in (0.0, 1.0):
        return gap.join(share_parts(estimate.mean, interval or estimate.share_interval())) + " %"
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
