"""What the student loses when the teacher goes on from [s, a]: one sample of Q(s, a), many of them in a batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bridgegarden.diagnostics.walk import walk
from bridgegarden.objective.divergences import Divergence
from bridgegarden.policy import Decoding


@dataclass(frozen=True, kw_only=True)
class Actions:
    """Tokens to try at each of P prefixes; equal tokens of one round are continued once."""

    shapes: tuple[tuple[int, int], ...]
    """Rounds and tokens a round, for each prefix."""
    prefix: Tensor
    """``(N,)`` the prefix of each continuation."""
    round: Tensor
    """``(N,)`` its round, which decides its random numbers."""
    token: Tensor
    """``(N,)`` the token that is tried."""
    limit: Tensor
    """``(N,)`` prefixes that may still be visited after it."""
    cells: tuple[Tensor, ...]
    """For each prefix ``(rounds, tokens)``: the continuation of each cell, -1 for none."""

    @classmethod
    def of(cls, tokens: Sequence[Tensor], *, limits: Sequence[int]) -> "Actions":
        """From a ``(rounds, tokens)`` table for each prefix (-1: nothing to try) and its limit."""
        rows: list[tuple[int, int, int, int]] = []
        cells = []
        for prefix, (table, limit) in enumerate(zip(tokens, limits, strict=True)):
            cell = torch.full_like(table, -1)
            for number, tried in enumerate(table.tolist()):
                seen: dict[int, int] = {}
                for column, token in enumerate(tried):
                    if token < 0:
                        continue
                    if token not in seen:
                        seen[token] = len(rows)
                        rows.append((prefix, number, token, limit))
                    cell[number, column] = seen[token]
            cells.append(cell)
        prefix, number, token, limit = torch.tensor(rows).reshape(-1, 4).unbind(1)
        shapes = tuple((table.shape[0], table.shape[1]) for table in tokens)
        return cls(shapes=shapes, prefix=prefix, round=number, token=token, limit=limit, cells=tuple(cells))


def continue_from(
    starts: Sequence[Decoding],
    actions: Actions,
    *,
    uniforms: Tensor,
    temperature: float,
    divergence: Divergence,
    max_rows: int,
) -> tuple[list[Tensor], int]:
    """Let the teacher continue every action, and sum the student's loss.

    Args:
        starts: the teacher's and the student's decoding of the P prefixes.
        actions: what to try.
        uniforms: ``(P, rounds, T)``: all actions of a round share their random numbers.
        temperature: of the continuations.
        divergence: D of the loss.
        max_rows: continuations in progress at a time.

    Returns:
        For each prefix ``(rounds, tokens)`` float64 nats, 0 in cells with nothing to try; and the tokens generated.
    """
    total = torch.zeros(len(actions.prefix), dtype=torch.float64)
    generated = 0
    for rows in torch.arange(len(total)).split(max_rows):
        # Where nothing is visited any more, the loss is 0 and no model need be asked.
        rows = rows[actions.limit[rows] > 0]
        if not len(rows):
            continue
        after = [start.extend(actions.prefix[rows], actions.token[rows]) for start in starts]
        for visit in walk(
            after,
            torch.arange(len(rows)),
            limits=actions.limit[rows],
            uniforms=uniforms[actions.prefix[rows], actions.round[rows]],
            temperature=temperature,
        ):
            total[rows[visit.rows]] += divergence(visit.logp[0], visit.logp[1]).double().cpu()
            generated += len(visit.rows)
    found = []
    for cell in actions.cells:
        found.append(torch.where(cell >= 0, total[cell.clamp(min=0)], 0.0) if len(total) else cell.double() * 0)
    return found, generated
