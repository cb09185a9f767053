"""Text token by token: coloured by one of several values, with a card on what the models thought at each token.

Only the first value is painted into the HTML; the page's script repaints from the data when the reader switches, and
fills the card when a token is pointed at, focused or tapped.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from markupsafe import Markup

from bridgegarden.table import number

LEVELS = 11
"""Steps of a scale, both ends included."""


MISSING = "none"
"""The level of a token without a value."""


PART = "\u25cc"
"""Stands for a token that is only the beginning of a character."""


KINDS: dict[str, tuple[str, str]] = {
    "bridge": ("Bridge", "what follows hangs on it"),
    "garden": ("Garden", "it may vary"),
    "undecided": ("undecided", "too close to tell"),
    "forced": ("forced", "one token keeps to the script"),
}
"""Kinds in words."""


Kind = Literal["bridge", "garden", "undecided", "forced"]


@dataclass(frozen=True, kw_only=True)
class Thought:
    """What one model expected before a token was written."""

    model: str
    """Its name."""

    top: tuple[tuple[str, float], ...]
    """Its likeliest tokens and their probabilities, in falling order."""

    note: str = ""
    """Written at the end of its line."""


@dataclass(frozen=True, kw_only=True)
class CardTable:
    """A small table on the card of a token."""

    heads: tuple[str, ...]
    """Names of the columns."""

    rows: tuple[tuple[bool, tuple[str, ...]], ...]
    """Cells of each row, and whether it is of the token that was written."""


@dataclass(frozen=True, kw_only=True)
class Token:
    """One token and its card."""

    text: str
    """As the tokenizer has it."""

    gap: str = ""
    """Space before it that belongs to no token, as between the words of a word-level tokenizer."""

    facts: tuple[tuple[str, str], ...] = ()
    """Names and values on the card."""

    table: CardTable | None = None
    """On the card, between facts and models."""

    thoughts: tuple[Thought, ...] = ()
    """One for each model."""


def thoughts(token: Token) -> list[dict[str, Any]]:
    """What models expected, as the page's script reads it."""
    return [
        {
            "model": thought.model,
            "note": thought.note,
            "top": [[named(text), round(share, 4), text == token.text] for text, share in thought.top],
        }
        for thought in token.thoughts
    ]


def named(text: str) -> str:
    """A token by itself, where a space at its end would not be seen."""
    return visible(text).replace(" ", "␣").removesuffix("\n")


def visible(text: str) -> str:
    """`text` with control and layout-turning characters shown as escapes; a line break keeps its effect."""
    shown = "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii") for c in text)
    return shown.replace("\n", "⏎\n")


def switch(layers: Sequence[tuple[str, str]], *, name: str = "layer", legend: str = "Colour the tokens by") -> Markup:
    """Radio buttons as pills, for (group, name) pairs in order; the first one is chosen."""
    groups: dict[str, list[Markup]] = {}
    for index, (group, words) in enumerate(layers):
        groups.setdefault(group, []).append(
            Markup('<label class="pill"><input type="radio" name="{}" value="{}"{}><span>{}</span></label>').format(
                name, index, Markup(" checked") if index == 0 else "", words
            )
        )
    rows = Markup("").join(
        Markup('<div class="choice"><span class="group">{}</span><span class="pills">{}</span></div>').format(
            group, Markup("").join(pills)
        )
        for group, pills in groups.items()
    )
    return Markup('<fieldset class="switch"><legend>{}</legend>{}</fieldset>').format(legend, rows)


def ramp(scale: str, ends: tuple[str, str]) -> Markup:
    """All steps of a scale between the words for its ends."""
    steps = Markup("").join(Markup('<i data-level="{}"></i>').format(step) for step in range(LEVELS))
    return Markup('<span class="ramp"><span>{}</span><span data-scale="{}">{}</span><span>{}</span></span>').format(
        ends[0], scale, steps, ends[1]
    )


@dataclass(frozen=True, kw_only=True)
class Facet:
    """One row of buttons."""

    name: str
    """What is chosen."""

    options: tuple[str, ...]
    """What there is to choose from."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One text."""

    choice: tuple[int, ...]
    """One option of each facet."""

    title: str
    """What it is, for screen readers and where no script runs."""

    before: Markup
    """Shown above it."""

    tokens: tuple[Token, ...]
    """In order."""


@dataclass(frozen=True, kw_only=True)
class KindLayer:
    """Colours by Bridge and Garden."""

    values: tuple[Kind | None, ...]
    """One for each token of all panels; None where it was not measured."""

    name: str
    """On the switch."""

    group: str
    """Heading on the switch."""

    about: str
    """What the colours say."""

    @property
    def scale(self) -> str:
        """Its name in the stylesheet."""
        return "role"

    @property
    def levels(self) -> list[str]:
        """One for each token."""
        return [value or MISSING for value in self.values]


