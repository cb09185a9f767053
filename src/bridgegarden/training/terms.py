"""Averages of the objective's terms over supervised positions, for the log."""

import math

import torch
from torch import Tensor

from bridgegarden.objective.fused import FusedLoss

_NAMES = ("loss", "soft_loss", "hard_loss", "risk_loss", "soft_weight", "teacher_entropy", "captured_mass")
"""Terms, each of which has a sum over positions."""
_COUNTS = ("positions", "with_risk", "student_entropy", "student_hits", "measured", "tokens")
"""What is counted behind them."""


class TermSums:
    """Sums over positions since the last reset, kept on the device so that adding does not wait for it.

    Means are over *positions*, whatever the batches they came in: a batch with twice the tokens weighs twice.
    """

    def __init__(self) -> None:
        self._sums: Tensor | None = None

    def add(self, fused: FusedLoss, tokens: int) -> None:
        """Add one batch.

        Args:
            fused: its loss and terms.
            tokens: how many tokens, supervised or not, the student read.
        """
        terms = fused.terms
        columns = (
            *(terms.total, terms.soft, terms.hard, terms.risk, terms.soft_weight),
            *(fused.teacher_entropy, fused.captured_mass),
        )
        sums = [column.sum(dtype=torch.float64) for column in columns]
        entropy, hit = fused.student_entropy, fused.student_hit
        count = sums[0].new_tensor(len(terms.total))
        sums += [
            count,
            terms.has_risk.sum(dtype=torch.float64),
            sums[0].new_zeros(()) if entropy is None else entropy.sum(dtype=torch.float64),
            sums[0].new_zeros(()) if hit is None else hit.sum(dtype=torch.float64),
            torch.zeros_like(count) if entropy is None else count,
            sums[0].new_tensor(tokens),
        ]
        batch = torch.stack(sums)
        self._sums = batch if self._sums is None else self._sums + batch

    def reset(self) -> Tensor | None:
        """Forget everything; returns the sums, or None when there were none."""
        sums, self._sums = self._sums, None
        return sums

    def tolist(self) -> list[float] | None:
        """The sums as plain numbers, None when there are none; nothing is forgotten."""
        return None if self._sums is None else self._sums.tolist()

    def restore(self, sums: list[float] | None, device: torch.device) -> bool:
        """Go on from what :meth:`tolist` gave; False, and from nothing, where those are other sums than these."""
        known = sums is None or len(sums) == len(_NAMES) + len(_COUNTS)
        self._sums = None if sums is None or not known else torch.tensor(sums, dtype=torch.float64, device=device)
        return known


def term_means(sums: Tensor) -> dict[str, float]:
    """Means by name, from (possibly gathered) sums; nats, except the two shares.

    ``risk_share`` is the share of positions that had a risk term. Terms nobody measured are left out.
    """
    values = sums.tolist()
    count, with_risk, entropy, hits, measured, tokens = values[len(_NAMES) :]
    means = {name: value / count if count else math.nan for name, value in zip(_NAMES, values, strict=False)}
    means["risk_share"] = with_risk / count if count else math.nan
    if measured:
        means["student_entropy"] = means["entropy"] = entropy / measured
        means["mean_token_accuracy"] = hits / measured
    means["supervised_tokens"] = count
    means["tokens"] = tokens
    return means
