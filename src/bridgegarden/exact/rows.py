"""Next-token distributions as float64 rows: checked where they come in, and normalised to the last digit."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bridgegarden.errors import DataError

CELLS_AT_ONCE = 1 << 18
"""Table cells worked on at a time: a few arrays of them stay in a processor's cache."""

FLOAT32_SLACK = 1e-4
"""How far the log-normaliser of a float32 row may be from zero."""

FLOAT64_SLACK = 1e-8
"""How far the log-normaliser of a float64 row may be from zero."""


def normalised(log_probs: Tensor, name: Callable[[int], str]) -> Tensor:
    r"""`log_probs` in float64 with :math:`\log \sum_a e^{x_a}` = 0 exactly, so that identities close in float64.

    Args:
        log_probs: ``(n, V)`` nats, ``-inf`` for no mass.
        name: says whose row it is, for the message.

    Raises:
        DataError: a row has NaN, or does not sum to one within the precision of its type.
    """
    rows = log_probs.detach().to("cpu", torch.float64)
    excess = rows.logsumexp(-1, keepdim=True)
    slack = FLOAT64_SLACK if log_probs.dtype == torch.float64 else FLOAT32_SLACK
    # Written so that NaN is not good either.
    bad = ~(excess.abs() <= slack).squeeze(-1)
    if bad.any():
        first = int(bad.nonzero()[0])
        problem = "contains NaN" if rows[first].isnan().any() else f"sums to {excess[first].exp().item():.6g}"
        raise DataError(
            f"{name(first)}: the next-token distribution {problem}; expected log-probabilities that sum to 1 after "
            "exp. Pass logits through log_softmax."
        )
    return rows - excess


def chunks(rows: Tensor, vocab_size: int) -> Iterator[Tensor]:
    """`rows` in pieces of about `CELLS_AT_ONCE` cells."""
    return iter(rows.split(max(1, CELLS_AT_ONCE // vocab_size)))


def expectation(prob: Tensor, values: Tensor, finite: bool) -> Tensor:
    """``sum_a prob_a values_a`` over the last axis, where no mass on an infinite value counts for nothing.

    `finite` says that all values are known to be finite, which is cheaper to know than to find out.
    """
    if finite:
        return torch.einsum("na,na->n", prob, values)
    return torch.where(prob > 0, prob * values, 0.0).sum(-1)
