r"""How much each position counts: rules for :math:`w \ge 0`, what all terms of a position are multiplied with.

They are called as the rules for the soft weight are (:class:`bridgegarden.objective.soft_weight.SoftWeight`), and those
can be used here, too. A weight of 0 leaves a position out, with its gradient. The loss is divided by the number of
supervised positions whatever their weights.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bridgegarden.errors import ConfigError
from bridgegarden.objective.alignment import Position
from bridgegarden.objective.registry import Registry
from bridgegarden.objective.soft_weight import SOFT_WEIGHTS, SoftWeight, StaticWeight, TrainProgress, is_rule, needs
from bridgegarden.objective.support import StudentSupport, TeacherSignal


@dataclass(frozen=True)
class EarlyPositions:
    r"""Only the first share of each answer: :math:`w_t = 1` where :math:`t / n < \text{share}`, else 0.

    t is the place in the answer, from 0, n its length.

    References:
        Xie et al., 2026, arXiv:2606.22600: the first 30 % of a student's text teach as much as all of it, since the
        teacher judges later tokens behind prefixes that it would not have written. Its own weight, by the discrepancy
        of all earlier tokens, is not local to a position and not here.
    """

    share: float = 0.3
    """In (0, 1]: 1 is all of an answer. Every answer keeps its first position."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigError(f"objective.position_weight.share must be in (0, 1], got {self.share}.")

    def __call__(
        self,
        signal: TeacherSignal,
        student: StudentSupport | None = None,
        position: Position | None = None,
        progress: TrainProgress | None = None,
    ) -> Float[Tensor, "*batch"]:
        place = needs(position, self, "where in its answer a position stands")
        return (place.index < self.share * place.length).to(signal.entropy.dtype)


@dataclass(frozen=True)
class LatePositions:
    r"""Less of the beginning of each answer, along a sigmoid over its length.

    .. math:: w_t = w_{min} + (1 - w_{min}) \, \sigma\!\left(\frac{(t + \frac12) / n - \tau}{s}\right)

    t is the place in the answer, from 0, n its length.

    References:
        Liu et al., 2026, arXiv:2605.21606 (PW-OPSD), with the schedule and the values of its release: a teacher that
        knows the solution is reliable late, where a text executes what was decided early. There every answer weighs
        the same; here, as everywhere, every position does.
    """

    minimum: float = 0.25
    """:math:`w_{min}` in [0, 1], the weight that the beginning goes towards."""
    midpoint: float = 0.3
    r""":math:`\tau` in [0, 1], the share of the answer where the weight is halfway."""
    width: float = 0.1
    """s > 0, how gradually it grows, as a share of the answer."""

    def __post_init__(self) -> None:
        for name in ("minimum", "midpoint"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"objective.position_weight.{name} must be in [0, 1], got {getattr(self, name)}.")
        if not self.width > 0:
            raise ConfigError(f"objective.position_weight.width must be > 0, got {self.width}.")

    def __call__(
        self,
        signal: TeacherSignal,
        student: StudentSupport | None = None,
        position: Position | None = None,
        progress: TrainProgress | None = None,
    ) -> Float[Tensor, "*batch"]:
        place = needs(position, self, "where in its answer a position stands")
        share = (place.index.to(signal.entropy.dtype) + 0.5) / place.length
        return self.minimum + (1 - self.minimum) * torch.sigmoid((share - self.midpoint) / self.width)


@dataclass(frozen=True)
class TargetProbability:
    r"""As likely as the student finds the hard target: :math:`w_t = q_t(a^*)`, without gradient.

    With hard labels from the data alone it is dynamic fine-tuning: the gradient of :math:`-q \log q` with the factor
    held fast is that of :math:`-q`, a policy gradient whose reward is the same for every token of the data.

    References:
        Wu et al., 2025, arXiv:2508.05629 (DFT), equation 9.
    """

    def __call__(
        self,
        signal: TeacherSignal,
        student: StudentSupport | None = None,
        position: Position | None = None,
        progress: TrainProgress | None = None,
    ) -> Float[Tensor, "*batch"]:
        return needs(student, self, "the student").target_logp().exp()


WITHOUT_TEACHER = (StaticWeight, EarlyPositions, LatePositions, TargetProbability)
"""Rules to which it does not matter what the teacher says."""

POSITION_WEIGHTS: Registry[type[SoftWeight]] = Registry(
    "bridgegarden.position_weights",
    {
        "early_positions": EarlyPositions,
        "late_positions": LatePositions,
        "target_probability": TargetProbability,
    },
    is_entry=is_rule,
    expected="a frozen dataclass that can be called",
    base=SOFT_WEIGHTS,
)
"""Every rule by the name a recipe gives it."""
