"""JSON and JSON-lines files, read line by line so that an error can name the line it is on; objects kept as written.

An Arrow column of objects has one type: every object in it gets the keys of all, absent ones as null, and 1 beside 2.5
becomes 1.0. A tool call's arguments would then be other ones. So columns with objects are kept as JSON text, and
decoded when a row is read.
"""

import codecs
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast, overload

from bridgegarden.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

logger = logging.getLogger(__name__)

EXCERPT = 60
NAMED = 5
"""Rows that are named of those that are skipped."""
SKIP = "Mend it, or set data.skip_bad_rows: true to leave out such rows."
DEEPEST = 50
"""Levels of nesting in a row. Arrow itself stops at 64."""
BATCH = 100
"""Rows that are decoded at a time."""


class _Row(NamedTuple):
    place: str
    """Where it is, as ``file:line`` or ``file, item n``."""
    fields: dict[str, Any]


def read_json(path: Path, limit: int | None = None, *, skip_bad: bool | None = None) -> "Dataset":
    """The objects of a file: one a line, or one array of them.

    A byte-order mark and blank lines are skipped. Refused, because each is a sign of damage: text that is not
    UTF-8, ``NaN`` and ``Infinity`` (not JSON), a key given twice in one object, half a surrogate pair.

    Args:
        path: of the file.
        limit: at most so many rows.
        skip_bad: leave out rows that cannot be read, with a warning that counts and names them. An array of which the
            JSON itself is damaged has no rows to skip. None stops as False does, for a caller with no such setting.

    Raises:
        DataError: names ``file:line``.
    """
    with path.open("rb") as file:
        start = file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()
    found = _array_rows(path) if start.startswith(b"[") else _line_rows(path)
    rows: list[_Row] = []
    skipped: list[DataError] = []
    for row in found:
        if isinstance(row, DataError):
            if not skip_bad:
                raise row if skip_bad is None else _skippable(row)
            skipped.append(row)
            continue
        rows.append(row)
        if len(rows) == limit:
            break
    dataset = None
    while dataset is None:
        if not rows:
            raise skipped[0] if skipped else DataError(f"{path}: holds no rows; expected one JSON object a line.")
        try:
            dataset = _to_dataset(rows)
        except _RowOfAnotherTypeError as error:
            if not skip_bad:
                raise (DataError(str(error)) if skip_bad is None else _skippable(error)) from error
            skipped.append(error)
            del rows[error.index]
    if skipped:
        logger.warning(skipped_text(str(path), list(map(str, skipped)), len(rows) + len(skipped)))
    return dataset


def _skippable(error: DataError) -> DataError:
    return DataError(f"{str(error).rstrip('.')}. {SKIP}")


def skipped_text(name: str, reasons: Sequence[str], total: int) -> str:
    """What is said of rows that were left out: how many, and the first of them."""
    return f"{name}: skipped {len(reasons)} of {total} rows: {first_of(reasons)}"


def first_of(reasons: Sequence[str]) -> str:
    """The first few of them."""
    return " ".join(reasons[:NAMED]) + (" ..." if len(reasons) > NAMED else "")


class _RowOfAnotherTypeError(DataError):
    """A row whose value does not go with those before it."""

    def __init__(self, message: str, index: int) -> None:
        super().__init__(message)
        self.index = index


def _line_rows(path: Path) -> Iterator[_Row | DataError]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            line = (raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw).rstrip()
            if line.strip():
                yield _row(f"{path}:{number}", lambda line=line, number=number: _parse(line, path, number))


def _array_rows(path: Path) -> Iterator[_Row | DataError]:
    items = _parse(path.read_bytes().removeprefix(codecs.BOM_UTF8), path, None)
    for number, item in enumerate(items, start=1):
        yield _row(f"{path}, item {number}", lambda item=item: item)


def _row(place: str, read: Callable[[], Any]) -> _Row | DataError:
    try:
        return _Row(place, _object(read(), place))
    except DataError as error:
        return error


