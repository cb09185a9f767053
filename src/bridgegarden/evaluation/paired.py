"""Whether two systems differ, measured on the same problems: an interval for the difference, and a verdict.

A score depends on which problems were drawn and on which seed a model was trained with. Problems are many and are
resampled, every one with all its seeds, so that what two systems have in common cancels. Seeds are few: resampling
three of them gives intervals that are much too narrow, so a seed counts as a block with one mean, and Student's t says
how far such means may be from the truth.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import ndtri, stdtrit

from bridgegarden.errors import DataError
from bridgegarden.estimate import Interval, exact_share

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
        if self.interval.low > 0:
            return "first"
        return "second" if self.interval.high < 0 else None

    def to_dict(self) -> dict[str, float | int | str | list[float] | None]:
        """For a JSON file."""
        return {
            "mean": self.mean,
            "interval": list(self.interval),
            "confidence": self.confidence,
            "seeds": self.seeds,
            "problems": self.problems,
            "wins": self.wins,
            "ties": self.ties,
            "verdict": self.verdict,
        }


def paired_difference(
    first: Sequence[Scores],
    second: Sequence[Scores],
    *,
    confidence: float = 0.95,
    resamples: int = 4000,
    generator: np.random.Generator | None = None,
) -> PairedDifference:
    r"""Compare two systems on the same problems.

    With :math:`d_{sp}` the difference at seed s and problem p, the interval holds the central part of the distribution
    of

    .. math:: \bar d + c \, (\bar d^* - \bar d) + t_{S-1} \, \mathrm{sd}_s(\bar d_{s\cdot}) / \sqrt{S}

    where :math:`\bar d^*` is the mean over resampled problems (with all their seeds), :math:`t_{S-1}` is drawn from
    Student's distribution, and c = (Student's quantile for P - 1) / (the normal one) sqrt(P / (P - 1)) makes up for the
    bootstrap's narrowness when problems are few. One seed has no last term; where every seed has problems of its own,
    these are part of the spread between seeds, and there is no middle term. Where seeds do not matter the interval is
    wider than it needs to be: with few of them one cannot know that.

    Args:
        first: scores of the first system, one mapping for each seed.
        second: of the second system, the same seeds in the same order, on the same problems.
        confidence: of the interval, in (0, 1).
        resamples: of the distribution.
        generator: draws them; None is a fixed seed, so that the same scores give the same interval.

    Raises:
        DataError: nothing to compare, other problems, scores that are not finite, or seeds that share some problems.

    References:
        Hesterberg, 2015, arXiv:1411.5279 (the factor c: expanded percentile intervals).
    """
    seeds = [_differences(a, b, place) for place, (a, b) in enumerate(_pairs(first, second))]
    shared = all(seed.keys() == seeds[0].keys() for seed in seeds)
    if not shared and len(set().union(*seeds)) < sum(map(len, seeds)):
        raise DataError(
            "paired difference: some seeds share some of their problems; expected the same problems for every seed, or "
            "others for each."
        )
    generator = generator or np.random.default_rng(0)
    means = np.array([np.mean(list(seed.values())) for seed in seeds])
    draws = np.full(resamples, means.mean())
    if shared:
        column = np.array([[seed[problem] for problem in seeds[0]] for seed in seeds]).mean(0)
        draws += _problem_noise(column, confidence, resamples, generator)
    if len(seeds) > 1:
        spread = means.std(ddof=1) / math.sqrt(len(seeds))
        draws += spread * generator.standard_t(len(seeds) - 1, resamples)
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    every = np.array([value for seed in seeds for value in seed.values()])
    if (every == every[0]).all() and _all_shares([*first, *second]):
        low, high = unvaried_interval(float(every[0]), min(map(len, seeds)), confidence)
    return PairedDifference(
        mean=float(means.mean()),
        interval=Interval(float(low), float(high)),
        confidence=confidence,
        seeds=len(seeds),
        problems=min(map(len, seeds)),
        wins=float((every > 0).mean()),
        ties=float((every == 0).mean()),
    )


def unvaried_interval(difference: float, problems: int, confidence: float = 0.95) -> Interval:
    """Where the difference of two shares lies if every one of `problems` had the same `difference`: -1, 0 or 1.

    A resampling finds no spread there, however few the problems. But unlike ones may be as frequent as the exact
    binomial interval of a share of which nothing was seen allows.
    """
    unseen = exact_share(0, problems, confidence).high
    # An unlike problem lies one away from a tie, and as far as two from a win or a loss.
    low = difference - unseen * (2 if difference > 0 else 1)
    high = difference + unseen * (2 if difference < 0 else 1)
    return Interval(max(low, -1.0), min(high, 1.0))


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
