"""No teacher at all, where a teacher is asked for: what it would say is what the data say."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from bridgegarden.objective.alignment import SupervisedPositions
from bridgegarden.objective.support import TeacherSignal

LOG_REST = math.log(1e-7)
"""Log of the mass of all other tokens. At zero, divergences that look from the student's side are infinite."""


class DataTokens:
    """A :class:`~bridgegarden.teacher.protocol.Teacher` that is sure of the token in the data, at every position.

    With an objective that :attr:`~bridgegarden.objective.hybrid.HybridObjective.learns_data_alone` nothing that it says
    is learnt. In the log the soft loss is then the hard one, and the teacher's entropy zero.
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
            vocab_size=vocab_size,
            tail_powers={exponent: exponent * rest for exponent in exponents},
        )
