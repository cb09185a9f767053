"""Whether a claimed effect is there, over places that differ, and of many claims at once."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from scipy.special import stdtr

from bridgegarden.errors import DataError
from bridgegarden.statistics.intervals import CONFIDENCE, Estimate, column_of


class Decision(NamedTuple):
    """What an interval says of a claimed effect whose smallest size of interest was named beforehand."""

    verdict: Literal["holds", "does not hold", "undecided"]
    """*Holds* where all of the interval is above 0 and some of it above the smallest effect; *does not hold* where all
    of it is below the smallest effect; else *undecided*."""
    needed: int
    """Units of this spread with which the interval is as narrow as the smallest effect and cannot hold both ends."""


def decide(estimate: Estimate, smallest: float, confidence: float = CONFIDENCE) -> Decision:
    """Whether an effect that is claimed to be positive, and matters from `smallest` > 0 on, is there.

    "Does not hold" is as much a finding as "holds": equivalence to nothing that would matter, by two one-sided tests.

    References:
        Schuirmann, 1987, Journal of Pharmacokinetics and Biopharmaceutics 15(6).
    """
    low, high = estimate.interval(confidence)
    width = (high - low) / smallest
    needed = max(2, math.ceil(estimate.n * width**2))
    if high < smallest:
        return Decision("does not hold", needed)
    return Decision("holds" if low > 0 else "undecided", needed)


def pooled(estimates: Sequence[Estimate]) -> tuple[Estimate, float]:
    r"""The mean over places whose true effects differ, and the standard deviation of these true effects.

    Random effects: the spread between places by DerSimonian and Laird, the error of the mean by Hartung and Knapp,
    which counts places as the units.

    .. math:: \tau^2 = \max\Big(0, \frac{Q - (k - 1)}{\sum w - \sum w^2 / \sum w}\Big), \qquad
              v = \frac{\sum w^* (x - \bar x)^2}{(k - 1) \sum w^*}, \quad w^* = 1 / (s^2 + \tau^2)

    Raises:
        DataError: fewer than two places, or one without any spread, whose weight would be infinite.
    """
    means = column_of([estimate.mean for estimate in estimates])
    variances = torch.tensor([estimate.stderr**2 for estimate in estimates], dtype=torch.float64)
    if not bool((variances > 0).all()):
        raise DataError("estimate: a place without any spread between its units cannot be pooled with others.")
    weights = 1 / variances
    scatter = (weights * (means - (weights * means).sum() / weights.sum()).square()).sum()
    between = (scatter - (len(means) - 1)) / (weights.sum() - weights.square().sum() / weights.sum())
    tau_squared = between.clamp(min=0.0)
    weights = 1 / (variances + tau_squared)
    mean = (weights * means).sum() / weights.sum()
    variance = (weights * (means - mean).square()).sum() / ((len(means) - 1) * weights.sum())
    return Estimate(mean.item(), variance.sqrt().item(), len(means)), tau_squared.sqrt().item()


def holm(estimates: Sequence[Estimate]) -> list[float]:
    """Two-sided p values of no effect, adjusted so that one below 0.05 by chance among all has probability 0.05.

    References:
        Holm, 1979, Scandinavian Journal of Statistics 6(2).
    """
    return holm_adjusted(
        [2 * float(stdtr(one.n - 1, -abs(one.mean) / one.stderr)) if one.stderr else 1.0 for one in estimates]
    )


def holm_adjusted(values: Sequence[float]) -> list[float]:
    """The same of p values that are known."""
    adjusted, highest = [1.0] * len(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        highest = max(highest, min(1.0, (len(values) - rank) * values[place]))
        adjusted[place] = highest
    return adjusted
