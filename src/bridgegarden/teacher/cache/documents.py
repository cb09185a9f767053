"""What a signal is filed under: the content of a tokenised row, never its place in a data set or batch.

However rows are shuffled, packed, accumulated, repeated or spread over processes, a document's key is the same, so a
signal cannot end up at another document's positions.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from bridgegarden.objective.alignment import IGNORE

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

KEY_BYTES = 16
BATCH = 1000


@dataclass(frozen=True, kw_only=True)
class Document:
    """One tokenised row that stands alone: nothing of another row is in its context."""

    ids: np.ndarray
    """Token ids, int32."""
    labels: np.ndarray
    """The same ids where supervised, -100 elsewhere."""
    row: int
    """Number of the row in the source data, for messages."""

    @property
    def positions(self) -> int:
        """Supervised positions. The first token has no position before it that could predict it."""
        return int(np.count_nonzero(self.labels[1:] != IGNORE))

    @property
    def key(self) -> bytes:
        """Hash of the ids and of which of them are supervised."""
        return document_key(self.ids, self.labels)


def document_key(ids: np.ndarray, labels: np.ndarray) -> bytes:
    """16 bytes of BLAKE2b over the number of tokens, the ids, and one bit a token from the second on."""
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    digest.update(len(ids).to_bytes(8, "little"))
    digest.update(np.ascontiguousarray(ids, "<i4").tobytes())
    digest.update(np.packbits(labels[1:] != IGNORE).tobytes())
    return digest.digest()


def documents_of(dataset: "Dataset") -> Iterator[Document]:
    """The documents of a tokenised data set, packed rows taken apart; those without a supervised position left out."""
    columns = [name for name in ("input_ids", "labels", "seq_lengths", "row") if name in dataset.column_names]
    number = 0
    for batch in dataset.select_columns(columns).with_format("arrow").iter(BATCH):
        table = cast("pa.Table", batch)
        lists = {name: _lists(table[name].combine_chunks()) for name in columns if name != "row"}
        rows = table["row"].to_pylist() if "row" in columns else None
        for index in range(table.num_rows):
            example: dict[str, Any] = {name: values[index] for name, values in lists.items()}
            if rows is not None:
                example["row"] = rows[index]
            yield from documents_in(example, number)
            number += 1


def documents_in(example: Mapping[str, Any], number: int = 0) -> Iterator[Document]:
    """The documents of one example of a batch, in order: one, or as many as were packed into it."""
    ids = np.asarray(example["input_ids"], dtype=np.int32)
    labels = np.asarray(example.get("labels", example["input_ids"]), dtype=np.int32)
    rows = example.get("row", number)
    start = 0
    for length in example.get("seq_lengths", (len(ids),)):
        part = slice(start, start + int(length))
        row = int(rows[start]) if isinstance(rows, Sequence) else int(rows)
        document = Document(ids=ids[part], labels=labels[part], row=row)
        if document.positions:
            yield document
        start += int(length)


def _lists(column: "pa.ListArray") -> list[np.ndarray]:
    values = column.flatten().to_numpy(zero_copy_only=False)
    return np.split(values, np.cumsum(column.value_lengths().to_numpy())[:-1])
