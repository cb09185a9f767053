r"""The hybrid objective: hard and soft labels at every position, weighed by a rule.

.. math:: l = w \, \Big[ \lambda \, T^2 D(p_T \| q_T)
          + (1 - \lambda) \Big( -\log q(a^*) + \tfrac{\alpha}{4} \Delta^2 \Big) \Big]

:math:`\lambda` is the *soft* weight, :math:`w` the weight of the position (1 unless a rule gives it). Terms come back
per position, unreduced, in nats. Equations: arXiv:2605.26246, section 5. :func:`hybrid_loss_from_logits` is the slow,
readable path over whole logits; the fast path is :func:`bridgegarden.objective.fused.fused_hybrid_loss`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bridgegarden.errors import ConfigError, check_temperature, lookup
from bridgegarden.objective.alignment import IGNORE, Places, Position, next_token_labels
from bridgegarden.objective.divergences import Divergence, entropy, forward_kl, reverse_kl, without_gradient_unless
from bridgegarden.objective.methods import METHODS, MixedDivergence
from bridgegarden.objective.position_weight import WITHOUT_TEACHER, TokenImportance
from bridgegarden.objective.soft_weight import (
    EntropyWeight,
    KappaProbe,
    SoftWeight,
    StaticWeight,
    TrainProgress,
    ask,
    takes_teacher_alone,
)
from bridgegarden.objective.support import StudentSupport, TeacherSignal, shared_cells

HARD_TARGETS = ("teacher_argmax", "data")
"""Whose token the hard label is."""

RISK_WEIGHTS = ("hard", "own")
"""What the risk term is multiplied with: the hard label's weight, or nothing."""


