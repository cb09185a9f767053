"""A cache as plain Parquet, which pandas, DuckDB and pyarrow read without this library; and back.

One row a document, not one a position: a document's ids then stand once, and its positions stay together and in order,
as trainers and this library's own import need them. Lists of one length side by side become a row a position with
``UNNEST`` or ``explode``.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bridgegarden.errors import ConfigError, DataError
from bridgegarden.files import whole_file
from bridgegarden.objective.alignment import IGNORE
from bridgegarden.teacher.cache.reader import TeacherCache
from bridgegarden.teacher.cache.record import BOUNDS, Signals
from bridgegarden.teacher.cache.shard import documents_of
from bridgegarden.teacher.cache.spec import CacheSpec
from bridgegarden.teacher.foreign_values import EXCESS
from bridgegarden.terminal import counted

if TYPE_CHECKING:
    from datasets import Dataset

METADATA = b"bridgegarden"
"""Key of a file's metadata: JSON with the format, the spec, and the version that wrote it."""
EXPORT_FORMAT = 1
SUFFIX = ".parquet"
ROUNDING = 1e-3
"""By how much decoded probabilities may miss a sum of one."""
ENCODING = 0.2
"""Nats by which a log-probability may be off that takes 8 bits."""
GROUP_NUMBERS = 1 << 22
"""Log-probabilities of a row group, about: some 40 MB in memory, whatever the cache's size."""
IDS, NUMBERS = pa.list_(pa.int32()), pa.list_(pa.float32())


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What was written."""

    path: Path
    documents: int
    positions: int
    bytes: int
    has_rows: bool
    """Whether token ids and labels are beside the signals."""
    missing: int
    """Rows of the recipe that the cache does not hold."""
    others: int
    """Documents of the cache that are no row of the recipe."""

    def __str__(self) -> str:
        """For a person."""
        lines = [
            f"{self.path}: {counted(self.documents, 'row')} with {counted(self.positions, 'position')}, "
            f"{self.bytes:,} bytes"
        ]
        if not self.has_rows:
            lines.append("without token ids and labels, which no cache holds: give a recipe to have them")
        if self.missing:
            lines.append(f"left out: {counted(self.missing, 'row')} of the recipe that the cache does not hold")
        if self.others:
            lines.append(f"left out: {counted(self.others, 'row')} of the cache that the recipe does not have")
        return "\n".join(lines)


def export_cache(folder: Path, path: Path, data: "Sequence[Dataset] | None" = None) -> ExportResult:
    """Write what the cache in `folder` holds to the Parquet file `path`, whole or not at all.

    Args:
        folder: the cache.
        path: a name that is free.
        data: tokenised rows (``input_ids``, ``labels``), each of which is written once, with its token ids. None is
            every document of the cache, of which nothing is known but its key.

    Raises:
        ConfigError: there is no cache, the file is there, or cannot be written.
        DataError: a shard is damaged, or nothing is to be written.
    """
    if path.suffix != SUFFIX:
        raise ConfigError(f"{path}: expected the name of a Parquet file, which ends in {SUFFIX}.")
    if path.exists():
        raise ConfigError(f"{path}: is there, and is not written over. Give another name, or remove it.")
    cache = TeacherCache(folder)
    found = _Found(cache)
    rows = found.of_keys() if data is None else found.of_rows(data)
    schema = export_schema(cache.spec, has_rows=data is not None)
    documents = positions = 0
    try:
        with whole_file(path) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for group in _groups(rows, max(1, GROUP_NUMBERS // cache.spec.slots)):
                writer.write_table(_table(group, schema, cache.spec))
                documents += len(group)
                positions += sum(len(row.signals.logp) for row in group)
            if not documents:
                raise DataError(f"teacher cache {folder}: nothing to export: it holds none of the rows asked for.")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror or error}). Give another name.") from error
    return ExportResult(
        path=path,
        documents=documents,
        positions=positions,
        bytes=path.stat().st_size,
        has_rows=data is not None,
        missing=found.missing,
        others=len(cache) - documents,
    )


def export_schema(spec: CacheSpec, *, has_rows: bool) -> pa.Schema:
    """The columns of an export of a cache with `spec`, and the spec itself as metadata."""
    fields = [("key", pa.string())]
    if has_rows:
        fields += [("input_ids", IDS), ("labels", IDS), ("positions", IDS)]
    fields += [("token_ids", pa.list_(IDS)), ("logp", pa.list_(NUMBERS))]
    if spec.has_tail:
        fields.append(("log_tail", NUMBERS))
    if spec.stored_exponents:
        fields.append(("tail_powers", pa.list_(NUMBERS)))
    fields += [("entropy", NUMBERS), ("argmax", IDS), ("max_logp", NUMBERS), ("label_logp", NUMBERS)]
    about = {"format": EXPORT_FORMAT, "spec": spec.to_dict(), "version": version("bridgegarden")}
    return pa.schema(fields, metadata={METADATA: json.dumps(about)})


class Exported(NamedTuple):
    """A document of an export."""

    key: bytes
    input_ids: np.ndarray | None
    """Its token ids, where the file has them."""
    signals: Signals


class ExportReader:
    """Reads an export, a row group at a time."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            DataError: it is none, of another version, or damaged.
        """
        self.path = path
        try:
            self._file = pq.ParquetFile(path)
            about = json.loads((self._file.schema_arrow.metadata or {})[METADATA])
            if about["format"] != EXPORT_FORMAT:
                raise ValueError(f"of format {about['format']}, and this version reads {EXPORT_FORMAT}")
            self.spec = CacheSpec.from_dict(about["spec"])
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: no export of a cache that is read here ({error}). Export it anew.") from error
        lacking = set(export_schema(self.spec, has_rows=False).names) - set(self._file.schema_arrow.names)
        if lacking:
            raise DataError(f"{path}: lacks the columns {', '.join(sorted(lacking))} of an export of such a cache.")

    def __iter__(self) -> Iterator[Exported]:
        """Every document.

        Raises:
            DataError: its numbers are none that a teacher can have said.
        """
        number = 0
        for group in range(self._file.num_row_groups):
            table = self._file.read_row_group(group).combine_chunks()
            columns = {name: table[name].chunk(0) for name in table.column_names if table.num_rows}
            for index in range(table.num_rows):
                try:
                    yield self._row({name: column[index] for name, column in columns.items()})
                except (ValueError, TypeError, AttributeError) as error:
                    raise DataError(f"{self.path}, row {number}: damaged ({error}).") from error
                number += 1

    def _row(self, row: Mapping[str, Any]) -> Exported:
        (ids, counts), (logp, others) = (_nested_numbers(row, name) for name in ("token_ids", "logp"))
        slots, argmax = self.spec.slots, _numbers(row, "argmax")
        if not np.array_equal(counts, others) or (counts > slots).any():
            raise ValueError(f"lists of tokens and log-probabilities that do not fit, or more than {slots} tokens")
        for name, tokens in (("token_ids", ids), ("argmax", argmax)):
            if tokens.dtype.kind not in "iu":
                raise ValueError(f"{name} of type {tokens.dtype}; expected whole numbers, as int32")
            if ((tokens < 0) | (tokens >= self.spec.vocab_size)).any():
                raise ValueError(f"{name}: token ids outside the vocabulary of {self.spec.vocab_size}")
        mask = np.arange(slots) < counts[:, None]
        all_ids, all_logp = np.full(mask.shape, -1, np.int32), np.full(mask.shape, -np.inf, np.float32)
        all_ids[mask], all_logp[mask] = ids, logp
        if self.spec.is_dense:
            order = np.argsort(all_ids, axis=1, kind="stable")
            all_ids, all_logp = np.take_along_axis(all_ids, order, 1), np.take_along_axis(all_logp, order, 1)
        width = len(self.spec.stored_exponents)
        signals = Signals(
            ids=None if self.spec.is_dense else all_ids,
            logp=all_logp,
            log_tail=_floats(row, "log_tail") if self.spec.has_tail else None,
            tail_powers=_powers(row, width) if width else np.zeros((len(counts), 0), np.float32),
            entropy=_floats(row, "entropy"),
            argmax=argmax.astype(np.int32),
            max_logp=_floats(row, "max_logp"),
            label_logp=_floats(row, "label_logp"),
        )
        _check_said(signals, all_ids, self.spec)
        input_ids = _numbers(row, "input_ids").astype(np.int32) if "input_ids" in row else None
        return Exported(bytes.fromhex(row["key"].as_py()), input_ids, signals)


def _check_said(signals: Signals, ids: np.ndarray, spec: CacheSpec) -> None:
    """Refuse numbers that no teacher says."""
    lengths = {len(values) for values in signals if values is not None}
    if len(lengths) > 1:
        raise ValueError(f"lists of {sorted(lengths)} positions side by side")
    if np.isnan(signals.logp).any() or (signals.logp > EXCESS).any():
        raise ValueError("log-probabilities that are none")
    for name in ("log_tail", "entropy", "max_logp", "label_logp"):
        values, (least, most) = getattr(signals, name), BOUNDS[name]
        if values is not None and not (fits := (values >= least) & (values <= most)).all():
            raise ValueError(f"{name} is {values[~fits][0]}")
    if np.isnan(signals.tail_powers).any():
        raise ValueError("tail_powers is nan")
    if spec.support.kind == "sampled":
        return
    total = np.exp(signals.logp.astype(np.float64)).sum(1)
    if signals.log_tail is not None:
        total += np.exp(signals.log_tail.astype(np.float64))
    if (np.abs(total - 1) > ROUNDING).any():
        raise ValueError(f"probabilities that add up to {total[np.abs(total - 1).argmax()]:.4g}, not 1")
    likeliest = signals.logp.max(1)
    said = np.where(ids == signals.argmax[:, None], signals.logp, -np.inf).max(1)
    if (np.minimum(said, signals.max_logp) < np.maximum(likeliest, signals.max_logp) - ENCODING).any():
        raise ValueError("argmax and max_logp are not the likeliest of the listed tokens: columns of other positions")
    ordered = np.sort(ids, axis=1)
    if spec.is_dense and (ordered != np.arange(spec.slots)).any():
        raise ValueError("not every token of the vocabulary once")
    if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any():
        raise ValueError("a token listed twice")


def _numbers(row: Mapping[str, Any], name: str) -> np.ndarray:
    """A column's list of numbers, none of which is missing: numpy would read one as NaN, and that as some token."""
    values = row[name].values if isinstance(row[name], pa.ListScalar) else None
    if values is None or values.null_count or not _is_number(values.type):
        raise ValueError(f"{name}: expected a list of numbers without null, got {_got(row[name])}")
    return values.to_numpy(zero_copy_only=False)


