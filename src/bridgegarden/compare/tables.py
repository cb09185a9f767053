"""The comparison as tables: for a reader (Markdown, the page, the terminal) and for a program (CSV)."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from bridgegarden.compare.findings import (
    LOSSES,
    QUALITIES,
    average,
    difference,
    entropy_kept,
    price,
    qualities,
    sentences,
    summary,
    times_less,
)
from bridgegarden.compare.result import CompareResult, CompareRun, Quantity
from bridgegarden.statistics import PairedDifference
from bridgegarden.table import number, plus_minus, share_parts
from bridgegarden.terminal import counted

TOKENS = {
    "teacher_tokens": "teacher tokens",
    "student_tokens": "student tokens",
    "generated_tokens": "generated tokens",
}
"""Fields of `Spent` and their heads."""

UNITS = ("", "k", "M", "G", "T", "P", "E")
"""Thousands."""

Rows = tuple[list[str], list[list[str]]]
"""Heads, and cells of each row."""


def quality_rows(result: CompareResult) -> Rows:
    """Quality and drift of every objective."""
    heads = ["objective", *(f"{QUALITIES[q]}, %" for q in qualities(result)), "entropy kept", *LOSSES.values()]
    return heads, [[result.label(name), *quality_cells(result, name)] for name in result.objectives]


def quality_cells(result: CompareResult, objective: str) -> list[str]:
    """One row of `quality_rows`, without its name."""
    shares = [share_cell(result, objective, quantity) for quantity in qualities(result)]
    losses = [loss_cell(result, objective, quantity) for quantity in LOSSES]
    return [*shares, entropy_cell(result, objective), *losses]


def cost_rows(result: CompareResult) -> Rows:
    """What every objective cost, and how many times less than the baseline."""
    base = result.label(result.settings.baseline)
    clock = "CPU s" if result.pair.device == "cpu" else "wall s"
    heads = ["objective", "steps", *(["wall s"] if clock == "CPU s" else []), clock, *TOKENS.values(), "FLOPs"]
    heads += ["peak memory", f"less time than {base}", "fewer FLOPs"]
    return heads, [[result.label(name), *cost_cells(result, name)] for name in result.objectives]


def cost_cells(result: CompareResult, objective: str) -> list[str]:
    """One row of `cost_rows`, without its name."""
    runs = list(result.runs_of(objective).values())
    spent = [average(runs, lambda run, name=name: getattr(run.spent, name)) for name in TOKENS]
    memory = max(run.spent.peak_memory for run in runs if run.spent is not None)
    clocks = [_wall, _cpu] if result.pair.device == "cpu" else [_wall]
    return [
        f"{average(runs, lambda run: run.spent.steps if run.spent else 0):,.0f}",
        *(number(average(runs, clock)) for clock in clocks),
        *(short(tokens) for tokens in spent),
        short(price(result, objective).flops),
        f"{memory / 1e6:,.0f} MB" if memory < 1e9 else f"{memory / 1e9:.1f} GB",
        *cheaper(result, objective),
    ]


def cheaper(result: CompareResult, objective: str) -> tuple[str, str]:
    """How many times less than the baseline `objective` costs, in time and in operations."""
    base = result.settings.baseline
    if base not in result.objectives:
        return "–", "–"
    one, other = price(result, objective), price(result, base)
    return times_less([other.seconds / one.seconds]), times_less([other.flops / one.flops])


def difference_rows(result: CompareResult) -> Rows:
    """Every objective against the baseline, with what is called."""
    quantities = (*qualities(result), "student_loss", "exposure_bias")
    names: Mapping[Quantity, str] = {**QUALITIES, **LOSSES}
    heads = ["objective", *(names[q] + (", points" if q in QUALITIES else "") for q in quantities)]
    base = result.settings.baseline
    rows = []
    for name in result.objectives:
        if name == base or base not in result.objectives:
            continue
        found = [difference(result, name, base, quantity) for quantity in quantities]
        cells = [difference_cell(one, share=q in QUALITIES) for one, q in zip(found, quantities, strict=True)]
        rows.append([result.label(name), *cells])
    return heads, rows


def seed_rows(result: CompareResult, quantity: Quantity) -> Rows:
    """Every single training: a mean hides one that failed."""
    heads = ["objective", *(f"seed {seed}" for seed in result.settings.seeds)]
    rows = []
    for name in result.settings.objectives:
        runs = result.runs_of(name)
        means = dict(zip(runs, summary(result, name, quantity).by_seed, strict=True)) if runs else {}
        cells = [f"{100 * means[seed]:.1f}" if seed in means else "failed" for seed in result.settings.seeds]
        rows.append([result.label(name), *cells])
    return heads, rows


def task_rows(result: CompareResult) -> Rows:
    """Quality by task, in per cent; empty where there is but one."""
    found = [run.measured.by_task for run in result.runs if run.measured is not None]
    places = dict.fromkeys((task, quantity) for tasks in found for task, means in tasks.items() for quantity in means)
    if len({task for task, _ in places}) < 2:
        return [], []
    rows = []
    for name in result.objectives:
        own = [run.measured.by_task for run in result.runs_of(name).values() if run.measured is not None]
        means = [sum(tasks[task][quantity] for tasks in own) / len(own) for task, quantity in places]
        rows.append([result.label(name), *(f"{100 * mean:.1f}" for mean in means)])
    return ["objective", *(f"{task}, {quantity}" for task, quantity in places)], rows


def cost_caption(result: CompareResult) -> str:
    """How the columns of the cost table are meant."""
    parts = ["Means over seeds. FLOPs are estimated."]
    cache = result.cache
    if cache is not None and cache.sharers:
        clock = cache.cpu_seconds if result.pair.device == "cpu" else cache.seconds
        known = "its time is not known and not counted" if clock is None else f"{number(clock)} s"
        readers = [n for n in result.objectives if result.rows[n].asks_teacher and not result.rows[n].lmbda]
        parts.append(
            f"The teacher was asked once about {cache.tokens:,} tokens ({short(cache.flops)}FLOP, {known}), "
            f"for {counted(cache.sharers, 'training')}. FLOPs and both ratios include a share of 1/{cache.sharers} of "
            "that."
        )
        base = result.settings.baseline
        if readers and base in result.objectives and base not in readers:
            one, other = price(result, readers[0]), price(result, base)
            time = times_less([other.seconds / one.seconds_alone], "less")
            flops = times_less([other.flops / one.flops_alone], "fewer")
            parts.append(
                f"If {result.label(readers[0])} alone had to pay for all of it, it would take {time} time and "
                f"{flops} FLOPs than {result.label(base)}."
            )
    return " ".join(parts)


def objectives_csv(result: CompareResult) -> str:
    """One line an objective, in plain numbers; shares from 0 to 1, losses in nats a text."""
    rows = [_plain_row(result, name) for name in result.objectives]
    heads = list(dict.fromkeys(name for row in rows for name in row))
    file = io.StringIO()
    writer = csv.DictWriter(file, heads, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def tables_markdown(result: CompareResult) -> str:
    """Everything for a reader."""
    base = result.settings.baseline
    parts = [
        "# Objectives compared",
        f"`{result.command}`, started {result.started}, commit {result.commit or 'unknown'}.",
        "\n".join(f"* {sentence}" for sentence in sentences(result)),
        "## Quality and drift",
        markdown(*quality_rows(result)),
        "## Cost",
        markdown(*cost_rows(result)),
        cost_caption(result),
    ]
    if base in result.objectives and len(result.objectives) > 1:
        parts += [f"## Against {result.label(base)}", markdown(*difference_rows(result))]
    for quantity in qualities(result):
        parts += [f"## {QUALITIES[quantity].capitalize()}, seed by seed", markdown(*seed_rows(result, quantity))]
    heads, rows = task_rows(result)
    if rows:
        parts += ["## Task by task", markdown(heads, rows)]
    return "\n\n".join(parts) + "\n"


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows))


def short(value: float) -> str:
    """Three digits and a thousand's letter: ``116 k``."""
    power = 0
    while abs(value) >= 999.5 and power < len(UNITS) - 1:
        value, power = value / 1000, power + 1
    return f"{number(value)} {UNITS[power]}".rstrip()


