"""Rows from wherever they are: a file, a folder, a saved data set or the hub; of one source, or a mix of several.

Files are read here rather than by ``datasets.load_dataset``: a bad line is then reported with its file and line
number, and nothing is copied into a cache behind the user's back.
"""

import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from bridgegarden.data.json_rows import RowsAsWritten, read_json
from bridgegarden.errors import ConfigError, DataError, foreign

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from datasets import Dataset

logger = logging.getLogger(__name__)

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
PARQUET_SUFFIXES = (".parquet", ".pq")
SUFFIXES = JSON_SUFFIXES + PARQUET_SUFFIXES
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.+-]+)?")
SPLIT_NAMES = ("train", "validation", "valid", "val", "eval", "dev", "test")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One of several sources of rows."""

    path: str
    """A JSONL or Parquet file, a folder, or a name on the hub, as where there is one source."""
    weight: float | None = None
    """Its share of the rows, > 0, relative to the weights of the others; all sources have one or none has."""
    split: str | None = None
    """Split of it, where it has splits; null is ``data.split``."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What is taken of one source."""

    name: str
    """What to call it in messages."""
    rows: "Dataset"
    """The rows that are taken."""
    numbers: Sequence[int]
    """Their numbers in the source, in ascending order."""
    total: int
    """Rows that were read of the source."""

    def first(self, count: int) -> "Part":
        """The part with at most `count` of its rows."""
        if count >= len(self.rows):
            return self
        return replace(self, rows=self.rows.select(range(count)), numbers=self.numbers[:count])


@dataclass(frozen=True, kw_only=True)
class Mix(Sequence[dict[str, Any]]):
    """The rows of one or several sources, as Python objects."""

    parts: tuple[Part, ...]
    """In the order of the sources."""
    weighted: bool
    """Whether the sources are spread evenly over the mix; else they stand one behind the other."""

    def __len__(self) -> int:
        return sum(len(part.rows) for part in self.parts)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        readers = [iter(rows) for rows in self._rows]
        for part in self._order:
            yield next(readers[part])

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        part, row = self._find(index)
        return self._rows[part][row]

    def __str__(self) -> str:
        """How much is taken of each source; for a person."""
        taken = [f"{part.name} {len(part.rows):,}" for part in self.parts]
        if not self.weighted:
            return ", ".join(taken)
        return ", ".join(
            f"{told} of {part.total:,} ({len(part.rows) / len(self):.0%})"
            for told, part in zip(taken, self.parts, strict=True)
        )

    def first(self, count: int) -> "Mix":
        """The mix with at most `count` of its rows."""
        import numpy as np

        taken = np.bincount(self._order[:count], minlength=len(self.parts))
        return Mix(
            parts=tuple(part.first(int(rows)) for part, rows in zip(self.parts, taken, strict=True)),
            weighted=self.weighted,
        )

    def place(self, index: int) -> str:
        """Where a row is: ``train rows.jsonl, row 3``."""
        part, row = self._find(index)
        return f"{self.parts[part].name}, row {self.parts[part].numbers[row]}"

    def joined(self, made: "Sequence[Dataset]") -> "Dataset":
        """What was made of each part as one data set, in the order of the mix; rows may have been left out of it."""
        import numpy as np
        from datasets import concatenate_datasets

        if len(made) == 1:
            return made[0]
        lengths = [len(part) for part in made]
        first = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        order = _order(lengths, evenly=self.weighted)
        return concatenate_datasets(list(made)).select(first[order] + _ranks(order))

    @cached_property
    def _rows(self) -> list[RowsAsWritten]:
        return [RowsAsWritten(part.rows) for part in self.parts]

    @cached_property
    def _order(self) -> "np.ndarray":
        return _order([len(part.rows) for part in self.parts], evenly=self.weighted)

    @cached_property
    def _within(self) -> "np.ndarray":
        return _ranks(self._order)

    def _find(self, index: int) -> tuple[int, int]:
        """The part that a row of the mix is of, and which of its rows it is."""
        return int(self._order[index]), int(self._within[index])


