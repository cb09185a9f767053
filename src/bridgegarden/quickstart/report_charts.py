"""The three charts of a quickstart result."""

from collections.abc import Callable

from markupsafe import Markup

from bridgegarden.quickstart.report_words import interval_words, percent
from bridgegarden.quickstart.result import QuickstartResult
from bridgegarden.quickstart.verdict import frontier
from bridgegarden.report.charts import WIDE, Dot, Point, Row, dot_plot, scatter
from bridgegarden.report.scale import Axis, Reading, number, span
from bridgegarden.statistics import Estimate


def objective_points(result: QuickstartResult) -> list[Point]:
    """Diversity kept and sampled accuracy of every objective."""
    return [
        Point(
            name=result.label(objective),
            shape="disc" if objective in frontier(result) else "ring",
            x=_reading(result, objective, "diversity"),
            y=_reading(result, objective, "accuracy_sampled"),
            seeds=tuple(
                zip(_seeds(result, objective, "diversity"), _seeds(result, objective, "accuracy_sampled"), strict=True)
            ),
            about=_about(
                result,
                objective,
                {"right answers, sampled": "accuracy_sampled", "diversity kept": "diversity"},
                percent,
            ),
        )
        for objective in result.objectives
    ]


def frontier_chart(result: QuickstartResult, size: int = WIDE) -> Markup:
    """Sampled accuracy against diversity kept."""
    accuracy, diversity = result.teacher.accuracy_sampled, result.teacher.diversity
    right = f"{percent(accuracy.mean)} ({span(accuracy.interval(), percent)})"
    about = f"teacher\nright answers, sampled: {right}\ndiversity kept: all\n95 % t-interval over the problems"
    teacher = Point(name="teacher", x=_of(diversity), y=_of(accuracy), shape="diamond", about=about)
    return scatter(
        [*objective_points(result), teacher],
        x=Axis(label="diversity kept in Gardens →", percent=True, least=0),
        y=Axis(label="↑ right answers, sampled", percent=True, least=0, most=1),
        about="Right answers when sampling against diversity kept, one point per objective.",
        size=size,
    )


def bias_chart(result: QuickstartResult, size: int = WIDE) -> Markup:
    """Exposure bias of every objective."""
    return dot_plot(
        [
            Row(name=result.label(o), dots=(_dot(result, o, "exposure_bias", "exposure bias"),))
            for o in result.objectives
        ],
        axis=Axis(label="exposure bias, nats per answer →", include=(0.0,)),
        series=(("exposure bias", "disc"),),
        about="Exposure bias, one row per objective.",
        size=size,
    )


def kl_chart(result: QuickstartResult, size: int = WIDE) -> Markup:
    """KL at Bridges and at Gardens; logarithmic where the values differ much."""
    rows = [
        Row(
            name=result.label(o),
            dots=(_dot(result, o, "kl_bridge", "KL at Bridges"), _dot(result, o, "kl_garden", "KL at Gardens")),
        )
        for o in result.objectives
    ]
    values = [dot.reading.value for row in rows for dot in row.dots]
    log = min(values) > 0 and max(values) > 20 * min(values)
    return dot_plot(
        rows,
        axis=Axis(label=f"KL, nats per token{', logarithmic' if log else ''} →", log=log, least=0),
        series=(("at Bridges", "square"), ("at Gardens", "ring")),
        about="KL from teacher to student at Bridges and at Gardens, one row per objective.",
        size=size,
    )


def _dot(result: QuickstartResult, objective: str, quantity: str, words: str) -> Dot:
    return Dot(
        reading=_reading(result, objective, quantity),
        seeds=_seeds(result, objective, quantity),
        about=_about(result, objective, {words: quantity}, number),
    )


def _reading(result: QuickstartResult, objective: str, quantity: str) -> Reading:
    summary = result.summary(objective, quantity)
    return Reading(summary.mean, *summary.interval)


def _of(estimate: Estimate) -> Reading:
    return Reading(estimate.mean, *estimate.interval())


def _seeds(result: QuickstartResult, objective: str, quantity: str) -> tuple[float, ...]:
    means = tuple(getattr(run.measured, quantity).mean for run in result.runs_of(objective))
    return means if len(means) > 1 else ()


def _about(result: QuickstartResult, objective: str, quantities: dict[str, str], write: Callable[[float], str]) -> str:
    lines = [result.label(objective)]
    for words, quantity in quantities.items():
        summary = result.summary(objective, quantity)
        lines.append(f"{words}: {write(summary.mean)} ({span(summary.interval, write)})")
    return "\n".join([*lines, interval_words(result)])
