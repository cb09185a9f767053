"""Charts as SVG text: no script, no dependency, every mark reachable by keyboard and named for a screen reader.

Points along two axes, dots in rows, bars (full and hollow, or either way from zero), curves with bands. Colours are CSS
variables of the page (see ``page.css``); `standalone` gives them values for a file of its own. Nothing is told by hue
alone: marks differ in shape and fill.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal, NamedTuple

from markupsafe import Markup

from bridgegarden.report.marks import (
    Axis,
    Box,
    Reading,
    Scale,
    circle,
    drawing,
    ground,
    line,
    mark,
    place,
    scale,
    shortened,
    text,
    width,
)

WIDE, NARROW = 720, 340
"""Pixels: a chart on a desk and on a telephone. Text keeps its size, so each width is drawn by itself."""


MARGIN = 20
"""Pixels around a chart in a file of its own."""


PITCH, THICK = 27, 14
"""Pixels from bar to bar, and of a bar."""


LEAST = 1.5
"""Pixels of a bar that stands for next to nothing: it must be told from nothing."""


STOPS = 12
"""Points of a curve that can be pointed at, and walked to with the Tab key."""


PATTERNS = ("solid", "dashed", "dotted", "mixed")
"""Lines are told apart by these, in order, and by colour."""


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
    bars = [_room_of(point, across, up) for point in points]
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
        parts.append(_marked(inner + _shape(point.shape, cx, cy), cx, cy, point.about, quiet=point.shape == "diamond"))
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
        parts.append(_series_legend(series, frame.left))
    for index, row in enumerate(rows):
        middle = frame.top + pitch * (index + 0.5)
        parts.append(text("name", 0, middle + 4.5, names[index]))
        for place_, (dot, (_, shape)) in enumerate(zip(row.dots, series, strict=True)):
            cy = middle + 14 * (place_ - (len(series) - 1) / 2)
            cx, low, high = (across.at(value) for value in dot.reading)
            inner = Markup("").join(circle("seed", across.at(seed), cy, 3) for seed in dot.seeds)
            inner += line("whisker", low, cy, high, cy) + _shape(shape, cx, cy)
            parts.append(_marked(inner, cx, cy, dot.about, warm=shape == "ring" and many))
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


def _room_of(point: Point, across: Scale, up: Scale) -> list[Box]:
    cx, cy = across.at(point.x.value), up.at(point.y.value)
    return [
        Box(cx - 8, cy - 8, cx + 8, cy + 8),
        Box(across.at(point.x.low), cy - 2, across.at(point.x.high), cy + 2),
        Box(cx - 2, up.at(point.y.high), cx + 2, up.at(point.y.low)),
    ]


def _marked(inner: Markup, cx: float, cy: float, about: str, *, quiet: bool = False, warm: bool = False) -> Markup:
    tone = " quiet" if quiet else " warm" if warm else ""
    return mark(inner, about, halo=circle("halo", cx, cy, 12), tone=tone)


def _shape(shape: Shape, cx: float, cy: float) -> Markup:
    if shape == "square":
        return Markup('<rect class="shape" x="{:.1f}" y="{:.1f}" width="9" height="9"/>').format(cx - 4.5, cy - 4.5)
    if shape == "diamond":
        corners = f"M{cx:.1f} {cy - 6:.1f}l6 6l-6 6l-6 -6z"
        return Markup('<path class="shape hollow" d="{}"/>').format(corners)
    return circle("shape hollow" if shape == "ring" else "shape", cx, cy, 5)


def _series_legend(series: Sequence[tuple[str, Shape]], left: float) -> Markup:
    parts, x = [], left + 8.0
    for name, shape in series:
        tone = " warm" if shape == "ring" else ""
        parts.append(Markup('<g class="mark{}" aria-hidden="true">{}</g>').format(tone, _shape(shape, x + 5, 12)))
        parts.append(text("note", x + 18, 16.5, name))
        x += width(name) + 44
    return Markup("").join(parts)


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar."""

    name: str
    """At its left."""

    filled: float
    """Length of what is drawn full, >= 0."""

    hollow: float = 0.0
    """Length of what follows it as an outline, >= 0."""

    label: str
    """At its end."""

    about: str
    """All of it in words, for hover, focus and screen readers."""


