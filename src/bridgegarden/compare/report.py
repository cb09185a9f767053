"""The comparison for a reader and for a program: tables, charts, and one HTML page of both."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from markupsafe import Markup

from bridgegarden.compare.across import PER_BYTE, PER_TOKEN, across_table
from bridgegarden.compare.findings import (
    DRAFTS,
    LOSSES,
    QUALITIES,
    called,
    claims,
    difference,
    draft_table,
    entropy_kept,
    label_loss,
    percent,
    price,
    qualities,
    sentences,
    spent,
    summary,
    times,
    times_less,
)
from bridgegarden.compare.result import CompareResult, Quantity
from bridgegarden.report.charts import Dot, Point, Row, Shape, dot_plot, responsive, scatter
from bridgegarden.report.marks import Axis, Reading
from bridgegarden.report.page import Page, Section, details, figure, findings, words_section
from bridgegarden.table import Cell, Column, Table, difference_cell, mean_cell, number, share_parts
from bridgegarden.terminal import counted


def report_page(result: CompareResult) -> Page:
    """What the page says."""
    sections = []
    if qualities(result):
        sections.append(Section(anchor="frontier", title="Quality against cost", body=_frontier(result)))
        if entropy_kept(result, result.objectives[0]) is not None:
            sections.append(Section(anchor="entropy", title="Quality against entropy kept", body=_entropy(result)))
    sections += [
        Section(anchor="quality", title="Quality and drift", body=_quality(result)),
        Section(anchor="cost", title="Cost", body=cost_table(result).html()),
    ]
    across = across_table(result)
    if across is not None:
        sections.append(Section(anchor="bytes", title="By the byte and by the token", body=across.html()))
    drafts = draft_table(result)
    if drafts is not None:
        sections.append(Section(anchor="drafts", title="As draft models", body=drafts.html()))
    against = difference_table(result)
    if against is not None:
        title = f"Against {result.label(result.settings.baseline)}"
        sections.append(Section(anchor="differences", title=title, body=against.html()))
    sections += [
        Section(anchor="drift", title="Loss on the teacher's and on the student's texts", body=_drift(result)),
        words_section(*WORDS),
        _made(result),
    ]
    return Page(
        title="Objectives compared",
        kicker=f"bridgegarden compare, {result.started[:10]}",
        lead=_lead(result),
        sections=tuple(sections),
    )


WORDS = (
    "hard label",
    "soft label",
    "hybrid",
    "on-policy",
    "L_dT",
    "L_dθ",
    "exposure bias",
    "entropy kept",
    "FLOPs",
)
"""What the page explains."""


def _lead(result: CompareResult) -> Markup:
    seeds, pair = len(result.settings.seeds), result.pair
    equal = "the same optimiser steps" if result.settings.budget == "steps" else "the same estimated FLOPs"
    return Markup(
        "<p>{} objectives, {} each, distil {} ({:,} parameters) into {} ({:,}) from {:,} rows, with {}.</p>{}"
    ).format(
        len(result.rows),
        f"{seeds} trainings" if seeds > 1 else "one training",
        pair.teacher,
        pair.teacher_parameters,
        pair.student,
        pair.student_parameters,
        pair.rows,
        equal,
        findings(sentences(result)),
    )


def _frontier(result: CompareResult) -> Markup:
    body = Markup("")
    for quantity in qualities(result):
        for by in ("time", "flops"):
            about = f"{QUALITIES[quantity].capitalize()} against cost ({by}), one point an objective."
            chart = responsive(lambda size, q=quantity, b=by, a=about: cost_chart(result, q, b, a, size))
            drawn = figure(chart, _frontier_caption(result, by))
            first = quantity == qualities(result)[0]
            what = f"{QUALITIES[quantity].capitalize()}, against {'time' if by == 'time' else 'FLOPs'}"
            body += drawn if first else details(what, drawn)
    return body


def _entropy(result: CompareResult) -> Markup:
    body = Markup("")
    for quantity in qualities(result):
        about = f"{QUALITIES[quantity].capitalize()} against entropy kept, one point an objective."
        chart = responsive(lambda size, q=quantity, a=about: entropy_chart(result, q, a, size))
        drawn = figure(
            chart,
            "Right answers are not all: to the right, more of the teacher's entropy is kept, its wordings and its "
            "doubts. The dotted line joins what no other objective beats at both by its mean.",
        )
        body += drawn if quantity == qualities(result)[0] else details(QUALITIES[quantity].capitalize(), drawn)
    return body


def _frontier_caption(result: CompareResult, by: str) -> str:
    base = result.label(result.settings.baseline)
    cost = "time of a training" if by == "time" else "estimated FLOPs of a training"
    shared = ", its share of asking the teacher once included" if result.cache is not None else ""
    return (
        f"To the right is cheaper: {cost}{shared}, beside what {base} takes. Bars are 95 % intervals, small dots "
        "single seeds; the dotted line joins what no other objective beats by its mean. Rings: on the student's own "
        "texts."
    )


def _quality(result: CompareResult) -> Markup:
    body = quality_table(result).html()
    if len(result.settings.seeds) > 1:
        for quantity in qualities(result):
            name = f"{QUALITIES[quantity].capitalize()}, seed by seed"
            body += details(name, seed_table(result, quantity).html())
    tasks = task_table(result)
    return body if tasks is None else body + details("Task by task", tasks.html())


def _drift(result: CompareResult) -> Markup:
    about = "KL on the teacher's texts and on the student's own, one row an objective."
    chart = responsive(lambda size: drift_chart(result, about, size))
    return figure(
        chart, "Nats a text; further left is more like the teacher. Where the ring is right of the dot, it drifts."
    )


def _made(result: CompareResult) -> Section:
    settings = result.settings
    evaluation = settings.evaluation
    tasks = "none" if evaluation is None else ", ".join(evaluation.tasks)
    if evaluation is not None and evaluation.limit is not None:
        tasks += f", at most {evaluation.limit} problems each"
    objectives = Markup("").join(
        Markup("<li>{}: <code>{}</code>{}</li>").format(
            row.label,
            row.objective,
            f", the student answers {100 * row.lmbda:.0f} % of the batches" if row.lmbda else "",
        )
        for row in result.rows.values()
    )
    facts: dict[str, str | Markup] = {
        "recipe": details("as it was run", Markup("<pre>{}</pre>").format(result.recipe)),
        "objectives": details("every field", Markup("<ul>{}</ul>").format(objectives)),
        "tasks": tasks,
    }
    return result.made(facts)


By = Literal["time", "flops"]


def cost_chart(result: CompareResult, quantity: Quantity, by: By, about: str, size: int) -> Markup:
    """Every objective by how many times cheaper than the baseline it is, and its quality."""
    points = [_point(result, name, quantity, by) for name in result.objectives]
    base = result.label(result.settings.baseline)
    what = "time" if by == "time" else "FLOPs"
    return scatter(
        points,
        x=Axis(label=f"times {'less' if by == 'time' else 'fewer'} {what} than {base}", log=True),
        y=Axis(label=QUALITIES[quantity], percent=True, least=0.0, most=1.0),
        about=about,
        size=size,
    )


def entropy_chart(result: CompareResult, quantity: Quantity, about: str, size: int) -> Markup:
    """Every objective by how much of the teacher's entropy it keeps, and its quality."""
    kept = {name: entropy_kept(result, name) for name in result.objectives}
    points = [
        replace(_point(result, name, quantity, "flops"), x=Reading(value, value, value), seeds=())
        for name, value in kept.items()
        if value is not None
    ]
    return scatter(
        points,
        x=Axis(label="entropy kept", percent=True, least=0.0),
        y=Axis(label=QUALITIES[quantity], percent=True, least=0.0, most=1.0),
        about=about,
        size=size,
    )


