"""Colours of a heatmap: each scale runs from dark to light or back, so that it reads without hue."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

LEVELS = 11
"""Steps of a scale, both ends included."""

Colour = tuple[int, int, int]


class Shade(NamedTuple):
    """One step of a scale."""

    fill: str
    """Background, ``#rrggbb``."""
    ink: str
    """Text on it: black or white, whichever stands out more."""


ENDS: Mapping[str, tuple[tuple[Colour, Colour], tuple[Colour, Colour]]] = MappingProxyType(
    {
        "weight": (((31, 78, 121), (250, 240, 214)), ((143, 189, 235), (58, 50, 32))),
        "surprise": (((247, 245, 243), (122, 28, 52)), ((30, 36, 42), (255, 168, 140))),
    }
)
"""Colours at 0 and at 1, on a light page and on a dark one. Soft weight: from blue (hard) to sand (soft).
Surprise: from the page's own shade to red. What stands out most on the page matters most."""


DIVERGING: Mapping[str, tuple[tuple[Colour, Colour, Colour], tuple[Colour, Colour, Colour]]] = MappingProxyType(
    {
        "signed": (((148, 92, 8), (247, 245, 243), (31, 78, 121)), ((240, 190, 92), (30, 36, 42), (143, 189, 235))),
    }
)
"""Colours at -1, 0 and 1: from ochre over the page's own shade to blue. Hue tells the sign, and so does a dotted line
under what is negative; distance from zero is lightness."""


def shades(name: str, *, dark: bool = False) -> list[Shade]:
    """The steps of the scale `name`."""
    if name in DIVERGING:
        low, middle, high = DIVERGING[name][dark]
        half = LEVELS // 2
        below = [_shade(low, middle, step / half) for step in range(half)]
        return [*below, *(_shade(middle, high, step / half) for step in range(half + 1))]
    start, end = ENDS[name][dark]
    return [_shade(start, end, step / (LEVELS - 1)) for step in range(LEVELS)]


def level(share: float) -> int:
    """The step of a value from 0 to 1; what lies outside is drawn at the end."""
    return round(min(max(share, 0.0), 1.0) * (LEVELS - 1))


def stylesheet() -> str:
    """Rules that colour ``[data-level]`` inside ``[data-scale]``, on light and on dark pages."""
    return f"{_rules(dark=False)}\n@media screen and (prefers-color-scheme: dark) {{\n{_rules(dark=True)}\n}}\n"


def _rules(*, dark: bool) -> str:
    return "\n".join(
        f'[data-scale="{name}"] [data-level="{step}"] {{ background: {shade.fill}; color: {shade.ink}; }}'
        for name in (*ENDS, *DIVERGING)
        for step, shade in enumerate(shades(name, dark=dark))
    )


def contrast(one: Colour, other: Colour) -> float:
    """Contrast ratio of two colours, 1 to 21, as WCAG 2 defines it."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _shade(start: Colour, end: Colour, share: float) -> Shade:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(start, end, strict=True))
    fill = (red, green, blue)
    white = contrast(fill, (255, 255, 255)) > contrast(fill, (0, 0, 0))
    return Shade(f"#{red:02x}{green:02x}{blue:02x}", "#ffffff" if white else "#000000")


def _luminance(colour: Colour) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (value / 255 for value in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
