"""Charts as SVG text: no script, no dependency, every mark reachable by keyboard and named for a screen reader.

Colours are CSS variables of the page (see ``page.css``); `standalone` gives them values for a file of its own. Nothing
is told by hue alone: marks differ in shape and fill.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

from markupsafe import Markup

from bridgegarden.report.labels import Box, place, shortened, width
from bridgegarden.report.marks import circle, drawing, ground, line, mark, text
from bridgegarden.report.scale import Axis, Reading, Scale, scale

WIDE, NARROW = 720, 340
"""Pixels: a chart on a desk and on a telephone. Text keeps its size, so each width is drawn by itself."""

MARGIN = 20
"""Pixels around a chart in a file of its own."""

Shape = Literal["disc", "ring", "square", "diamond"]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One thing measured along two axes."""

    name: str
    """Written beside it."""

    x: Reading
    """To the right is better."""

    y: Reading
    """Higher is better."""

    seeds: tuple[tuple[float, float], ...] = ()
    """Single runs behind the point."""

    shape: Shape = "disc"
    """How it is drawn. A diamond is there for comparison: the staircase leaves it out."""

    about: str
    """All of it in words, for hover, focus and screen readers."""


@dataclass(frozen=True, kw_only=True)
class Dot:
    """One reading in a row of a dot plot."""

    reading: Reading
    """Mean and interval."""

    seeds: tuple[float, ...] = ()
    """Single runs behind it."""

    about: str
    """All of it in words."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a dot plot."""

    name: str
    """At its left."""

    dots: tuple[Dot, ...]
    """One for each series, in their order."""


def unbeaten(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats along one axis without losing along the other, from left to right.

    Values alone decide, whatever their intervals; points drawn as diamonds take no part.
    """

    def beaten(point: Point) -> bool:
        here = (point.x.value, point.y.value)
        rivals = [(rival.x.value, rival.y.value) for rival in points if rival.shape != "diamond"]
        return any(x >= here[0] and y >= here[1] and (x, y) != here for x, y in rivals)

    kept = [point for point in points if point.shape != "diamond" and not beaten(point)]
    return sorted(kept, key=lambda point: point.x.value)


def scatter(points: Sequence[Point], *, x: Axis, y: Axis, about: str, size: int = WIDE) -> Markup:
    """Points with error bars along both axes; a dotted staircase joins those that no other beats by its value.

    Args:
        points: what is drawn.
        x: the horizontal axis.
        y: the vertical axis.
        about: the chart in one sentence, for screen readers.
        size: width in pixels.
    """
    height = round(max(size * 0.6, 360))
    frame = Box(46, 32, size - 14, height - 50)
    across = scale(x, [point.x for point in points], frame.left, frame.right)
    up = scale(y, [point.y for point in points], frame.bottom, frame.top)
    centres = [(across.at(point.x.value), up.at(point.y.value)) for point in points]
    bars = [_bars(point, across, up) for point in points]
    labels = place([p.name for p in points], centres, [box for pair in bars for box in pair], frame)
    stairs = [(across.at(point.x.value), up.at(point.y.value)) for point in unbeaten(points)]
    parts = [ground(across, frame, vertical=False), ground(up, frame, vertical=True), _staircase(stairs, frame)]
    for (cx, cy), label in zip(centres, labels, strict=True):
        if label.far:
            end = min(max(cx, label.box.left), label.box.right)
            parts.append(line("leader", cx, cy, end, (label.box.top + label.box.bottom) / 2))
    for point, (cx, cy) in zip(points, centres, strict=True):
        inner = Markup("").join(circle("seed", across.at(sx), up.at(sy), 3) for sx, sy in point.seeds)
        inner += line("whisker", across.at(point.x.low), cy, across.at(point.x.high), cy)
        inner += line("whisker", cx, up.at(point.y.low), cx, up.at(point.y.high))
        parts.append(_mark(inner + _shape(point.shape, cx, cy), cx, cy, point.about, quiet=point.shape == "diamond"))
    for point, label in zip(points, labels, strict=True):
        quiet = " quiet" if point.shape == "diamond" else ""
        parts.append(text(f"name{quiet}", label.box.left, label.box.bottom - 4, point.name))
    return drawing(parts, size, height, about)


def dot_plot(
    rows: Sequence[Row], *, axis: Axis, series: Sequence[tuple[str, Shape]], about: str, size: int = WIDE
) -> Markup:
    """One row for each thing measured, one mark with its interval for each series.

    Args:
        rows: from top to bottom.
        axis: the horizontal axis.
        series: name and shape of each dot of a row; names are shown where there are two or more.
        about: the chart in one sentence, for screen readers.
        size: width in pixels.
    """
    many = len(series) > 1
    pitch, top = (42 if many else 32), (34 if many else 8)
    names = [shortened(row.name, 0.45 * size) for row in rows]
    left = max(map(width, names)) + 12
    height = top + pitch * len(rows) + 46
    frame = Box(left, top, size - 14, height - 46)
    across = scale(axis, [dot.reading for row in rows for dot in row.dots], frame.left + 8, frame.right)
    parts = [ground(across, frame, vertical=False)]
    if 0.0 in axis.include and not axis.log:
        parts.append(line("zero", across.at(0), frame.top, across.at(0), frame.bottom))
    if many:
        parts.append(_legend(series, frame.left))
    for index, row in enumerate(rows):
        middle = frame.top + pitch * (index + 0.5)
        parts.append(text("name", 0, middle + 4.5, names[index]))
        for place_, (dot, (_, shape)) in enumerate(zip(row.dots, series, strict=True)):
            cy = middle + 14 * (place_ - (len(series) - 1) / 2)
            cx, low, high = (across.at(value) for value in dot.reading)
            inner = Markup("").join(circle("seed", across.at(seed), cy, 3) for seed in dot.seeds)
            inner += line("whisker", low, cy, high, cy) + _shape(shape, cx, cy)
            parts.append(_mark(inner, cx, cy, dot.about, warm=shape == "ring" and many))
    return drawing(parts, size, height, about)


def responsive(draw: Callable[[int], Markup]) -> Markup:
    """The chart at both widths; the page's style shows the one that fits."""
    return Markup('<div class="wide">{}</div><div class="narrow">{}</div>').format(draw(WIDE), draw(NARROW))


def standalone(chart: Markup, *, title: str) -> str:
    """`chart` as the text of an SVG file, on white, for places that style nothing."""
    inner = str(chart).replace("<svg", f'<svg x="{MARGIN}" y="{MARGIN}"', 1)
    sizes = [int(side) + 2 * MARGIN for side in re.findall(r' (?:width|height)="(\d+)"', inner)[:2]]
    colours = "--ink:#1d2329;--muted:#56616b;--line:#e2e5e8;--paper:#ffffff;--bridge:#1f4e79;--garden:#9a6614"
    style = f"svg{{{colours}}}\n{files('bridgegarden.report').joinpath('chart.css').read_text('utf-8')}"
    svg = Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" width="{0}" height="{1}" viewBox="0 0 {0} {1}" role="img">'
        '<title>{2}</title><style>{3}</style><rect width="100%" height="100%" rx="8" fill="#ffffff"/>{4}</svg>\n'
    )
    return str(svg.format(*sizes, title, Markup(style), Markup(inner)))


