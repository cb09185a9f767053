r"""Q and kappa by dynamic programming, from the end of a text to its beginning, and visitation the other way.

.. math:: Q(s,a) = \sum_{s'} \Pr(s' | s, a) \, J(s'), \qquad
          J(s) = \ell(s) + \bar Q(s), \qquad
          \bar Q(s) = \sum_a p(a|s) \, Q(s,a), \qquad
          \kappa(a|s) = Q(s,a) - \bar Q(s)

Q(s,a) is the summed loss that the student is expected to have from [s,a] on when the *teacher* goes on writing; the
loss at s itself is in neither Q. A text stops at the horizon, so Q depends on how many tokens are left, but only where
the horizon can cut a text off: where the longest text that the teacher can write from every token's state fits, all
positions of a state share one node. (PAPER: section 3, the one-step override policy.) With the visitation of a writer,

.. math:: L_{d_\theta} - L_{d_T} = \sum_t E_{s_t \sim d_\theta} \sum_a q(a|s_t) \, \kappa(a|s_t), \qquad
          L_d = E_{y \sim d} \sum_t \ell(s_t)

The right-hand side charges every position of the student's own texts with the kappa of the tokens it would take there
(the performance-difference identity; PAPER: section 3). `bridgegarden.diagnostics` estimates the same quantities.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from bridgegarden.exact.tabular import chunks, expectation
from bridgegarden.exact.unroll import Unrolled


@dataclass(frozen=True, kw_only=True, eq=False)
class Nodes:
    """A row and, where it matters, the tokens left: what has a Q of its own. In the order of the earliest position."""

    row: Tensor
    """``(N,)`` int64."""

    left: Tensor
    """``(N,)`` int64: tokens left, or the most that could matter if that is fewer."""

    visit_position: Tensor
    """``(M,)`` int64: for every row of every layer, in order, the position."""

    visit_row: Tensor
    """``(M,)`` int64: the same for the row."""

    visit_node: Tensor
    """``(M,)`` int64: the same for the node."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CostToGo:
    """J for every row, as it changes with the tokens left: kept as changes, since most rows change once."""

    rows: tuple[Tensor, ...]
    """Element c: the rows whose J is not the same with c + 1 tokens left as with c."""

    values: tuple[Tensor, ...]
    """Their J with c + 1 tokens left, nats."""

    @cached_property
    def finite(self) -> bool:
        """Whether no J is infinite."""
        return all(bool(values.isfinite().all()) for values in self.values)


def merge(unrolled: Unrolled, longest: Tensor) -> Nodes:
    """The nodes: rows of all positions, those with equal Q taken together.

    Args:
        unrolled: the rows.
        longest: what `longest_texts` gave for them.
    """
    horizon = unrolled.world.process.horizon
    position = torch.cat([torch.full_like(rows, t) for t, rows in enumerate(unrolled.layers)])
    row = torch.cat(unrolled.layers)
    most = torch.zeros_like(longest)
    for rows in chunks(row.unique(), unrolled.following.shape[1]):
        most[rows] = 1 + longest[unrolled.following[rows]].amax(-1)
    left = torch.minimum(horizon - position, most[row])
    # More tokens left come first: that is the order of the texts.
    key, node = torch.unique((horizon - left) * len(longest) + row, return_inverse=True)
    return Nodes(
        row=key % len(longest),
        left=horizon - key // len(longest),
        visit_position=position,
        visit_row=row,
        visit_node=node,
    )


def longest_texts(unrolled: Unrolled) -> Tensor:
    """``(S,)`` int64: most tokens that the teacher can still write from each row, at most the horizon.

    Where the teacher can come back to a row it is the horizon, and it may be for rows that lead there: too much only
    means that fewer positions share a node.
    """
    horizon = unrolled.world.process.horizon
    last = torch.zeros_like(unrolled.state)
    for position, rows in enumerate(unrolled.layers):
        last[rows] = position
    visited = torch.cat(unrolled.layers).unique()
    # Latest rows first: one sweep settles all that lead into no cycle, and a second one finds those that do.
    order = [group for _, group in _grouped(-last[visited], visited)]
    longest = torch.zeros_like(last)
    sweep = grew = 1
    while grew:
        grew = 0
        for rows in (piece for group in order for piece in chunks(group, unrolled.following.shape[1])):
            after = longest[unrolled.following[rows]].masked_fill_(unrolled.teacher[rows] == 0, 0)
            new = (1 + after.amax(-1)).clamp_(max=horizon)
            larger = new > longest[rows]
            grew += int(larger.sum())
            longest[rows[larger]] = new[larger] if sweep == 1 else horizon
        sweep += 1
    return longest


def cost_to_go(unrolled: Unrolled, nodes: Nodes, longest: Tensor) -> CostToGo:
    """J by dynamic programming, from few tokens left to many, each row only as often as its J changes."""
    left = torch.minimum(unrolled.world.process.horizon - nodes.visit_position, longest[nodes.visit_row])
    key = torch.unique(left * len(longest) + nodes.visit_row)
    changing: dict[int, Tensor] = dict(_grouped(key // len(longest), key % len(longest)))
    current = torch.zeros_like(unrolled.loss)
    all_rows, all_values = [], []
    for tokens_left in range(1, int(left.max()) + 1):
        finite = bool(current.isfinite().all())
        rows = changing.get(tokens_left, torch.empty(0, dtype=torch.long))
        parts = [
            unrolled.loss[piece] + expectation(unrolled.teacher[piece], current[unrolled.following[piece]], finite)
            for piece in chunks(rows, unrolled.following.shape[1])
        ]
        current[rows] = torch.cat(parts)
        all_rows.append(rows)
        all_values.append(current[rows])
    return CostToGo(rows=tuple(all_rows), values=tuple(all_values))


def q_rows(unrolled: Unrolled, nodes: Nodes, cost: CostToGo, which: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Q(s, .) of the nodes `which`, in pieces: places in `which`, ``(n,)``, and ``(n, V)`` nats."""
    current = torch.zeros_like(unrolled.loss)
    done = 0
    for tokens_left, group in _grouped(nodes.left[which], torch.arange(len(which))):
        while done < min(tokens_left - 1, len(cost.rows)):
            current[cost.rows[done]] = cost.values[done]
            done += 1
        for piece in chunks(group, unrolled.following.shape[1]):
            yield piece, current[unrolled.following[nodes.row[which[piece]]]]


def _grouped(keys: Tensor, values: Tensor) -> Iterator[tuple[int, Tensor]]:
    """`values` by key, keys ascending."""
    order = torch.argsort(keys, stable=True)
    distinct, counts = torch.unique_consecutive(keys[order], return_counts=True)
    return zip(distinct.tolist(), values[order].split(counts.tolist()), strict=True)


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