def drift_chart(result: CompareResult, about: str, size: int) -> Markup:
    """Losses on both kinds of texts."""
    series: list[tuple[str, Shape]] = [("on the teacher's texts", "disc"), ("on its own", "ring")]
    rows = []
    for name in result.objectives:
        dots = []
        for quantity in ("teacher_loss", "student_loss"):
            mean = summary(result, name, quantity)
            told = f"{result.label(name)}, {LOSSES[quantity]}: {number(mean.value)} nats a text"
            dots.append(Dot(reading=Reading(mean.value, *mean.interval), seeds=mean.by_seed, about=told))
        rows.append(Row(name=result.label(name), dots=tuple(dots)))
    axis = Axis(label="nats a text", log=True)
    return dot_plot(rows, axis=axis, series=series, about=about, size=size)


def cheapness(result: CompareResult, name: str, by: By) -> float:
    """How many times less than the baseline `name` costs."""
    base = result.settings.baseline if result.settings.baseline in result.objectives else result.objectives[0]
    one, other = price(result, name), price(result, base)
    if by == "flops":
        return other.flops / one.flops
    return other.seconds / one.seconds


def _point(result: CompareResult, name: str, quantity: Quantity, by: By) -> Point:
    mean, ratio = summary(result, name, quantity), cheapness(result, name, by)
    cells = percent(mean.value, *mean.interval)
    cost = f"{times(ratio)} cheaper" if ratio >= 1 else f"{times(1 / ratio)} dearer"
    return Point(
        name=result.label(name),
        x=Reading(ratio, ratio, ratio),
        y=Reading(mean.value, *mean.interval),
        seeds=tuple((ratio, seed) for seed in mean.by_seed) if len(mean.by_seed) > 1 else (),
        shape="ring" if result.rows[name].lmbda else "disc",
        about=f"{result.label(name)}: {cells} {QUALITIES[quantity]}, {cost}",
    )


