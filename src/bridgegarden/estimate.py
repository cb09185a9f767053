"""Numbers that were estimated: what every Monte-Carlo function returns, and how sure it is."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy.special import betaincinv, stdtrit
from torch import Tensor

from bridgegarden.errors import DataError
from bridgegarden.terminal import counted


class Interval(NamedTuple):
    """A two-sided confidence interval."""

    low: float
    """Lower end."""
    high: float
    """Upper end."""


def exact_share(successes: int, n: int, confidence: float = 0.95) -> Interval:
    r"""Where a share lies of which `n` independent draws had `successes`: the exact interval of the binomial.

    .. math:: \big[ B^{-1}_{a/2}(k, n - k + 1), \; B^{-1}_{1 - a/2}(k + 1, n - k) \big]

    with the quantiles B of the beta distribution and a = 1 - `confidence`. It is the one to give where all draws
    were alike, whose sample has no spread to estimate an error from.

    References:
        Clopper and Pearson, 1934, Biometrika 26(4).
    """
    tail = (1 - confidence) / 2
    low = float(betaincinv(successes, n - successes + 1, tail)) if successes else 0.0
    high = float(betaincinv(successes + 1, n - successes, 1 - tail)) if successes < n else 1.0
    return Interval(low, high)


class Estimate(NamedTuple):
    """A mean over independent units (prompts, problems, seeds: never tokens, which depend on each other)."""

    mean: float
    """The estimate."""
    stderr: float
    """Standard error of `mean` over the units."""
    n: int
    """Number of units."""

    @classmethod
    def over(cls, values: Tensor | Sequence[float]) -> "Estimate":
        """The mean of one value per independent unit.

        Raises:
            DataError: fewer than two values, whose spread is unknown, or values that are not finite.
        """
        column = _column(values)
        return cls(column.mean().item(), _stderr(column), len(column))

    @classmethod
    def ratio(cls, numerator: Tensor | Sequence[float], denominator: Tensor | Sequence[float]) -> "Estimate":
        r"""The ratio of two means, taken over the same units.

        .. math:: r = \bar a / \bar b, \qquad
                  \mathrm{stderr}(r) = \mathrm{stderr}(a - r b) / |\bar b|

        The standard error is the linearised one of a ratio estimator; it is exact in the limit of many units.

        Raises:
            DataError: as `over`; or the lengths differ, or the denominator's mean is zero.
        """
        above, below = _column(numerator), _column(denominator)
        if len(above) != len(below):
            raise DataError(f"estimate: a ratio of {len(above)} values to {len(below)}; expected one pair per unit.")
        if below.mean() == 0:
            raise DataError("estimate: the ratio's denominator has mean 0.")
        ratio = (above.mean() / below.mean()).item()
        return cls(ratio, _stderr(above - ratio * below) / below.mean().abs().item(), len(above))

    def interval(self, confidence: float = 0.95) -> Interval:
        """Where the true mean lies, from Student's t-distribution with n - 1 degrees of freedom."""
        half = float(stdtrit(self.n - 1, 0.5 + confidence / 2)) * self.stderr
        return Interval(self.mean - half, self.mean + half)

    def share_interval(self, confidence: float = 0.95) -> Interval:
        """The same for a share of right answers: the exact one where all of the n were right, or wrong."""
        if self.mean in (0.0, 1.0):
            return exact_share(round(self.mean * self.n), self.n, confidence)
        return self.interval(confidence)


def _column(values: Tensor | Sequence[float]) -> Tensor:
    column = torch.as_tensor(values, dtype=torch.float64).flatten()
    if len(column) < 2:
        raise DataError(
            f"estimate: got {counted(len(column), 'value')}; a standard error needs at least 2 "
            "independent ones. Use more problems."
        )
    if not torch.isfinite(column).all():
        bad = int((~torch.isfinite(column)).sum())
        raise DataError(f"estimate: {bad} of {len(column)} values are not finite.")
    return column


def _stderr(column: Tensor) -> float:
    return column.std().item() / math.sqrt(len(column))
