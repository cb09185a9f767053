r"""The risk term: a hard label weighs more where the student's own values say that following it is costly.

.. math:: \Delta(s, a^*) = \operatorname{logsumexp}_{a'} f(a' \mid [s, a^*]) - f(a^* \mid s), \qquad
          l_{hard}' = l_{hard} + \tfrac{\alpha}{4} \Delta^2

:math:`f` are the student's raw logits read as values: the first term is the soft value of the next position. It is the
chi-square regularised inverse reinforcement learning reward (Cundy & Ermon, arXiv:2306.05426) as used in
arXiv:2605.26246. Reading logits as values makes it depend on a constant added to the logits of one position, by design.
The paper's released code discounts the next value by 0.9999; its formula, and this module, do not.
"""

from jaxtyping import Float
from torch import Tensor


def value_gap(
    next_log_normaliser: Float[Tensor, "*batch"], target_logit: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    r""":math:`\Delta`, ``(*batch,)``, from the next position's log-normaliser and the hard target's raw logit."""
    return next_log_normaliser - target_logit


def risk_penalty(gap: Float[Tensor, "*batch"], alpha: float) -> Float[Tensor, "*batch"]:
    r""":math:`\frac{\alpha}{4} \Delta^2`, >= 0."""
    return 0.25 * alpha * gap.square()
