"""Names in recipes: one way to look an entry up, one way to say that it does not exist."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

from bridgegarden.errors import ConfigError

T = TypeVar("T")

TEMPERATURES = (0.001, 1000.0)
LONGEST_VALUE = 80
"""Characters of a value that are quoted."""


def unknown_name(name: object, known: Iterable[str], *, field: str, kind: str = "name") -> ConfigError:
    """The error for a name that is not one of `known`, with the closest known spelling.

    Args:
        name: what was found.
        known: every accepted name.
        field: where it was found, as a recipe path such as ``objective.divergence``.
        kind: what the name is of (``name``, ``key``, ``preset``).
    """
    names, given = sorted(known), quoted(name)
    close = get_close_matches(name if isinstance(name, str) else given, names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return ConfigError(f"{field}: unknown {kind} {given}.{hint} Known: {', '.join(names)}.")


def check_temperature(value: float, place: str, *, greedy: bool = True) -> None:
    """Refuse a temperature at which logits leave the range of float32.

    Args:
        value: the temperature.
        place: what names it.
        greedy: whether 0, the likeliest token, is one.

    Raises:
        ConfigError: it is out of range.
    """
    least, most = TEMPERATURES
    if not (least <= value <= most or (greedy and value == 0)):
        raise ConfigError(f"{place} must be {'0 (greedy) or ' if greedy else ''}in [{least}, {most}], got {value}.")


def quoted(value: object) -> str:
    """``repr`` of a value of a recipe, as far as a message has room for it."""
    try:
        text = repr(value)
    except ValueError:  # Python does not write out whole numbers of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."


def lookup(table: Mapping[str, T], name: str, *, field: str) -> T:
    """The entry of `table` called `name`.

    Raises:
        ConfigError: when there is none; names `field` and suggests the closest entry.
    """
    if name not in table:
        raise unknown_name(name, table, field=field)
    return table[name]
