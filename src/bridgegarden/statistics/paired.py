"""Two systems on the same problems, trained with the same seeds: their difference, where seeds and problems matter."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from bridgegarden.errors import DataError
from bridgegarden.statistics.intervals import CONFIDENCE, Interval, exact_share

AT_ONCE = 1_000_000
"""Numbers of a resampling that are in memory together."""
Scores = Mapping[Hashable, float]
"""Of one system trained with one seed: problem to score."""


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Mean score of the first system minus that of the second."""

    mean: float
    """Mean over seeds of the mean over problems."""
    interval: Interval
    """Where the true difference lies."""
    confidence: float
    """Of `interval`, in (0, 1)."""
    p: float
    """Two-sided p value of no difference, of this comparison alone; see :func:`holm_adjusted` for several."""
    seeds: int
    """Trainings of each system. With one, the interval is about these two models, not about how they were trained."""
    problems: int
    """Problems of each seed; of the smallest, if they differ."""
    wins: float
    """Share of the (seed, problem) pairs in which the first scores higher."""
    ties: float
    """Share in which both score the same."""

    @property
    def verdict(self) -> Literal["first", "second"] | None:
        """Which system is better; None if the interval holds 0."""
        return (None, "first", "second")[self.interval.side()]

    def to_dict(self) -> dict[str, float | int | str | list[float] | None]:
        """For a JSON file."""
        return {
            "mean": self.mean,
            "interval": list(self.interval),
            "confidence": self.confidence,
            "p": self.p,
            "seeds": self.seeds,
            "problems": self.problems,
            "wins": self.wins,
            "ties": self.ties,
            "verdict": self.verdict,
        }


class SeedSpread(NamedTuple):
    """How far one training is from another of the same seed, beside what its system does: of all systems together.

    Two seeds or three say little of how far seeds are apart, and Student's t makes up for that with intervals that hold
    nearly anything. Where other systems were trained with the same seeds, all of them say it better. A pair that varies
    more than that keeps its own spread, so that it is not taken for a steady one.
    """

    variance: float
    """Of one system's mean score with one seed, what all systems have in common at that seed taken out."""
    freedom: int
    """Degrees of freedom."""

    @classmethod
    def over(cls, systems: Sequence[Sequence[float]]) -> "SeedSpread | None":
        r"""From the mean scores of O systems trained with the same S seeds.

        .. math:: \hat\sigma^2 = \frac{1}{(O - 1)(S - 1)} \sum_{os}
                  (y_{os} - \bar y_{o \cdot} - \bar y_{\cdot s} + \bar y)^2

        Of two systems it is half the variance of their differences, and nothing is gained.

        Returns:
            None with fewer than two seeds or systems.
        """
        scores = np.array(systems, dtype=float)
        if scores.ndim < 2 or min(scores.shape) < 2:
            return None
        rest = scores - scores.mean(1, keepdims=True) - scores.mean(0) + scores.mean()
        freedom = (scores.shape[0] - 1) * (scores.shape[1] - 1)
        return cls(float((rest**2).sum()) / freedom, freedom)


def paired_difference(
    first: Sequence[Scores],
    second: Sequence[Scores],
    *,
    of_all: SeedSpread | None = None,
    confidence: float = CONFIDENCE,
    resamples: int = 4000,
    generator: np.random.Generator | None = None,
) -> PairedDifference:
    r"""Compare two systems on the same problems, trained with the same seeds.

    A score depends on which problems were drawn and on which seed a model was trained with. Problems are many and are
    resampled, every one with all its seeds, so that what two systems have in common cancels. Seeds are few: resampling
    three of them gives intervals that are much too narrow, so a seed counts as a block with one mean, and Student's t
    says how far such means may be from the truth.

    With :math:`d_{sp}` the difference at seed s and problem p, the interval holds the central part of the distribution
    of

    .. math:: \bar d + c \, (\bar d^* - \bar d) + t_{S-1} \, \mathrm{sd}_s(\bar d_{s\cdot}) / \sqrt{S}

    where :math:`\bar d^*` is the mean over resampled problems (with all their seeds), :math:`t_{S-1}` is drawn from
    Student's distribution, and c = (Student's quantile for P - 1) / (the normal one) sqrt(P / (P - 1)) makes up for the
    bootstrap's narrowness when problems are few. One seed has no last term; where every seed has problems of its own,
    these are part of the spread between seeds, and there is no middle term. Where seeds do not matter it is too wide.

    Args:
        first: scores of the first system, one mapping for each seed.
        second: of the second system, the same seeds in the same order, on the same problems.
        of_all: how far trainings are apart in all systems of the study; None is in these two alone. Its degrees of
            freedom replace S - 1, and :math:`\sqrt{2} \hat\sigma`, where that is larger, the standard deviation.
        confidence: of the interval, in (0, 1).
        resamples: of the distribution.
        generator: draws them; None is a fixed seed, so that the same scores give the same interval.

    Raises:
        DataError: nothing to compare, other problems, scores that are not finite, or seeds that share some problems.

    References:
        Hesterberg, 2015, arXiv:1411.5279 (the factor c: expanded percentile intervals).
    """
    seeds = [_differences(a, b, place) for place, (a, b) in enumerate(_pairs(first, second))]
    means, problems = np.array([np.mean(list(seed.values())) for seed in seeds]), min(map(len, seeds))
    generator = generator or np.random.default_rng(0)
    noise = _shared_noise(seeds, confidence, resamples, generator)
    interval, p = _interval(means, noise, of_all, confidence, generator)
    every = np.array([value for seed in seeds for value in seed.values()])
    if (every == every[0]).all() and _all_shares([*first, *second]):
        interval = unvaried_interval(float(every[0]), problems, confidence)
        p = unvaried_p(float(every[0]), problems)
    return PairedDifference(
        mean=float(means.mean()),
        interval=interval,
        confidence=confidence,
        p=p,
        seeds=len(seeds),
        problems=problems,
        wins=float((every > 0).mean()),
        ties=float((every == 0).mean()),
    )


