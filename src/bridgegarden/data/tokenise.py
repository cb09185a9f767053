"""Rows of any shape to token ids and labels: a data set in memory, a stream."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from bridgegarden.data.encode import IGNORED, TokenisedRow
from bridgegarden.data.json_rows import RowsAsWritten, as_written, first_of, skipped_text
from bridgegarden.data.row_reader import USUAL_RULES, RowReader, RowRules
from bridgegarden.data.teacher_prompt import (
    TEACHER_IDS,
    TEACHER_LABELS,
    TEACHER_NUMBER,
)
from bridgegarden.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

ROWS_PER_CHUNK = 1000
ROWS_NAMED = 5
IMAGES = ("image", "images")


def tokenise(
    dataset: "Dataset",
    tokenizer: "PreTrainedTokenizerBase",
    rules: RowRules = USUAL_RULES,
    *,
    name: str = "train",
    numbers: Sequence[int] | None = None,
    first: int = 0,
) -> "Dataset":
    """Every row of `dataset` as ``input_ids``, ``labels`` and ``row``, in order and in memory.

    ``row`` is the row's number in `dataset`, from 0, or its own integer column ``row`` where it has one. Rows that have
    ``input_ids`` already are taken as they are: with ``labels``, or else with TRL's masks, or else learnt wholly. Rows
    in which nothing is left to learn are dropped. One line of the log each says how many rows were dropped, cut or
    skipped, and names the first of them.

    Where the teacher reads another prompt, ``teacher_ids`` and ``teacher_labels`` stand beside them: its prompt, and
    the same tokens to learn. Rows that have these columns already keep them. Likewise ``teacher_number`` where each row
    has one of several teachers.

    Args:
        dataset: rows in any shape that :func:`bridgegarden.data.chat.content_of` describes.
        tokenizer: the student's, which must also be the teacher's.
        rules: how rows are read.
        name: what to call the data in messages: a split, a file.
        numbers: of the rows, where they are not all of a file; None counts them.
        first: what is added to a number for the column ``row``: the rows of the files before.

    Raises:
        DataError: when a row cannot be used, or every row is dropped.
        ModelError: as in :func:`tokenise_row`.
    """
    _check_columns(dataset, name)
    reader, kept = RowReader(tokenizer, rules, name), _Kept(rules=rules, name=name)
    own = _own_numbers(dataset)
    counted = range(len(dataset)) if numbers is None else numbers
    for index, (number, row) in enumerate(zip(counted, RowsAsWritten(dataset), strict=True)):
        try:
            made = reader.read(row, f"{name}, row {number}")
        except DataError as error:
            if not rules.skip_bad:
                raise
            kept.skipped.append(str(error))
            continue
        kept.add(number + first if own is None else own[index], number, made)
    kept.report(len(dataset))
    reader.report()
    return kept.dataset()


def tokenise_stream(
    dataset: "IterableDataset",
    tokenizer: "PreTrainedTokenizerBase",
    rules: RowRules = USUAL_RULES,
    *,
    name: str = "train",
) -> "IterableDataset":
    """:func:`tokenise` for rows that are read as they are needed: the same ids and labels, and none of them kept.

    ``row`` is the place in the stream. Of rows that are dropped or cut only the first is named, since nobody knows how
    many will come.

    Raises:
        DataError: when the first row that is kept, or one before it, cannot be used. Later rows raise when they come.
        ModelError: as in :func:`tokenise_row`.
    """
    rows = cast("IterableDataset", dataset.with_format(None))
    _check_columns(rows, name)
    stream = _Stream(RowReader(tokenizer, rules, name), rows.features)
    mapped = rows.map(stream.made, with_indices=True).filter(stream.is_kept)
    given = dataset.column_names or next(iter(rows), {})
    told = rules.teacher_prompt is not None or rules.teacher_tokens is not None
    asked = [TEACHER_IDS, TEACHER_LABELS] if told or TEACHER_IDS in given else []
    numbered = [TEACHER_NUMBER] if rules.teacher_by is not None or TEACHER_NUMBER in given else []
    prepared = mapped.select_columns(["input_ids", "labels", "row", *asked, *numbered])
    if next(iter(prepared), None) is None:
        raise DataError(f"{name}: the stream has no row with a token to learn. Raise training.max_length, or check it.")
    return prepared


class _Stream:
    """What happens to each row of a stream. It is pickled where workers read the data."""

    def __init__(self, reader: RowReader, features: Mapping[str, Any] | None) -> None:
        self._reader, self._features, self._told = reader, features or {}, set[str]()

    def made(self, row: dict[str, Any], index: int) -> dict[str, Any]:
        rules = self._reader.rules
        number = row["row"] if type(row.get("row")) is int else index
        try:
            whole = self._reader.read(as_written(row, self._features), f"{self._reader.name}, row {number}")
        except DataError as error:
            if not rules.skip_bad:
                raise
            self._tell("skipped", str(error))
            nothing = {name: [] for name in ("input_ids", "labels", TEACHER_IDS, TEACHER_LABELS)}
            return {**nothing, "row": number, TEACHER_NUMBER: None}
        made = whole.truncated(rules.max_length, rules.keep)
        if made.supervised == 0:
            self._tell("dropped", f"row {number} has no token to learn{_within(rules.max_length)}")
        elif len(made.input_ids) < len(whole.input_ids):
            self._tell("cut", f"row {number} is longer than max_length={rules.max_length}")
        asked = {} if made.teacher is None else _teacher_columns(made.teacher)
        numbered = {} if made.teacher_number is None else {TEACHER_NUMBER: made.teacher_number}
        return {"input_ids": made.input_ids, "labels": made.labels, "row": number, **asked, **numbered}

    @staticmethod
    def is_kept(row: Mapping[str, Any]) -> bool:
        return any(label != IGNORED for label in row["labels"][1:])

    def _tell(self, what: str, why: str) -> None:
        if what not in self._told:
            self._told.add(what)
            logger.warning("%s: %s (%s); more of the kind are not reported.", self._reader.name, why, what)


@dataclass(kw_only=True)
class _Kept:
    """Rows on their way into Arrow. Python lists of a large data set would take ten times the memory."""

    rules: RowRules
    name: str
    chunks: "list[pa.Table]" = field(default_factory=list)
    rows: list[TokenisedRow] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    cut: list[int] = field(default_factory=list)
    endless: int = 0
    """Rows whose last token was to be learnt and is cut off."""
    asked: bool | None = None
    """Whether the teacher reads another prompt; None before the first row."""
    routed: bool | None = None
    """Whether rows say which of several teachers reads them; None before the first row."""
    longer: int = 0
    """Rows that are longer than the most tokens as the teacher reads them."""
    longest: int = 0
    """Tokens of the longest one that the teacher reads."""

    def add(self, number: int, place: int, whole: TokenisedRow) -> None:
        row = whole.truncated(self.rules.max_length, self.rules.keep)
        if row.supervised == 0:
            self.dropped.append(place)
            return
        if len(row.input_ids) < len(whole.input_ids):
            self.cut.append(place)
            self.endless += (whole.goes_on or whole.labels[-1] != IGNORED) and self.rules.keep == "start"
        self._count_asked(row.teacher)
        if self.routed is None:
            self.routed = row.teacher_number is not None
        if self.routed != (row.teacher_number is not None):
            raise DataError(
                f"{self.name}: some rows have {TEACHER_NUMBER!r} and others do not; give all of them, or none."
            )
        self.rows.append(row)
        self.numbers.append(number)
        if len(self.rows) == ROWS_PER_CHUNK:
            self._flush()

    def _count_asked(self, teacher: TokenisedRow | None) -> None:
        if self.asked is None:
            self.asked = teacher is not None
        if self.asked != (teacher is not None):
            raise DataError(
                f"{self.name}: some rows have {TEACHER_IDS!r} and others do not; give all of them, or none."
            )
        if teacher is not None and self.rules.max_length is not None:
            self.longer += len(teacher.input_ids) > self.rules.max_length
            self.longest = max(self.longest, len(teacher.input_ids))

    def report(self, total: int) -> None:
        """Say what was left out or cut; refuse to go on with nothing."""
        name, within = self.name, _within(self.rules.max_length)
        if self.skipped:
            if len(self.skipped) == total:
                raise DataError(f"{name}: all {total} rows are skipped: {first_of(self.skipped)}")
            logger.warning(skipped_text(name, self.skipped, total))
        if len(self.dropped) + len(self.skipped) == total:
            raise DataError(
                f"{name}: all {total} rows have no token to learn{within}. Raise training.max_length, or check the "
                "labels."
            )
        if self.dropped:
            named, count = _named(self.dropped), len(self.dropped)
            logger.warning(
                "%s: dropped %d of %d rows (row %s), which have no token to learn%s.", name, count, total, named, within
            )
        if self.cut:
            lost = (
                f"{self.endless} of them lost the end token, and with it where to stop; raise training.max_length, or "
                "shorten the rows"
                if self.endless
                else "none of them lost the end token"
            )
            cut, named, length = len(self.cut), _named(self.cut), self.rules.max_length
            logger.warning(
                "%s: cut %d of %d rows (row %s) to max_length=%d; %s.", name, cut, total, named, length, lost
            )
        if self.longer:
            logger.warning(
                "%s: with the teacher's prompt %d of %d rows are longer than max_length=%s, the longest %d tokens; the "
                "teacher reads them whole.",
                *(name, self.longer, total, self.rules.max_length, self.longest),
            )

    def dataset(self) -> "Dataset":
        import pyarrow as pa
        from datasets import Dataset

        self._flush()
        return Dataset(pa.concat_tables(self.chunks))

    def _flush(self) -> None:
        import pyarrow as pa

        ids = pa.list_(pa.int32())
        columns = {
            "input_ids": pa.array([row.input_ids for row in self.rows], ids),
            "labels": pa.array([row.labels for row in self.rows], ids),
            "row": pa.array(self.numbers, pa.int64()),
        }
        asked = [_teacher_columns(row.teacher) for row in self.rows if row.teacher is not None]
        for name in (TEACHER_IDS, TEACHER_LABELS) if asked else ():
            columns[name] = pa.array([row[name] for row in asked], ids)
        if self.routed:
            columns[TEACHER_NUMBER] = pa.array([row.teacher_number for row in self.rows], pa.int32())
        self.chunks.append(pa.table(columns))
        self.rows, self.numbers = [], []


def _teacher_columns(row: TokenisedRow) -> dict[str, list[int]]:
    return {TEACHER_IDS: row.input_ids, TEACHER_LABELS: row.labels}


def _check_columns(dataset: "Dataset | IterableDataset", name: str) -> None:
    from datasets import Dataset

    if isinstance(dataset, Dataset) and dataset.format["type"] == "custom":
        raise DataError(
            f"{name}: has a transform (set_transform, with_transform), which is not applied when rows are prepared. "
            "Apply it with map, or stream the data (to_iterable_dataset().map)."
        )
    found = [column for column in IMAGES if column in (dataset.column_names or ())]
    if found:
        raise DataError(
            f"{name}: has a column {found[0]!r}; images are not trained on. Remove it (remove_columns) to train on the "
            "text alone."
        )


def _own_numbers(dataset: "Dataset") -> list[int] | None:
    if "row" in dataset.column_names:
        numbers = list(dataset.with_format(None)["row"])
        if all(type(number) is int for number in numbers):
            return numbers
    return None


def _named(rows: Sequence[int]) -> str:
    return ", ".join(map(str, rows[:ROWS_NAMED])) + (", ..." if len(rows) > ROWS_NAMED else "")


def _within(max_length: int | None) -> str:
    return "" if max_length is None else f" within max_length={max_length} tokens"
