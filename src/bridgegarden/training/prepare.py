"""TRL's settings about data as rules of ours, and a data set of any kind by them to what the trainer reads."""

from collections.abc import Callable
from copy import copy
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase
from trl.trainer.sft_config import SFTConfig

from bridgegarden.data import Columns, RowRules, tokenise, tokenise_stream
from bridgegarden.errors import ConfigError, DataError
from bridgegarden.training.packing import pack_rows

TEXT = "text"
"""TRL's default for the column of plain text."""


def row_rules(
    args: SFTConfig,
    columns: Columns | None = None,
    *,
    assistant_only: bool = False,
    formatting_func: Callable[[dict[str, Any]], str] | None = None,
) -> RowRules:
    """How rows are read by `args`.

    Args:
        args: of the trainer.
        columns: which columns are read; a ``dataset_text_field`` other than TRL's default names one, too.
        assistant_only: TRL's ``assistant_only_loss``.
        formatting_func: makes a text of a row.

    Raises:
        ConfigError: columns are named in two ways, or `args` cut rows as nobody does.
    """
    columns = columns or Columns()
    if args.dataset_text_field != TEXT:
        if columns.named:
            raise ConfigError(
                f"training.dataset_text_field: names {args.dataset_text_field!r}, and `columns` names "
                f"{', '.join(map(repr, columns.named))}; give one of them."
            )
        columns = Columns(text=args.dataset_text_field)
    if args.truncation_mode not in ("keep_start", "keep_end"):
        raise ConfigError(
            f"training.truncation_mode: got {args.truncation_mode!r}; expected 'keep_start' or 'keep_end'."
        )
    return RowRules(
        columns=columns,
        completion_only=args.completion_only_loss,
        assistant_only=assistant_only,
        max_length=args.max_length,
        keep="start" if args.truncation_mode == "keep_start" else "end",
        formatting=formatting_func,
        ends_with=args.eos_token,
    )


def without_assistant_only(args: Any) -> Any:
    """`args` for TRL's trainer, which would look for marks in the chat template that are not needed here."""
    if not isinstance(args, SFTConfig) or not args.assistant_only_loss:
        return args
    args = copy(args)
    args.assistant_only_loss = False
    return args


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
