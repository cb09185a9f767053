"""Charts as SVG text: no script, no dependency, every mark reachable by keyboard and named for a screen reader.

Colours are CSS variables of the page (see ``page.css``); `standalone` gives them values for a file of its own. Nothing
is told by hue alone: marks differ in shape and fill.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

from markupsafe import Markup, escape

from bridgegarden.report.labels import Box, place, width
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
    parts = [_ground(across, frame, vertical=False), _ground(up, frame, vertical=True), _staircase(stairs, frame)]
    for (cx, cy), label in zip(centres, labels, strict=True):
        if label.far:
            end = min(max(cx, label.box.left), label.box.right)
            parts.append(_line("leader", cx, cy, end, (label.box.top + label.box.bottom) / 2))
    for point, (cx, cy) in zip(points, centres, strict=True):
        inner = Markup("").join(_dot("seed", across.at(sx), up.at(sy), 3) for sx, sy in point.seeds)
        inner += _line("whisker", across.at(point.x.low), cy, across.at(point.x.high), cy)
        inner += _line("whisker", cx, up.at(point.y.low), cx, up.at(point.y.high))
        parts.append(_mark(inner + _shape(point.shape, cx, cy), cx, cy, point.about, quiet=point.shape == "diamond"))
    for point, label in zip(points, labels, strict=True):
        quiet = " quiet" if point.shape == "diamond" else ""
        parts.append(_text(f"name{quiet}", label.box.left, label.box.bottom - 4, point.name))
    return _svg(parts, size, height, about)


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
    left = max(width(row.name) for row in rows) + 12
    height = top + pitch * len(rows) + 46
    frame = Box(left, top, size - 14, height - 46)
    across = scale(axis, [dot.reading for row in rows for dot in row.dots], frame.left + 8, frame.right)
    parts = [_ground(across, frame, vertical=False)]
    if 0.0 in axis.include and not axis.log:
        parts.append(_line("zero", across.at(0), frame.top, across.at(0), frame.bottom))
    if many:
        parts.append(_legend(series, frame.left))
    for index, row in enumerate(rows):
        middle = frame.top + pitch * (index + 0.5)
        parts.append(_text("name", 0, middle + 4.5, row.name))
        for place_, (dot, (_, shape)) in enumerate(zip(row.dots, series, strict=True)):
            cy = middle + 14 * (place_ - (len(series) - 1) / 2)
            cx, low, high = (across.at(value) for value in dot.reading)
            inner = Markup("").join(_dot("seed", across.at(seed), cy, 3) for seed in dot.seeds)
            inner += _line("whisker", low, cy, high, cy) + _shape(shape, cx, cy)
            parts.append(_mark(inner, cx, cy, dot.about, warm=shape == "ring" and many))
    return _svg(parts, size, height, about)


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


def _svg(parts: Sequence[Markup], size: float, height: float, about: str) -> Markup:
    return Markup(
        '<svg class="chart" role="group" aria-label="{}" width="{}" height="{}" viewBox="0 0 {} {}">{}</svg>'
    ).format(about, size, height, size, height, Markup("").join(parts))


def _ground(scale: Scale, frame: Box, *, vertical: bool) -> Markup:
    """Grid lines, the numbers beside them and the axis' name."""
    parts = []
    for tick in scale.ticks(6 if frame.right > 400 else 4):
        at = scale.at(tick)
        if vertical:
            parts += [
                _line("grid", frame.left, at, frame.right, at),
                _text("tick", frame.left - 8, at + 4, scale.text(tick), "end"),
            ]
        else:
            parts += [
                _line("grid", at, frame.top, at, frame.bottom),
                _text("tick", at, frame.bottom + 18, scale.text(tick), "middle"),
            ]
    if vertical:
        parts.append(_text("axis-name", 0, 14, scale.axis.label))
    else:
        parts.append(_text("axis-name", frame.right, frame.bottom + 38, scale.axis.label, "end"))
    return Markup("").join(parts)


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
    halo = _dot("halo", cx, cy, 12)
    return Markup('<g class="mark{}" tabindex="0" role="img" aria-label="{}"><title>{}</title>{}{}</g>').format(
        tone, about, about, halo, inner
    )


def _shape(shape: Shape, cx: float, cy: float) -> Markup:
    if shape == "square":
        return Markup('<rect class="shape" x="{:.1f}" y="{:.1f}" width="9" height="9"/>').format(cx - 4.5, cy - 4.5)
    if shape == "diamond":
        corners = f"M{cx:.1f} {cy - 6:.1f}l6 6l-6 6l-6 -6z"
        return Markup('<path class="shape hollow" d="{}"/>').format(corners)
    return _dot("shape hollow" if shape == "ring" else "shape", cx, cy, 5)


def _legend(series: Sequence[tuple[str, Shape]], left: float) -> Markup:
    parts, x = [], left + 8.0
    for name, shape in series:
        tone = " warm" if shape == "ring" else ""
        parts.append(Markup('<g class="mark{}" aria-hidden="true">{}</g>').format(tone, _shape(shape, x + 5, 12)))
        parts.append(_text("note", x + 18, 16.5, name))
        x += width(name) + 44
    return Markup("").join(parts)


def _dot(kind: str, cx: float, cy: float, radius: float) -> Markup:
    return Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{}"/>').format(kind, cx, cy, radius)


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup('<path class="{}" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>').format(kind, x1, y1, x2, y2)


def _text(kind: str, x: float, y: float, text: str, anchor: str = "start") -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        kind, x, y, anchor, escape(text)
    )