def _parse(raw: bytes, path: Path, line: int | None) -> Any:
    """The JSON value in `raw`, which is line `line` of `path`, or all of it."""
    place = str(path) if line is None else f"{path}:{line}"
    first = line or 1
    try:
        text = raw.decode()
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)
        if text.count("[") + text.count("{") > DEEPEST and _depth(value) > DEEPEST:
            raise ValueError(f"nested more than {DEEPEST} levels deep, too deeply to be a row.")
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair survives parsing, not this
    except UnicodeDecodeError as error:
        lines = raw[: error.start].split(b"\n")
        raise DataError(
            f"{path}:{first + len(lines) - 1}: not UTF-8 text (byte 0x{raw[error.start]:02x} at column "
            f"{len(lines[-1]) + 1}); expected JSON in UTF-8."
        ) from error
    except UnicodeEncodeError as error:
        raise DataError(f"{place}: holds half of a surrogate pair (\\ud8xx), which is no character.") from error
    except json.JSONDecodeError as error:
        got = error.doc.split("\n")[error.lineno - 1]
        raise DataError(
            f"{path}:{first + error.lineno - 1}: not valid JSON ({error.msg}, column {error.colno}), got "
            f"{_excerpt(got)}; expected one JSON object a line."
        ) from error
    except RecursionError as error:
        raise DataError(f"{place}: nested too deeply to be a row.") from error
    except ValueError as error:
        raise DataError(f"{place}: {error}") from error
    return value


def _depth(value: Any) -> int:
    """Levels of lists and objects."""
    level, depth = [value], 0
    while level := [inner for outer in level if isinstance(outer, (list, dict)) for inner in _items(outer)]:
        depth += 1
    return depth


def _items(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(
            f"{place}: got {type(value).__name__} {_excerpt(value)}; expected a JSON object, such as "
            '{"prompt": "...", "completion": "..."}.'
        )
    if not value:
        raise DataError(f"{place}: got an empty object; expected the fields of a row.")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON; expected a number or null.")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if any("\0" in key for key in fields):
        raise ValueError("a key holds a null character, which no column's name can.")
    if len(fields) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {twice!r} is given twice in one object; only one could be kept.")
    return fields


def _to_dataset(rows: list[_Row]) -> "Dataset":
    """Columns are the union of the rows' keys; a key that a row lacks is null there."""
    import pyarrow as pa
    from datasets import Dataset

    names = dict.fromkeys(name for row in rows for name in row.fields)
    columns: dict[str, pa.Array | pa.ChunkedArray] = {}
    for name in names:
        values = [row.fields.get(name) for row in rows]
        try:
            objects = any(map(holds_objects, values)) and len({type(value) for value in values} - {type(None)}) == 1
            columns[name] = json_column(values) if objects else pa.array(values)
        except (pa.ArrowException, OverflowError) as error:
            raise _mixed_types(name, values, rows) from error
    return Dataset(pa.table(dict(columns)))


def _mixed_types(name: str, values: list[Any], rows: list[_Row]) -> _RowOfAnotherTypeError:
    """Names the first row whose value does not go with those before it (by bisection: prefixes fail monotonically)."""
    import pyarrow as pa

    good, bad = 0, len(values)
    while bad - good > 1:
        middle = (good + bad) // 2
        try:
            pa.array(values[:middle])
            good = middle
        except (pa.ArrowException, OverflowError):
            bad = middle
    value = values[bad - 1]
    before = next((earlier for earlier in values[: bad - 1] if earlier is not None), None)
    expected = f"as in the rows before, such as {_excerpt(before)}" if before is not None else "a value of one type"
    return _RowOfAnotherTypeError(
        f"{rows[bad - 1].place}: {name!r} is {type(value).__name__} {_excerpt(value)}; expected {expected}. "
        "A column must have one type throughout.",
        bad - 1,
    )


def _excerpt(value: object) -> str:
    text = repr(value.strip() if isinstance(value, str) else value)
    return text if len(text) <= EXCERPT else text[: EXCERPT - 3] + "..."


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
