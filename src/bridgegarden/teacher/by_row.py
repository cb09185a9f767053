"""Several teachers in memory, of which every row has one: each reads the rows of its own, and nothing else."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from bridgegarden.causal_lm import head_size
from bridgegarden.data.teacher_prompt import TEACHER_NUMBER, check_number
from bridgegarden.errors import ConfigError, DataError
from bridgegarden.objective.alignment import SupervisedPositions
from bridgegarden.objective.fused import ProjectedTeacher
from bridgegarden.objective.support import TeacherSignal
from bridgegarden.teacher.live import LiveTeacher

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class ProjectedByRow:
    """Several teachers at N positions, each by its hidden states at its own; the signal is made where it is asked
    for."""

    parts: tuple[ProjectedTeacher, ...]
    """Each teacher at the positions of its own, in order; without those that have none."""
    owner: Tensor
    """``(N,)`` on the CPU: number of the part that a position is of."""
    labels: Tensor
    """``(N,)`` the tokens in the data."""
    top_k: int | None
    """Tokens kept; None keeps all."""
    vocab_size: int
    """Size of the vocabulary all sides share."""
    exponents: tuple[float, ...]
    """Tail power sums to make."""

    def __getitem__(self, index: slice, /) -> TeacherSignal:
        start, stop, _ = index.indices(len(self.owner))
        owner, device = self.owner[start:stop], self.labels.device
        logits, places = [], []
        for number, part in enumerate(self.parts):
            own = (owner == number).nonzero().squeeze(1)
            before = int((self.owner[:start] == number).sum())
            if len(own):
                with torch.no_grad():
                    logits.append(part.head.logits(part.hidden[before : before + len(own)]).to(device))
                places.append(own)
        width = max((one.shape[-1] for one in logits), default=self.vocab_size)
        # One that is narrower gives the ids that it lacks no mass.
        wide = [torch.nn.functional.pad(one, (0, width - one.shape[-1]), value=-torch.inf) for one in logits]
        mixed = torch.zeros(0, width, device=device)
        if wide:
            mixed = torch.cat(wide)[torch.cat(places).argsort().to(device)]
        signal = TeacherSignal.from_logits(mixed, self.top_k, self.vocab_size, exponents=self.exponents)
        return signal.with_labels(mixed, self.labels[start:stop])


class TeachersByRow:
    """A :class:`~bridgegarden.teacher.protocol.Teacher`: several models in memory with one tokenizer, each of which
    reads the rows of its own. A row says by its ``teacher_number`` whose it is, a packed row so of each token."""

    def __init__(self, teachers: Sequence[LiveTeacher], *, top_k: int | None = None) -> None:
        """
        Args:
            teachers: in the order of their numbers; what each keeps (`top_k`) does not matter here.
            top_k: tokens kept per position, with the tail; None keeps the whole vocabulary.

        Raises:
            ConfigError: there is none, or one is spread over processes, all of which would have to ask it at once.
        """
        if not teachers:
            raise ConfigError("teachers of rows: got none; give at least one.")
        for teacher in teachers:
            if isinstance(teacher.model, FSDPModule):
                raise ConfigError(
                    f"teachers of rows: {teacher.name} is sharded over processes, whose batches need other teachers. "
                    "Give each process whole ones, or train from caches."
                )
        self.teachers, self.top_k = tuple(teachers), top_k

    @property
    def models(self) -> tuple[PreTrainedModel, ...]:
        """All of them."""
        return tuple(teacher.model for teacher in self.teachers)

    @property
    def name(self) -> str:
        """The teachers' names or paths."""
        return ", ".join(teacher.name for teacher in self.teachers)

    @property
    def width(self) -> int:
        """Rows of the narrowest projection, padding included."""
        return min(map(head_size, self.models))

    def place(self, student_device: torch.device) -> None:
        """Move every one to its device."""
        for teacher in self.teachers:
            teacher.place(student_device)

    def check_rows(self, dataset: "Dataset", name: str) -> None:
        """Make sure that every row of a tokenised data set says whose it is.

        Raises:
            DataError: names the first that does not.
        """
        numbered = TEACHER_NUMBER in dataset.column_names
        column: Iterable[Any] = dataset.select_columns([TEACHER_NUMBER])[:][TEACHER_NUMBER] if numbered else [None]
        for index, said in enumerate(column):
            for number in set(said) if isinstance(said, list) else {said}:
                check_number(number, len(self.teachers), f"{name} data, row {index}")

    def at(
        self,
        positions: SupervisedPositions,
        inputs: Mapping[str, Any],
        *,
        vocab_size: int,
        exponents: tuple[float, ...],
    ) -> ProjectedByRow:
        """One forward without gradient of each that has rows in the batch; see
        :class:`~bridgegarden.teacher.protocol.Teacher`.

        Raises:
            DataError: the batch does not say whose its rows are.
        """
        if TEACHER_NUMBER not in inputs:
            raise DataError(
                f"teachers of rows: the batch has no {TEACHER_NUMBER!r}, which the trainer's own collator hands on "
                "from the column of that name. Leave out data_collator, and give the rows that column."
            )
        numbers: Tensor = inputs[TEACHER_NUMBER].cpu()
        row, column = positions.row.cpu(), positions.column.cpu()
        owner, asked = numbers[row, column], []
        for number in owner.unique().tolist():
            check_number(number, len(self.teachers), "a row of the batch")
        for number, teacher in enumerate(self.teachers):
            own = owner == number
            if own.any():
                batch, rows, columns = _own(inputs, numbers == number)
                index = own.nonzero().squeeze(1).to(positions.row.device)
                there = replace(
                    positions,
                    row=rows[row[own]].to(positions.row.device),
                    column=columns[column[own]].to(positions.row.device),
                    target=positions.target[index],
                    has_successor=positions.has_successor[index],
                )
                asked.append((number, teacher.at(there, batch, vocab_size=vocab_size, exponents=exponents)))
        order = torch.full((len(self.teachers),), -1)
        for place, (number, _) in enumerate(asked):
            order[number] = place
        return ProjectedByRow(
            parts=tuple(part for _, part in asked),
            owner=order[owner],
            labels=positions.target,
            top_k=self.top_k,
            vocab_size=vocab_size,
            exponents=exponents,
        )