def value_gap(
    next_log_normaliser: Float[Tensor, "*batch"], target_logit: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    r""":math:`\Delta(s, a^*) = \operatorname{logsumexp}_{a'} f(a' \mid [s, a^*]) - f(a^* \mid s)`, ``(*batch,)``.

    A hard label weighs more where the student's own values say that following it is costly. :math:`f` are the student's
    raw logits read as values: the first term is the soft value of the next position. It is the chi-square regularised
    inverse reinforcement learning reward (Cundy & Ermon, arXiv:2306.05426) as used in arXiv:2605.26246. Reading logits
    as values makes it depend on a constant added to the logits of one position, by design. The paper's released code
    discounts the next value by 0.9999; its formula, and this function, do not.

    Args:
        next_log_normaliser: of the next position.
        target_logit: the hard target's raw logit.
    """
    return next_log_normaliser - target_logit


def risk_penalty(gap: Float[Tensor, "*batch"], alpha: float) -> Float[Tensor, "*batch"]:
    r""":math:`\frac{\alpha}{4} \Delta^2`, >= 0."""
    return 0.25 * alpha * gap.square()


@dataclass(frozen=True)
class HybridLoss:
    """The terms of the objective per position, all ``(*batch,)``, in nats; zero where `mask` is False."""

    total: Float[Tensor, "*batch"]
    """What is minimised: ``soft_weight * soft + (1 - soft_weight) * (hard + risk)``, times the position's weight; see
    `risk_weight` for the risk."""
    soft: Float[Tensor, "*batch"]
    """The divergence at the loss temperature, times its square; before weighting."""
    hard: Float[Tensor, "*batch"]
    """Minus the student's log-probability of the hard target; before weighting."""
    risk: Float[Tensor, "*batch"]
    """The risk penalty; zero where `has_risk` is False."""
    soft_weight: Float[Tensor, "*batch"]
    """The soft weight."""
    mask: Bool[Tensor, "*batch"]
    """Supervised positions."""
    has_risk: Bool[Tensor, "*batch"]
    """Positions with a risk term: the sequence goes on with the hard target, and the next position is supervised."""
    position_weight: Float[Tensor, "*batch"]
    """The weight of the position; 1 where no rule gives one."""

    def mean(self, num_items: Tensor | int | None = None) -> Float[Tensor, ""]:
        """Sum of `total` over supervised positions, divided by `num_items` (their number by default, at least 1).

        Under gradient accumulation give the number of supervised positions of the *whole* accumulated batch: hard
        and soft terms then weigh the same however the batch is cut.
        """
        count = self.mask.sum() if num_items is None else torch.as_tensor(num_items)
        return self.total.sum() / count.clamp(min=1)

    def map(self, function: Callable[[Tensor], Tensor]) -> "HybridLoss":
        """The same with `function` applied to every field."""
        return HybridLoss(**{f.name: function(getattr(self, f.name)) for f in fields(self)})


@dataclass(frozen=True)
class HybridObjective:
    """Which divergence, which soft weight, which hard target.

    Called with a teacher signal and a student's view of the same support, it returns the terms per position.
    """

    divergence: Divergence | MixedDivergence = forward_kl
    """Soft loss; see :mod:`bridgegarden.objective.divergences`. Bind options with ``functools.partial``. Two of them,
    mixed at each position by a rule: :class:`~bridgegarden.objective.methods.MixedDivergence`."""
    soft_weight: SoftWeight = field(default_factory=StaticWeight)
    """Rule for the soft weight; see :mod:`bridgegarden.objective.soft_weight`."""
    hard_target: str = "teacher_argmax"
    """The hard label: the teacher's likeliest token, or the token in the data."""
    temperature: float = 1.0
    """Loss temperature T > 0: divides both logits of the soft loss, which is multiplied by T^2."""
    sharpening: float = 1.0
    """Exponent g > 0 of the soft target, which is the teacher's p^g over its sum: above 1 a surer teacher, below 1 a
    less sure one. The student is left as it is (a loss temperature changes both); rules read the teacher's own p."""
    risk_alpha: float = 0.0
    """Weight of the risk term, >= 0; the paper uses 0.1. At 0 there is none."""
    risk_weight: str = "hard"
    """What the risk term is multiplied with beside alpha: ``hard``, the hard label's weight, as in the paper, so that
    soft labels alone have none; ``own``, nothing, so that it is there whatever the soft weight."""
    position_weight: SoftWeight | None = None
    """Rule for the weight of a position, >= 0: what all its terms are multiplied with; see
    :mod:`bridgegarden.objective.position_weight`. None is 1 everywhere. The loss is still divided by the number of
    supervised positions, so weights below 1 make steps smaller."""

    def __post_init__(self) -> None:
        for name, rule in self._rules().items():
            if not callable(rule):
                raise ConfigError(f"objective.{name} must be a rule, such as StaticWeight(0.5), got {rule!r}.")
            takes_teacher_alone(rule)
        if self.hard_target not in HARD_TARGETS:
            raise ConfigError(f"objective.hard_target must be 'teacher_argmax' or 'data', got {self.hard_target!r}.")
        check_temperature(self.temperature, "objective.temperature", greedy=False)
        if not 0 < self.sharpening < math.inf:
            raise ConfigError(f"objective.sharpening must be a number > 0, got {self.sharpening}.")
        if self.risk_weight not in RISK_WEIGHTS:
            raise ConfigError(f"objective.risk_weight must be 'hard' or 'own', got {self.risk_weight!r}.")
        if not self.risk_alpha >= 0:
            raise ConfigError(f"objective.risk_alpha must be >= 0, got {self.risk_alpha}.")

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "HybridObjective":
        """One of :data:`~bridgegarden.objective.methods.METHODS`, with any field replaced by `overrides`.

        Raises:
            ConfigError: unknown preset.
        """
        return cls(**{**lookup(METHODS, name, field="objective.preset").fields, **overrides})

    @property
    def exponents(self) -> tuple[float, ...]:
        """Exponents of which a top-k teacher signal must store the tail's power sum for this objective."""
        needed = [1.0 / self._target_temperature] if self._target_temperature != 1.0 else []
        for rule in self._rules().values():
            if isinstance(rule, EntropyWeight) and rule.kind == "power" and rule.gamma not in needed:
                needed.append(rule.gamma)
        return tuple(needed)

    @property
    def learns_data_tokens(self) -> bool:
        """Whether the token in the data is the hard label, and the hard label has a weight somewhere."""
        return self.hard_target == "data" and (self.soft_weight != StaticWeight(1.0) or self._has_own_risk)

    @property
    def learns_data_alone(self) -> bool:
        """Whether nothing that a teacher could say has a weight: hard labels from the data, and they alone."""
        weight = self.position_weight
        reads_teacher = weight is not None and not isinstance(weight, WITHOUT_TEACHER)
        return self.hard_target == "data" and self.soft_weight == StaticWeight(0.0) and not reads_teacher

    @property
    def probes(self) -> tuple[KappaProbe, ...]:
        """The rules that were read from a file: the objective is another one if that changes."""
        return tuple(rule for rule in self._rules().values() if isinstance(rule, KappaProbe))

    @property
    def ranks(self) -> TokenImportance | None:
        """The rule that has to know of a whole batch before it can say what a position counts, by
        :data:`RANKED_BY`; None where every rule looks at one position at a time."""
        return self.position_weight if isinstance(self.position_weight, TokenImportance) else None

    def fault_of(self, *, kept: int | None, drawn: bool = False) -> str | None:
        """Why it cannot be computed where no more is known of a teacher than this: a clause; None where it can.

        Args:
            kept: tokens at a position, the likeliest ones or draws; None for the whole vocabulary.
            drawn: whether they are draws.
        """
        if drawn and (self.exponents or self.divergence is not forward_kl):
            return (
                "draws give the forward KL at temperature 1 and nothing else, and this objective has another "
                "divergence, a temperature, sharpening, or the power entropy"
            )
        if drawn and self.ranks is not None:
            return "token importance compares whole distributions, which draws are not"
        if (drawn or kept == 1) and any(isinstance(rule, KappaProbe) for rule in self._rules().values()):
            told = "draws do not say which they are" if drawn else "one is kept"
            return f"the rule kappa_probe looks at the teacher's two likeliest tokens, and {told}"
        return None

    def _rules(self) -> dict[str, Any]:
        """The rules that there are, by the field that they stand in."""
        rules: dict[str, Any] = {"soft_weight": self.soft_weight}
        if isinstance(self.divergence, MixedDivergence):
            rules["divergence.rule"] = self.divergence.rule
        if self.position_weight is not None:
            rules["position_weight"] = self.position_weight
        return rules

    @property
    def _target_temperature(self) -> float:
        """The temperature at which the teacher's own distribution is the soft target."""
        return self.temperature / self.sharpening

    @property
    def _has_own_risk(self) -> bool:
        return self.risk_weight == "own" and self.risk_alpha > 0

    def hard_ids(self, signal: TeacherSignal, data_ids: Int[Tensor, "*batch"]) -> Int[Tensor, "*batch"]:
        """The hard target at each position, given the token in the data."""
        return signal.argmax if self.hard_target == "teacher_argmax" else data_ids

    def __call__(
        self,
        signal: TeacherSignal,
        student: StudentSupport,
        data_ids: Int[Tensor, "*batch"],
        next_log_normaliser: Float[Tensor, "*batch"] | None = None,
        has_next: Bool[Tensor, "*batch"] | None = None,
        progress: TrainProgress | None = None,
        position: Position | None = None,
    ) -> HybridLoss:
        """The terms at each of a batch of supervised positions.

        Args:
            signal: the teacher at these positions.
            student: the student at the same positions, on the signal's support, with the logits of :meth:`hard_ids`.
            data_ids: ``(*batch,)`` the token in the data.
            next_log_normaliser: ``(*batch,)`` the student's log-normaliser one position on. Needed for the risk term.
            has_next: ``(*batch,)`` where `next_log_normaliser` is that of a supervised position of the same sequence.
            progress: for rules that change as training goes on.
            position: for rules that depend on where in the answer a position stands.
        """
        asked = signal, student, Position(data_ids) if position is None else position, progress
        weight = ask(self.soft_weight, *asked).to(student.log_normaliser.dtype)
        if signal.hard_only is not None:
            weight = torch.where(signal.hard_only, 0.0, weight)
        # At either end the other term must not enter: not its value, and not its gradient, which as 0 * inf is NaN.
        # A weight that is no number takes part, to be seen.
        has_soft, has_hard = ~(weight <= 0), ~(weight >= 1)
        always = isinstance(self.soft_weight, StaticWeight) and self.soft_weight.value > 0 and signal.hard_only is None
        if self.position_weight is None:
            counts, share = None, torch.ones_like(weight)
        else:
            share = ask(self.position_weight, *asked).to(weight.dtype)
            counts = ~(share <= 0)
        if signal.untaught is not None:
            counts = ~signal.untaught if counts is None else counts & ~signal.untaught
        if counts is not None:
            has_soft, has_hard, always = has_soft & counts, has_hard & counts, False
        soft = self._soft(signal, student, None if always else has_soft, asked)
        hard = student.log_normaliser - without_gradient_unless(has_hard, student.target_logit)
        mask = torch.ones_like(hard, dtype=torch.bool)
        if self.risk_alpha > 0 and next_log_normaliser is not None and has_next is not None:
            # The value of the next position is known only if the sequence really goes on with the hard target.
            has_risk = has_next & (self.hard_ids(signal, data_ids) == data_ids)
            wanted = has_risk if counts is None else has_risk & counts
            wanted = wanted if self._has_own_risk else wanted & has_hard
            following, target_logit = (
                without_gradient_unless(wanted, values) for values in (next_log_normaliser, student.target_logit)
            )
            risk = risk_penalty(torch.where(has_risk, value_gap(following, target_logit), 0.0), self.risk_alpha)
        else:
            has_risk, risk = torch.zeros_like(mask), torch.zeros_like(hard)
        soft_part = torch.where(has_soft, weight * soft, 0.0)
        if self._has_own_risk:
            total = soft_part + torch.where(has_hard, (1 - weight) * hard, 0.0) + risk
        else:
            total = soft_part + torch.where(has_hard, (1 - weight) * (hard + risk), 0.0)
        if counts is not None:
            total = torch.where(counts, share * total, 0.0)
        return HybridLoss(total, soft, hard, risk, weight, mask, has_risk, share)

    def _soft(
        self,
        signal: TeacherSignal,
        student: StudentSupport,
        wanted: Tensor | None,
        asked: "tuple[TeacherSignal, StudentSupport, Position, TrainProgress | None]",
    ) -> Tensor:
        if signal.weights is not None:
            return self._sampled_soft(signal, signal.weights, student)
        teacher, other = shared_cells(signal, student, self._target_temperature, self.temperature)
        other = without_gradient_unless(wanted, other)
        if isinstance(self.divergence, MixedDivergence):
            value = self.divergence.mixed(teacher, other, ask(self.divergence.rule, *asked).to(other.dtype))
        else:
            value = self.divergence(teacher, other)
        return self.temperature**2 * value

    def _sampled_soft(self, signal: TeacherSignal, weights: Tensor, student: StudentSupport) -> Tensor:
        if self.divergence is not forward_kl or self.temperature != 1.0 or self.sharpening != 1.0:
            raise ConfigError(
                "objective: a sampled teacher signal gives an unbiased forward KL at temperature 1 and nothing else; "
                f"got divergence {_name(self.divergence)} at temperature {self.temperature:g} with sharpening "
                f"{self.sharpening:g}. Use a top-k signal."
            )
        return (weights * (signal.logp - student.logp_at_support())).sum(-1)


RANKED_BY = HybridObjective(divergence=reverse_kl, soft_weight=StaticWeight(1.0))
"""The divergence that positions of a batch are ranked by is this objective's soft loss."""


def hybrid_loss_from_logits(
    student_logits: Float[Tensor, "B T V"],
    teacher_logits: Float[Tensor, "B T W"],
    labels: Int[Tensor, "B T"],
    objective: HybridObjective,
    progress: TrainProgress | None = None,
    vocab_size: int | None = None,
) -> HybridLoss:
    """The objective from whole logits: slow, readable, and what every fast path is tested against.

    Args:
        student_logits: ``(B, T, V)``, any float type; reductions are in float32 or better.
        teacher_logits: ``(B, T, W)``; W may differ from V (padded vocabularies).
        labels: ``(B, T)`` as Hugging Face gives them: unshifted, -100 ignored.
        objective: what to compute.
        progress: for rules that change as training goes on.
        vocab_size: the real vocabulary both models share; the smaller width by default. What either model has beyond
            it is one tail cell.

    Returns:
        Terms ``(B, T - 1)``: at ``[b, t]`` for the prediction of token t + 1; zero where that label is -100.
    """
    width = min(student_logits.shape[-1], teacher_logits.shape[-1]) if vocab_size is None else vocab_size
    targets = next_token_labels(labels)
    mask = targets != IGNORE
    data_ids = targets.clamp(min=0)
    dtype = torch.promote_types(student_logits.dtype, torch.float32)
    # Whatever stands where nothing is supervised, an infinite divergence included, gives no gradient.
    given, logits = (
        torch.where(mask.unsqueeze(-1), logits[:, :-1].to(dtype), 0.0) for logits in (teacher_logits, student_logits)
    )
    signal = TeacherSignal.from_logits(given, vocab_size=width, exponents=objective.exponents)
    student = dense_student_support(logits, width, objective.hard_ids(signal, data_ids), objective.temperature)
    following = torch.cat([student.log_normaliser[:, 1:], student.log_normaliser[:, -1:]], 1)
    has_next = torch.cat([mask[:, :-1] & mask[:, 1:], torch.zeros_like(mask[:, :1])], 1)
    chosen = None
    if objective.ranks is not None:
        unsure, differs = entropy(logits.detach().log_softmax(-1)), RANKED_BY(signal, student, data_ids).soft.detach()
        chosen = torch.zeros_like(unsure)
        chosen[mask] = objective.ranks.choose(unsure[mask], differs[mask], Places(has_next[mask]))
    position = Position(data_ids, Places(has_next), chosen=chosen)
    loss = objective(signal, student, data_ids, following, has_next, progress, position)
    return loss.map(lambda term: torch.where(mask, term, torch.zeros_like(term)))


def dense_student_support(
    logits: Float[Tensor, "*batch V"], width: int, target_ids: Int[Tensor, "*batch"], temperature: float = 1.0
) -> StudentSupport:
    """The student's view of the support ``0 .. width - 1``, by ordinary autograd over whole logits."""
    rest = logits[..., width:]
    has_rest = rest.shape[-1] > 0
    return StudentSupport(
        logits=logits[..., :width],
        log_rest=rest.logsumexp(-1) if has_rest else None,
        target_logit=logits.gather(-1, target_ids.unsqueeze(-1)).squeeze(-1),
        log_normaliser=logits.logsumexp(-1),
        tempered_log_rest=(rest / temperature).logsumexp(-1) if has_rest and temperature != 1.0 else None,
    )


def _name(divergence: Divergence | MixedDivergence) -> str:
    return getattr(divergence, "__name__", repr(divergence))
