"""A data set of rows to a data set of token ids and labels."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bridgegarden.data.chat import Columns, conversation
from bridgegarden.data.encode import IGNORED, RowTokeniser, TokenisedRow, end_of_turn_ids, tokenise_row
from bridgegarden.data.nested import RowsAsWritten
from bridgegarden.data.vocabulary import vocabulary_size
from bridgegarden.errors import ConfigError, DataError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

__all__ = ["IGNORED", "TokenisedRow", "end_of_turn_ids", "tokenise", "tokenise_row"]

logger = logging.getLogger(__name__)

ROWS_PER_CHUNK = 1000
ROWS_NAMED = 5


def tokenise(
    dataset: "Dataset",
    tokenizer: "PreTrainedTokenizerBase",
    *,
    columns: Columns = Columns(),  # noqa: B008  frozen
    max_length: int | None = None,
    name: str = "train",
) -> "Dataset":
    """Every row of `dataset` as ``input_ids``, ``labels`` and ``row``, in order and in memory.

    ``row`` is the row's number in `dataset`, from 0, or its own integer column ``row`` where it has one. Rows that have
    ``input_ids`` and ``labels`` already are taken as they are. Long rows keep their first `max_length` tokens; rows in
    which nothing is left to learn are dropped, and one line of the log says how many and which.

    Args:
        dataset: rows in any shape that :func:`bridgegarden.data.chat.conversation` accepts.
        tokenizer: the student's, which must also be the teacher's.
        columns: which columns to read.
        max_length: in tokens.
        name: what to call the data in messages: a split, a file.

    Raises:
        ConfigError: when `max_length` is less than two.
        DataError: when a row cannot be used, or every row is dropped.
        ModelError: as in :func:`tokenise_row`.
    """
    if max_length is not None and max_length < 2:
        raise ConfigError(f"max_length must be at least 2 (a token to read and one to learn), got {max_length}.")
    numbers = _row_numbers(dataset)
    rows = (
        _given_rows(dataset, vocabulary_size(tokenizer), name)
        if _is_tokenised(dataset, name)
        else _new_rows(dataset, tokenizer, columns, name)
    )
    kept = _Kept()
    for number, row in zip(numbers, rows, strict=True):
        kept.add(number, row, max_length)
    if kept.dropped:
        _report_dropped(kept, len(dataset), max_length, name)
    return kept.dataset()


@dataclass(kw_only=True)
class _Kept:
    """Rows on their way into Arrow. Python lists of a large data set would take ten times the memory."""

    chunks: "list[pa.Table]" = field(default_factory=list)
    rows: list[TokenisedRow] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)

    def add(self, number: int, row: TokenisedRow, max_length: int | None) -> None:
        row = row.truncated(max_length)
        if row.supervised == 0:
            self.dropped.append(number)
            return
        self.rows.append(row)
        self.numbers.append(number)
        if len(self.rows) == ROWS_PER_CHUNK:
            self._flush()

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
        self.chunks.append(pa.table(columns))
        self.rows, self.numbers = [], []


def _new_rows(
    dataset: "Dataset", tokenizer: "PreTrainedTokenizerBase", columns: Columns, name: str
) -> Iterator[TokenisedRow]:
    tokeniser = RowTokeniser.of(tokenizer)
    if tokeniser.format is not None and tokeniser.format.prints_the_date:
        logger.warning(
            "%s: the chat template prints today's date, so the token ids, and what is cached for them, hold for a day.",
            name,
        )
    for place, row in _places(dataset, name):
        yield tokeniser.row(conversation(row, columns, place=place), place)
    if tokeniser.format is not None:
        for opening, count in tokeniser.format.opened_otherwise.items():
            logger.warning(
                "%s: when it is to answer, the model is made to begin with %r, but %d answers do not begin so. It is "
                "trained on them as they are.",
                name,
                opening,
                count,
            )


def _places(dataset: "Dataset", name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every row with what to call it in messages."""
    for number, row in enumerate(RowsAsWritten(dataset)):
        yield f"{name}, row {number}", row


def _is_tokenised(dataset: "Dataset", name: str) -> bool:
    if "input_ids" not in dataset.column_names:
        return False
    if "labels" not in dataset.column_names:
        raise DataError(
            f"{name}: has 'input_ids' but no 'labels'; expected both, with -100 in 'labels' where nothing is to be "
            "learnt, or neither."
        )
    return True


def _given_rows(dataset: "Dataset", size: int, name: str) -> Iterator[TokenisedRow]:
    """Rows that were tokenised elsewhere, checked for the mistakes that would train on something else in silence."""
    for place, row in _places(dataset, name):
        ids, labels = _integers(row["input_ids"], "input_ids", place), _integers(row["labels"], "labels", place)
        if len(ids) != len(labels):
            raise DataError(f"{place}: {len(ids)} 'input_ids' but {len(labels)} 'labels'; expected as many.")
        outside = next((index for index in ids if not 0 <= index < size), None)
        if outside is not None:
            raise DataError(
                f"{place}: 'input_ids' holds {outside}; expected ids of the tokenizer, from 0 to {size - 1}."
            )
        for position, (index, label) in enumerate(zip(ids, labels, strict=True)):
            if label not in (IGNORED, index):
                raise DataError(
                    f"{place}: the label at position {position} is {label}, the id {index}; expected the id itself or "
                    "-100: labels are not shifted, the model does that."
                )
        if _is_padded_or_packed(row):
            raise DataError(
                f"{place}: is padded or packed; expected one unpadded text a row. Batches are padded, and with "
                "training.packing packed, later."
            )
        yield TokenisedRow(input_ids=ids, labels=labels)


def _is_padded_or_packed(row: dict[str, Any]) -> bool:
    positions = row.get("position_ids")
    return (
        0 in (row.get("attention_mask") or ())
        or (positions is not None and list(positions) != list(range(len(positions))))
        or len(row.get("seq_lengths") or ()) > 1
    )


def _integers(value: object, key: str, place: str) -> list[int]:
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        raise DataError(f"{place}: {key!r} is {type(value).__name__} {str(value)[:60]}; expected a list of integers.")
    return value


def _row_numbers(dataset: "Dataset") -> Sequence[int]:
    if "row" in dataset.column_names:
        numbers = list(dataset.with_format(None)["row"])
        if all(type(number) is int for number in numbers):
            return numbers
    return range(len(dataset))


def _report_dropped(kept: _Kept, total: int, max_length: int | None, name: str) -> None:
    first = ", ".join(map(str, kept.dropped[:ROWS_NAMED])) + (", ..." if len(kept.dropped) > ROWS_NAMED else "")
    why = "have no token to learn" + ("" if max_length is None else f" within max_length={max_length} tokens")
    if len(kept.dropped) == total:
        raise DataError(f"{name}: all {total} rows {why}. Raise training.max_length, or check the labels.")
    logger.warning("%s: dropped %d of %d rows (row %s), which %s.", name, len(kept.dropped), total, first, why)
