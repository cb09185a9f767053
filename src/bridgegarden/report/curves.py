"""Curves with bands: something measured along a length, each point with its interval."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup

from bridgegarden.report.charts import WIDE
from bridgegarden.report.labels import Box, shortened, width
from bridgegarden.report.marks import circle, drawing, ground, line, mark, text
from bridgegarden.report.scale import Axis, Reading, Scale, scale

STOPS = 12
"""Points of a curve that can be pointed at, and walked to with the Tab key."""
PATTERNS = ("solid", "dashed", "dotted", "mixed")
"""Lines are told apart by these, in order, and by colour."""


class CurvePoint(NamedTuple):
    """One point of a curve."""

    x: float
    """Where."""
    y: Reading
    """How much, with its interval."""
    about: str
    """In words."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Points from left to right."""

    name: str
    """In the legend."""

    points: tuple[CurvePoint, ...]
    """At least one."""

    sure: int
    """How many of the points, from the left, decide how far the vertical axis reaches; the intervals of the rest may be
    cut off."""


def curve_chart(curves: Sequence[Curve], *, x: Axis, y: Axis, about: str, size: int = WIDE) -> Markup:
    """Each curve as a line over the band of its intervals.

    Args:
        curves: four of them can be told apart without colour.
        x: the horizontal axis.
        y: the vertical axis.
        about: the chart in one sentence, for screen readers.
        size: width in pixels.
    """
    legend, top = _legend(curves, size)
    height = top + round(max(size * 0.36, 200)) + 50
    frame = Box(46, top + 18, size - 14, height - 50)
    across = scale(x, [Reading(p.x, p.x, p.x) for c in curves for p in c.points], frame.left, frame.right)
    across = across._replace(low=min(p.x for c in curves for p in c.points))
    if across.low == across.high:
        across = across._replace(high=across.low + 1)
    up = scale(y, [reading for curve in curves for reading in _deciding(curve)], frame.bottom, frame.top)
    parts = [ground(across, frame, vertical=False), Markup('<g transform="translate(0 {})">').format(top)]
    parts += [text("axis-name", 0, 6, up.axis.label), Markup("</g>")]
    parts.append(ground(up._replace(axis=_unnamed(y)), frame, vertical=True))
    if up.low <= 0 <= up.high:
        parts.append(line("zero", frame.left, up.at(0), frame.right, up.at(0)))
    parts += [_band(curve, number, across, up) for number, curve in enumerate(curves)]
    parts += [_line(curve, number, across, up) for number, curve in enumerate(curves)]
    parts.append(legend)
    return drawing(parts, size, height, about)


def _unnamed(axis: Axis) -> Axis:
    return Axis(label="", percent=axis.percent, include=axis.include, least=axis.least, most=axis.most)


def _deciding(curve: Curve) -> list[Reading]:
    """Every value, and the intervals where there is enough behind them."""
    certain = [point.y for point in curve.points[: curve.sure]]
    return certain + [Reading(point.y.value, point.y.value, point.y.value) for point in curve.points[curve.sure :]]


def _band(curve: Curve, number: int, across: Scale, up: Scale) -> Markup:
    there = [f"{across.at(point.x):.1f} {up.at(point.y.high):.1f}" for point in curve.points]
    back = [f"{across.at(point.x):.1f} {up.at(point.y.low):.1f}" for point in reversed(curve.points)]
    return Markup('<path class="band {}" d="M{}Z"/>').format(_tone(number), "L".join(there + back))


def _line(curve: Curve, number: int, across: Scale, up: Scale) -> Markup:
    places = [(across.at(point.x), up.at(point.y.value)) for point in curve.points]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    drawn = Markup('<path class="curve {} {}" d="M{}"/>').format(_tone(number), PATTERNS[number % 4], path)
    step = max(1, -(-len(places) // STOPS))
    for (cx, cy), point in list(zip(places, curve.points, strict=True))[::step]:
        inner = circle("stop", cx, cy, 3)
        drawn += mark(inner, point.about, halo=circle("halo", cx, cy, 10), tone=" " + _tone(number))
    return drawn


def _tone(number: int) -> str:
    return ("cold", "warm", "quiet", "dark")[number % 4]


def _legend(curves: Sequence[Curve], size: int) -> tuple[Markup, int]:
    """Names beside a piece of their line, in as many rows as it takes; and the height of that."""
    parts, x, y = [], 0.0, 10.0
    for number, curve in enumerate(curves):
        name = shortened(curve.name, size - 44)
        wide = 44 + width(name)
        if x > 0 and x + wide > size:
            x, y = 0.0, y + 22
        pattern = f"{_tone(number)} {PATTERNS[number % 4]}"
        parts.append(Markup('<path class="curve {}" d="M{:.1f} {:.1f}h28"/>').format(pattern, x, y))
        parts.append(text("note", x + 36, y + 4.5, name))
        x += wide + 18
    return Markup("").join(parts), round(y + 24)
