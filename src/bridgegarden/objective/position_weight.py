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
from bridgegarden.objective.alignment import Places, Position
from bridgegarden.objective.registry import Registry
from bridgegarden.objective.soft_weight import SOFT_WEIGHTS, SoftWeight, StaticWeight, TrainProgress, is_rule, needs
from bridgegarden.objective.support import StudentSupport, TeacherSignal


def _check_share(share: float) -> None:
    if not 0 < share <= 1:
        raise ConfigError(f"objective.position_weight.share must be in (0, 1], got {share}.")


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
        _check_share(self.share)

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


@dataclass(frozen=True)
class TokenImportance:
    r"""Only the most important share of each answer: :math:`w_t = 1` there, else 0.

    .. math:: s_t = \hat h_t + \hat\delta_t - \hat h_t \hat\delta_t, \qquad h_t = H(q_t), \quad
              \delta_t = KL(q_t \| p_t), \quad \hat x_t = \frac{x_t - \min x}{\max x - \min x}

    Of an answer of n positions the :math:`\lceil \text{share} \cdot n \rceil` with the highest score are kept: where
    the student is unsure, or sure and of another opinion than the teacher. Least and most are those of the batch, and
    entropies above its 98th percentile count as that. So a weight depends on the rows that are read with it, which no
    other rule's does: each micro-batch and each process ranks its own.

    References:
        Xu et al., 2026, arXiv:2604.14084 (TIP), the Soft-OR score, by three independent descriptions of it.
    """

    share: float = 0.5
    """In (0, 1]: 1 is all of an answer. The paper has 0.5 and 0.2."""

    def __post_init__(self) -> None:
        _check_share(self.share)

    def __call__(
        self,
        signal: TeacherSignal,
        student: StudentSupport | None = None,
        position: Position | None = None,
        progress: TrainProgress | None = None,
    ) -> Float[Tensor, "*batch"]:
        place = needs(position, self, "a whole batch of positions")
        return needs(place.chosen, self, "a whole batch of positions").to(signal.entropy.dtype)

    def choose(self, entropy: Float[Tensor, "N"], divergence: Float[Tensor, "N"], places: Places) -> Float[Tensor, "N"]:
        r"""The weight of each position of a batch; NaN wherever one of the numbers is.

        Args:
            entropy: the student's, nats.
            divergence: :math:`KL(q \| p)`, nats; may be infinite.
            places: where in their answers the positions stand.
        """
        if not len(entropy):
            return entropy
        capped = torch.minimum(entropy, entropy.quantile(QUANTILE))
        unsure, differs = _from_least_to_most(capped), _from_least_to_most(divergence)
        score = unsure + differs - unsure * differs
        # Answers stand one behind the other: sorted by score, then by answer, each fills the places that it had.
        first = torch.arange(len(score), device=score.device) - places.index
        order = score.argsort(descending=True, stable=True)
        order = order[first[order].argsort(stable=True)]
        rank = torch.empty_like(first).scatter_(0, order, places.index)
        return (rank < self.share * places.length).to(score.dtype) + 0 * score


QUANTILE = 0.98
"""Of the entropies of a batch, what counts as the highest in token importance."""


def _from_least_to_most(values: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
    """Onto [0, 1]; 0 where all are the same. NaN everywhere if one is."""
    values = values.clamp(max=torch.finfo(values.dtype).max)
    least, most = values.aminmax()
    return (values - least) / (most - least).clamp(min=torch.finfo(values.dtype).tiny)


WITHOUT_TEACHER = (StaticWeight, EarlyPositions, LatePositions, TargetProbability)
"""Rules to which it does not matter what the teacher says."""

POSITION_WEIGHTS: Registry[type[SoftWeight]] = Registry(
    "bridgegarden.position_weights",
    {
        "early_positions": EarlyPositions,
        "late_positions": LatePositions,
        "target_probability": TargetProbability,
        "token_importance": TokenImportance,
    },
    is_entry=is_rule,
    expected="a frozen dataclass that can be called",
    base=SOFT_WEIGHTS,
)
"""Every rule by the name a recipe gives it."""
