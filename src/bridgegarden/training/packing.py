"""Several rows of the data in one row of a batch."""

from typing import Any

from datasets import Dataset
from trl.data_utils import pack_dataset
from trl.trainer.sft_config import SFTConfig

from bridgegarden.errors import ConfigError
from bridgegarden.training.collator import ROW


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
