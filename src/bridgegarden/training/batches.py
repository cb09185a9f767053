"""A data set of any kind to batches: what the models can read of it, and from which row each token came."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute
import torch
from accelerate import Accelerator
from datasets import Dataset, IterableDataset, concatenate_datasets
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from trl.data_utils import pack_dataset
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from bridgegarden.data import RowRules, tokenise, tokenise_stream
from bridgegarden.data.teacher_prompt import TEACHER_IDS, TEACHER_LABELS, TEACHER_NUMBER
from bridgegarden.errors import ConfigError, DataError
from bridgegarden.objective.alignment import IGNORE
from bridgegarden.teacher.cache.reader import SIGNAL, CachesByRow, TeacherCache
from bridgegarden.teacher.tokenizer_pair import TokenizerPair
from bridgegarden.teacher.translated import TranslatedCache

ROW = "row"
"""Column with the number of a row in the source data; per token in packed rows."""
TEACHER = "teacher_inputs"
"""Where the collator puts what the teacher reads, where its prompt is another one: ``input_ids``, ``labels``, ..."""
BESIDE_THE_MODEL = ("labels", ROW, SIGNAL, TEACHER, TEACHER_NUMBER)
"""What a batch holds that the student does not read."""
CacheOfRows = TeacherCache | CachesByRow | TranslatedCache
"""A teacher on disk: its signals are read where a batch is made."""
# Its functions are made when it is imported, where no type checker sees them.
compute = cast(Any, pyarrow.compute)


@dataclass(frozen=True, kw_only=True)
class Reach:
    """What both models can read. Beyond it a GPU would not say what is wrong, only that something is."""

    ids: int
    """Token ids: 0 to one less."""
    ids_of: str
    """The model whose embedding ends there."""
    positions: int | None = None
    """Tokens of one row; None where neither model looks its positions up in a table."""
    positions_of: str = ""
    """The model whose table ends there."""
    teacher: "Reach | None" = None
    """What the teacher in memory can read, whose prompt may be another one; None where there is none."""

    def check_rows(self, dataset: Dataset, name: str) -> None:
        """Make sure that both can read every row of a tokenised data set.

        Raises:
            DataError: names the first row that they cannot, and what to do.
        """
        start = 0
        for table in cast(Iterator[pa.Table], dataset.with_format("arrow").iter(batch_size=4096)):
            ids, lengths = table["input_ids"], _lengths(table)
            if _largest(ids) >= self.ids or self._is_beyond(_largest(lengths)):
                numbers = table[ROW].to_pylist() if ROW in table.column_names else range(start, start + len(table))
                for row, parts, number in zip(ids.to_pylist(), lengths.to_pylist(), numbers, strict=True):
                    self._check_row(row, parts, number, name)
            start += len(table)
        if self.teacher is not None and TEACHER_IDS in dataset.column_names:
            columns = [name for name in (TEACHER_IDS, ROW) if name in dataset.column_names]
            asked = dataset.select_columns(columns).rename_column(TEACHER_IDS, "input_ids")
            self.teacher.check_rows(asked, f"with the teacher's prompt, {name}")

    def check_batch(self, batch: Mapping[str, Any]) -> None:
        """Make sure that both can read a batch on its way to them.

        Raises:
            DataError: as :meth:`check_rows`.
        """
        ids: Tensor = batch["input_ids"]
        positions: Tensor | None = batch.get("position_ids")
        longest = ids.shape[1] if positions is None else int(positions.max()) + 1
        self._check(int(ids.max()), longest, "a batch")
        if self.teacher is not None and TEACHER in batch:
            self.teacher.check_batch(batch[TEACHER])

    def _check_row(self, ids: Sequence[int], lengths: Sequence[int], number: int | Sequence[int], name: str) -> None:
        """One row, or the documents that are packed into it; `number` is the row of the data, or that of each token."""
        start = 0
        for length in lengths:
            row = number if isinstance(number, int) else number[start]
            self._check(max(ids[start : start + length], default=0), length, f"{name} data, row {row}")
            start += length

    def _check(self, largest: int, longest: int, where: str) -> None:
        if largest >= self.ids:
            raise DataError(
                f"{where}: holds token id {largest}, but {self.ids_of} has an embedding of {self.ids} rows. Tokenise "
                "with a tokenizer that both models know, or give that model more rows (resize_token_embeddings)."
            )
        if self._is_beyond(longest):
            raise DataError(
                f"{where}: has {longest} tokens, but {self.positions_of} looks its positions up in a table of "
                f"{self.positions}. Set training.max_length to {self.positions} at most, what pad_to_multiple_of adds "
                "included."
            )

    def _is_beyond(self, longest: int) -> bool:
        return self.positions is not None and longest > self.positions


def _lengths(table: pa.Table) -> Any:
    """Lists of lengths: of the documents of a packed row, or of a row on its own."""
    if "seq_lengths" in table.column_names:
        return table["seq_lengths"]
    return pa.chunked_array([pa.array([[n] for n in compute.list_value_length(table["input_ids"]).to_pylist()])])


def _largest(lists: pa.ChunkedArray) -> int:
    return compute.max(compute.list_flatten(lists)).as_py() or 0


def prepare(
    dataset: Any, tokenizer: PreTrainedTokenizerBase, rules: RowRules, args: SFTConfig, *, packing: bool, name: str
) -> Dataset | IterableDataset:
    """`dataset` as token ids and labels: masked and cut by `rules`, shuffled and packed as `args` say.

    Raises:
        ConfigError: a streamed data set cannot be packed.
        DataError: it is no data set, or a row cannot be used.
    """
    if isinstance(dataset, IterableDataset):
        if packing:
            raise ConfigError("training.packing: packing a streamed data set is not supported; load it whole.")
        stream = tokenise_stream(dataset, tokenizer, rules, name=name)
        return stream.shuffle(seed=args.seed) if args.shuffle_dataset else stream
    if not isinstance(dataset, Dataset):
        raise DataError(
            f"{name} data: is {type(dataset).__name__}; expected a datasets.Dataset (Dataset.from_list(rows)) or "
            "IterableDataset."
        )
    prepared = tokenise(dataset, tokenizer, rules, name=name)
    if args.shuffle_dataset:
        prepared = prepared.shuffle(seed=args.seed)
    if not packing:
        return prepared
    packed = pack_rows(prepared, args)
    return packed.shuffle(seed=args.seed) if args.shuffle_dataset else packed


def pack_rows(prepared: Dataset, args: SFTConfig) -> Dataset:
    """TRL's packing of tokenised rows, each token remembering which row it came from.

    Raises:
        ConfigError: nothing says how long a packed row is.
    """
    if args.max_length is None:
        raise ConfigError("training.max_length: packing needs the length of a packed row; got null.")
    if TEACHER_IDS in prepared.column_names:
        raise ConfigError(
            f"training.packing: rows with {TEACHER_IDS!r}, which the teacher reads behind another prompt or in other "
            "tokens, are not packed. Set it to false."
        )
    per_token = prepared.map(_row_of_every_token, remove_columns=prepared.column_names)
    return pack_dataset(per_token, args.max_length, args.packing_strategy)


def _row_of_every_token(example: dict[str, Any]) -> dict[str, Any]:
    kept = {name: example[name] for name in ("input_ids", "labels")}
    return kept | {
        name: [example[name]] * len(example["input_ids"]) for name in (ROW, TEACHER_NUMBER) if name in example
    }


class RowCollator:
    """TRL's collator, with a ``row`` tensor shaped as ``input_ids`` beside it: -1 where a token is padding.

    An error can then name the row of the data, whatever shuffling and packing did. With a teacher's cache, the signals
    of the batch are read here, so in the workers of the data loader where it has some; with several teachers in memory
    ``teacher_number`` says likewise whose each token is. What a teacher reads that has another prompt is padded as the
    student's rows are, beside them. A streamed row that the models
    cannot read is found here, on the CPU, where that can still be said.
    """

    def __init__(
        self,
        collator: DataCollatorForLanguageModeling,
        cache: CacheOfRows | None = None,
        reach: Reach | None = None,
        tokens: TokenizerPair | None = None,
    ) -> None:
        self.collator = collator
        self.cache = cache
        self.reach = reach
        self.tokens = tokens
        self._of_teacher = collator if tokens is None else replace(collator, pad_token_id=tokens.pad_id)

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collator(examples)
        routed = TEACHER_NUMBER in examples[0] and self.cache is None
        if routed:
            batch[TEACHER_NUMBER] = self._of_tokens(TEACHER_NUMBER, examples, batch["input_ids"])
        if TEACHER_IDS in examples[0] and self.cache is None:
            batch[TEACHER] = self._of_teacher(
                [{"input_ids": example[TEACHER_IDS], "labels": example[TEACHER_LABELS]} for example in examples]
            )
            if self.tokens is not None:
                batch[TEACHER] |= self.tokens.aligned(examples)
            if routed:
                asked = batch[TEACHER]["input_ids"]
                batch[TEACHER][TEACHER_NUMBER] = self._of_tokens(TEACHER_NUMBER, examples, asked, read=TEACHER_IDS)
        if self.reach is not None:
            self.reach.check_batch(batch)
        if ROW in examples[0]:
            batch[ROW] = self._of_tokens(ROW, examples, batch["input_ids"])
        if self.cache is not None:
            batch[SIGNAL] = self.cache.collate(examples)
        return batch

    def _of_tokens(
        self, name: str, examples: list[dict[str, Any]], input_ids: Tensor, read: str = "input_ids"
    ) -> Tensor:
        """The column `name` for every token of `input_ids`, which are those of the column `read`."""
        values = torch.full_like(input_ids, -1)
        start = 0
        for index, example in enumerate(examples):
            length = len(example[read])
            value = torch.as_tensor(example[name])
            if self.collator.padding_free:
                values[0, start : start + length] = value
                start += length
            else:
                values[index, :length] = value
        return values


def with_rows(collator: Any, cache: CacheOfRows | None, reach: Reach, tokens: TokenizerPair | None = None) -> Any:
    """TRL's collator, made a :class:`RowCollator`; one of the user's own as it is."""
    if not isinstance(collator, DataCollatorForLanguageModeling):
        return collator
    return RowCollator(collator, cache, reach, tokens)


def copy_ahead(accelerator: Accelerator, *, pinned: bool) -> None:
    """Let batches, a teacher's signals in them, be copied to a GPU while it computes.

    Only from pinned memory, which PyTorch keeps until the copy is made; the copy is in line before whatever reads it.

    Args:
        accelerator: of the run; the data loaders that it prepares from now on do so.
        pinned: whether loaders put batches there.
    """
    if accelerator.device.type == "cuda" and pinned:
        accelerator.dataloader_config.non_blocking = True


def evened(dataset: Dataset, multiple: int) -> Dataset:
    """`dataset`, with rows added of which nothing is supervised until there are a multiple of `multiple`.

    Left to itself, accelerate gives rows out again from the beginning, and they would weigh twice in the mean.
    """
    lacking = -len(dataset) % multiple
    if not lacking or "labels" not in dataset.column_names:
        return dataset
    labels = [name for name in ("labels", TEACHER_LABELS) if name in dataset.column_names]
    blank = dataset[0] | {name: [IGNORE] * len(dataset[0][name]) for name in labels}
    return concatenate_datasets([dataset, Dataset.from_list([blank] * lacking, features=dataset.features)])