def _nested_numbers(row: Mapping[str, Any], name: str) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of a column's lists, one list behind the other, and how many each has."""
    lists = row[name].values if isinstance(row[name], pa.ListScalar) else None
    if lists is None or lists.null_count or not isinstance(lists, pa.ListArray | pa.LargeListArray):
        raise ValueError(f"{name}: expected lists of numbers without null, got {_got(row[name])}")
    values = lists.flatten()
    if values.null_count or not _is_number(values.type):
        raise ValueError(f"{name}: expected lists of numbers without null, got {_got(row[name])}")
    return values.to_numpy(zero_copy_only=False), lists.value_lengths().to_numpy()


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _got(value: pa.Scalar) -> str:
    if not value.is_valid:
        return "null"
    return f"{value.type}{' with null' if isinstance(value, pa.ListScalar) else ''}"


def _powers(row: Mapping[str, Any], width: int) -> np.ndarray:
    values, counts = _nested_numbers(row, "tail_powers")
    if (counts != width).any():
        raise ValueError(f"tail_powers: expected {width} numbers a position, got {counts[counts != width][0]}")
    return values.astype(np.float32).reshape(-1, width)


def _floats(row: Mapping[str, Any], name: str) -> np.ndarray:
    return _numbers(row, name).astype(np.float32)


