"""What student and teacher can read: probed before the first step, and held against the data."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel

from bridgegarden.causal_lm import architecture, language_model_in
from bridgegarden.errors import ConfigError, DataError, ModelError
from bridgegarden.model_probes import Collate, check_causal_lm, check_packing, position_table
from bridgegarden.sharded_head import rows

ROW = "row"
"""Column with the number of a row in the source data; per token in packed rows."""

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

    def check_batch(self, batch: Mapping[str, Any]) -> None:
        """Make sure that both can read a batch on its way to them.

        Raises:
            DataError: as :meth:`check_rows`.
        """
        ids: Tensor = batch["input_ids"]
        positions: Tensor | None = batch.get("position_ids")
        longest = ids.shape[1] if positions is None else int(positions.max()) + 1
        self._check(int(ids.max()), longest, "a batch")

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


def check_loaded(student: nn.Module, environment: Mapping[str, str] = os.environ) -> None:
    """Make sure that the first process of a machine has the weights of the student; under FSDP it may hand them on.

    Raises:
        ModelError: it has not, so that there is nothing to probe, and nothing to train.
    """
    if int(environment.get("LOCAL_RANK") or 0) == 0 and any(parameter.is_meta for parameter in student.parameters()):
        raise ModelError(
            f"student {architecture(language_model_in(student))}: on the meta device, where weights have no numbers. "
            "Load it (from_pretrained) where no such device is set, and whole (no offloading by device_map)."
        )


def check_models(
    student: nn.Module,
    teacher: PreTrainedModel | None,
    *,
    packed_by: Collate | None,
    checkpointing: bool,
    data: Mapping[str, Any],
) -> Reach:
    """Probe a pair before it is trained, and hold its data against what it can read.

    Args:
        student: as it is trained, adapters included.
        teacher: the model, probed as a language model already; None where it is none, or is not in memory.
        packed_by: what packs several rows into one row of a batch; None where rows stay alone.
        checkpointing: whether activations are computed anew in the backward.
        data: prepared data sets by name; those that are streamed are left to :meth:`Reach.check_batch`.

    Raises:
        ConfigError: the student cannot compute activations anew.
        ModelError: a model that is not what training takes it for.
        DataError: a row that a model cannot read.
    """
    _check_adapters(student)
    inner = language_model_in(student)
    if checkpointing and not inner.supports_gradient_checkpointing:
        raise ConfigError(
            f"training.gradient_checkpointing: {architecture(inner)} does not support it. Set it to false."
        )
    # Under FSDP the first process of a machine may hold the weights for all until training begins, and probes them.
    if inner.device.type != "meta":
        check_causal_lm(inner)
    models = {"student": inner} | ({} if teacher is None else {"teacher": teacher})
    probed = {role: model for role, model in models.items() if model.device.type != "meta"}
    if packed_by is not None:
        for role, model in probed.items():
            check_packing(model, role, packed_by)
    reach = _reach(models, probed)
    for name, dataset in data.items():
        if isinstance(dataset, Dataset) and "input_ids" in dataset.column_names:
            reach.check_rows(dataset, name)
    return reach


def _check_adapters(student: nn.Module) -> None:
    """Refuse adapters that put tokens of their own before the text, which labels know nothing of."""
    for config in getattr(student, "peft_config", {}).values():
        if config.is_prompt_learning and config.peft_type.value != "PREFIX_TUNING":
            raise ModelError(
                f"peft_config: {config.peft_type.value} puts virtual tokens before the text, which is not supported. "
                "Use LoRA or another adapter of weights, or prefix tuning."
            )


def _reach(models: Mapping[str, PreTrainedModel], probed: Mapping[str, PreTrainedModel]) -> Reach:
    named = {role: f"the {role}, {architecture(model)}," for role, model in models.items()}
    ids = {role: rows(model.get_input_embeddings().weight) for role, model in models.items()}  # pyright: ignore
    tables = {role: position_table(model) for role, model in probed.items()}
    known = {role: size for role, size in tables.items() if size is not None}
    least = min(ids, key=lambda role: ids[role])
    shortest = min(known, key=lambda role: known[role], default=None)
    if shortest is None:
        return Reach(ids=ids[least], ids_of=named[least])
    return Reach(ids=ids[least], ids_of=named[least], positions=known[shortest], positions_of=named[shortest])


def _lengths(table: pa.Table) -> Any:
    """Lists of lengths: of the documents of a packed row, or of a row on its own."""
    if "seq_lengths" in table.column_names:
        return table["seq_lengths"]
    return pa.chunked_array([pa.array([[n] for n in compute.list_value_length(table["input_ids"]).to_pylist()])])


def _largest(lists: pa.ChunkedArray) -> int:
    return compute.max(compute.list_flatten(lists)).as_py() or 0
