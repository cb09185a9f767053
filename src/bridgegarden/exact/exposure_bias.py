r"""Exposure bias: how much more a student loses on its own prefixes than on its teacher's.

.. math:: L_{d_\theta} - L_{d_T} = \sum_t E_{s_t \sim d_\theta} \sum_a q(a|s_t) \, \kappa(a|s_t), \qquad
          L_d = E_{y \sim d} \sum_t \ell(s_t)

The right-hand side charges every position of the student's own texts with the kappa of the tokens it would take there
(the performance-difference identity; PAPER: section 3). `bridgegarden.diagnostics.exposure_bias` estimates both sides.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from bridgegarden.exact.rows import chunks
from bridgegarden.exact.unroll import Unrolled


class Visitation(NamedTuple):
    """Where the texts of one writer go."""

    visits: Tensor
    """``(M,)``: for every row of every layer, in order, the probability of being there at that position."""

    endings: Tensor
    """``(S,)``: probability that a text is over at each row, be it ended or cut at the horizon."""


def visitation(unrolled: Unrolled, prob: Tensor, allowed: Tensor | None = None) -> Visitation:
    """Follow all texts at once, position by position.

    Args:
        unrolled: the rows.
        prob: ``(S, V)`` what the writer does.
        allowed: ``(states, V)`` bool by state of the process: texts that take another token are dropped.
    """
    arrived = torch.zeros_like(unrolled.loss)
    arrived[torch.cat(unrolled.layers[:1])] = 1.0
    endings = torch.zeros_like(unrolled.loss)
    visits: list[Tensor] = []
    for layer in unrolled.layers:
        visits.append(arrived[layer])
        following = torch.zeros_like(unrolled.loss)
        for rows in chunks(layer[visits[-1] > 0], prob.shape[1]):
            flow = prob[rows] * arrived[rows].unsqueeze(-1)
            if allowed is not None:
                flow *= allowed[unrolled.state[rows]]
            following += torch.bincount(unrolled.following[rows].flatten(), flow.flatten(), minlength=len(arrived))
        endings += torch.where(unrolled.over, following, 0.0)
        arrived = torch.where(unrolled.over, 0.0, following)
    return Visitation(torch.cat(visits), endings + arrived)


def weighted(visits: Tensor, values: Tensor) -> Tensor:
    """``visits * values``, where what is never visited counts for nothing, be it infinite."""
    return torch.where(visits > 0, visits * values, 0.0)
