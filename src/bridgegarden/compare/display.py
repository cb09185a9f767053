"""What a person sees: one line for each finished training, and tables at the end that fit a terminal."""

from collections.abc import Sequence

from rich import box
from rich.table import Table

from bridgegarden.compare.findings import LOSSES, QUALITIES, average, mean_of, price, qualities
from bridgegarden.compare.job import Job
from bridgegarden.compare.result import CompareResult, CompareRun
from bridgegarden.compare.tables import TOKENS, cheaper, cost_caption, entropy_cell, loss_cell, share_cell, short

ROOMY = 110
"""Columns from which on a number and its interval fit on one line."""


def told(job: Job, run: CompareRun) -> str:
    """One finished training on one line."""
    if run.spent is None:
        return f"{job.name}: FAILED: {run.failure}"
    parts = []
    for quantity in ("greedy", "sampled"):
        value = mean_of(run, quantity)
        if value is not None:
            parts.append(f"{quantity} {100 * value:.1f} %")
    parts.append(f"exposure bias {mean_of(run, 'exposure_bias'):+.3g}")
    return f"{job.name}: {', '.join(parts)}, {run.spent.cpu_seconds:.0f} CPU s"


def terminal_tables(result: CompareResult, width: int) -> list[Table]:
    """Quality and cost, for a terminal of `width` columns; the files have more."""
    return [_quality_table(result, " " if width >= ROOMY else "\n"), _cost_table(result)]


def _quality_table(result: CompareResult, between: str) -> Table:
    seeds = len(result.settings.seeds)
    over = f"95 % intervals over {seeds} seeds and the problems" if seeds > 1 else "95 % intervals over problems"
    table = _empty(["objective", *(f"{QUALITIES[q]}, %" for q in qualities(result)), "entropy kept", *LOSSES.values()])
    for name in result.objectives:
        shares = [share_cell(result, name, quantity, between) for quantity in qualities(result)]
        losses = [loss_cell(result, name, quantity, between) for quantity in LOSSES]
        table.add_row(result.label(name), *shares, entropy_cell(result, name), *losses)
    table.caption = (
        f"{over}. Losses and exposure bias in nats a text. Entropy kept: of the teacher's, on held-out rows."
    )
    return table


def _cost_table(result: CompareResult) -> Table:
    on_cpu = result.pair.device == "cpu"
    fields = ["cpu_seconds" if on_cpu else "seconds", *TOKENS]
    heads = ["CPU s" if on_cpu else "wall s", *(head.replace("generated", "written") for head in TOKENS.values())]
    if len({run.spent.steps for run in result.runs if run.spent is not None}) > 1:
        fields, heads = ["steps", *fields], ["steps", *heads]
    table = _empty(["objective", *heads, "FLOPs", "less time", "fewer FLOPs"])
    for name in result.objectives:
        runs = list(result.runs_of(name).values())
        spent = [average(runs, lambda run, field=field: getattr(run.spent, field)) for field in fields]
        flops = price(result, name).flops
        table.add_row(result.label(name), *(short(value) for value in (*spent, flops)), *cheaper(result, name))
    table.caption = f"{cost_caption(result)} Less and fewer: than {result.label(result.settings.baseline)}."
    return table


def _empty(heads: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for place, head in enumerate(heads):
        table.add_column(head, no_wrap=place == 0, justify="left" if place == 0 else "right")
    table.caption_justify, table.caption_style = "left", ""
    return table
