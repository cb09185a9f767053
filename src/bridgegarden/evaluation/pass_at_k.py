"""The chance that one of k answers is right, from n that were drawn."""

import math

from bridgegarden.errors import ConfigError

REPORTED = (1, 5, 10, 100)
"""The k that are reported as far as there are answers enough, beside all of them."""


def pass_at_k(answers: int, right: int, k: int) -> float:
    r"""The unbiased estimate of pass@k for one problem.

    .. math:: \mathrm{pass@}k = 1 - \binom{n - c}{k} \Big/ \binom{n}{k}

    The chance that k of the n answers, drawn without replacement, hold one of the c right ones.
    (The plug-in 1 - (1 - c/n)^k is biased downwards.)

    Args:
        answers: n >= k.
        right: c, from 0 to n.
        k: >= 1.

    Raises:
        ConfigError: k is not from 1 to n.

    References:
        Chen et al., 2021, arXiv:2107.03374, equation 1.
    """
    if not 1 <= k <= answers:
        raise ConfigError(f"pass@{k} needs at least {max(k, 1)} answers to a problem and k >= 1; there are {answers}.")
    assert 0 <= right <= answers
    return 1.0 - math.comb(answers - right, k) / math.comb(answers, k)


def reported_ks(answers: int) -> list[int]:
    """The k to report for so many answers: the usual ones up to there, and all of them."""
    return sorted({k for k in REPORTED if k <= answers} | {answers})