@dataclass(frozen=True, kw_only=True)
class NumberLayer:
    """Colours by a number."""

    values: tuple[float | None, ...]
    """One for each token of all panels; None where it was not measured."""

    name: str
    """On the switch."""

    group: str
    """Heading on the switch."""

    scale: str
    """``signed`` has zero in its middle and steps that grow away from it; others are those of `shades.ENDS`."""

    most: float
    """The value at the end of the scale, > 0."""

    ends: tuple[str, str]
    """Words at the two ends of the legend."""

    about: str
    """What the colours say."""

    @classmethod
    def signed(cls, values: Sequence[float | None], *, name: str, group: str, about: str) -> "NumberLayer":
        """Nats on both sides of zero; the largest magnitude ends the scale."""
        most = max((abs(value) for value in values if value is not None), default=0.0) or 1.0
        ends = (f"\N{MINUS SIGN}{number(most, 2)}", f"+{number(most, 2)} nats")
        return cls(values=tuple(values), name=name, group=group, scale="signed", most=most, ends=ends, about=about)

    @classmethod
    def growing(cls, values: Sequence[float], *, name: str, group: str, about: str) -> "NumberLayer":
        """Nats from zero up; the largest of them ends the scale, and one nat does where all are smaller."""
        most = max([1.0, *values])
        ends = ("0", f"{number(most, 2)} nats")
        return cls(values=tuple(values), name=name, group=group, scale="surprise", most=most, ends=ends, about=about)

    @property
    def levels(self) -> list[str | int]:
        """One for each token."""
        return [MISSING if value is None else self.level_of(value) for value in self.values]

    def level_of(self, value: float) -> int:
        """The step of one value."""
        if self.scale != "signed":
            return level(value / self.most)
        # The root lifts what is small beside a few large values: the middle step is a thousandth of the scale at most.
        root = math.copysign(math.sqrt(min(abs(value) / self.most, 1.0)), value)
        return level((root + 1) / 2)


Layer = KindLayer | NumberLayer


def heatmap(panels: Sequence[Panel], facets: Sequence[Facet], layers: Sequence[Layer]) -> Markup:
    """Switches, legend and texts; the first text is seen, all are painted by the first layer."""
    switches = Markup("").join(
        switch([("", option) for option in facet.options], name=f"facet-{index}", legend=facet.name)
        for index, facet in enumerate(facets)
        if len(facet.options) > 1
    )
    shown = [index for index, facet in enumerate(facets) if len(facet.options) > 1]
    levels = iter(layers[0].levels)
    bodies = Markup("").join(_panel(panel, shown, layers[0].scale, levels) for panel in panels)
    return Markup('<div class="tokens heat">{}{}<div class="legend" aria-live="polite">{}</div>{}</div>').format(
        switches,
        switch([(layer.group, layer.name) for layer in layers]),
        Markup("").join(_legend(layer, first=index == 0) for index, layer in enumerate(layers)),
        bodies,
    )


def heatmap_data(panels: Sequence[Panel], layers: Sequence[Layer]) -> dict[str, Any]:
    """What the page's script needs, as JSON can say it."""
    return {
        "layers": [{"scale": layer.scale, "levels": layer.levels} for layer in layers],
        "tokens": [card(token) for panel in panels for token in panel.tokens],
    }


def _panel(panel: Panel, shown: Sequence[int], scale: str, levels: Any) -> Markup:
    spans = Markup("").join(
        Markup('{}<span class="token" role="button" tabindex="{}" data-level="{}">{}</span>').format(
            token.gap, 0 if index == 0 else -1, next(levels), visible(token.text) or PART
        )
        for index, token in enumerate(panel.tokens)
    )
    return Markup(
        '<div class="panel" data-choice="{}"><p class="panel-title">{}</p>{}<p class="text" role="group" '
        'aria-label="{}. Arrow keys move from token to token." data-scale="{}">{}</p></div>'
    ).format(
        " ".join(str(panel.choice[index]) for index in shown), panel.title, panel.before, panel.title, scale, spans
    )


def card(token: Token) -> dict[str, Any]:
    """What the card of `token` says, as the page's script reads it."""
    said: dict[str, Any] = {
        "text": named(token.text) or f"{PART} part of a character",
        "facts": token.facts,
        "thoughts": thoughts(token),
    }
    if token.table is not None:
        rows = [[written, *map(named_cell, cells)] for written, cells in token.table.rows]
        said["table"] = {"heads": token.table.heads, "rows": rows}
    return said


def named_cell(text: str) -> str:
    """A cell with control characters shown as escapes, on one line."""
    return visible(text).replace("\n", "")


def _legend(layer: Layer, *, first: bool) -> Markup:
    missing = Markup("")
    if any(value is None for value in layer.values):
        missing = Markup(
            '<span class="key"><span class="token" data-level="{}">token</span> not measured</span>'
        ).format(MISSING)
    if isinstance(layer, KindLayer):
        keys = Markup("").join(
            Markup('<span class="key"><span class="token" data-level="{}">{}</span> {}</span>').format(
                kind, name, words
            )
            for kind, (name, words) in KINDS.items()
            if kind in layer.values
        )
        body = Markup('<span data-scale="role">{}{}</span>').format(keys, missing)
    else:
        body = Markup('{}<span data-scale="{}">{}</span>').format(ramp(layer.scale, layer.ends), layer.scale, missing)
    hidden = Markup("") if first else Markup(" hidden")
    return Markup('<div class="key-row"{}>{}<p class="about">{}</p></div>').format(hidden, body, layer.about)


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
