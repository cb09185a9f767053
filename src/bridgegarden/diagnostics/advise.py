r"""Which rule for the soft weight suits a pair: does what the rule reads off the teacher predict kappa?

A rule should be soft (:math:`\lambda` high) at Gardens and hard at Bridges, so :math:`\lambda` should *fall* where
kappa(s) rises. Four views of that, each with an interval over prompts (all positions of a prompt are drawn together):

* Spearman's rank correlation of :math:`\lambda` and kappa(s), which should be negative (noise in kappa pulls it to 0);
* AUC: how often a Garden's :math:`\lambda` is above a Bridge's, among decided positions; 0.5 is chance;
* separation: mean :math:`\lambda` at Gardens minus at Bridges; 0 for a static rule;
* gain: :math:`-\mathrm{cov}(\lambda, \kappa)`, by how much more kappa the hard weight :math:`1 - \lambda` covers than a
  static rule of the same mean does, nats a position. It is linear in kappa, so noise in kappa does not bias it.

This says how well a rule *aims*, not how a student trained with it will turn out.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from bridgegarden.diagnostics.kappa import KappaResult, Kind
from bridgegarden.objective.soft_weight import ConfidenceWeight, EntropyWeight, SoftWeight, StaticWeight
from bridgegarden.objective.support import TeacherSignal
from bridgegarden.statistics import Bootstrapped, Interval, auc, resampled, spearman, to_plain, weighted_mean

LEAST_PROMPTS = 5
"""With fewer clusters a bootstrap interval means nothing."""
NOTICEABLE = 0.1
"""A rank correlation nearer to 0 than this is as good as none."""

Rule = Literal["confidence", "entropy", "static"]

ADAPTIVE: tuple[Rule, ...] = ("confidence", "entropy")
"""Rules that look at the teacher; they are what is scored."""
RULES: Mapping[str, SoftWeight] = {
    "static": StaticWeight(),
    "confidence": ConfidenceWeight(),
    "entropy": EntropyWeight(),
}
"""Rules for the soft weight that need nothing but the teacher's distribution."""


@dataclass(frozen=True, kw_only=True)
class RuleScore:
    """How one rule aims on this pair."""

    rule: Rule
    """`confidence` or `entropy`."""
    mean_weight: float
    r"""Mean :math:`\lambda` over the measured positions."""
    spearman: Bootstrapped
    r"""Of :math:`\lambda` and kappa(s); negative is good."""
    auc: Bootstrapped
    """Of Gardens above Bridges; above 0.5 is good."""
    separation: Bootstrapped
    r"""Mean :math:`\lambda` at Gardens minus at Bridges; positive is good."""
    gain: Bootstrapped
    """Nats a position beyond a static rule of the same mean; positive is good."""


