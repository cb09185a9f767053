"""What training asks of a teacher, wherever its distributions come from."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch

from bridgegarden.objective.alignment import SupervisedPositions
from bridgegarden.objective.fused import TeacherSource


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
