r"""A probe of kappa(s), fitted where kappa was measured, and whether it predicts any: on prompts it was not fitted on.

Ridge regression of the measured kappa(s) on what a rule can see of a position
(:mod:`bridgegarden.objective.kappa_probe`). Prompts are dealt into folds; each fold is predicted by a probe of the
others, whose penalty was chosen without it, too. The soft weights of these predictions are scored as every rule is
(:mod:`bridgegarden.diagnostics.advise`), and held against the best of the rules that need no fitting, paired by prompt.

The places are of the student's own texts, and of the student as it is now: as training changes it, so does what the
probe reads.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from bridgegarden.diagnostics.advise import (
    ADAPTIVE,
    LEAST_PROMPTS,
    NOTICEABLE,
    Aims,
    Rule,
    RuleScore,
    more_tokens,
    represents_texts,
    teacher_weights,
)
from bridgegarden.diagnostics.kappa import KappaResult
from bridgegarden.objective.kappa_probe import FEATURES, KINDS, LinearProbe
from bridgegarden.statistics import Bootstrapped, Interval, to_plain

FOLDS = 5
"""Of prompts; as many as there are prompts, where these are fewer."""
PENALTIES = (0.01, 0.1, 1.0, 10.0)
"""Of the squared weights of standardised features, beside the mean squared error; chosen by the folds."""
TESTS = len(ADAPTIVE) + 1
"""Rules that are tried."""

Standing = Literal["ahead", "as good", "nothing", "undecided", "too few"]


@dataclass(frozen=True, kw_only=True)
class FittedProbe:
    """A probe of all measured positions, and how well probes like it did on prompts that they had not seen."""

    probe: LinearProbe
    """Fitted on all positions."""
    penalty: float
    """Its penalty."""
    score: RuleScore
    """Of the weights out of fold."""
    rival: Rule
    """The best of the rules that need no fitting; `static` where neither gains."""
    ahead: Bootstrapped
    r"""Gain minus that of `rival`, each over its own standard deviation of :math:`\lambda`, paired by prompt."""
    standing: Standing
    """Whether it predicts kappa, and better than `rival`: only *ahead* is worth a file."""
    reason: str
    """In plain words."""
    positions: int
    """Positions it was fitted on."""
    prompts: int
    """Prompts they are from."""
    representative: bool
    """Whether the positions stand for the texts."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it; the probe's weights by their features."""
        weights = dict(zip(FEATURES, self.probe.weights, strict=True))
        return to_plain(self, leave_out=("probe",)) | {"weights": to_plain(weights)}


def fit_probe(
    result: KappaResult,
    scores: Sequence[RuleScore],
    *,
    vocab_size: int,
    kind: Callable[[int], str],
    generator: torch.Generator,
    resamples: int = 1000,
) -> FittedProbe:
    """Fit a probe on measured positions, and say whether it is any good.

    Args:
        result: as for :func:`~bridgegarden.diagnostics.advise.advise`.
        scores: of the rules that need no fitting.
        vocab_size: real vocabulary.
        kind: of a token its letter of :data:`~bridgegarden.objective.kappa_probe.KINDS`.
        generator: on the CPU, for folds and the bootstrap.
        resamples: of the bootstrap.
    """
    features, aims = features_at(result, kind), Aims.of(result, generator, resamples)
    folds = _deal(aims.prompts, generator)
    outside = _out_of_fold(features, aims.kappa, folds)
    score = aims.score("kappa_probe", outside, tests=TESTS)
    existing = teacher_weights(result, vocab_size)
    rival, rivals_share = _best(scores)
    ahead = aims.difference(outside, existing[rival], tests=len(ADAPTIVE))
    prompts = len(set(aims.prompts))
    standing, reason = _judge(score, rival, rivals_share, ahead, prompts, result.generated_tokens)
    penalty = _penalty(features, aims.kappa, folds)
    return FittedProbe(
        probe=ridge(features, aims.kappa, penalty),
        penalty=penalty,
        score=score,
        rival=rival,
        ahead=ahead,
        standing=standing,
        reason=reason,
        positions=len(aims.kappa),
        prompts=prompts,
        representative=represents_texts(result),
    )


def kind_of(text: str, *, special: bool) -> str:
    """The letter of :data:`~bridgegarden.objective.kappa_probe.KINDS` for a token that says `text`."""
    if special:
        return "s"
    if any(character.isdigit() for character in text):
        return "d"
    if any(character.isalpha() for character in text):
        return "l"
    return "m" if text.strip() else "o"


def features_at(result: KappaResult, kind: Callable[[int], str]) -> Tensor:
    """``(N, F)`` float64 of the measured positions, in the order of ``FEATURES``."""
    rows = [
        [
            place.teacher_entropy,
            place.teacher_margin,
            1 - place.agreement,
            *(float(kind(place.likeliest) == letter) for letter in KINDS),
        ]
        for place in result.positions
    ]
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, len(FEATURES))


