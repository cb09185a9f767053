"""TRL's settings about data as rules of ours, and a data set of any kind by them to what the trainer reads."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase
from trl.trainer.sft_config import SFTConfig

from bridgegarden.data import Columns, RowRules, tokenise, tokenise_stream
from bridgegarden.errors import ConfigError, DataError
from bridgegarden.training.collator import pack_rows

logger = logging.getLogger(__name__)

TEXT = "text"
"""TRL's default for the column of plain text."""
SKIP = "skip_prepare_dataset"
"""The one key of TRL's ``dataset_kwargs``."""
OF_PREPARATION = (
    "dataset_text_field",
    "completion_only_loss",
    "assistant_only_loss",
    "truncation_mode",
    "shuffle_dataset",
)
"""Fields of ``SFTConfig`` that say how rows are prepared; rows may be as long as they are where they are prepared."""


def check_data_arguments(args: SFTConfig, kwargs: Mapping[str, Any], columns: Columns | None) -> None:
    """Refuse what `args` say of data and would be ignored, and tell what makes no difference.

    Args:
        args: of the trainer.
        kwargs: the further arguments that are handed to :class:`~trl.SFTTrainer`.
        columns: which columns are read.

    Raises:
        ConfigError: says which, and what to do.
    """
    if args.dataset_num_proc is not None:
        logger.warning("training.dataset_num_proc: makes no difference; rows are prepared by one process.")
    if kwargs.get("data_collator") is not None:
        for name in ("pad_token", "pad_to_multiple_of"):
            if getattr(args, name) is not None:
                raise ConfigError(f"training.{name}: is up to data_collator; leave out one or the other.")
    # Text that was no JSON object is still text.
    asked = args.dataset_kwargs if isinstance(args.dataset_kwargs, Mapping) else {args.dataset_kwargs or SKIP: False}
    unknown = [key for key in asked if key != SKIP]
    if unknown:
        raise ConfigError(f"training.dataset_kwargs: got {unknown[0]!r}; expected nothing but {{{SKIP!r}: True}}.")
    if not asked.get(SKIP):
        return
    defaults = {field.name: field.default for field in fields(SFTConfig) if field.name in OF_PREPARATION}
    ignored = [f"training.{name}" for name, default in defaults.items() if getattr(args, name) != default]
    ignored += ["formatting_func"] if kwargs.get("formatting_func") is not None else []
    ignored += ["columns"] if columns is not None else []
    if ignored:
        raise ConfigError(
            f"training.dataset_kwargs: with {SKIP} rows are trained on as they are, so that {', '.join(ignored)} would "
            "be ignored; leave out one or the other."
        )


def check_prepared(data: Mapping[str, Any]) -> None:
    """Make sure that rows which nobody prepares here hold token ids.

    Args:
        data: data sets by name; what makes its rows when they are read is believed.

    Raises:
        DataError: names the first that does not.
    """
    for name, dataset in data.items():
        if isinstance(dataset, Dataset) and dataset.format["type"] != "custom" and "input_ids" not in dataset.features:
            raise DataError(
                f"{name} data: has {', '.join(dataset.column_names)}, but no 'input_ids'. Tokenise the rows, or leave "
                f"out {SKIP} in training.dataset_kwargs."
            )


def row_rules(
    args: SFTConfig,
    columns: Columns | None = None,
    formatting_func: Callable[[dict[str, Any]], str] | None = None,
) -> RowRules:
    """How rows are read by `args`.

    Args:
        args: of the trainer.
        columns: which columns are read; a ``dataset_text_field`` other than TRL's default names one, too.
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
        assistant_only=args.assistant_only_loss,
        max_length=args.max_length,
        keep="start" if args.truncation_mode == "keep_start" else "end",
        formatting=formatting_func,
        ends_with=args.eos_token,
    )


@contextmanager
def withheld(args: SFTConfig | None) -> Iterator[None]:
    """`args` without what TRL's own trainer would refuse when it is made, because it does not do it as it is done here.

    It would look for marks in the chat template that are not needed, and takes it that nobody cuts the rows of batches
    without padding.
    """
    if args is None:
        yield
        return
    assistant_only, max_length = args.assistant_only_loss, args.max_length
    args.assistant_only_loss = False
    if args.padding_free and not args.packing:
        args.max_length = None
    try:
        yield
    finally:
        args.assistant_only_loss, args.max_length = assistant_only, max_length


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
