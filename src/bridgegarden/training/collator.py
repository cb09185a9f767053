"""Batches that remember which row of the data each token came from, and bring the teacher's signals along."""

from typing import Any

import torch
from torch import Tensor
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from bridgegarden.teacher.cache.reader import SIGNAL, TeacherCache
from bridgegarden.training.reach import ROW, Reach

__all__ = ["ROW", "RowCollator"]


class RowCollator:
    """TRL's collator, with a ``row`` tensor shaped as ``input_ids`` beside it: -1 where a token is padding.

    An error can then name the row of the data, whatever shuffling and packing did. With a teacher's cache, the signals
    of the batch are read here, so in the workers of the data loader where it has some. A streamed row that the models
    cannot read is found here, on the CPU, where that can still be said.
    """

    def __init__(
        self,
        collator: DataCollatorForLanguageModeling,
        cache: TeacherCache | None = None,
        reach: Reach | None = None,
    ) -> None:
        self.collator = collator
        self.cache = cache
        self.reach = reach

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collator(examples)
        if self.reach is not None:
            self.reach.check_batch(batch)
        if ROW in examples[0]:
            batch[ROW] = self._rows(examples, batch["input_ids"])
        if self.cache is not None:
            batch[SIGNAL] = self.cache.collate(examples)
        return batch

    def _rows(self, examples: list[dict[str, Any]], input_ids: Tensor) -> Tensor:
        rows = torch.full_like(input_ids, -1)
        start = 0
        for index, example in enumerate(examples):
            length = len(example["input_ids"])
            value = torch.as_tensor(example[ROW])
            if self.collator.padding_free:
                rows[0, start : start + length] = value
                start += length
            else:
                rows[index, :length] = value
        return rows