@dataclass(frozen=True, kw_only=True)
class Advice:
    """Which rule, or how much more evidence it would take."""

    recommended: Rule | None
    """None: not enough evidence."""
    either: bool
    """Both adaptive rules aim well and the evidence does not tell them apart; `recommended` is the better so far."""
    reason: str
    """In plain words."""
    more_tokens: int | None
    """About how many more generated tokens would decide; None where decided, or where no number can be given."""
    scores: tuple[RuleScore, ...]
    """Of both adaptive rules."""
    spearman_difference: Bootstrapped
    """Spearman of confidence minus that of entropy, on the same resamples; negative favours confidence."""
    positions: int
    """Positions measured."""
    prompts: int
    """Prompts they are from."""
    representative: bool
    """Whether the positions stand for the texts (a random sample, or all of them)."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return to_plain(self)


def advise(result: KappaResult, *, vocab_size: int, generator: torch.Generator, resamples: int = 1000) -> Advice:
    """Score the adaptive rules on measured positions, and recommend one or say what is missing.

    Args:
        result: best with ``choose="random"``; others are scored too, but do not stand for the texts.
        vocab_size: real vocabulary, for the entropy rule.
        generator: on the CPU, for the bootstrap.
        resamples: of the bootstrap.
    """
    positions = result.positions
    kappa = torch.tensor([place.state_kappa.mean for place in positions], dtype=torch.float64)
    kinds = [place.kind for place in positions]
    bridge, garden = (torch.tensor([one == kind for one in kinds]).bool() for kind in (Kind.BRIDGE, Kind.GARDEN))
    prompts = [place.prompt for place in positions]
    entropy = torch.tensor([place.teacher_entropy for place in positions], dtype=torch.float64)
    max_prob = torch.tensor([place.teacher_max_prob for place in positions], dtype=torch.float64)
    weights = soft_weights(entropy, max_prob, vocab_size)
    counts, count = resampled(prompts, generator, resamples), len(set(prompts))

    def score(rule: Rule, weight: Tensor) -> RuleScore:
        return RuleScore(
            rule=rule,
            mean_weight=weight.mean().item(),
            spearman=Bootstrapped.of(lambda w: spearman(weight, kappa, w), counts, count),
            auc=Bootstrapped.of(lambda w: auc(weight, garden, bridge, w), counts, count),
            separation=Bootstrapped.of(
                lambda w: weighted_mean(weight, w * garden) - weighted_mean(weight, w * bridge), counts, count
            ),
            gain=Bootstrapped.of(
                lambda w: weighted_mean(weight, w) * weighted_mean(kappa, w) - weighted_mean(weight * kappa, w),
                counts,
                count,
            ),
        )

    scores = tuple(score(rule, weights[rule]) for rule in ADAPTIVE)
    difference = Bootstrapped.of(
        lambda w: spearman(weights["confidence"], kappa, w) - spearman(weights["entropy"], kappa, w), counts, count
    )
    recommended, either, reason, more = _decide(scores, difference, count, result.generated_tokens)
    return Advice(
        recommended=recommended,
        either=either,
        reason=reason,
        more_tokens=more,
        scores=scores,
        spearman_difference=difference,
        positions=len(positions),
        prompts=count,
        representative=result.choose == "random" or len(positions) == result.candidates,
    )


def _decide(
    scores: tuple[RuleScore, ...], difference: Bootstrapped, prompts: int, tokens: int
) -> tuple[Rule | None, bool, str, int | None]:
    usable = [score for score in scores if score.spearman.value is not None and score.spearman.interval is not None]
    if prompts < LEAST_PROMPTS or len(usable) < len(scores):
        return (
            None,
            False,
            f"Not enough evidence: positions of {prompts} prompts. It takes {LEAST_PROMPTS}, and some spread.",
            None,
        )
    good = [score for score in usable if _interval(score.spearman).side() < 0]
    if good:
        best = min(good, key=lambda score: _value(score.spearman))
        either = len(good) > 1 and _interval(difference).side() == 0
        reason = (
            f"The {best.rule} rule is softer where kappa is lower: rank correlation {_value(best.spearman):+.2f} "
            f"({_range(best.spearman)})."
        )
        if either:
            reason += " The other adaptive rule is as good, as far as this evidence goes."
        return best.rule, either, reason, None
    if all(-_interval(score.spearman).low < NOTICEABLE for score in usable):
        return "static", False, _nothing_to_aim_with(usable), None
    nearest = min(usable, key=lambda score: _value(score.spearman))
    more = more_tokens(_value(nearest.spearman), _interval(nearest.spearman), tokens)
    reason = (
        f"Not enough evidence: the rank correlation of the {nearest.rule} rule with kappa is "
        f"{_value(nearest.spearman):+.2f}, but anything in {_range(nearest.spearman)} is possible. About {more:,} more "
        "generated tokens, on more prompts, would do."
    )
    return None, False, reason, more


def _nothing_to_aim_with(scores: Sequence[RuleScore]) -> str:
    """Why no adaptive rule suits, given that no useful correlation is possible."""
    wrong = [score for score in scores if _interval(score.spearman).side() > 0]
    if wrong:
        worst = max(wrong, key=lambda score: _value(score.spearman))
        return (
            f"The {worst.rule} rule is softer where kappa is higher, the wrong way round: rank correlation "
            f"{_value(worst.spearman):+.2f} ({_range(worst.spearman)}). An adaptive rule would go soft on what must be "
            "exact here."
        )
    return (
        f"Neither confidence nor entropy predicts kappa here: -{NOTICEABLE} or below is ruled out for both rank "
        "correlations. An adaptive rule has nothing to aim with."
    )


def more_tokens(value: float, interval: Interval, tokens: int) -> int:
    """How many more tokens would narrow `interval`, whose width falls as one over their square root, off zero.

    Where the value itself is nearer to zero than `NOTICEABLE`, until it could tell that much.
    """
    half = (interval.high - interval.low) / 2
    target = max(abs(value), NOTICEABLE)
    return max(math.ceil(tokens * ((half / target) ** 2 - 1)), math.ceil(0.1 * tokens))


def soft_weights(entropy: Tensor, max_prob: Tensor, vocab_size: int) -> dict[str, Tensor]:
    """Each of `RULES`, by its own code, wherever a teacher's entropy and largest probability were noted."""
    # Where nothing was noted the probability is 0; any other number keeps the logarithm finite.
    max_logp = torch.where(max_prob > 0, max_prob, 1.0).log()
    signal = TeacherSignal(
        ids=None,
        logp=max_logp.unsqueeze(-1),
        log_tail=None,
        entropy=entropy,
        argmax=torch.zeros(entropy.shape, dtype=torch.long),
        max_logp=max_logp,
        vocab_size=vocab_size,
    )
    return {name: rule(signal) for name, rule in RULES.items()}


def _value(statistic: Bootstrapped) -> float:
    assert statistic.value is not None
    return statistic.value


def _interval(statistic: Bootstrapped) -> Interval:
    assert statistic.interval is not None
    return statistic.interval


def _range(statistic: Bootstrapped) -> str:
    """Of a correlation, cut where none can be."""
    low, high = _interval(statistic)
    return f"{max(low, -1.0):+.2f} to {min(high, 1.0):+.2f}"