def is_export(path: Path) -> bool:
    """Whether a file is one that :func:`export_cache` wrote, of whatever version."""
    if path.suffix != SUFFIX or not path.is_file():
        return False
    try:
        return METADATA in (pq.read_schema(path).metadata or {})
    except (pa.ArrowException, OSError):
        return False


class _Row(NamedTuple):
    """A document on its way out."""

    key: bytes
    ids: np.ndarray | None
    labels: np.ndarray | None
    signals: Signals


class _Found:
    """The documents of a cache, one after the other."""

    def __init__(self, cache: TeacherCache) -> None:
        self._cache = cache
        self.missing = 0
        """Rows that were asked for and are not there."""

    def of_keys(self) -> Iterator[_Row]:
        for key in self._cache:
            yield _Row(key, None, None, self._cache.signals(key))

    def of_rows(self, data: "Iterable[Dataset]") -> Iterator[_Row]:
        seen: set[bytes] = set()
        for document in (document for dataset in data for document in documents_of(dataset)):
            key = document.key
            if key in seen:
                continue
            seen.add(key)
            if key in self._cache:
                yield _Row(key, document.ids, document.labels, self._cache.signals(key))
            else:
                self.missing += 1


def _groups(rows: Iterable[_Row], most: int) -> Iterator[list[_Row]]:
    """Runs of documents with about `most` positions."""
    group: list[_Row] = []
    positions = 0
    for row in rows:
        group.append(row)
        positions += len(row.signals.logp)
        if positions >= most:
            yield group
            group, positions = [], 0
    if group:
        yield group