def _own(inputs: Mapping[str, Any], own: Tensor) -> tuple[dict[str, Any], Tensor, Tensor]:
    """What one teacher reads of a batch, and where its rows and columns went.

    Args:
        inputs: the batch; documents of a packed one stand side by side in its only row.
        own: ``(B, T)`` bool on the CPU: the tokens of this teacher's rows, without padding.
    """
    device, packed = inputs["input_ids"].device, "position_ids" in inputs and "attention_mask" not in inputs
    if packed:
        kept = own[0]
        batch = {name: inputs[name][:, kept.to(device)] for name in ("input_ids", "position_ids")}
        starts = (batch["position_ids"][0] == 0).nonzero().squeeze(1)
        ends = torch.cat([starts, starts.new_tensor([batch["position_ids"].shape[1]])]).to(torch.int32)
        longest = int(ends.diff().max())
        batch["seq_idx"] = torch.repeat_interleave(ends.diff()).to(torch.int32)[None]
        batch |= {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}
        return {name: batch[name] for name in inputs if name in batch}, torch.zeros(1).long(), _renumbered(kept)
    kept, length = own.any(1), int(own.sum(1).max())
    batch = {
        name: inputs[name][kept.to(device), :length]
        for name in ("input_ids", "attention_mask", "position_ids")
        if name in inputs
    }
    return batch, _renumbered(kept), torch.arange(own.shape[1])


def _renumbered(kept: Tensor) -> Tensor:
    """The place of each that is kept among those that are."""
    return kept.long().cumsum(0) - 1