def load_mix(
    sources: Sequence[Source],
    *,
    kind: str = "train",
    limit: int | None = None,
    seed: int = 0,
    skip_bad: bool | None = None,
) -> Mix:
    """The rows of several sources.

    Without weights all rows of each. With weights each source gives its share of the mix, rounded by largest
    remainders: rows that are drawn without repetition, as many as there are until one source is used up.

    Args:
        sources: one or more; those that share no split name their own.
        kind: what to call the rows in messages, before the name of the source.
        limit: at most so many rows, from the start of the mix.
        seed: decides which rows are drawn.
        skip_bad: as in :func:`load_rows`.

    Raises:
        ConfigError: when `limit` is not positive.
        DataError: as in :func:`load_rows`, of any source.
    """
    import numpy as np

    weights = [source.weight for source in sources if source.weight is not None]
    parts = []
    for source in sources:
        missing = None if limit is None or weights else limit - sum(part.total for part in parts)
        if missing == 0:
            break
        rows = load_rows(source.path, split=source.split or "train", limit=missing, skip_bad=skip_bad)
        name = place(kind, source.path)
        parts.append(Part(name=name, rows=rows, numbers=range(len(rows)), total=len(rows)))
    if not weights:
        return Mix(parts=tuple(parts), weighted=False)
    drawn = []
    random = np.random.default_rng(seed)
    for part, count in zip(parts, shares([part.total for part in parts], weights), strict=True):
        numbers = sorted(random.choice(part.total, count, replace=False).tolist())
        drawn.append(replace(part, rows=part.rows.select(numbers), numbers=numbers))
    mix = Mix(parts=tuple(drawn), weighted=True)
    return mix if limit is None else mix.first(limit)


def shares(totals: Sequence[int], weights: Sequence[float]) -> list[int]:
    """How many rows each source gives to the largest mix in which `weights` hold and no row comes twice.

    Args:
        totals: rows of each source.
        weights: of each, > 0.
    """
    exact = [Fraction(str(weight)) for weight in weights]  # 0.3 is three tenths, so that 30 and 70 rows make 100
    exact = [weight / sum(exact) for weight in exact]
    count = min(int(total / share) for total, share in zip(totals, exact, strict=True))

    def fits(rows: Sequence[int]) -> bool:
        return all(taken <= total for taken, total in zip(rows, totals, strict=True))

    # Rounding may leave room for a row or two more.
    while fits(_apportioned(count + 1, exact)):
        count += 1
    return _apportioned(count, exact)


def _apportioned(count: int, exact: Sequence[Fraction]) -> list[int]:
    """`count` as whole numbers in the ratio of `exact`, by largest remainders."""
    given = [int(count * share) for share in exact]
    for i in sorted(range(len(exact)), key=lambda i: given[i] - count * exact[i])[: count - sum(given)]:
        given[i] += 1
    return given


def place(kind: str, source: str) -> str:
    """What to call the rows of `source` in messages: ``train rows.jsonl``."""
    return f"{kind} {Path(source).name if Path(source).exists() else source}"


def _order(lengths: Sequence[int], *, evenly: bool) -> "np.ndarray":
    """``(n,)`` the part of each row when parts of `lengths` stand one behind the other, or each is spread evenly."""
    import numpy as np

    parts = np.repeat(np.arange(len(lengths)), lengths)
    if not evenly:
        return parts
    position = np.concatenate([(np.arange(length) + 0.5) / max(length, 1) for length in lengths])
    return parts[np.argsort(position, kind="stable")]


def _ranks(parts: "np.ndarray") -> "np.ndarray":
    """``(n,)`` how many rows of the same part stand before each row."""
    import numpy as np

    ranks = np.empty(len(parts), dtype=np.int64)
    for part in np.unique(parts):
        of_part = parts == part
        ranks[of_part] = np.arange(of_part.sum())
    return ranks


