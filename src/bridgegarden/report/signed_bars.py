"""Bars that go either way from zero, each with its interval: what parts add to a whole, some of it negative."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from bridgegarden.report.charts import WIDE
from bridgegarden.report.labels import Box, width
from bridgegarden.report.marks import drawing, ground, line, mark, text
from bridgegarden.report.scale import Axis, Reading, scale

PITCH, THICK = 27, 14
"""Pixels from bar to bar, and of a bar."""


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
        inner = Markup('<rect class="bar{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{}"/>').format(
            " hollow" if bar.reading.value < 0 else " soft", min(zero, end), middle - THICK / 2, abs(end - zero), THICK
        )
        inner += line("whisker over", low, middle, high, middle)
        halo = Markup('<rect class="halo" x="-6" y="{:.1f}" width="{}" height="{}" rx="4"/>')
        parts.append(text("name", 0, middle + 4.5, bar.name))
        parts.append(mark(inner, bar.about, halo=halo.format(middle - PITCH / 2 + 1, size + 6, PITCH - 2)))
    parts.append(line("zero", zero, frame.top, zero, frame.bottom))
    return drawing(parts, size, height, about)
