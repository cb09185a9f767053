"""Results as JSON can hold them: what ``to_dict`` of every result is made with."""

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

from bridgegarden.statistics import Estimate, Interval


def to_plain(value: Any, *, leave_out: tuple[str, ...] = ()) -> Any:
    """Dataclasses and estimates to dictionaries by field, sequences to lists, what is not finite to None.

    An :class:`Estimate` also gets the ends of its 95% interval, `low` and `high`.

    Args:
        value: numbers, strings, enums, dataclasses, mappings and sequences of them.
        leave_out: fields of `value` itself that are not wanted.
    """
    if is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value) if field.name not in leave_out]
        return {name: to_plain(getattr(value, name)) for name in names}
    if isinstance(value, Estimate):
        return to_plain(value._asdict() | value.interval()._asdict())
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Interval):
        return to_plain(value._asdict())
    if isinstance(value, Mapping):
        return {str(name): to_plain(entry) for name, entry in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(entry) for entry in value]
    assert value is None or isinstance(value, int | str), type(value)
    return value
