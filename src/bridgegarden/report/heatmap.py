"""Several texts, one of them seen at a time, coloured by values that may be missing or have a sign.

What ``tokens.py`` does for one text. The texts are told apart by facets (which student, which prompt), each a row of
buttons; without a script all of them stand one below the other. Every layer covers all texts, so that one scale holds
for all of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from markupsafe import Markup

from bridgegarden.report.scale import number
from bridgegarden.report.shades import level
from bridgegarden.report.tokens import Token, named, ramp, switch, thoughts, visible

MISSING = "none"
"""The level of a token without a value."""
PART = "\u25cc"
"""Stands for a token that is only the beginning of a character."""

Kind = Literal["bridge", "garden", "undecided", "forced"]


@dataclass(frozen=True, kw_only=True)
class Facet:
    """One row of buttons."""

    name: str
    """What is chosen."""

    options: tuple[str, ...]
    """What there is to choose from."""


@dataclass(frozen=True, kw_only=True)
class CardTable:
    """A small table on the card of a token."""

    heads: tuple[str, ...]
    """Names of the columns."""

    rows: tuple[tuple[bool, tuple[str, ...]], ...]
    """Cells of each row, and whether it is of the token that was written."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One token with its card."""

    token: Token
    """Text, facts and what models expected."""

    table: CardTable | None = None
    """Between facts and models."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One text."""

    choice: tuple[int, ...]
    """One option of each facet."""

    title: str
    """What it is, for screen readers and where no script runs."""

    before: Markup
    """Shown above it."""

    cells: tuple[Cell, ...]
    """Its tokens, in order."""


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
        return [MISSING if value is None else self._level(value) for value in self.values]

    def _level(self, value: float) -> int:
        if self.scale != "signed":
            return level(value / self.most)
        # The root lifts what is small beside a few large values: the middle step is a thousandth of the scale at most.
        root = math.copysign(math.sqrt(min(abs(value) / self.most, 1.0)), value)
        return level((root + 1) / 2)


HeatLayer = KindLayer | NumberLayer


def heatmap(panels: Sequence[Panel], facets: Sequence[Facet], layers: Sequence[HeatLayer]) -> Markup:
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


def heatmap_data(panels: Sequence[Panel], layers: Sequence[HeatLayer]) -> dict[str, Any]:
    """What the page's script needs, as JSON can say it."""
    return {
        "layers": [{"scale": layer.scale, "levels": layer.levels} for layer in layers],
        "tokens": [_card(cell) for panel in panels for cell in panel.cells],
    }


def _panel(panel: Panel, shown: Sequence[int], scale: str, levels: Any) -> Markup:
    spans = Markup("").join(
        Markup('{}<span class="token" role="button" tabindex="{}" data-level="{}">{}</span>').format(
            cell.token.gap, 0 if index == 0 else -1, next(levels), visible(cell.token.text) or PART
        )
        for index, cell in enumerate(panel.cells)
    )
    return Markup(
        '<div class="panel" data-choice="{}"><p class="panel-title">{}</p>{}<p class="text" role="group" '
        'aria-label="{}. Arrow keys move from token to token." data-scale="{}">{}</p></div>'
    ).format(
        " ".join(str(panel.choice[index]) for index in shown), panel.title, panel.before, panel.title, scale, spans
    )


def _card(cell: Cell) -> dict[str, Any]:
    token = cell.token
    card: dict[str, Any] = {
        "text": named(token.text) or f"{PART} part of a character",
        "facts": token.facts,
        "thoughts": thoughts(token),
    }
    if cell.table is not None:
        rows = [[written, *map(named_cell, cells)] for written, cells in cell.table.rows]
        card["table"] = {"heads": cell.table.heads, "rows": rows}
    return card


def named_cell(text: str) -> str:
    """A cell with control characters shown as escapes, on one line."""
    return visible(text).replace("\n", "")


def _legend(layer: HeatLayer, *, first: bool) -> Markup:
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


KINDS: dict[str, tuple[str, str]] = {
    "bridge": ("Bridge", "what follows hangs on it"),
    "garden": ("Garden", "it may vary"),
    "undecided": ("undecided", "too close to tell"),
    "forced": ("forced", "one token keeps to the script"),
}
"""Kinds in words."""
