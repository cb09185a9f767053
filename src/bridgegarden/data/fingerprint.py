"""Names for content: equal exactly when token ids would mean the same thing.

All are SHA-256 in hexadecimal. None depends on paths, file formats, or settings that do not change the ids.
"""

import hashlib
import json
from typing import TYPE_CHECKING, Any, cast

from bridgegarden.data.json_rows import RowsAsWritten
from bridgegarden.data.template import name_of
from bridgegarden.errors import ModelError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

BATCH = 1000


def dataset_fingerprint(dataset: "Dataset") -> str:
    """Of what is in `dataset`, in order: ``input_ids`` and ``labels`` where it has both, else all fields of its rows.

    A null field counts as an absent one, since some formats cannot tell them apart.
    """
    names = set(dataset.column_names)
    return _of_ids(dataset) if {"input_ids", "labels"} <= names else _of_rows(dataset)


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Of how `tokenizer` turns text into ids: vocabulary, merges, normaliser, added tokens, and its ends of text.

    Not of its chat template (:func:`chat_template_fingerprint`), nor of padding and truncation, which change while it
    is in use.

    Raises:
        ModelError: when it is not backed by the ``tokenizers`` library, and so cannot be read as a whole.
    """
    from transformers import PreTrainedTokenizerFast

    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(
            f"{name_of(tokenizer)} is not backed by the tokenizers library, so whether it agrees with another cannot "
            "be told. Use a model that has a tokenizer.json."
        )
    state: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    state = {key: value for key, value in state.items() if key not in ("padding", "truncation")}
    ends = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token}
    return _sha256(_canonical([state, {name: None if token is None else str(token) for name, token in ends.items()}]))


def chat_template_fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Of the chat template; the same for every tokenizer that has none."""
    return _sha256(_canonical(tokenizer.chat_template))


def _of_ids(dataset: "Dataset") -> str:
    import numpy as np

    digest = hashlib.sha256(b"ids")
    for batch in dataset.select_columns(["input_ids", "labels"]).with_format("arrow").iter(BATCH):
        table = cast("pa.Table", batch)
        for name in ("input_ids", "labels"):
            column = table[name].combine_chunks()
            for part in (column.value_lengths(), column.flatten()):
                digest.update(np.asarray(part, dtype="<i8").tobytes())
    return digest.hexdigest()


def _of_rows(dataset: "Dataset") -> str:
    digest = hashlib.sha256(b"rows")
    for row in RowsAsWritten(dataset):
        digest.update(_canonical(_without_nulls(row)))
        digest.update(b"\n")
    return digest.hexdigest()


def _without_nulls(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"), default=repr).encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
