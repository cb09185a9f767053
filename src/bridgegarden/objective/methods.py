"""Methods of distillation by the names that recipes and comparisons give them, each with its paper; and two divergences
mixed by a rule, which several of them are.

A method is an objective: fields in which it differs from the default one. Installed packages add theirs through the
entry point group ``bridgegarden.methods``; docs/methods.md shows how.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from bridgegarden.errors import ConfigError
from bridgegarden.objective.divergences import (
    Divergence,
    LogProbs,
    adaptive_kl,
    alpha_beta,
    forward_kl,
    head_tail_kl,
    jensen_shannon,
    lk_hybrid,
    reverse_kl,
    skewed_forward_kl,
    skewed_reverse_kl,
    token_wise_kl,
    total_variation,
    without_gradient_unless,
)
from bridgegarden.objective.position_weight import EarlyPositions, LatePositions, TargetProbability, TokenImportance
from bridgegarden.objective.registry import Registry
from bridgegarden.objective.soft_weight import (
    ConfidenceWeight,
    CurriculumWeight,
    EntropyWeight,
    HighEntropy,
    LabelCorrection,
    SoftWeight,
    StaticWeight,
)

PAPER = "2605.26246"
"""The paper of the hybrids."""


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


@dataclass(frozen=True, kw_only=True)
class Method:
    """An objective with a name."""

    label: str
    """For a reader: how tables call it."""
    fields: Mapping[str, Any]
    """Fields of :class:`~bridgegarden.objective.hybrid.HybridObjective` in which it differs from the default."""
    papers: tuple[str, ...] = ()
    """arXiv numbers, the first that of the definition; none where it is nobody's."""
    on_policy: bool = False
    """Whether its paper has the student write the texts that it is trained on."""


def _soft(label: str, divergence: Any, *papers: str, on_policy: bool = False, **fields: Any) -> Method:
    """Soft labels alone."""
    fields = {"divergence": divergence, "soft_weight": StaticWeight(1.0), **fields}
    return Method(label=label, fields=fields, papers=papers, on_policy=on_policy)


def _hybrid(label: str, rule: Any, *papers: str, **fields: Any) -> Method:
    """Soft and hard labels, mixed by a rule."""
    return Method(label=label, fields={"soft_weight": rule, **fields}, papers=papers)


METHODS: Registry[Method] = Registry(
    "bridgegarden.methods",
    {
        "hard": _hybrid("hard", StaticWeight(0.0), PAPER, "1606.07947"),
        "soft": _hybrid("soft", StaticWeight(1.0), "1503.02531"),
        "static": _hybrid("static", StaticWeight(0.5), PAPER, "1503.02531"),
        "confidence": _hybrid("confidence", ConfidenceWeight(), PAPER),
        "entropy": _hybrid("entropy", EntropyWeight(), PAPER),
        "curriculum": _hybrid("curriculum", CurriculumWeight(), PAPER),
        "risk_guided": _hybrid("risk-guided", StaticWeight(0.5), PAPER, risk_alpha=0.1),
        "sharpened": _hybrid("sharpened soft", StaticWeight(1.0), sharpening=2.0),
        "soft_risk": _hybrid("soft with risk", StaticWeight(1.0), risk_alpha=0.1, risk_weight="own"),
        "reverse_kl": _soft("reverse KL", reverse_kl, "2306.08543"),
        "jensen_shannon": _soft("Jensen-Shannon", jensen_shannon, "2306.13649"),
        "skewed_forward_kl": _soft("skewed forward KL", skewed_forward_kl, "2402.03898"),
        "skewed_reverse_kl": _soft("skewed reverse KL", skewed_reverse_kl, "2402.03898"),
        "total_variation": _soft("total variation", total_variation, "2307.15190"),
        "adaptive_kl": _soft("adaptive KL", adaptive_kl, PAPER),
        "head_tail_kl": _soft("head/tail KL", head_tail_kl, "2404.02657"),
        "alpha_beta": _soft("alpha-beta (0.2, 0.7)", partial(alpha_beta, alpha=0.2, beta=0.7), "2505.04560"),
        "token_wise_kl": _soft("token-wise KL", token_wise_kl, "2505.16297"),
        "lk_hybrid": _soft("LK hybrid", lk_hybrid, "2602.23881"),
        "entropy_gated": _soft(
            "entropy-gated KL",
            MixedDivergence(first=reverse_kl, second=forward_kl, rule=HighEntropy(), how="add"),
            "2603.07079",
            on_policy=True,
        ),
        "early_positions": _soft(
            "early positions", reverse_kl, "2606.22600", on_policy=True, position_weight=EarlyPositions()
        ),
        "late_positions": _soft(
            "late positions", forward_kl, "2605.21606", on_policy=True, position_weight=LatePositions()
        ),
        "token_importance": _soft(
            "token importance", reverse_kl, "2604.14084", on_policy=True, position_weight=TokenImportance()
        ),
        "label_corrected": _hybrid("label-corrected", LabelCorrection(), "2506.15702", hard_target="data"),
        "dft": _hybrid("DFT", StaticWeight(0.0), "2508.05629", hard_target="data", position_weight=TargetProbability()),
    },
    is_entry=lambda entry: isinstance(entry, Method),
    expected="a bridgegarden.objective.methods.Method",
)
"""Every method by its name. The paper's, what others proposed, and two baselines that have what a hybrid has without
mixing: soft labels of a surer teacher, and soft labels with the risk term."""

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {name: method.fields for name, method in METHODS.own.items()}
)
"""The fields of our own."""
