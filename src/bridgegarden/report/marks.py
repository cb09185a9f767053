"""What charts are drawn with: lines, text and marks as SVG, every mark reachable by keyboard and named."""

from collections.abc import Sequence

from markupsafe import Markup, escape

from bridgegarden.report.labels import Box
from bridgegarden.report.scale import Scale


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