def share_cell(result: CompareResult, objective: str, quantity: Quantity, between: str = " ") -> str:
    """A share of right answers, in per cent."""
    mean = summary(result, objective, quantity)
    return between.join(share_parts(mean.value, mean.interval))


def loss_cell(result: CompareResult, objective: str, quantity: Quantity, between: str = " ") -> str:
    """A loss, nats a text."""
    mean = summary(result, objective, quantity)
    value, half = plus_minus(mean.value, (mean.interval.high - mean.interval.low) / 2)
    return f"{value}{between}± {half}"


def entropy_cell(result: CompareResult, objective: str) -> str:
    """Student's entropy over the teacher's; a dash without held-out rows."""
    value = entropy_kept(result, objective)
    return "–" if value is None else f"{100 * value:.0f} %"


def difference_cell(found: PairedDifference | None, *, share: bool) -> str:
    """A difference with its interval, and what is called: open where the interval holds zero."""
    if found is None:
        return "–"
    unit = 100 if share else 1
    mean, half = plus_minus(unit * found.mean, unit * (found.interval.high - found.interval.low) / 2)
    called = {"first": "higher", "second": "lower", None: "open"}[found.verdict]
    return f"{'+' if found.mean > 0 else ''}{mean} ± {half}, {called}"


def _plain_row(result: CompareResult, name: str) -> dict[str, Any]:
    runs = list(result.runs_of(name).values())
    row: dict[str, Any] = {"objective": name, "label": result.label(name), "seeds": len(runs)}
    for quantity in (*qualities(result), *LOSSES):
        mean = summary(result, name, quantity)
        row |= {quantity: mean.value, f"{quantity}_low": mean.interval.low, f"{quantity}_high": mean.interval.high}
    row["entropy_kept"] = entropy_kept(result, name)
    for field in ("steps", "seconds", "cpu_seconds", *TOKENS, "prompt_tokens", "peak_memory"):
        row[field] = average(runs, lambda run, name=field: getattr(run.spent, name))
    row["training_flops"] = average(runs, lambda run: run.spent.flops if run.spent else 0.0)
    found = price(result, name)
    row |= {"flops_with_share_of_cache": found.flops, "flops_with_whole_cache": found.flops_alone}
    row |= {"time_with_share_of_cache": found.seconds, "time_with_whole_cache": found.seconds_alone}
    return row


def _wall(run: CompareRun) -> float:
    return run.spent.seconds if run.spent else 0.0


def _cpu(run: CompareRun) -> float:
    return run.spent.cpu_seconds if run.spent else 0.0


ROOMY = 110
"""Columns from which on a number and its interval fit on one line."""


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
