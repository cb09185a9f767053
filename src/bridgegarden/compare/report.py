"""The comparison as one HTML page: tables and charts."""

from dataclasses import replace
from typing import Literal

from markupsafe import Markup

from bridgegarden.compare.findings import (
    LOSSES,
    QUALITIES,
    entropy_kept,
    percent,
    price,
    qualities,
    sentences,
    summary,
    times,
)
from bridgegarden.compare.result import CompareResult, Quantity
from bridgegarden.compare.tables import (
    cost_caption,
    cost_rows,
    difference_rows,
    quality_rows,
    seed_rows,
    task_rows,
)
from bridgegarden.report.charts import Dot, Point, Row, Shape, dot_plot, responsive, scatter
from bridgegarden.report.marks import Axis, Reading
from bridgegarden.report.page import Page, Section, details, figure, table, terms
from bridgegarden.table import number

GLOSSARY = {
    "hard label": "One token as the target: the teacher's likeliest, or (SFT, SeqKD) the one in the data.",
    "soft label": "The teacher's whole next-token distribution as the target.",
    "hybrid": "Both, mixed at each position by a soft weight from 0 (hard) to 1 (soft).",
    "on-policy": "The student writes the answers that it is trained on, and the teacher judges them token by token.",
    "L_dT": "KL from teacher to student, summed over texts that the teacher wrote.",
    "L_dθ": "The same over the student's own texts: what its user meets. Likeness to the teacher, not rightness.",
    "exposure bias": "L_dθ − L_dT: what drifting costs once the student writes by itself.",
    "entropy kept": (
        "The student's entropy over the teacher's, on held-out rows. Below 100 %: surer than its teacher, by less "
        "variety or fewer doubts; above: unlearned."
    ),
    "FLOPs": (
        "Multiplications and additions of matrix products, estimated from the models' configurations and the tokens "
        "that they read and wrote. They say little about how well a machine is used: writing token by token takes few "
        "of them and much time."
    ),
}


def report_page(result: CompareResult) -> Page:
    """What the page says."""
    sections = []
    if qualities(result):
        sections.append(Section(anchor="frontier", title="Quality against cost", body=_frontier(result)))
        if entropy_kept(result, result.objectives[0]) is not None:
            sections.append(Section(anchor="entropy", title="Quality against entropy kept", body=_entropy(result)))
    sections += [
        Section(anchor="quality", title="Quality and drift", body=_quality(result)),
        Section(anchor="cost", title="Cost", body=table(*cost_rows(result), caption=cost_caption(result))),
    ]
    if result.settings.baseline in result.objectives and len(result.objectives) > 1:
        title = f"Against {result.label(result.settings.baseline)}"
        sections.append(Section(anchor="differences", title=title, body=_differences(result)))
    sections += [
        Section(anchor="drift", title="Loss on the teacher's and on the student's texts", body=_drift(result)),
        Section(anchor="words", title="The words used here", body=terms(GLOSSARY)),
        Section(anchor="made", title="How it was made", body=_made(result)),
    ]
    return Page(
        title="Objectives compared",
        kicker=f"bridgegarden compare, {result.started[:10]}",
        lead=_lead(result),
        sections=tuple(sections),
        data={},
        footer="Made by bridgegarden. This file needs no network and holds all of its data.",
    )


def _lead(result: CompareResult) -> Markup:
    seeds, pair = len(result.settings.seeds), result.pair
    equal = "the same optimiser steps" if result.settings.budget == "steps" else "the same estimated FLOPs"
    found = Markup("").join(Markup("<li>{}</li>").format(sentence) for sentence in sentences(result))
    return Markup(
        "<p>{} objectives, {} each, distil {} ({:,} parameters) into {} ({:,}) from {:,} rows, with {}.</p><ul>{}</ul>"
    ).format(
        len(result.rows),
        f"{seeds} trainings" if seeds > 1 else "one training",
        pair.teacher,
        pair.teacher_parameters,
        pair.student,
        pair.student_parameters,
        pair.rows,
        equal,
        found,
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
    seeds, pair = len(result.settings.seeds), result.pair
    over = f"over {seeds} seeds and the problems" if seeds > 1 else "over problems; they say nothing about other seeds"
    caption = (
        f"95 % intervals {over}. Losses and exposure bias in nats a text, on {pair.prompts} "
        f"{'held-out' if pair.held_out else 'training'} prompts, {result.settings.samples} texts each."
    )
    body = table(*quality_rows(result), caption=caption)
    for quantity in qualities(result):
        if seeds > 1:
            name = f"{QUALITIES[quantity].capitalize()}, seed by seed"
            body += details(name, table(*seed_rows(result, quantity), caption="Per cent. A mean hides a failure."))
    heads, rows = task_rows(result)
    return body + details("Task by task", table(heads, rows, caption="Per cent, mean over seeds.")) if rows else body


def _differences(result: CompareResult) -> Markup:
    base = result.label(result.settings.baseline)
    caption = (
        f"The objective minus {base}, paired by seed and problem, with half of a 95 % interval. Higher or lower is "
        "said only where the interval leaves zero out, else it is open; of twenty such comparisons one is called by "
        "chance. All other pairs are in result.json."
    )
    return table(*difference_rows(result), caption=caption)


def _drift(result: CompareResult) -> Markup:
    about = "KL on the teacher's texts and on the student's own, one row an objective."
    chart = responsive(lambda size: drift_chart(result, about, size))
    return figure(
        chart, "Nats a text; further left is more like the teacher. Where the ring is right of the dot, it drifts."
    )


def _made(result: CompareResult) -> Markup:
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
        "command": Markup("<code>{}</code>").format(result.command),
        "recipe": details("as it was run", Markup("<pre>{}</pre>").format(result.recipe)),
        "objectives": details("every field", Markup("<ul>{}</ul>").format(objectives)),
        "tasks": tasks,
        "commit": result.commit or "unknown",
        "versions": ", ".join(f"{name} {version}" for name, version in result.versions.items()),
        "started": f"{result.started}; took {result.seconds / 60:.0f} min",
    }
    return terms(facts, small=True)


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
