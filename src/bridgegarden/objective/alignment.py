"""Which token each position predicts. The one place where logits and labels are shifted against each other."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

IGNORE = -100
"""Label of a token that is not supervised, as in Hugging Face's data collators."""


def next_token_labels(labels: Int[Tensor, "B T"]) -> Int[Tensor, "B T-1"]:
    """The label that each of the first T - 1 positions predicts: position t predicts token t + 1."""
    return labels[:, 1:]


@dataclass(frozen=True)
class SupervisedPositions:
    """The N supervised positions of a batch, row by row, in order.

    In packed rows the first token of every document carries the label -100 (TRL's collator sees to it), so no
    position predicts across a document's border and no position is its neighbour's successor there.
    """

    row: Int[Tensor, "N"]
    """Row of the batch."""
    column: Int[Tensor, "N"]
    """Position whose hidden state makes the prediction."""
    target: Int[Tensor, "N"]
    """The token it predicts: the label at `column` + 1."""
    has_successor: Tensor
    """``(N,)`` bool: whether the next supervised position is `column` + 1 of the same row, hence at index + 1."""

    @classmethod
    def from_labels(cls, labels: Int[Tensor, "B T"]) -> "SupervisedPositions":
        """Read the positions off `labels`, ``(B, T)`` as Hugging Face gives them: unshifted, -100 ignored."""
        shifted = next_token_labels(labels)
        row, column = (shifted != IGNORE).nonzero(as_tuple=True)
        has_successor = torch.zeros_like(row, dtype=torch.bool)
        has_successor[:-1] = (row[1:] == row[:-1]) & (column[1:] == column[:-1] + 1)
        return cls(row, column, shifted[row, column], has_successor)

    def __len__(self) -> int:
        return self.row.numel()

    def of(self, values: Tensor) -> Tensor:
        """The rows of `values`, ``(B, T, ...)``, at these positions: ``(N, ...)``."""
        return values[self.row.to(values.device), self.column.to(values.device)]
