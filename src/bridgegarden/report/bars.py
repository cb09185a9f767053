"""Bars with a name at the left: histograms, and what a whole is made of. Drawn as the charts of ``charts.py`` are."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from bridgegarden.report.charts import WIDE
from bridgegarden.report.labels import Box, width
from bridgegarden.report.marks import drawing, ground, line, mark, text
from bridgegarden.report.scale import Axis, Reading, Scale, scale

PITCH, THICK = 27, 14
"""Pixels from bar to bar, and of a bar."""
LEAST = 1.5
"""Pixels of a bar that stands for next to nothing: it must be told from nothing."""


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
        drawn.append(_legend(parts, frame.left, size))
    for index, bar in enumerate(bars):
        middle = frame.top + PITCH * (index + 0.5)
        drawn.append(text("name", 0, middle + 4.5, bar.name))
        drawn.append(_bar(bar, across, middle, size))
    return drawing(drawn, size, height, about)


def _bar(bar: Bar, across: Scale, middle: float, size: int) -> Markup:
    start, turn, end = (across.at(value) for value in (0.0, bar.filled, bar.filled + bar.hollow))
    inner = Markup("")
    if bar.hollow > 0:
        inner += _rectangle("bar hollow", turn, middle, max(end - turn, LEAST))
    if bar.filled > 0:
        inner += _rectangle("bar", start, middle, max(turn - start, LEAST))
    inner += text("tick", max(end, start + LEAST) + 8, middle + 4.5, bar.label)
    halo = Markup('<rect class="halo" x="-6" y="{:.1f}" width="{}" height="{}" rx="4"/>')
    return mark(inner, bar.about, halo=halo.format(middle - PITCH / 2 + 1, size + 6, PITCH - 2))


def _legend(parts: tuple[str, str], left: float, size: int) -> Markup:
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
