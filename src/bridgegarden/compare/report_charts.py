"""The charts of a comparison's page."""

from dataclasses import replace
from typing import Literal

from markupsafe import Markup

from bridgegarden.compare.findings import LOSSES, QUALITIES, entropy_kept, price, summary
from bridgegarden.compare.result import CompareResult, Quantity
from bridgegarden.compare.words import percent, times
from bridgegarden.report.charts import Dot, Point, Row, Shape, dot_plot, scatter
from bridgegarden.report.scale import Axis, Reading, number

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
