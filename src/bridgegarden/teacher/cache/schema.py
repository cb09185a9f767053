"""JSON that a run or a cache left, read back: every key and every type is checked before anything uses a value.

A file may have been damaged, or be somebody else's of the same name.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")
LARGEST = 1e300
"""A whole number beyond it cannot be made a float."""
SHOWN = 40
"""Letters of a value in a message."""


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
        ValueError: a key is missing or unknown, or a value is of another type or out of its range.
    """
    hints = get_type_hints(kind)
    known = {field.name: field for field in fields(cast(Any, kind))}
    if not isinstance(tree, Mapping):
        raise _unexpected(tree, "an object", place)
    for name in tree:
        if name not in known:
            raise ValueError(f"{_at(place, name)}: not known here")
    for name, field in known.items():
        if name not in tree and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{_at(place, name)}: missing")
    return kind(**{name: _value(hints[name], value, _at(place, name)) for name, value in tree.items()})


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
            raise _unexpected(value, " or ".join(map(repr, choices)), place)
        return value
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise _unexpected(value, "a list", place)
        return tuple(_value(get_args(kind)[0], item, f"{place}[{index}]") for index, item in enumerate(value))
    if is_dataclass(kind):
        return read_as(cast(type, kind), value, place)
    if kind is float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not -LARGEST < value < LARGEST:
            raise _unexpected(value, "a number", place)
        return float(value)
    if type(value) is not kind:
        raise _unexpected(value, {str: "text", int: "a whole number"}[kind], place)
    return value


def _unexpected(value: Any, what: str, place: str) -> ValueError:
    text = repr(value)
    shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
    return ValueError(f"{place or 'the file'}: got {shown}, expected {what}")


def _at(place: str, name: object) -> str:
    key = str(name)[:SHOWN]
    return f"{place}.{key}" if place else key
