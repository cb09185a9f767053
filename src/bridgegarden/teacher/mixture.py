"""Several teachers that speak as one: the mixture of their distributions, at every token.

At a position it is p = sum_i w_i p_i, with weights that are positive and sum to one: the distribution of a teacher that
draws one of them for every token. It is computed from the whole distributions; what is kept of it (the likeliest
tokens, the tail, the entropy) is the mixture's own, and never put together from what was kept of each.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bridgegarden.causal_lm import head_size
from bridgegarden.errors import ConfigError, check_weights
from bridgegarden.objective.alignment import SupervisedPositions
from bridgegarden.objective.fused import ProjectedTeacher
from bridgegarden.objective.support import TeacherSignal
from bridgegarden.teacher.live import LiveTeacher


def mixture_logits(logits: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    r"""Log-probabilities of the mixture, ``(*batch, V)`` nats in float32, or float64 where the logits are.

    .. math:: \log p = \log \sum_i w_i \, \mathrm{softmax}(z_i)

    Args:
        logits: ``(*batch, V_i)`` of each teacher; V is the widest. A narrower one gives the ids that it lacks no mass.
        weights: of each, positive, summing to one.
    """
    width = max(part.shape[-1] for part in logits)
    mixed: Tensor | None = None
    for part, weight in zip(logits, weights, strict=True):
        logp = torch.log_softmax(part, -1, dtype=torch.promote_types(part.dtype, torch.float32)) + math.log(weight)
        logp = torch.nn.functional.pad(logp, (0, width - part.shape[-1]), value=-math.inf)
        mixed = logp if mixed is None else torch.logaddexp(mixed, logp)
    assert mixed is not None
    return mixed


@dataclass(frozen=True)
class Mixture:
    """Models on one device whose distributions are mixed."""

    models: tuple[PreTrainedModel, ...]
    weights: tuple[float, ...]
    """Of each model, positive, summing to one."""

    def __post_init__(self) -> None:
        check_weights(dict(enumerate(self.weights)), "mixture")


@dataclass(frozen=True)
class ProjectedMixture:
    """A mixture at N positions by the hidden states of each teacher; the signal is made where it is asked for."""

    parts: tuple[ProjectedTeacher, ...]
    """Each teacher at the same positions."""
    weights: tuple[float, ...]
    top_k: int | None
    """Tokens kept; None keeps all."""
    vocab_size: int
    """Size of the vocabulary both sides share."""
    exponents: tuple[float, ...]
    """Tail power sums to make."""
    device: torch.device
    """Where the signal is wanted."""

    def __getitem__(self, index: slice, /) -> TeacherSignal:
        with torch.no_grad():
            logits = [part.head.logits(part.hidden[index]).to(self.device) for part in self.parts]
            mixed = mixture_logits(logits, self.weights)
            return TeacherSignal.from_logits(mixed, self.top_k, self.vocab_size, exponents=self.exponents)


class MixedTeacher:
    """A :class:`~bridgegarden.teacher.protocol.Teacher`: the mixture of several models in memory, all with one
    tokenizer. Every one of them reads every batch."""

    def __init__(self, teachers: Sequence[LiveTeacher], weights: Sequence[float], *, top_k: int | None = None) -> None:
        """
        Args:
            teachers: two or more; what each keeps (`top_k`) does not matter here.
            weights: of each, positive, summing to one.
            top_k: tokens of the mixture kept per position, with the tail; None keeps the whole vocabulary.

        Raises:
            ConfigError: there are not as many weights as teachers, or they are none of a mixture.
        """
        if len(teachers) != len(weights):
            raise ConfigError(f"mixture: got {len(teachers)} teachers and {len(weights)} weights; give each one.")
        check_weights(dict(enumerate(weights)), "mixture")
        self.teachers, self.weights, self.top_k = tuple(teachers), tuple(weights), top_k

    @property
    def models(self) -> tuple[PreTrainedModel, ...]:
        """All of them."""
        return tuple(teacher.model for teacher in self.teachers)

    @property
    def name(self) -> str:
        """Each with its weight."""
        pairs = zip(self.weights, self.teachers, strict=True)
        return " + ".join(f"{weight:g} x {teacher.name}" for weight, teacher in pairs)

    @property
    def width(self) -> int:
        """Rows of the widest projection, padding included."""
        return max(map(head_size, self.models))

    def place(self, student_device: torch.device) -> None:
        """Move every one to its device."""
        for teacher in self.teachers:
            teacher.place(student_device)

    def at(
        self,
        positions: SupervisedPositions,
        inputs: Mapping[str, Any],
        *,
        vocab_size: int,
        exponents: tuple[float, ...],
    ) -> ProjectedMixture:
        """One forward of each without gradient; see :class:`~bridgegarden.teacher.protocol.Teacher`."""
        parts = tuple(t.at(positions, inputs, vocab_size=vocab_size, exponents=exponents) for t in self.teachers)
        device = positions.row.device
        return ProjectedMixture(parts, self.weights, self.top_k, vocab_size, exponents, device)
