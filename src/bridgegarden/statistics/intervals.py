"""A number and how sure it is: means, ratios, shares and effects over independent units, as JSON too; and whether a
claimed effect is there, over places that differ, and of many claims at once."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import Any, Literal, NamedTuple

import torch
from scipy.special import betaincinv, stdtr, stdtrit
from torch import Tensor

from bridgegarden.errors import DataError
from bridgegarden.terminal import counted

CONFIDENCE = 0.95
"""Of every interval that does not say otherwise."""
ROUNDING = 1e-6
"""A spread that is no larger a share of the values is the rounding of float32."""


class Interval(NamedTuple):
    """A two-sided confidence interval."""

    low: float
    """Lower end."""
    high: float
    """Upper end."""

    def side(self, of: float = 0.0) -> Literal[-1, 0, 1]:
        """Whether all of it is above (1) or below (-1) a value; 0 if it holds the value."""
        return 1 if self.low > of else -1 if self.high < of else 0


def corrected(confidence: float, tests: int) -> float:
    """Confidence of each of `tests` intervals that makes all of them hold with `confidence` (Bonferroni)."""
    return 1 - (1 - confidence) / tests


def exact_share(successes: int, n: int, confidence: float = CONFIDENCE) -> Interval:
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
    """Standard error of `mean` over the units; infinite where nothing is known of it."""
    n: int
    """Number of units."""

    @classmethod
    def over(cls, values: Tensor | Sequence[float]) -> "Estimate":
        """The mean of one value per independent unit.

        Raises:
            DataError: fewer than two values, whose spread is unknown, or values that are not finite.
        """
        column = column_of(values)
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
        above, below = column_of(numerator), column_of(denominator)
        if len(above) != len(below):
            raise DataError(f"estimate: a ratio of {len(above)} values to {len(below)}; expected one pair per unit.")
        if below.mean() == 0:
            raise DataError("estimate: the ratio's denominator has mean 0.")
        ratio = (above.mean() / below.mean()).item()
        return cls(ratio, _stderr(above - ratio * below) / below.mean().abs().item(), len(above))

    @classmethod
    def cautious(
        cls, values: Tensor | Sequence[float], *, floor: float = 0.0, size: float = 0.0, beside: Tensor | None = None
    ) -> "Estimate":
        r"""The mean of one value per independent unit, of which few may be large and some may not have been seen.

        .. math:: \mathrm{stderr}' = \max\Big(\mathrm{stderr}, \; \mathrm{stderr}_{+}
                  + \frac{|\bar x_{+} - \bar x|}{t_{n - 1}}, \; \mathrm{floor}\Big)

        where + is over the values and two more at either end of their range. For values of two kinds this is Agresti
        and Coull's interval, which holds where few or none of one kind were seen; values that lie evenly about their
        mean hardly change it.

        **No spread is no knowledge**: where the values are all the same the interval has no ends (an infinite standard
        error), unless `floor`, what is known of such errors from elsewhere, gives it some.

        Args:
            values: one for each unit.
            floor: least standard error.
            beside: values of the same kind from elsewhere, which may be larger than any of these: their range counts.
            size: of what the values were made from; a spread of a millionth of it is rounding.

        Raises:
            DataError: as `over`.

        References:
            Agresti and Coull, 1998, The American Statistician 52(2).
        """
        column = column_of(values)
        seen = column if beside is None else torch.cat([column, column_of(beside)])
        low, high = seen.min(), seen.max()
        if high - low <= ROUNDING * max(size, seen.abs().max().item()):
            return cls(column.mean().item(), floor or math.inf, len(column))
        more = torch.cat([column, low.expand(2), high.expand(2)])
        shift = (more.mean() - column.mean()).abs().item()
        widened = _stderr(more) + shift / float(stdtrit(len(column) - 1, 0.5 + CONFIDENCE / 2))
        return cls(column.mean().item(), max(_stderr(column), widened, floor), len(column))

    @property
    def known(self) -> bool:
        """Whether the interval has ends."""
        return math.isfinite(self.stderr)

    def interval(self, confidence: float = CONFIDENCE) -> Interval:
        """Where the true mean lies, from Student's t-distribution with n - 1 degrees of freedom."""
        half = float(stdtrit(self.n - 1, 0.5 + confidence / 2)) * self.stderr
        return Interval(self.mean - half, self.mean + half)

    def share_interval(self, confidence: float = CONFIDENCE) -> Interval:
        """The same for a share of right answers: the exact one where all of the n were right, or wrong."""
        if self.mean in (0.0, 1.0):
            return exact_share(round(self.mean * self.n), self.n, confidence)
        return self.interval(confidence)


def column_of(values: Tensor | Sequence[float]) -> Tensor:
    """``(n,)`` float64: one value per independent unit.

    Raises:
        DataError: as :meth:`Estimate.over`.
    """
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


@dataclass(frozen=True, kw_only=True)
class Effect:
    """A mean over seeds, and what is known of it."""

    mean: float | None
    """The effect; None where the quantity does not exist (no such positions, no variation to correlate)."""

    interval: Interval | None
    """95 % t-interval over seeds; None with one seed."""

    corrected: Interval | None
    """The same, widened for the number of tests that it is one of."""

    seeds: int
    """How many."""

    @classmethod
    def over(cls, values: Sequence[float | None], *, tests: int = 1) -> "Effect":
        """Of one value a seed, None where it does not exist, being one of `tests`."""
        known = [value for value in values if value is not None]
        if not known or len(known) < len(values):
            return cls(mean=None, interval=None, corrected=None, seeds=len(values))
        if len(known) == 1:
            return cls(mean=known[0], interval=None, corrected=None, seeds=1)
        estimate = Estimate.over(known)
        widened = estimate.interval(corrected(CONFIDENCE, tests))
        return cls(mean=estimate.mean, interval=estimate.interval(), corrected=widened, seeds=estimate.n)


def to_plain(value: Any, *, leave_out: tuple[str, ...] = ()) -> Any:
    """Dataclasses and estimates to dictionaries by field, sequences to lists, what is not finite to None.

    An :class:`Estimate` also gets the ends of its 95% interval, `low` and `high`.

    Args:
        value: numbers, strings, enums, dataclasses, mappings and sequences of them.
        leave_out: fields of `value` itself that are not wanted.
    """
    if is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value) if field.name not in leave_out]
        return {name: to_plain(getattr(value, name)) for name in names}
    if isinstance(value, Estimate):
        return to_plain(value._asdict() | value.interval()._asdict())
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Interval):
        return to_plain(value._asdict())
    if isinstance(value, Mapping):
        return {str(name): to_plain(entry) for name, entry in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(entry) for entry in value]
    assert value is None or isinstance(value, int | str), type(value)
    return value


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
