"""What training asks of a teacher, wherever its distributions come from; and two teachers that are no models.

An exact process: nothing is learnt or sampled between the truth and the student. And the data themselves, where a
teacher is asked for and there is none.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from bridgegarden.errors import DataError
from bridgegarden.exact.process import Process, trace
from bridgegarden.objective.alignment import SupervisedPositions
from bridgegarden.objective.fused import TeacherSource
from bridgegarden.objective.support import TeacherSignal

Prompt = tuple[int, ...]
"""Token ids of all that a row says before its first supervised token."""
LOG_REST = math.log(1e-7)
"""Log of the mass of all other tokens. At zero, divergences that look from the student's side are infinite."""


@runtime_checkable
class Teacher(Protocol):
    """Its next-token distribution at supervised positions: a model in memory, a cache on disk, an exact process."""

    @property
    def name(self) -> str:
        """What a reader calls it."""
        ...

    @property
    def width(self) -> int:
        """Number of token ids that its distribution is over, padding rows of an embedding included."""
        ...

    def place(self, student_device: torch.device) -> None:
        """Get ready to serve a student on `student_device`."""
        ...

    def at(
        self,
        positions: SupervisedPositions,
        inputs: Mapping[str, Any],
        *,
        vocab_size: int,
        exponents: tuple[float, ...],
    ) -> TeacherSource:
        """The teacher at `positions` of the batch `inputs`, without gradient, on the positions' device.

        Args:
            positions: the N supervised positions.
            inputs: the batch, as the student gets it and with what the collator added.
            vocab_size: size of the vocabulary both models share.
            exponents: tail power sums the objective needs; see :attr:`HybridObjective.exponents`.
        """
        ...


class ProcessTeacher:
    """Exact processes, one for each prompt; a row's answer is followed through its prompt's process.

    Rows are recognised by what they say, never by their number. A row has one answer: its supervised tokens stand side
    by side, and everything before them is the prompt. So data are not packed, and padding is on the right.
    """

    def __init__(self, processes: Mapping[Prompt, Process], name: str = "exact process") -> None:
        """
        Args:
            processes: for every prompt that data may hold, what answers it; all over the same vocabulary.
            name: for a reader.

        Raises:
            DataError: there is no process, or their vocabularies have different sizes.
        """
        widths = {process.vocab_size for process in processes.values()}
        if len(widths) != 1:
            raise DataError(f"process teacher: expected processes over one vocabulary, got sizes {sorted(widths)}.")
        self._processes = processes
        self.width, self.name = widths.pop(), name
        self._seen: dict[tuple[Prompt, Prompt], Tensor] = {}

    def place(self, student_device: torch.device) -> None:
        """Nothing to move: signals go to the positions' device."""

    def at(
        self,
        positions: SupervisedPositions,
        inputs: Mapping[str, Any],
        *,
        vocab_size: int,
        exponents: tuple[float, ...],
    ) -> TeacherSignal:
        """Dense and exact, computed in float64 and rounded once to float32; see :class:`Teacher`.

        Raises:
            DataError: a row's prompt has no process, its supervised tokens do not stand side by side, or they go on
                after the end of the text.
        """
        rows = inputs["input_ids"].tolist()
        spans = _spans(positions)
        found = [self._log_probs(row, rows[row][:start], rows[row][start:stop]) for row, start, stop in spans]
        exact = torch.cat(found) if found else torch.zeros(0, self.width, dtype=torch.float64)
        signal = TeacherSignal.from_logits(exact, vocab_size=vocab_size, exponents=exponents)
        return _rounded(signal, positions.row.device)

    def _log_probs(self, row: int, prompt: list[int], answer: list[int]) -> Tensor:
        """``(len(answer), V)`` float64 nats before each token of the answer; kept, since every epoch asks again."""
        key = tuple(prompt), tuple(answer)
        if key not in self._seen:
            process = self._processes.get(key[0])
            if process is None:
                raise DataError(
                    f"process teacher: row {row} of the batch begins with {len(prompt)} tokens that are the prompt of "
                    "none of its processes. Give a process for every prompt; rows must not be packed or cut, nor "
                    "padded on the left."
                )
            self._seen[key] = torch.stack([process.log_probs(state) for state in trace(process, answer)])
        return self._seen[key]


def _spans(positions: SupervisedPositions) -> list[tuple[int, int, int]]:
    """``(row, start, stop)`` of the supervised tokens of each row, in order."""
    spans: list[tuple[int, int, int]] = []
    # A position's hidden state predicts the token after it.
    for row, column in zip(positions.row.tolist(), (positions.column + 1).tolist(), strict=True):
        if spans and spans[-1][0] == row:
            if spans[-1][2] != column:
                raise DataError(
                    f"process teacher: the supervised tokens of row {row} of the batch do not stand side by side; "
                    "expected one answer after one prompt, not several turns or packed rows."
                )
            spans[-1] = row, spans[-1][1], column + 1
        else:
            spans.append((row, column, column + 1))
    return spans


def _rounded(signal: TeacherSignal, device: torch.device) -> TeacherSignal:
    return replace(
        signal,
        logp=signal.logp.to(device, torch.float32),
        log_tail=None if signal.log_tail is None else signal.log_tail.to(device, torch.float32),
        entropy=signal.entropy.to(device, torch.float32),
        argmax=signal.argmax.to(device),
        max_logp=signal.max_logp.to(device, torch.float32),
        tail_powers={g: power.to(device, torch.float32) for g, power in signal.tail_powers.items()},
    )


class DataTokens:
    """A :class:`~bridgegarden.teacher.protocol.Teacher` that is sure of the token in the data, at every position.

    With an objective that :attr:`~bridgegarden.objective.hybrid.HybridObjective.learns_data_alone` nothing that it says
    is learnt, and the trainer's log has nothing about a teacher.
    """

    name = "the data"

    def __init__(self, width: int) -> None:
        """
        Args:
            width: tokens of the student.
        """
        self.width = width

    def place(self, student_device: torch.device) -> None:
        """Nothing to move: signals are made where the positions are."""

    def at(
        self,
        positions: SupervisedPositions,
        inputs: Mapping[str, Any],
        *,
        vocab_size: int,
        exponents: tuple[float, ...],
    ) -> TeacherSignal:
        """All mass but 1e-7 on the token in the data; see :class:`~bridgegarden.teacher.protocol.Teacher`."""
        target = positions.target
        rest = torch.full(target.shape, LOG_REST, dtype=torch.float32, device=target.device)
        sure = torch.log1p(-rest.exp())
        return TeacherSignal(
            ids=target.unsqueeze(-1),
            logp=sure.unsqueeze(-1),
            log_tail=rest,
            entropy=torch.zeros_like(rest),
            argmax=target,
            max_logp=sure,
            label_logp=sure,
            vocab_size=vocab_size,
            tail_powers={exponent: exponent * rest for exponent in exponents},
        )
