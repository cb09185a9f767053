r"""Which rule for the soft weight suits a pair: does what the rule reads off the teacher predict kappa?

A rule should be soft (:math:`\lambda` high) at Gardens and hard at Bridges, so :math:`\lambda` should *fall* where
kappa(s) rises. Four views of that, each with an interval over prompts (all positions of a prompt are drawn together):

* Spearman's rank correlation of :math:`\lambda` and kappa(s), which should be negative (noise in kappa pulls it to 0);
* AUC: how often a Garden's :math:`\lambda` is above a Bridge's, among decided positions; 0.5 is chance;
* separation: mean :math:`\lambda` at Gardens minus at Bridges; 0 for a static rule;
* gain: :math:`-\mathrm{cov}(\lambda, \kappa)`, by how much more kappa the hard weight :math:`1 - \lambda` covers than a
  static rule of the same mean does, nats a position. It is linear in kappa, so noise in kappa does not bias it.

**The gain decides.** Ranks do not see means: noise that is skewed, and whose scale follows :math:`\lambda`, shifts them
although kappa is the same everywhere on average, and more evidence only makes that surer. The interval of the gain is
cautious (:meth:`~bridgegarden.statistics.Estimate.cautious`): the largest kappa that was seen may be where it tells
most. It is widened for the two rules that are tried.

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
from bridgegarden.statistics import (
    CONFIDENCE,
    Bootstrapped,
    Estimate,
    Interval,
    auc,
    corrected,
    resampled,
    spearman,
    to_plain,
    weighted_mean,
)

LEAST_PROMPTS = 20
"""With fewer, disasters that few prompts meet make a rule where there is nothing to gain: in 18 % of worlds made for it
with 8 prompts, 6 % with 16, 3 % with 20."""
NOTICEABLE = 0.1
"""A gain that is a smaller share of the most it could be is as good as none."""

Rule = Literal["confidence", "entropy", "static"]
Scored = Literal["confidence", "entropy", "kappa_probe"]

ADAPTIVE: tuple[Literal["confidence", "entropy"], ...] = ("confidence", "entropy")
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

    rule: Scored
    """Its name in recipes."""
    mean_weight: float
    r"""Mean :math:`\lambda` over the measured positions."""
    spearman: Bootstrapped
    r"""Of :math:`\lambda` and kappa(s); negative is good."""
    auc: Bootstrapped
    """Of Gardens above Bridges; above 0.5 is good."""
    separation: Bootstrapped
    r"""Mean :math:`\lambda` at Gardens minus at Bridges; positive is good."""
    gain: Bootstrapped
    """Nats a position beyond a static rule of the same mean; positive is good. Widened for the rules tried."""
    most: float
    r"""Nats a position: the gain of a :math:`\lambda` that fell in line with the measured kappa, the product of their
    standard deviations."""


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
    gain_difference: Bootstrapped
    r"""Gain of confidence minus that of entropy, each over its rule's standard deviation of :math:`\lambda`, paired by
    prompt; positive favours confidence."""
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
    aims = Aims.of(result, generator, resamples)
    weights = teacher_weights(result, vocab_size)
    scores = tuple(aims.score(rule, weights[rule], tests=len(ADAPTIVE)) for rule in ADAPTIVE)
    difference = aims.difference(*(weights[rule] for rule in ADAPTIVE))
    count = len(set(aims.prompts))
    recommended, either, reason, more = _decide(scores, difference, count, result.generated_tokens)
    return Advice(
        recommended=recommended,
        either=either,
        reason=reason,
        more_tokens=more,
        scores=scores,
        gain_difference=difference,
        positions=len(aims.kappa),
        prompts=count,
        representative=represents_texts(result),
    )


def represents_texts(result: KappaResult) -> bool:
    """Whether the positions stand for the texts: a random sample of them, or all."""
    return result.choose == "random" or len(result.positions) == result.candidates


def teacher_weights(result: KappaResult, vocab_size: int) -> dict[str, Tensor]:
    """:func:`soft_weights` at the measured positions."""
    entropy = torch.tensor([place.teacher_entropy for place in result.positions], dtype=torch.float64)
    max_prob = torch.tensor([place.teacher_max_prob for place in result.positions], dtype=torch.float64)
    return soft_weights(entropy, max_prob, vocab_size)


@dataclass(frozen=True, kw_only=True)
class Aims:
    """What rules are held against: kappa at the measured positions."""

    kappa: Tensor
    """``(N,)`` float64 nats."""
    bridge: Tensor
    """``(N,)`` bool."""
    garden: Tensor
    """``(N,)`` bool."""
    prompts: Sequence[int]
    """Of each position its prompt."""
    counts: Tensor
    """``(R + 1, N)`` of :func:`~bridgegarden.statistics.resampled`."""

    @classmethod
    def of(cls, result: KappaResult, generator: torch.Generator, resamples: int) -> "Aims":
        """From what was measured."""
        kinds = [place.kind for place in result.positions]
        bridge, garden = (torch.tensor([one == kind for one in kinds]).bool() for kind in (Kind.BRIDGE, Kind.GARDEN))
        prompts = [place.prompt for place in result.positions]
        return cls(
            kappa=torch.tensor([place.state_kappa.mean for place in result.positions], dtype=torch.float64),
            bridge=bridge,
            garden=garden,
            prompts=prompts,
            counts=resampled(prompts, generator, resamples),
        )

    def score(self, rule: Scored, weight: Tensor, *, tests: int) -> RuleScore:
        """How a rule aims that gives these positions `weight`, being one of `tests` that are tried."""
        kappa, counts, count = self.kappa, self.counts, len(set(self.prompts))
        garden, bridge = self.garden, self.bridge
        reach = _reach(weight, kappa, len(kappa) / max(count, 1))
        return RuleScore(
            rule=rule,
            mean_weight=weight.mean().item(),
            spearman=Bootstrapped.of(lambda w: spearman(weight, kappa, w), counts, count),
            auc=Bootstrapped.of(lambda w: auc(weight, garden, bridge, w), counts, count),
            separation=Bootstrapped.of(
                lambda w: weighted_mean(weight, w * garden) - weighted_mean(weight, w * bridge), counts, count
            ),
            gain=_mean(_gains(weight, kappa, self.prompts), reach=reach, tests=tests),
            most=(weight.std(correction=0) * kappa.std(correction=0)).item(),
        )

    def difference(self, first: Tensor, second: Tensor, *, tests: int = 1) -> Bootstrapped:
        """The gain of a rule with weights `first` minus that of one with `second`, each over its own spread."""
        even = [
            _gains(one, self.kappa, self.prompts) / one.std(correction=0).clamp(min=1e-12) for one in (first, second)
        ]
        size = max((one.abs().max().item() for one in even if len(one)), default=0.0)
        return _mean(even[0] - even[1], size=size, tests=tests)


def _decide(
    scores: tuple[RuleScore, ...], difference: Bootstrapped, prompts: int, tokens: int
) -> tuple[Rule | None, bool, str, int | None]:
    if prompts < LEAST_PROMPTS or any(score.gain.interval is None for score in scores):
        return (
            None,
            False,
            f"Not enough evidence: positions of {prompts} prompts. It takes {LEAST_PROMPTS}, and some spread.",
            None,
        )
    good = [score for score in scores if _interval(score.gain).side() > 0]
    if good:
        best = max(good, key=lambda score: _value(score.gain) / score.most)
        assert best.rule != "kappa_probe"
        either = len(good) > 1 and (difference.interval is None or difference.interval.side() == 0)
        reason = (
            f"The {best.rule} rule is softer where kappa is lower: its hard labels cover {_told(best)} more than those "
            "of a static rule of the same mean."
        )
        if either:
            reason += " The other adaptive rule is as good, as far as this evidence goes."
        return best.rule, either, reason, None
    if all(_interval(score.gain).high < NOTICEABLE * score.most for score in scores):
        return "static", False, _nothing_to_aim_with(scores), None
    nearest = max(scores, key=lambda score: _value(score.gain) / score.most)
    more = more_tokens(_value(nearest.gain), _interval(nearest.gain), tokens, least=NOTICEABLE * nearest.most)
    reason = (
        f"Not enough evidence: the hard labels of the {nearest.rule} rule cover {_told(nearest)} more than those of a "
        f"static rule of the same mean. About {more:,} more generated tokens, on more prompts, would do."
    )
    return None, False, reason, more


def _nothing_to_aim_with(scores: Sequence[RuleScore]) -> str:
    """Why no adaptive rule suits, given that no useful gain is possible."""
    wrong = [score for score in scores if _interval(score.gain).side() < 0]
    if wrong:
        worst = min(wrong, key=lambda score: _value(score.gain))
        return (
            f"The {worst.rule} rule is softer where kappa is higher, the wrong way round: its hard labels cover "
            f"{_told(worst)} more than those of a static rule. An adaptive rule would go soft on what must be exact."
        )
    return (
        "Neither confidence nor entropy predicts kappa here: for both, a gain of a tenth of the most it could be is "
        "ruled out. An adaptive rule has nothing to aim with."
    )


def _gains(weight: Tensor, kappa: Tensor, prompts: Sequence[int]) -> Tensor:
    """``(P,)``: what each prompt adds to the gain, whose mean is the gain."""
    parts = -(weight - weight.mean()) * (kappa - kappa.mean())
    names, member = torch.tensor(prompts, dtype=torch.long).unique(return_inverse=True)
    return torch.zeros(len(names), dtype=torch.float64).index_add_(0, member, parts) * len(names) / max(len(kappa), 1)


def _reach(weight: Tensor, kappa: Tensor, each: float) -> Tensor:
    """``(2,)``: what a prompt adds if the largest kappa seen were where the weight is farthest from its mean."""
    farthest = (weight - weight.mean()).abs().max() * (kappa - kappa.mean()).abs().max() / max(each, 1.0)
    return torch.stack([-farthest, farthest])


def _mean(values: Tensor, *, reach: Tensor | None = None, size: float = 0.0, tests: int = 1) -> Bootstrapped:
    """With its cautious interval over prompts, being one of `tests`; without where there are too few, or no spread."""
    if len(values) < 2:
        return Bootstrapped(value=values.mean().item() if len(values) else None, interval=None)
    estimate = Estimate.cautious(values, beside=reach, size=size)
    return Bootstrapped(
        value=estimate.mean, interval=estimate.interval(corrected(CONFIDENCE, tests)) if estimate.known else None
    )


def more_tokens(value: float, interval: Interval, tokens: int, *, least: float) -> int:
    """How many more tokens would narrow `interval`, whose width falls as one over their square root, off zero.

    Where the value itself is nearer to zero than `least`, until it could tell that much.
    """
    half = (interval.high - interval.low) / 2
    target = max(abs(value), least)
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


def _told(score: RuleScore) -> str:
    """A gain and its interval."""
    low, high = _interval(score.gain)
    return f"{_value(score.gain):+.2g} nats a place ({low:+.2g} to {high:+.2g})"
