"""Values that somebody else wrote, checked as they are read: each is what it has to be, or a line says what it is.

Python makes of JSON numbers of any length, text with halves of characters, and objects of any shape in the place of any
other. What passes here can be computed with and written down: single values, and files that a run or a cache left.
"""

import json
import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from bridgegarden.terminal import one_line

T = TypeVar("T")

LONGEST_SHOWN = 300
"""Characters of what a server says that are shown, or kept as a name."""
LARGEST_ID = 2**31 - 1
"""Token ids are kept in 32 bits."""
EXCESS = 1e-3
"""By how much kept probabilities may exceed one before they are no probabilities."""
LARGEST_NUMBER = 1e300
"""Whole numbers beyond this need not fit in a float."""
LONGEST_KEY = 40
"""Characters of a key in a message."""


class Unfit(ValueError):
    """A value is not what it has to be; says in one short line what it is instead."""


def read_json(path: Path) -> Any:
    """What a file of JSON holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not UTF-8, no JSON, or nested too deep to be one of ours.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("nested too deep") from None


def read_as(kind: type[T], tree: Any, place: str = "") -> T:
    """`tree` as the dataclass `kind`, whose fields are plain values, tuples of them, or such dataclasses.

    Args:
        kind: what is expected.
        tree: what JSON gave.
        place: where it stands, for messages.

    Raises:
        Unfit: a key is missing or unknown, or a value is of another type.
        ValueError: `kind` itself refuses a value.
    """
    hints = get_type_hints(kind)
    known = {field.name: field for field in fields(cast(Any, kind))}
    for name in mapping(tree, place or "the file"):
        if name not in known:
            raise Unfit(f"{_at(place, name)}: not known here")
    for name, field in known.items():
        if name not in tree and field.default is MISSING and field.default_factory is MISSING:
            raise Unfit(f"{_at(place, name)}: missing")
    return kind(**{name: _value(hints[name], value, _at(place, name)) for name, value in tree.items()})


def mapping(value: Any, what: str) -> Mapping[str, Any]:
    """`value` if it is an object of JSON."""
    if not isinstance(value, Mapping):
        raise _unfit(what, "an object", value)
    return value


def items(value: Any, what: str) -> Sequence[Any]:
    """`value` if it is a list."""
    if not isinstance(value, list | tuple):
        raise _unfit(what, "a list", value)
    return value


def text(value: Any, what: str) -> str:
    """`value` if it is text that can be written to a file."""
    if not isinstance(value, str):
        raise _unfit(what, "text", value)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Unfit(f"{what} holds half a character (a lone surrogate, or bytes that are not UTF-8)") from None
    return value


def name(value: Any, what: str) -> str:
    """`value` if it is text of a length that names have."""
    if len(text(value, what)) > LONGEST_SHOWN:
        raise _unfit(what, f"at most {LONGEST_SHOWN} characters", value)
    return value


def nats(value: Any, what: str) -> float:
    """`value` as a log-probability: finite, and above zero by no more than a server's rounding, which is taken away."""
    if not _is_number(value) or value > EXCESS:
        raise _unfit(what, "a log-probability (finite, <= 0)", value)
    return min(float(value), 0.0)


def number(value: Any, what: str, least: float, largest: float) -> float:
    """`value` as a finite number from `least` to `largest`."""
    if not _is_number(value) or not least <= value <= largest:
        raise _unfit(what, f"a number from {least:g} to {largest:g}", value)
    return float(value)


def whole(value: Any, what: str, largest: int) -> int:
    """`value` if it is a whole number from 0 to `largest`."""
    if type(value) is not int or not 0 <= value <= largest:
        raise _unfit(what, f"a whole number from 0 to {largest}", value)
    return value


def whole_bytes(value: Any, what: str) -> bytes:
    """Bytes that are written as a list of numbers."""
    return bytes(whole(byte, what, 255) for byte in items(value, what))


def probabilities(logps: Sequence[float], what: str) -> None:
    """Refuse log-probabilities of one position whose probabilities exceed one together."""
    total = math.fsum(map(math.exp, logps))
    if total > 1 + EXCESS:
        raise Unfit(f"{what}: expected probabilities that add up to 1 at most, got {total:.4g}")


def short(message: str) -> str:
    """`message` on one line of bounded length."""
    return one_line(message[: 20 * LONGEST_SHOWN])[:LONGEST_SHOWN]


def shown(value: Any) -> str:
    """A few characters of any value."""
    return short(reprlib.repr(value))


def _value(kind: Any, value: Any, place: str) -> Any:
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        options = [option for option in get_args(kind) if option is not NoneType]
        assert len(options) == 1
        return None if value is None else _value(options[0], value, place)
    if origin is Literal:
        choices = get_args(kind)
        # True equals 1, and 8.0 equals 8.
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            raise _unfit(place, " or ".join(map(repr, choices)), value)
        return value
    if origin is tuple:
        return tuple(_value(get_args(kind)[0], item, f"{place}[{n}]") for n, item in enumerate(items(value, place)))
    if is_dataclass(kind):
        return read_as(cast(type, kind), value, place)
    if kind is float:
        if not _is_number(value):
            raise _unfit(place, "a number", value)
        return float(value)
    if type(value) is not kind:
        raise _unfit(place, {str: "text", int: "a whole number"}[kind], value)
    return value


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -LARGEST_NUMBER < value < LARGEST_NUMBER  # which NaN is not


def _unfit(what: str, expected: str, value: Any) -> Unfit:
    return Unfit(f"{what}: expected {expected}, got {shown(value)}")


def _at(place: str, name: object) -> str:
    key = str(name)[:LONGEST_KEY]
    return f"{place}.{key}" if place else key
