"""Text token by token: coloured by one of several values, with a card on what the models thought at each token.

Only the first value is painted into the HTML; the page's script repaints from the data when the reader switches, and
fills the card when a token is pointed at, focused or tapped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from markupsafe import Markup

from bridgegarden.report.shades import LEVELS, level

ROLES: Mapping[str, str] = {
    "bridge": "Bridge: what follows hangs on it",
    "garden": "Garden: the wording may vary",
    "forced": "forced: one token keeps to the script",
}
"""Roles in words. A stylesheet tells them apart by lightness, weight and underline."""


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
class Token:
    """One token and its card."""

    text: str
    """As the tokenizer has it."""

    gap: str = ""
    """Space before it that belongs to no token, as between the words of a word-level tokenizer."""

    facts: tuple[tuple[str, str], ...] = ()
    """Names and values on the card."""

    thoughts: tuple[Thought, ...] = ()
    """One for each model."""


@dataclass(frozen=True, kw_only=True)
class RoleLayer:
    """Colours by role."""

    values: tuple[Literal["bridge", "garden", "forced"], ...]
    """One per token."""

    name: str = "role"
    """On the switch."""

    group: str = ""
    """Heading on the switch."""

    about: str
    """What the colours say."""


@dataclass(frozen=True, kw_only=True)
class ValueLayer:
    """Colours by a number."""

    values: tuple[float, ...]
    """One per token."""

    name: str
    """On the switch."""

    group: str
    """Heading on the switch; layers with the same one stand side by side."""

    about: str
    """What the colours say."""

    scale: Literal["weight", "surprise"]
    """Which colours."""

    most: float
    """Value that gets the last colour, > 0; the first belongs to 0."""

    ends: tuple[str, str]
    """Words beside the two ends of the legend."""


Layer = RoleLayer | ValueLayer


def token_text(tokens: Sequence[Token], layers: Sequence[Layer], *, label: str) -> Markup:
    """The switch, the legend and the text, painted by the first layer.

    Args:
        tokens: in order; together they are the text.
        layers: what it can be coloured by.
        label: what the text is, for screen readers.
    """
    first = layers[0]
    paint = _levels(first)
    spans = Markup("").join(
        Markup('{}<span class="token" role="button" tabindex="{}" data-level="{}">{}</span>').format(
            token.gap, 0 if index == 0 else -1, at, visible(token.text)
        )
        for index, (token, at) in enumerate(zip(tokens, paint, strict=True))
    )
    return Markup(
        '<div class="tokens">{}<div class="legend" aria-live="polite">{}</div>'
        '<p class="text" role="group" aria-label="{}. Arrow keys move from token to token." data-scale="{}">'
        "{}</p></div>"
    ).format(
        switch([(layer.group, layer.name) for layer in layers]),
        Markup("").join(map(_legend, layers)),
        label,
        _scale(first),
        spans,
    )


def token_data(tokens: Sequence[Token], layers: Sequence[Layer]) -> dict[str, Any]:
    """What the page's script needs, as JSON can say it."""
    return {
        "layers": [{"scale": _scale(layer), "levels": _levels(layer)} for layer in layers],
        "tokens": [{"text": named(token.text), "facts": token.facts, "thoughts": thoughts(token)} for token in tokens],
    }


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


def _scale(layer: Layer) -> str:
    return "role" if isinstance(layer, RoleLayer) else layer.scale


def _levels(layer: Layer) -> list[str] | list[int]:
    if isinstance(layer, RoleLayer):
        return list(layer.values)
    return [level(value / layer.most) for value in layer.values]


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


def _legend(layer: Layer) -> Markup:
    if isinstance(layer, RoleLayer):
        keys = Markup("").join(
            Markup('<span class="key"><span class="token" data-level="{}">{}</span> {}</span>').format(
                role, *words.split(": ")
            )
            for role, words in ROLES.items()
            if role in layer.values
        )
        body = Markup('<span data-scale="role">{}</span>').format(keys)
    else:
        body = ramp(layer.scale, layer.ends)
    hidden = "" if isinstance(layer, RoleLayer) else Markup(" hidden")
    return Markup('<div class="key-row"{}>{}<p class="about">{}</p></div>').format(hidden, body, layer.about)