def _interval(
    means: np.ndarray,
    noise: np.ndarray,
    of_all: SeedSpread | None,
    confidence: float,
    generator: np.random.Generator,
) -> tuple[Interval, float]:
    """Where the mean over seeds is from, and the p value of zero, by the distribution of :func:`paired_difference`."""
    seeds = len(means)
    variance, freedom = float(means.var(ddof=1)) if seeds > 1 else 0.0, seeds - 1
    if of_all is not None and freedom:
        variance, freedom = max(variance, 2 * of_all.variance), of_all.freedom
    spread = math.sqrt(variance / seeds)
    draws = means.mean() + noise + (spread * generator.standard_t(freedom, len(noise)) if spread else 0.0)
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high)), _p_value(means.mean(), noise, spread, freedom)


def _shared_noise(
    seeds: Sequence[Scores], confidence: float, resamples: int, generator: np.random.Generator
) -> np.ndarray:
    """``(R,)``: how far the mean of all `seeds` may be off because of the problems; 0 if each has its own."""
    shared = all(seed.keys() == seeds[0].keys() for seed in seeds)
    if not shared and len(set().union(*seeds)) < sum(map(len, seeds)):
        raise DataError(
            "paired difference: some seeds share some of their problems; expected the same problems for every seed, or "
            "others for each."
        )
    if not shared:
        return np.zeros(resamples)
    column = np.array([[seed[problem] for problem in seeds[0]] for seed in seeds]).mean(0)
    return _problem_noise(column, confidence, resamples, generator)


def _p_value(mean: float, noise: np.ndarray, spread: float, freedom: int) -> float:
    """Two-sided, of no difference, from the distribution of :func:`paired_difference`.

    The tails are computed and not counted: a count cannot be below one of the draws, and where many comparisons are
    corrected for together no difference, however large, would then be called.
    """
    if spread:
        return min(1.0, 2 * float(stdtr(freedom, -(abs(mean) + noise) / spread).mean()))
    scale = float(noise.std())
    return min(1.0, 2 * float(ndtr(-abs(mean) / scale))) if scale else float(mean == 0)


def unvaried_interval(difference: float, problems: int, confidence: float = CONFIDENCE) -> Interval:
    """Where the difference of two shares lies if every one of `problems` had the same `difference`: -1, 0 or 1.

    A resampling finds no spread there, however few the problems. But unlike ones may be as frequent as the exact
    binomial interval of a share of which nothing was seen allows.
    """
    unseen = exact_share(0, problems, confidence).high
    # An unlike problem lies one away from a tie, and as far as two from a win or a loss.
    low = difference - unseen * (2 if difference > 0 else 1)
    high = difference + unseen * (2 if difference < 0 else 1)
    return Interval(max(low, -1.0), min(high, 1.0))


def unvaried_p(difference: float, problems: int) -> float:
    """Two-sided p value of no difference if every one of `problems` had the same `difference`: -1, 0 or 1."""
    return 1.0 if difference == 0 else min(1.0, 2 * 0.5**problems)


def _pairs(first: Sequence[Scores], second: Sequence[Scores]) -> list[tuple[Scores, Scores]]:
    if not first or len(first) != len(second):
        raise DataError(
            f"paired difference: {len(first)} seeds of the first system and {len(second)} of the second; expected the "
            "same seeds of both, at least one."
        )
    return list(zip(first, second, strict=True))


def _all_shares(scores: Sequence[Scores]) -> bool:
    """Whether every score is 0 or 1: right or wrong."""
    return all(value in (0.0, 1.0) for seed in scores for value in seed.values())


def _differences(first: Scores, second: Scores, place: int) -> dict[Hashable, float]:
    if first.keys() != second.keys():
        lacking = len(first.keys() ^ second.keys())
        raise DataError(
            f"paired difference: seed number {place}: {lacking} problems have the score of one system only. Evaluate "
            "both on the same problems (the same task, limit and version)."
        )
    if len(first) < 2:
        raise DataError(f"paired difference: seed number {place}: {len(first)} problem; expected at least 2.")
    found = {problem: float(first[problem]) - float(second[problem]) for problem in first}
    if not all(map(math.isfinite, found.values())):
        raise DataError(f"paired difference: seed number {place}: there are scores that are not finite.")
    return found


def _problem_noise(column: np.ndarray, confidence: float, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """How far the mean over resampled problems is from the mean of `column`, ``(P,)``."""
    problems = len(column)
    tail = (1 + confidence) / 2
    wider = float(stdtrit(problems - 1, tail) / ndtri(tail)) * math.sqrt(problems / (problems - 1))
    even = np.full(problems, 1 / problems)
    rows = max(1, AT_ONCE // problems)
    # How often each problem is in a sample with replacement.
    parts = [
        generator.multinomial(problems, even, min(rows, resamples - start)) @ column
        for start in range(0, resamples, rows)
    ]
    means = np.concatenate(parts) / problems
    return wider * (means - column.mean())
