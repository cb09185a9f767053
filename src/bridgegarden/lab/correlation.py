"""Rank correlation where observations weigh differently."""

import torch
from torch import Tensor


def weighted_spearman(first: Tensor, second: Tensor, weight: Tensor) -> float | None:
    r"""Spearman's correlation of two columns, each observation counted `weight` times.

    .. math:: R_i = \sum_{j: x_j < x_i} w_j + \tfrac12 \sum_{j: x_j = x_i} w_j

    Ranks are mid-ranks of the weighted sample, the result is their weighted Pearson correlation: for whole weights,
    that of a sample in which every observation is repeated so often. Values within 1e-12 of the largest magnitude of
    each other count as equal, so that rounding makes no ranks.

    Args:
        first: ``(N,)``.
        second: ``(N,)``.
        weight: ``(N,)`` > 0.

    Returns:
        From -1 to 1; None where a column is the same everywhere.
    """
    one, other = _ranks(first, weight), _ranks(second, weight)
    if one.min() == one.max() or other.min() == other.max():
        return None
    share = weight / weight.sum()
    one, other = one - share @ one, other - share @ other
    spread = (share @ one.square()) * (share @ other.square())
    return ((share * one) @ other / spread.sqrt()).clamp(-1, 1).item()


def _ranks(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted mid-ranks, exactly equal for equal values."""
    ordered, order = values.sort()
    gap = 1e-12 * values.abs().max()
    group = torch.cat([torch.zeros(1, dtype=torch.long), (ordered.diff() > gap).long()]).cumsum(0)
    mass = torch.zeros(int(group[-1]) + 1, dtype=weight.dtype).index_add_(0, group, weight[order])
    middle = mass.cumsum(0) - mass / 2
    ranks = torch.empty_like(middle[group])
    ranks[order] = middle[group]
    return ranks
