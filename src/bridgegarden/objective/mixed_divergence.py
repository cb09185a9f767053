r"""Two divergences at every position, mixed by a rule: how much of each may depend on both models."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from bridgegarden.errors import ConfigError
from bridgegarden.objective.divergences import Divergence, LogProbs, forward_kl, reverse_kl, without_gradient_unless
from bridgegarden.objective.soft_weight import SoftWeight, StaticWeight


@dataclass(frozen=True, kw_only=True)
class MixedDivergence:
    r"""A rule's weight :math:`g_t` in [0, 1] decides between two divergences :math:`D_1` and :math:`D_2`.

    .. math:: D = (1 - g_t) \, D_1 + g_t \, D_2 \quad (\text{how} = \text{mix}), \qquad
              D = D_1 + g_t \, D_2 \quad (\text{how} = \text{add})

    No gradient flows through the rule. Where a divergence has no weight it does not enter, be it infinite.
    """

    first: Divergence = reverse_kl
    """:math:`D_1`."""
    second: Divergence = forward_kl
    """:math:`D_2`."""
    rule: SoftWeight = field(default_factory=StaticWeight)
    """The rule for :math:`g_t`; see :mod:`bridgegarden.objective.soft_weight`."""
    how: Literal["mix", "add"] = "mix"
    """Whether the second divergence takes the first one's place or is added to it."""

    def __post_init__(self) -> None:
        if self.how not in ("mix", "add"):
            raise ConfigError(f"objective.divergence.how must be 'mix' or 'add', got {self.how!r}.")

    def mixed(
        self, teacher_logp: LogProbs, student_logp: LogProbs, weight: Float[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch"]:
        """The divergence of cells, ``(*batch, C)`` nats each, given the rule's `weight`, ``(*batch,)``."""
        # A weight that is no number takes part, to be seen.
        has_second = ~(weight <= 0)
        has_first = ~(weight >= 1) if self.how == "mix" else torch.ones_like(has_second)
        one = self.first(teacher_logp, without_gradient_unless(has_first, student_logp))
        other = self.second(teacher_logp, without_gradient_unless(has_second, student_logp))
        share = 1 - weight if self.how == "mix" else torch.ones_like(weight)
        return torch.where(has_first, share * one, 0.0) + torch.where(has_second, weight * other, 0.0)
