"""Names in recipes: one way to look an entry up, one way to say that it does not exist."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

from bridgegarden.errors import ConfigError

T = TypeVar("T")


def unknown_name(name: object, known: Iterable[str], *, field: str, kind: str = "name") -> ConfigError:
    """The error for a name that is not one of `known`, with the closest known spelling.

    Args:
        name: what was found.
        known: every accepted name.
        field: where it was found, as a recipe path such as ``objective.divergence``.
        kind: what the name is of (``name``, ``key``, ``preset``).
    """
    names = sorted(known)
    close = get_close_matches(str(name), names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return ConfigError(f"{field}: unknown {kind} {name!r}.{hint} Known: {', '.join(names)}.")


def lookup(table: Mapping[str, T], name: str, *, field: str) -> T:
    """The entry of `table` called `name`.

    Raises:
        ConfigError: when there is none; names `field` and suggests the closest entry.
    """
    if name not in table:
        raise unknown_name(name, table, field=field)
    return table[name]