def bar_chart(
    bars: Sequence[Bar], *, axis: Axis, about: str, parts: tuple[str, str] | None = None, size: int = WIDE
) -> Markup:
    """Bars from zero, one below the other.

    Args:
        bars: from top to bottom.
        axis: the horizontal axis.
        about: the chart in one sentence, for screen readers.
        parts: names of what is drawn full and what is an outline; None where nothing is.
        size: width in pixels.
    """
    left, right = (max(width(words) for words in side) for side in zip(*((b.name, b.label) for b in bars), strict=True))
    top = 8 if parts is None else 34
    height = top + PITCH * len(bars) + 46
    frame = Box(left + 12, top, size - right - 10, height - 46)
    lengths = [Reading(*[bar.filled + bar.hollow] * 3) for bar in bars]
    # Bars are read by their length: they begin at zero, without the air that points have there.
    across = scale(axis, [*lengths, Reading(0, 0, 0)], frame.left, frame.right)._replace(low=0.0)
    drawn = [ground(across, frame, vertical=False), line("zero", across.at(0), frame.top, across.at(0), frame.bottom)]
    if parts is not None:
        drawn.append(_bar_legend(parts, frame.left, size))
    for index, bar in enumerate(bars):
        drawn.append(_bar(bar, across, frame.top + PITCH * (index + 0.5), size))
    return drawing(drawn, size, height, about)


def _bar(bar: Bar, across: Scale, middle: float, size: int) -> Markup:
    start, turn, end = (across.at(value) for value in (0.0, bar.filled, bar.filled + bar.hollow))
    inner = Markup("")
    if bar.hollow > 0:
        inner += _rectangle("bar hollow", turn, middle, max(end - turn, LEAST))
    if bar.filled > 0:
        inner += _rectangle("bar", start, middle, max(turn - start, LEAST))
    inner += text("tick", max(end, start + LEAST) + 8, middle + 4.5, bar.label)
    return _row(bar.name, inner, bar.about, middle, size)


def _row(name: str, inner: Markup, about: str, middle: float, size: int) -> Markup:
    """A bar's name and the bar, all of whose row can be pointed at."""
    halo = Markup('<rect class="halo" x="-6" y="{:.1f}" width="{}" height="{}" rx="4"/>')
    halo = halo.format(middle - PITCH / 2 + 1, size + 6, PITCH - 2)
    return text("name", 0, middle + 4.5, name) + mark(inner, about, halo=halo)


def _bar_legend(parts: tuple[str, str], left: float, size: int) -> Markup:
    drawn, x = [], left
    if left + sum(width(name) + 44 for name in parts) > size:
        x = 0.0
    for name, kind in zip(parts, ("bar", "bar hollow"), strict=True):
        drawn.append(Markup('<g class="mark" aria-hidden="true">{}</g>').format(_rectangle(kind, x + 1, 12, 13, 10)))
        drawn.append(text("note", x + 22, 16.5, name))
        x += width(name) + 40
    return Markup("").join(drawn)


def _rectangle(kind: str, x: float, middle: float, wide: float, high: float = THICK) -> Markup:
    return Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{}"/>').format(
        kind, x, middle - high / 2, wide, high
    )


@dataclass(frozen=True, kw_only=True)
class SignedBar:
    """One bar."""

    name: str
    """At its left."""

    reading: Reading
    """Where it ends, and the interval."""

    about: str
    """All of it in words, for hover, focus and screen readers."""


def signed_bars(bars: Sequence[SignedBar], *, axis: Axis, about: str, size: int = WIDE) -> Markup:
    """Bars from zero, one below the other.

    Args:
        bars: from top to bottom, at least one.
        axis: the horizontal axis.
        about: the chart in one sentence, for screen readers.
        size: width in pixels.
    """
    left = max(width(bar.name) for bar in bars) + 12
    height = 8 + PITCH * len(bars) + 46
    frame = Box(left, 8, size - 14, height - 46)
    across = scale(axis, [*(bar.reading for bar in bars), Reading(0, 0, 0)], frame.left + 8, frame.right)
    zero = across.at(0)
    parts = [ground(across, frame, vertical=False)]
    for index, bar in enumerate(bars):
        middle = frame.top + PITCH * (index + 0.5)
        end, low, high = (across.at(value) for value in bar.reading)
        kind = "bar hollow" if bar.reading.value < 0 else "bar soft"
        inner = _rectangle(kind, min(zero, end), middle, abs(end - zero)) + line(
            "whisker over", low, middle, high, middle
        )
        parts.append(_row(bar.name, inner, bar.about, middle, size))
    parts.append(line("zero", zero, frame.top, zero, frame.bottom))
    return drawing(parts, size, height, about)


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
    legend, top = _curve_legend(curves, size)
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
    parts += [_drawn_line(curve, number, across, up) for number, curve in enumerate(curves)]
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


def _drawn_line(curve: Curve, number: int, across: Scale, up: Scale) -> Markup:
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


def _curve_legend(curves: Sequence[Curve], size: int) -> tuple[Markup, int]:
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
