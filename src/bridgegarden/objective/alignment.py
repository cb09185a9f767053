"""Which token each position predicts. The one place where logits and labels are shifted against each other."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bridgegarden.errors import ConfigError

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


class Places:
    """Where in its answer each supervised position of a batch stands; made when it is first asked for.

    An answer is a run of positions, each of which is its neighbour's successor: one turn of a conversation.
    """

    def __init__(self, has_successor: Bool[Tensor, "*batch"]) -> None:
        """
        Args:
            has_successor: whether the next entry, in reading order whatever the shape, goes on with the same answer.
        """
        self._has_successor = has_successor

    # Without loops over answers and without looking at a value: on a GPU that would wait for all that was launched.
    @cached_property
    def index(self) -> Int[Tensor, "*batch"]:
        """How many positions of the same answer stand before it."""
        goes_on = self._has_successor.flatten()
        order = torch.arange(goes_on.numel(), device=goes_on.device)
        begins = torch.ones_like(goes_on)
        begins[1:] = ~goes_on[:-1]
        first = torch.where(begins, order, 0).cummax(0).values
        return (order - first).reshape(self._has_successor.shape)

    @cached_property
    def length(self) -> Int[Tensor, "*batch"]:
        """How many positions its answer has."""
        ends = ~self._has_successor.flatten()
        order = torch.arange(ends.numel(), device=ends.device)
        last = torch.where(ends, order, ends.numel()).flip(0).cummin(0).values.flip(0)
        return (self.index.flatten() + last - order + 1).reshape(self._has_successor.shape)


@dataclass(frozen=True)
class Position:
    """What a rule may know of a batch of positions beside both models."""

    token: Int[Tensor, "*batch"]
    """The token in the data."""
    places: Places | None = None
    """Where in their answers the positions of the whole batch stand; None where that is not known."""
    rows: slice | None = None
    """Which of them these are; None is all."""
    chosen: Float[Tensor, "*batch"] | None = None
    """What a rule that ranks the positions of a batch made of these; None where none did."""

    @property
    def index(self) -> Int[Tensor, "*batch"]:
        """How many positions of the same answer stand before each.

        Raises:
            ConfigError: that is not known.
        """
        return self._of("index")

    @property
    def length(self) -> Int[Tensor, "*batch"]:
        """How many positions the answer of each has.

        Raises:
            ConfigError: that is not known.
        """
        return self._of("length")

    def _of(self, name: str) -> Tensor:
        if self.places is None:
            raise ConfigError(
                "objective: a rule depends on where in the answer a position stands, and the objective was not told; "
                "call it with position=Position(token, Places(has_successor))."
            )
        values = getattr(self.places, name)
        return values if self.rows is None else values[self.rows]
