"""Sums of p^g over the tail in two bytes: where a sum lies between the least and the most that its mass allows."""

from collections.abc import Sequence

import numpy as np

LEVELS = 65_535


class TailPowers:
    r"""Encodes the logs of :math:`\sum_{i \in tail} p_i^g` of positions whose tail has a known mass t.

    All of t in one token gives t^g; t spread evenly over n tokens gives n^(1 - g) t^g. The sum lies between these,
    whichever is the larger, so its log is off by at most \|1 - g\| log(n) / 131,070 nats: 9e-5 for n = 256,000.
    """

    def __init__(self, exponents: Sequence[float], tokens: int) -> None:
        """
        Args:
            exponents: g of every sum, > 0.
            tokens: n, at most so many tokens are in the tail.
        """
        self.exponents = np.asarray(exponents, dtype=np.float64)
        # With one token, or g = 1, both ends are the same, and every code stands for it.
        self.widths = (1 - self.exponents) * np.log(max(tokens, 2))

    def encode(self, powers: np.ndarray, log_tail: np.ndarray) -> np.ndarray:
        """Codes ``(N, E)`` of the sums `powers` ``(N, E)`` and the tail's log mass ``(N,)``, both in nats."""
        with np.errstate(invalid="ignore"):  # -inf minus -inf, where nothing is in the tail
            above = powers.astype(np.float64) - self._least(log_tail)
        share = np.divide(above, self.widths, out=np.zeros_like(above), where=self.widths != 0)
        return np.rint(LEVELS * np.clip(np.nan_to_num(share), 0.0, 1.0)).astype("<u2")

    def decode(self, codes: np.ndarray, log_tail: np.ndarray) -> np.ndarray:
        """The sums ``(N, E)``, float32 nats."""
        return (self._least(log_tail) + codes * (self.widths / LEVELS)).astype(np.float32)

    def _least(self, log_tail: np.ndarray) -> np.ndarray:
        """Log of t^g."""
        return self.exponents * log_tail.astype(np.float64)[:, None]