def load_rows(
    source: str, *, split: str = "train", limit: int | None = None, skip_bad: bool | None = None
) -> "Dataset":
    """The rows of `source`, in order.

    Args:
        source: a ``.jsonl``, ``.json`` or ``.parquet`` file, a folder of them, a folder written by
            ``Dataset.save_to_disk``, or the name of a data set on the hub, as ``name`` or ``name:config``.
        split: which part of a hub or saved data set. In a folder whose files are named after splits
            (``train.jsonl``, ``test-00000-of-00002.parquet``) it picks those files; a single file has no splits.
        limit: at most so many rows, from the start.
        skip_bad: leave out rows of JSON files that cannot be read, with a warning that counts and names them. False
            says where one stops that this could be set, None does not.

    Raises:
        ConfigError: when `limit` is not positive.
        DataError: when there is nothing there, a line or file cannot be read, or there are no rows.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"data limit must be at least 1, got {limit}.")
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        rows = _from_folder(path, split, limit, skip_bad)
    elif path.is_file():
        rows = _from_file(path, limit, skip_bad)
    elif path.exists():
        raise DataError(f"{source}: is neither a file nor a folder but a pipe or a device; save the rows to a file.")
    elif _looks_like_a_path(source) or not HUB_NAME.fullmatch(source):
        raise _missing(source, path)
    else:
        rows = _from_hub(source, split, limit)
    if len(rows) == 0:
        raise DataError(f"{source}: holds no rows (split {split!r}); expected at least one.")
    return rows if limit is None or len(rows) <= limit else rows.select(range(limit))


def _from_file(path: Path, limit: int | None, skip_bad: bool | None) -> "Dataset":
    if path.suffix.lower() in JSON_SUFFIXES:
        try:
            return read_json(path, limit, skip_bad=skip_bad)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}.") from error
    if path.suffix.lower() in PARQUET_SUFFIXES:
        return _read_parquet(path, limit)
    raise DataError(
        f"{path}: unknown kind of file {path.suffix or path.name!r}; expected one of {', '.join(SUFFIXES)}."
    )


def _read_parquet(path: Path, limit: int | None) -> "Dataset":
    import pyarrow.parquet as pq
    from datasets import Dataset

    with foreign(lambda words: DataError(f"{path}: cannot be read as Parquet ({words}). Is it complete?")):
        table = pq.read_table(path)
        table = _known_kinds(table if limit is None else table.slice(0, limit), path)
        # Text that is not UTF-8 would only be found where it is read.
        table.validate(full=True)
        return Dataset(table)


def _known_kinds(table: "pa.Table", path: Path) -> "pa.Table":
    """`table` without columns of kinds that rows cannot hold, such as maps, which are named."""
    import pyarrow as pa
    from datasets import Features

    for field in table.schema:
        try:
            Features.from_arrow_schema(pa.schema([field]))
        except ValueError:
            logger.warning("%s: the column %r is left out: rows cannot hold its kind, %s", path, field.name, field.type)
            table = table.drop_columns(field.name)
    return table


def _from_folder(path: Path, split: str, limit: int | None, skip_bad: bool | None) -> "Dataset":
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        return _from_saved(path, split)
    files = sorted(file for file in path.iterdir() if file.is_file() and file.suffix.lower() in SUFFIXES)
    if not files:
        raise DataError(
            f"{path}: holds no data files; expected {', '.join(SUFFIXES)}, or what Dataset.save_to_disk writes."
        )
    return _concatenate(_of_split(files, path, split), limit, skip_bad)


def _of_split(files: Sequence[Path], folder: Path, split: str) -> list[Path]:
    """Those of `files` that belong to `split`; all of them when none is named after a split."""
    names = {file: re.split(r"[-_.]", file.stem.lower())[0] for file in files}
    if not any(name in SPLIT_NAMES for name in names.values()):
        return list(files)
    chosen = [file for file in files if names[file] == split.lower()]
    if not chosen:
        found = ", ".join(file.name for file in files)
        raise DataError(f"{folder}: its files are named after splits ({found}), but none is {split!r}.")
    return chosen


def _concatenate(files: Sequence[Path], limit: int | None, skip_bad: bool | None) -> "Dataset":
    from datasets import concatenate_datasets

    parts: list[Dataset] = []
    for file in files:
        missing = None if limit is None else limit - sum(map(len, parts))
        if missing == 0:
            break
        parts.append(_from_file(file, missing, skip_bad))
    folder = files[0].parent
    with foreign(lambda words: DataError(f"{folder}: its files disagree about the type of a column ({words}).")):
        return concatenate_datasets(parts)


def _from_saved(path: Path, split: str) -> "Dataset":
    from datasets import DatasetDict, load_from_disk

    def refusal(words: str) -> DataError:
        return DataError(f"{path}: cannot be read as a saved data set ({words}). Is it complete, and not empty?")

    with foreign(refusal):
        saved = load_from_disk(str(path))
    if not isinstance(saved, DatasetDict):
        return saved
    if split not in saved:
        raise DataError(f"{path}: has no split {split!r}; it has {', '.join(sorted(map(str, saved)))}.")
    return saved[split]


def _from_hub(source: str, split: str, limit: int | None) -> "Dataset":
    from datasets import Dataset, load_dataset

    name, _, config = source.partition(":")

    def refusal(words: str) -> DataError:
        return DataError(
            f"{source}: is neither a file here nor a data set that the hub gave us (split {split!r}: {words}). Check "
            "the name, the split and the network, or give a local file."
        )

    with foreign(refusal), _progress_bars_only_on_a_terminal():
        rows = load_dataset(name, config or None, split=split if limit is None else f"{split}[:{limit}]")
    assert isinstance(rows, Dataset)
    return rows


@contextmanager
def _progress_bars_only_on_a_terminal() -> Iterator[None]:
    from datasets import disable_progress_bars, enable_progress_bars
    from datasets.utils import are_progress_bars_disabled

    hide = not sys.stderr.isatty() and not are_progress_bars_disabled()
    if hide:
        disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            enable_progress_bars()


def _looks_like_a_path(source: str) -> bool:
    return source.startswith((".", "/", "~")) or Path(source).suffix.lower() in SUFFIXES or source.count("/") > 1


def _missing(source: str, path: Path) -> DataError:
    folder = path.parent
    if not folder.is_dir():
        return DataError(f"{source}: no such file, and there is no folder {folder} either.")
    names = [entry.name for entry in folder.iterdir()]
    close = get_close_matches(path.name, names, n=1)
    hint = f" Did you mean {folder / close[0]}?" if close else ""
    return DataError(f"{source}: no such file.{hint} Expected a file, a folder, or the name of a data set on the hub.")
