"""What charts are drawn with: axes with round numbers, names that keep apart, marks reachable by keyboard."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup, escape

from bridgegarden.errors import DataError
from bridgegarden.table import number

GLYPH, HEIGHT = 7.3, 16.0
"""Pixels: an average character of 13 px semibold, and a line of it."""


class Reading(NamedTuple):
    """A value and the interval it is known to."""

    value: float
    """The best guess."""

    low: float
    """Where the interval begins, <= value."""

    high: float
    """Where it ends, >= value."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What a chart measures along one direction."""

    label: str
    """Name and unit."""

    log: bool = False
    """Equal ratios at equal distances; what is not above zero is drawn at the axis' low end."""

    percent: bool = False
    """Write 0.5 as 50 %."""

    include: tuple[float, ...] = ()
    """Values the axis must reach, such as 0."""

    least: float = -math.inf
    """Smallest possible value; intervals are cut there."""

    most: float = math.inf
    """Largest possible value; intervals are cut there."""

    whole: bool = False
    """Ticks at whole numbers alone: what is counted."""


class Scale(NamedTuple):
    """An axis laid between two pixels."""

    axis: Axis
    low: float
    """Value at `start`."""
    high: float
    """Value at `end`."""
    start: float
    """Pixel."""
    end: float
    """Pixel."""

    def at(self, value: float) -> float:
        """The pixel of `value`, kept inside the axis."""
        low, high, value = self.low, self.high, min(max(value, self.low), self.high)
        if self.axis.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values inside the axis, at most about `most` of them."""
        found = _log_ticks(self.low, self.high, most) if self.axis.log else _linear_ticks(self.low, self.high, most)
        return [value for value in found if value == round(value)] if self.axis.whole else found

    def text(self, value: float) -> str:
        """`value` as written beside a tick."""
        return f"{number(value * 100)} %" if self.axis.percent else number(value)


class Box(NamedTuple):
    """A rectangle in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: "Box") -> float:
        """Shared area."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(width, 0.0) * max(height, 0.0)

    def outside(self, frame: "Box") -> float:
        """Area beyond `frame`."""
        area = (self.right - self.left) * (self.bottom - self.top)
        return area - self.overlap(frame)


class Label(NamedTuple):
    """Where a name goes."""

    box: Box
    """The room it takes."""
    far: bool
    """Whether it stands so far off that a line must lead to its point."""


def scale(axis: Axis, readings: Iterable[Reading], start: float, end: float) -> Scale:
    """An axis that holds `readings`, with a little air.

    Raises:
        DataError: a value is not finite, or none is positive on a logarithmic axis.
    """
    readings = list(readings)
    values = [value for reading in readings for value in reading] + list(axis.include)
    if not values or not all(map(math.isfinite, values)):
        raise DataError(f"Chart axis {axis.label!r}: expected finite values, got {values}.")
    if axis.log:
        low, high = _log_ends(axis, values, [reading.value for reading in readings])
    else:
        low, high = min(values), max(values)
        air = 0.06 * (high - low or abs(high) or 1.0)
        low, high = low - air, high + air
    low, high = max(low, axis.least), min(high, axis.most)
    return Scale(axis, low, high, start, end)


def _log_ends(axis: Axis, values: list[float], centres: list[float]) -> tuple[float, float]:
    positive = [value for value in centres if value > 0]
    if not positive:
        raise DataError(f"Chart axis {axis.label!r}: a logarithmic axis needs a value above zero, got {values}.")
    # An interval that reaches down to almost zero must not stretch the axis over empty decades.
    floor = min(positive) / 10
    low, high = min(max(value, floor) for value in values), max(values)
    air = max((high / low) ** 0.05, 1.15)
    return low / air, high * air


def _linear_ticks(low: float, high: float, most: int) -> list[float]:
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) + 0.0 for index in range(first, last + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [round(f * 10.0**d, 15) for d in decades for f in factors if low <= f * 10.0**d <= high]
        if len(ticks) <= most:
            return ticks
    return ticks[:: math.ceil(len(ticks) / most)]


def width(text: str) -> float:
    """Pixels that `text` takes, roughly."""
    return GLYPH * len(text)


def shortened(text: str, room: float) -> str:
    """`text`, its end cut off with an ellipsis where it would take more than `room` pixels."""
    most = max(int(room / GLYPH), 2)
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"


def place(names: Sequence[str], points: Sequence[tuple[float, float]], taken: Iterable[Box], frame: Box) -> list[Label]:
    """A place for each name near its point: first those around it, then farther ones, the least covered wins.

    Args:
        names: what is written.
        points: centre of each name's point.
        taken: what should stay visible, such as the points themselves and their error bars.
        frame: where names may stand.
    """
    blocked, labels = list(taken), []
    for name, (x, y) in zip(names, points, strict=True):
        best, best_cost = None, float("inf")
        for rank, label in enumerate(_candidates(name, x, y)):
            cost = sum(label.box.overlap(box) for box in blocked) + 10 * label.box.outside(frame) + 2.0 * rank
            if cost < best_cost:
                best, best_cost = label, cost
        assert best is not None
        blocked.append(best.box)
        labels.append(best)
    return labels


def _candidates(name: str, x: float, y: float) -> Iterator[Label]:
    wide = width(name)
    for distance in (10.0, 20.0, 34.0, 50.0, 68.0):
        far = distance > 20
        for across, down in ((1, -0.7), (1, 0.7), (-1, -0.7), (-1, 0.7), (1, 0), (-1, 0), (0, -1), (0, 1)):
            middle = y + down * (distance + HEIGHT / 2)
            left = x - wide / 2 if across == 0 else x + distance if across > 0 else x - distance - wide
            yield Label(Box(left, middle - HEIGHT / 2, left + wide, middle + HEIGHT / 2), far)


def drawing(parts: Sequence[Markup], size: float, height: float, about: str) -> Markup:
    """A chart, named `about` for screen readers."""
    return Markup(
        '<svg class="chart" role="group" aria-label="{}" width="{}" height="{}" viewBox="0 0 {} {}">{}</svg>'
    ).format(about, size, height, size, height, Markup("").join(parts))


def ground(scale: Scale, frame: Box, *, vertical: bool) -> Markup:
    """Grid lines, the numbers beside them and the axis' name."""
    parts = []
    for tick in scale.ticks(6 if frame.right > 400 else 4):
        at = scale.at(tick)
        if vertical:
            parts += [
                line("grid", frame.left, at, frame.right, at),
                text("tick", frame.left - 8, at + 4, scale.text(tick), "end"),
            ]
        else:
            parts += [
                line("grid", at, frame.top, at, frame.bottom),
                text("tick", at, frame.bottom + 18, scale.text(tick), "middle"),
            ]
    if vertical:
        parts.append(text("axis-name", 0, 14, scale.axis.label))
    else:
        parts.append(text("axis-name", frame.right, frame.bottom + 38, scale.axis.label, "end"))
    return Markup("").join(parts)


def mark(inner: Markup, about: str, *, halo: Markup, tone: str = "") -> Markup:
    """Something measured: pointing at it, or walking to it with the Tab key, tells `about`."""
    return Markup('<g class="mark{}" tabindex="0" role="img" aria-label="{}"><title>{}</title>{}{}</g>').format(
        tone, about, about, halo, inner
    )


def circle(kind: str, cx: float, cy: float, radius: float) -> Markup:
    """A circle of the class `kind`."""
    return Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{}"/>').format(kind, cx, cy, radius)


def line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    """A straight line of the class `kind`."""
    return Markup('<path class="{}" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>').format(kind, x1, y1, x2, y2)


def text(kind: str, x: float, y: float, words: str, anchor: str = "start") -> Markup:
    """`words` in the class `kind`."""
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        kind, x, y, anchor, escape(words)
    )