def ridge(features: Tensor, kappa: Tensor, penalty: float) -> LinearProbe:
    r"""The probe with the least mean squared error and penalty.

    .. math:: \min_{b, w} \; \frac1N \sum_i (\kappa_i - b - w \cdot x_i)^2 + \mu \sum_j s_j^2 w_j^2

    s are the features' standard deviations; one that never varies gets no weight.

    Args:
        features: ``(N, F)`` float64, N >= 1.
        kappa: ``(N,)`` float64 nats.
        penalty: :math:`\mu` > 0.
    """
    mean, spread = features.mean(0), features.std(0, correction=0)
    varies = spread > 1e-9 * features.abs().amax(0).clamp(min=1e-9)
    unit = torch.where(varies, spread, 1.0)
    z = torch.where(varies, (features - mean) / unit, 0.0)
    center = kappa.mean()
    gram = z.T @ z / len(z) + penalty * torch.eye(z.shape[1], dtype=z.dtype)
    weights = torch.linalg.solve(gram, z.T @ (kappa - center) / len(z)) / unit
    scale = (features @ weights).std(correction=0).item()
    if not scale > 1e-9 * max(kappa.abs().max().item(), 1e-300):
        weights, scale = torch.zeros_like(weights), 1.0
    return LinearProbe(
        weights=tuple(weights.tolist()),
        low=tuple(features.amin(0).tolist()),
        high=tuple(features.amax(0).tolist()),
        intercept=(center - mean @ weights).item(),
        center=center.item(),
        scale=scale,
    )


def _deal(prompts: Sequence[int], generator: torch.Generator) -> Tensor:
    """``(N,)``: the fold of every position; positions of one prompt are in one fold."""
    names, member = torch.tensor(prompts, dtype=torch.long).unique(return_inverse=True)
    fold = torch.randperm(len(names), generator=generator) % max(min(FOLDS, len(names)), 1)
    return fold[member]


def _splits(folds: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """For every fold the positions outside and inside, both ``(N,)`` bool; none where there is but one."""
    names = folds.unique()
    for name in names if len(names) > 1 else ():
        yield folds != name, folds == name


def _penalty(features: Tensor, kappa: Tensor, folds: Tensor) -> float:
    """The penalty whose probes predict best out of fold; the largest where nothing tells."""
    errors = dict.fromkeys(PENALTIES, 0.0)
    for rest, held in _splits(folds):
        for penalty in PENALTIES:
            predicted = ridge(features[rest], kappa[rest], penalty).kappa(features[held])
            errors[penalty] += (predicted - kappa[held]).square().sum().item()
    return min(reversed(PENALTIES), key=lambda penalty: errors[penalty])


def _out_of_fold(features: Tensor, kappa: Tensor, folds: Tensor) -> Tensor:
    """``(N,)``: the soft weight that a probe of the other folds gives each position."""
    found = torch.full_like(kappa, 0.5)
    for rest, held in _splits(folds):
        penalty = _penalty(features[rest], kappa[rest], folds[rest])
        found[held] = ridge(features[rest], kappa[rest], penalty).soft_weight(features[held])
    return found


def _best(scores: Sequence[RuleScore]) -> tuple[Rule, float]:
    """The rule whose gain is the largest share of the most it could be, if it is a gain, and that share."""
    shares: dict[Rule, float] = {"static": 0.0}
    for score in scores:
        assert score.rule != "kappa_probe"
        shares[score.rule] = (score.gain.value or 0.0) / score.most if score.most > 0 else 0.0
    return max(shares.items(), key=lambda entry: entry[1])


def _judge(
    score: RuleScore, rival: Rule, rivals_share: float, ahead: Bootstrapped, prompts: int, tokens: int
) -> tuple[Standing, str]:
    if prompts < LEAST_PROMPTS:
        return "too few", (
            f"The probe was fitted on positions of {prompts} prompts, too few to say whether it predicts anything; it "
            f"takes {LEAST_PROMPTS}. Do not use it."
        )
    value, interval = score.gain.value, score.gain.interval
    if value is None or interval is None:
        return "nothing", "The probe predicts nothing; do not use it: it says the same of every position."
    covers = f"hard labels cover {value:+.2g} nats a place ({interval.low:+.2g} to {interval.high:+.2g}) more"
    on = "On prompts that it was not fitted on its"
    if interval.side() > 0:
        gain = f"{on} {covers} than those of a static rule of the same mean"
        shares = f"{value / score.most:.0%} of the most that they could, those of the {rival} rule {rivals_share:.0%}"
        return _beside(rival, ahead.interval, gain, shares)
    if interval.high < NOTICEABLE * score.most:
        return "nothing", (
            f"The probe predicts nothing; do not use it. {on} {covers} than those of a static rule: a gain of a tenth "
            "of the most it could be is ruled out."
        )
    more = more_tokens(value, interval, tokens, least=NOTICEABLE * score.most)
    return "undecided", (
        f"The probe is not shown to predict anything; do not use it. {on} {covers} than those of a static rule of the "
        f"same mean. About {more:,} more generated tokens, on more prompts, would tell."
    )


def _beside(rival: Rule, interval: Interval | None, gain: str, shares: str) -> tuple[Standing, str]:
    """Of a probe that predicts kappa: whether better than a rule that needs no file."""
    if rival == "static":
        return "ahead", f"The probe predicts kappa. {gain}; no rule that needs no fitting gains anything."
    side = 0 if interval is None else interval.side()
    if side > 0:
        return "ahead", f"The probe predicts kappa, and aims better than the {rival} rule. {gain}, {shares}."
    told = "worse than" if side < 0 else "not told apart from"
    return "as good", (
        f"The probe predicts kappa, but its aim is {told} that of the {rival} rule, which needs no file: take that "
        f"one. {gain}, {shares}."
    )