def _table(group: Sequence[_Row], schema: pa.Schema, spec: CacheSpec) -> pa.Table:
    kept = [_kept(row.signals) for row in group]
    signals = [row.signals for row in group]
    counts = np.concatenate([part.counts for part in kept])
    columns: dict[str, pa.Array | None] = {
        "key": pa.array([row.key.hex() for row in group]),
        "token_ids": _nested([part.ids for part in kept], counts, signals),
        "logp": _nested([part.logp for part in kept], counts, signals),
        "log_tail": _lists([part.log_tail for part in signals]),
        "entropy": _lists([part.entropy for part in signals]),
        "argmax": _lists([part.argmax for part in signals]),
        "max_logp": _lists([part.max_logp for part in signals]),
        "label_logp": _lists([part.label_logp for part in signals]),
    }
    if spec.stored_exponents:
        width = len(spec.stored_exponents)
        powers = [part.tail_powers.reshape(-1) for part in signals]
        columns["tail_powers"] = _nested(powers, np.full(len(counts), width), signals)
    if "input_ids" in schema.names:
        columns["input_ids"] = _lists([row.ids for row in group])
        columns["labels"] = _lists([row.labels for row in group])
        columns["positions"] = _lists([_supervised(row.labels) for row in group])
    return pa.table([columns[name] for name in schema.names], schema=schema)


class _Kept(NamedTuple):
    """The tokens of a document's positions, likeliest first, one position behind the other."""

    ids: np.ndarray
    logp: np.ndarray
    counts: np.ndarray
    """Of each position."""


def _kept(signals: Signals) -> _Kept:
    order = np.argsort(-signals.logp, axis=1, kind="stable")
    ids = order if signals.ids is None else np.take_along_axis(signals.ids, order, 1)
    kept = ids >= 0
    logp = np.take_along_axis(signals.logp, order, 1)
    return _Kept(ids[kept].astype(np.int32), logp[kept], kept.sum(1))


def _supervised(labels: np.ndarray | None) -> np.ndarray:
    """Where the tokens stand that the positions are about."""
    assert labels is not None
    return (np.flatnonzero(labels[1:] != IGNORE) + 1).astype(np.int32)


def _lists(parts: "Sequence[np.ndarray | None]") -> pa.Array | None:
    if any(part is None for part in parts):
        return None
    arrays = [part for part in parts if part is not None]
    return pa.ListArray.from_arrays(_offsets([len(part) for part in arrays]), pa.array(np.concatenate(arrays)))


def _nested(parts: Sequence[np.ndarray], counts: np.ndarray, signals: Sequence[Signals]) -> pa.Array:
    inner = pa.ListArray.from_arrays(_offsets(counts), pa.array(np.concatenate(parts)))
    return pa.ListArray.from_arrays(_offsets([len(part.logp) for part in signals]), inner)


def _offsets(counts: Sequence[int] | np.ndarray) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
