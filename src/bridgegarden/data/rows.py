"""Rows from wherever they are: a file, a folder, a saved data set or the hub, as one ``datasets.Dataset``.

Files are read here rather than by ``datasets.load_dataset``: a bad line is then reported with its file and line
number, and nothing is copied into a cache behind the user's back.
"""

import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from bridgegarden.data.json_rows import read_json
from bridgegarden.errors import ConfigError, DataError, foreign

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

logger = logging.getLogger(__name__)

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
PARQUET_SUFFIXES = (".parquet", ".pq")
SUFFIXES = JSON_SUFFIXES + PARQUET_SUFFIXES
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.+-]+)?")
SPLIT_NAMES = ("train", "validation", "valid", "val", "eval", "dev", "test")


def load_rows(source: str, *, split: str = "train", limit: int | None = None, skip_bad: bool = False) -> "Dataset":
    """The rows of `source`, in order.

    Args:
        source: a ``.jsonl``, ``.json`` or ``.parquet`` file, a folder of them, a folder written by
            ``Dataset.save_to_disk``, or the name of a data set on the hub, as ``name`` or ``name:config``.
        split: which part of a hub or saved data set. In a folder whose files are named after splits
            (``train.jsonl``, ``test-00000-of-00002.parquet``) it picks those files; a single file has no splits.
        limit: at most so many rows, from the start.
        skip_bad: leave out rows of JSON files that cannot be read, with a warning that counts and names them.

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


def _from_file(path: Path, limit: int | None, skip_bad: bool) -> "Dataset":
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


def _from_folder(path: Path, split: str, limit: int | None, skip_bad: bool) -> "Dataset":
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


def _concatenate(files: Sequence[Path], limit: int | None, skip_bad: bool) -> "Dataset":
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
