"""Objects inside rows, kept as they were written.

An Arrow column of objects has one type: every object in it gets the keys of all, absent ones as null, and 1 beside 2.5
becomes 1.0. A tool call's arguments would then be other ones. So columns with objects are kept as JSON text, and
decoded when a row is read.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast, overload

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

BATCH = 100
"""Rows that are decoded at a time."""


def holds_objects(value: object) -> bool:
    """Whether there is an object in `value`, at any depth."""
    return isinstance(value, dict) or (isinstance(value, list) and any(map(holds_objects, value)))


def json_column(values: Sequence[Any]) -> "pa.ChunkedArray":
    """`values` as a column of JSON text, which ``datasets`` knows as its type ``Json``; None stays null."""
    import pyarrow as pa

    # Not pa.json_() at once: only plain text is split where it is too long for one array.
    text = pa.array([None if value is None else json.dumps(value, ensure_ascii=False) for value in values], pa.string())
    parts = text.chunks if isinstance(text, pa.ChunkedArray) else [text]
    return pa.chunked_array([pa.ExtensionArray.from_storage(pa.json_(), part) for part in parts])


class RowsAsWritten(Sequence[dict[str, Any]]):
    """The rows of a data set as Python objects.

    JSON text is decoded exactly (``datasets`` loses digits and refuses large integers). In a column of Arrow objects,
    which cannot tell an absent key from null, null counts as absent.
    """

    def __init__(self, dataset: "Dataset") -> None:
        self._dataset = dataset.with_format("arrow")
        self._kinds = {name: kind for name, kind in dataset.features.items() if _has_structure(kind)}

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for table in self._dataset.iter(BATCH):
            yield from map(self._row, cast("pa.Table", table).to_pylist())

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> "list[dict[str, Any]]": ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        rows = [self._row(row) for row in cast("pa.Table", self._dataset[index]).to_pylist()]
        return rows if isinstance(index, slice) else rows[0]

    def _row(self, row: dict[str, Any]) -> dict[str, Any]:
        return as_written(row, self._kinds)


def as_written(row: Mapping[str, Any], features: Mapping[str, Any]) -> dict[str, Any]:
    """`row` with JSON text decoded, and without the nulls that a column of objects adds.

    Args:
        row: by column.
        features: the types of its columns; one without a type is left as it is.
    """
    return {name: _value(value, features[name]) if name in features else value for name, value in row.items()}


def _value(value: Any, kind: Any) -> Any:
    from datasets import Json

    if isinstance(kind, Json):
        return json.loads(value) if isinstance(value, str) else value
    if isinstance(kind, dict) and isinstance(value, Mapping):
        return {key: _value(item, kind.get(key)) for key, item in value.items() if item is not None}
    if isinstance(value, list) and _item_kind(kind) is not None:
        return [_value(item, _item_kind(kind)) for item in value]
    return value


def _has_structure(kind: Any) -> bool:
    from datasets import Json

    return isinstance(kind, dict | Json) or (_item_kind(kind) is not None and _has_structure(_item_kind(kind)))


def _item_kind(kind: Any) -> Any:
    """Of a list's items; None where `kind` is no list."""
    from datasets import LargeList, List

    if isinstance(kind, List | LargeList):
        return kind.feature
    return kind[0] if isinstance(kind, list) else None