TOKENS = {
    "teacher_tokens": "teacher tokens",
    "student_tokens": "student tokens",
    "generated_tokens": "generated tokens",
}
"""Fields of `Spent` and their heads."""

UNITS = ("", "k", "M", "G", "T", "P", "E")
"""Thousands."""


def terminal_tables(result: CompareResult) -> list[Table]:
    """Quality and cost, for a terminal; the files have more."""
    further = [table for table in (across_table(result), draft_table(result)) if table is not None]
    return [quality_table(result), *further, cost_table(result)]


def quality_table(result: CompareResult) -> Table:
    """Quality and drift of every objective."""
    seeds, pair = len(result.settings.seeds), result.pair
    over = f"over {seeds} seeds and the problems" if seeds > 1 else "over problems; they say nothing about other seeds"
    teacher = label_loss(result, None)
    on_data = [] if teacher is None else ["loss on the data"]
    columns = [
        "objective",
        *(f"{QUALITIES[q]}, %" for q in qualities(result)),
        *([] if pair.translated else ["entropy kept"]),
        *(*on_data, *LOSSES.values()),
    ]
    return Table(
        columns=columns,
        rows=[[result.label(name), *_quality_cells(result, name)] for name in result.objectives],
        note=f"95 % intervals {over}. Losses and exposure bias in nats a text, on {pair.prompts} "
        f"{'held-out' if pair.held_out else 'training'} prompts, {result.settings.samples} texts each."
        + ("" if pair.translated else " Entropy kept: of the teacher's, on held-out rows.")
        + ("" if teacher is None else f" Loss on the data: nats a token of these; the teacher's is {number(teacher)}."),
    )


def _quality_cells(result: CompareResult, objective: str) -> list[Cell]:
    shares = [summary(result, objective, quantity) for quantity in qualities(result)]
    kept = entropy_kept(result, objective)
    losses = [summary(result, objective, quantity) for quantity in LOSSES]
    on_data = label_loss(result, objective)
    return [
        *(Cell(*share_parts(mean.value, mean.interval)) for mean in shares),
        *([] if result.pair.translated else [Cell("–" if kept is None else f"{100 * kept:.0f} %")]),
        *([] if label_loss(result, None) is None else [Cell("–" if on_data is None else number(on_data))]),
        *(mean_cell(mean.value, mean.interval) for mean in losses),
    ]


def cost_table(result: CompareResult) -> Table:
    """What every objective cost, and how many times less than the baseline."""
    on_cpu = result.pair.device == "cpu"
    varied = len({run.spent.steps for run in result.runs if run.spent is not None}) > 1
    base = result.label(result.settings.baseline)
    columns = [
        "objective",
        Column("steps", detail=not varied),
        *([Column("wall s", detail=True), "CPU s"] if on_cpu else ["wall s"]),
        *TOKENS.values(),
        "FLOPs",
        Column("peak memory", detail=True),
        f"less time than {base}",
        "fewer FLOPs",
    ]
    return Table(
        columns=columns,
        rows=[[result.label(name), *_cost_cells(result, name)] for name in result.objectives],
        note=cost_caption(result),
    )


