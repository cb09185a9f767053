"""How sure a number is: means, shares, differences, rank correlations, each with its interval.

Means over independent units have Student's t intervals, shares of right answers that never vary the exact binomial one.
Two systems are compared on the same units, so that what they have in common cancels: students on the same prompts by
the mean of their differences (:class:`Estimate`), objectives on the same seeds likewise (:class:`Effect`), and where
seeds and problems both matter by :func:`paired_difference`. What has no formula, such as a rank correlation over
positions that come in clusters, is resampled by whole clusters (:class:`Bootstrapped`).
"""

from bridgegarden.statistics.intervals import (
    CONFIDENCE,
    ROUNDING,
    Decision,
    Effect,
    Estimate,
    Interval,
    corrected,
    decide,
    exact_share,
    holm,
    holm_adjusted,
    pooled,
    to_plain,
)
from bridgegarden.statistics.paired import (
    PairedDifference,
    Scores,
    SeedSpread,
    paired_difference,
    unvaried_interval,
    unvaried_p,
)
from bridgegarden.statistics.ranks import Bootstrapped, auc, resampled, spearman, weighted_mean

__all__ = [
    "CONFIDENCE",
    "ROUNDING",
    "Bootstrapped",
    "Decision",
    "Effect",
    "Estimate",
    "Interval",
    "PairedDifference",
    "Scores",
    "SeedSpread",
    "auc",
    "corrected",
    "decide",
    "exact_share",
    "holm",
    "holm_adjusted",
    "paired_difference",
    "pooled",
    "resampled",
    "spearman",
    "to_plain",
    "unvaried_interval",
    "unvaried_p",
    "weighted_mean",
]
