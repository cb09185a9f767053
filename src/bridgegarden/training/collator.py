"""Batches that remember which row of the data each token came from, and bring the teacher's signals along."""

from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor
from trl.data_utils import pack_dataset
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from bridgegarden.errors import ConfigError
from bridgegarden.objective.alignment import IGNORE
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


def pack_rows(prepared: Dataset, args: SFTConfig) -> Dataset:
    """TRL's packing of tokenised rows, each token remembering which row it came from.

    Raises:
        ConfigError: nothing says how long a packed row is.
    """
    if args.max_length is None:
        raise ConfigError("training.max_length: packing needs the length of a packed row; got null.")
    per_token = prepared.map(_row_of_every_token, remove_columns=prepared.column_names)
    return pack_dataset(per_token, args.max_length, args.packing_strategy)


def _row_of_every_token(example: dict[str, Any]) -> dict[str, Any]:
    kept = {name: example[name] for name in ("input_ids", "labels")}
    return kept | ({ROW: [example[ROW]] * len(example["input_ids"])} if ROW in example else {})


def evened(dataset: Dataset, multiple: int) -> Dataset:
    """`dataset`, with rows added of which nothing is supervised until there are a multiple of `multiple`.

    Left to itself, accelerate gives rows out again from the beginning, and they would weigh twice in the mean.
    """
    lacking = -len(dataset) % multiple
    if not lacking or "labels" not in dataset.column_names:
        return dataset
    blank = dataset[0] | {"labels": [IGNORE] * len(dataset[0]["labels"])}
    return concatenate_datasets([dataset, Dataset.from_list([blank] * lacking, features=dataset.features)])