def _staircase(points: Sequence[tuple[float, float]], frame: Box) -> Markup:
    path = f"M{frame.left:.1f} {points[0][1]:.1f}" if points else ""
    for x, y in points:
        path += f"V{y:.1f}H{x:.1f}"
    return Markup('<path class="frontier" d="{}V{:.1f}"/>').format(path, frame.bottom) if points else Markup("")


def _bars(point: Point, across: Scale, up: Scale) -> list[Box]:
    cx, cy = across.at(point.x.value), up.at(point.y.value)
    return [
        Box(cx - 8, cy - 8, cx + 8, cy + 8),
        Box(across.at(point.x.low), cy - 2, across.at(point.x.high), cy + 2),
        Box(cx - 2, up.at(point.y.high), cx + 2, up.at(point.y.low)),
    ]


def _mark(inner: Markup, cx: float, cy: float, about: str, *, quiet: bool = False, warm: bool = False) -> Markup:
    tone = " quiet" if quiet else " warm" if warm else ""
    return mark(inner, about, halo=circle("halo", cx, cy, 12), tone=tone)


def _shape(shape: Shape, cx: float, cy: float) -> Markup:
    if shape == "square":
        return Markup('<rect class="shape" x="{:.1f}" y="{:.1f}" width="9" height="9"/>').format(cx - 4.5, cy - 4.5)
    if shape == "diamond":
        corners = f"M{cx:.1f} {cy - 6:.1f}l6 6l-6 6l-6 -6z"
        return Markup('<path class="shape hollow" d="{}"/>').format(corners)
    return circle("shape hollow" if shape == "ring" else "shape", cx, cy, 5)


def _legend(series: Sequence[tuple[str, Shape]], left: float) -> Markup:
    parts, x = [], left + 8.0
    for name, shape in series:
        tone = " warm" if shape == "ring" else ""
        parts.append(Markup('<g class="mark{}" aria-hidden="true">{}</g>').format(tone, _shape(shape, x + 5, 12)))
        parts.append(text("note", x + 18, 16.5, name))
        x += width(name) + 44
    return Markup("").join(parts)