def _cost_cells(result: CompareResult, objective: str) -> list[str]:
    runs = list(result.runs_of(objective).values())
    clocks = ("seconds", "cpu_seconds") if result.pair.device == "cpu" else ("seconds",)
    memory = max(run.spent.peak_memory for run in runs if run.spent is not None)
    return [
        f"{spent(runs, 'steps'):,.0f}",
        *(number(spent(runs, clock)) for clock in clocks),
        *(short(spent(runs, tokens)) for tokens in TOKENS),
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


def difference_table(result: CompareResult) -> Table | None:
    """Every objective against the baseline, with what is called; None where there is nothing to hold against it."""
    base = result.settings.baseline
    others = [name for name in result.objectives if name != base]
    if base not in result.objectives or not others:
        return None
    quantities = (*qualities(result), "student_loss", "exposure_bias")
    names: Mapping[Quantity, str] = {**QUALITIES, **LOSSES}
    return Table(
        columns=["objective", *(names[q] + (", points" if q in QUALITIES else "") for q in quantities)],
        rows=[[result.label(name), *(_difference_cell(result, name, base, q) for q in quantities)] for name in others],
        note=f"The objective minus {result.label(base)}, paired by seed and problem, with half of a 95 % interval. "
        f"Higher or lower is said only where it holds for all {len(claims(result))} comparisons of the page together "
        "(Holm), else it is open, even if its own interval leaves zero out. All other pairs are in result.json.",
    )


def _difference_cell(result: CompareResult, first: str, second: str, quantity: Quantity) -> Cell:
    """A difference with its own interval, and what is called, corrected for all that is."""
    found = difference(result, first, second, quantity)
    if found is None:
        return Cell("–")
    side = called(result, first, second, quantity)
    return difference_cell(found.mean, found.interval, times=100 if quantity in QUALITIES else 1, side=side)


def seed_table(result: CompareResult, quantity: Quantity) -> Table:
    """Every single training: a mean hides one that failed."""
    rows = []
    for name in result.settings.objectives:
        runs = result.runs_of(name)
        means = dict(zip(runs, summary(result, name, quantity).by_seed, strict=True)) if runs else {}
        cells = [f"{100 * means[seed]:.1f}" if seed in means else "failed" for seed in result.settings.seeds]
        rows.append([result.label(name), *cells])
    columns = ["objective", *(f"seed {seed}" for seed in result.settings.seeds)]
    return Table(columns=columns, rows=rows, note="Per cent. A mean hides a failure.")


def task_table(result: CompareResult) -> Table | None:
    """Quality by task, in per cent; None where there is but one."""
    found = [run.measured.by_task for run in result.runs if run.measured is not None]
    places = dict.fromkeys((task, quantity) for tasks in found for task, means in tasks.items() for quantity in means)
    if len({task for task, _ in places}) < 2:
        return None
    rows = []
    for name in result.objectives:
        own = [run.measured.by_task for run in result.runs_of(name).values() if run.measured is not None]
        means = [sum(tasks[task][quantity] for tasks in own) / len(own) for task, quantity in places]
        rows.append([result.label(name), *(f"{100 * mean:.1f}" for mean in means)])
    columns = ["objective", *(f"{task}, {quantity}" for task, quantity in places)]
    return Table(columns=columns, rows=rows, note="Per cent, mean over seeds.")


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
    return Table.of([_plain_row(result, name) for name in result.objectives]).csv()


def tables_markdown(result: CompareResult) -> str:
    """Everything for a reader."""
    tables: dict[str, Table | None] = {
        "Quality and drift": quality_table(result),
        "By the byte and by the token": across_table(result),
        "As draft models": draft_table(result),
    }
    tables["Cost"] = cost_table(result)
    tables[f"Against {result.label(result.settings.baseline)}"] = difference_table(result)
    for quantity in qualities(result):
        tables[f"{QUALITIES[quantity].capitalize()}, seed by seed"] = seed_table(result, quantity)
    tables["Task by task"] = task_table(result)
    parts = [
        "# Objectives compared",
        f"`{result.command}`, started {result.started}, commit {result.commit or 'unknown'}.",
        "\n".join(f"* {sentence}" for sentence in sentences(result)),
    ]
    for title, table in tables.items():
        if table is not None:
            parts += [f"## {title}", table.markdown(), str(table.note)]
    return "\n\n".join(parts) + "\n"


def short(value: float) -> str:
    """Three digits and a thousand's letter: ``116 k``."""
    power = 0
    while abs(value) >= 999.5 and power < len(UNITS) - 1:
        value, power = value / 1000, power + 1
    return f"{number(value)} {UNITS[power]}".rstrip()


def _plain_row(result: CompareResult, name: str) -> dict[str, Any]:
    runs = list(result.runs_of(name).values())
    row: dict[str, Any] = {"objective": name, "label": result.label(name), "seeds": len(runs)}
    drafts = () if draft_table(result) is None else DRAFTS
    across = (*PER_BYTE, *PER_TOKEN) if result.pair.translated else ()
    for quantity in (*qualities(result), *LOSSES, *across, *drafts):
        mean = summary(result, name, quantity)
        row |= {quantity: mean.value, f"{quantity}_low": mean.interval.low, f"{quantity}_high": mean.interval.high}
    row["entropy_kept"] = entropy_kept(result, name)
    row |= {"label_loss": label_loss(result, name), "teacher_label_loss": label_loss(result, None)}
    for field in ("steps", "seconds", "cpu_seconds", *TOKENS, "prompt_tokens", "peak_memory"):
        row[field] = spent(runs, field)
    row["training_flops"] = spent(runs, "flops")
    found = price(result, name)
    row |= {"flops_with_share_of_cache": found.flops, "flops_with_whole_cache": found.flops_alone}
    row |= {"time_with_share_of_cache": found.seconds, "time_with_whole_cache": found.seconds_alone}
    return row
