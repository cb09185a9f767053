r"""How soft each position is: the rules for :math:`\lambda`, the weight of the soft loss, in [0, 1].

A rule is called with the teacher's signal and the progress of training and gives one weight per position. Hard labels
suit Bridges (the next token must be exact), soft labels Gardens (it may vary); the adaptive rules read from the
teacher's distribution which is which. Equations: arXiv:2605.26246, section 5.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from bridgegarden.errors import ConfigError
from bridgegarden.objective.support import TeacherSignal


class TrainProgress(NamedTuple):
    """How far training is."""

    step: int
    """Optimiser steps done."""
    total_steps: int
    """Optimiser steps planned."""


@runtime_checkable
class SoftWeight(Protocol):
    """A rule for the soft weight: ``(*batch,)`` in [0, 1], without gradient."""

    def __call__(self, signal: TeacherSignal, progress: TrainProgress | None = None) -> Float[Tensor, "*batch"]: ...


@dataclass(frozen=True)
class StaticWeight:
    r"""The same weight everywhere: :math:`\lambda_t = c`."""

    value: float = 0.5
    """The soft weight, in [0, 1]: 0 is hard labels alone, 1 soft labels alone."""

    def __post_init__(self) -> None:
        _check_unit_interval("value", self.value)

    def __call__(self, signal: TeacherSignal, progress: TrainProgress | None = None) -> Float[Tensor, "*batch"]:
        return torch.full_like(signal.entropy, self.value)


@dataclass(frozen=True)
class ConfidenceWeight:
    r"""Hard where the teacher is sure: :math:`\lambda_t = 1 - \max_a p_t(a)`."""

    def __call__(self, signal: TeacherSignal, progress: TrainProgress | None = None) -> Float[Tensor, "*batch"]:
        return -torch.expm1(signal.max_logp)


@dataclass(frozen=True)
class EntropyWeight:
    r"""Soft where the teacher is spread: :math:`\lambda_t = H(p_t) / \log V`, V the real vocabulary.

    With ``kind="power"``, the paper's released form :math:`(\sum_v p^g - 1) / (V^{1-g} - 1)`, g = `gamma`.
    """

    kind: Literal["shannon", "power"] = "shannon"
    """Which entropy."""
    gamma: float = 0.1
    """Exponent g of the power form, in (0, 1)."""

    def __post_init__(self) -> None:
        if self.kind not in ("shannon", "power"):
            raise ConfigError(f"objective.soft_weight.kind must be 'shannon' or 'power', got {self.kind!r}.")
        if not 0 < self.gamma < 1:
            raise ConfigError(f"objective.soft_weight.gamma must be in (0, 1), got {self.gamma}.")

    def __call__(self, signal: TeacherSignal, progress: TrainProgress | None = None) -> Float[Tensor, "*batch"]:
        if self.kind == "shannon":
            weight = signal.entropy / math.log(signal.vocab_size)
        else:
            weight = torch.expm1(signal.log_power_sum(self.gamma)) / (signal.vocab_size ** (1 - self.gamma) - 1)
        # Mass that a teacher leaves on padding ids can lift the entropy a hair above log V.
        return weight.clamp(0.0, 1.0)


@dataclass(frozen=True)
class CurriculumWeight:
    r"""Hard labels first: :math:`\lambda` grows from 0 to `maximum` over the first share of training.

    .. math:: \lambda = \lambda_{max} \min\left(\frac{step}{warmup\_ratio \cdot total}, 1\right)
    """

    maximum: float = 1.0
    """Soft weight after the warm-up, in [0, 1]."""
    warmup_ratio: float = 0.2
    """Share of all steps over which it grows, in [0, 1]; 0 starts at the maximum."""

    def __post_init__(self) -> None:
        _check_unit_interval("maximum", self.maximum)
        _check_unit_interval("warmup_ratio", self.warmup_ratio)

    def __call__(self, signal: TeacherSignal, progress: TrainProgress | None = None) -> Float[Tensor, "*batch"]:
        if progress is None:
            raise ConfigError(
                "objective.soft_weight: the curriculum depends on how far training is; call the objective with "
                "progress=TrainProgress(step, total_steps)."
            )
        warmup = self.warmup_ratio * progress.total_steps
        share = 1.0 if warmup == 0 else min(progress.step / warmup, 1.0)
        return torch.full_like(signal.entropy, share * self.maximum)


def _check_unit_interval(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ConfigError(f"objective.soft_weight.{name} must be in [0, 1], got {value}.")


SOFT_WEIGHTS: Mapping[str, type[SoftWeight]] = MappingProxyType(
    {
        "static": StaticWeight,
        "confidence": ConfidenceWeight,
        "entropy": EntropyWeight,
        "curriculum": CurriculumWeight,
    }
)
"""Every rule by the name a recipe gives it."""
