"""Following texts under several policies at once, token by token, without ever holding ``(N, T, V)`` numbers."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bridgegarden.policy import Decoding


class Visit(NamedTuple):
    """The M texts that are still going on, before their next token."""

    step: int
    """How many tokens were appended before, the same for all."""
    rows: Tensor
    """``(M,)`` which of the texts these are, on the CPU."""
    logp: tuple[Tensor, ...]
    """``(M, V)`` log-probabilities at temperature 1, of each decoding, all on the first one's device."""
    tokens: Tensor
    """``(M,)`` the tokens that come next, on the CPU."""


def walk(
    decodings: Sequence[Decoding],
    at: Tensor,
    *,
    limits: Tensor,
    uniforms: Tensor | None = None,
    given: Tensor | None = None,
    temperature: float = 1.0,
) -> Iterator[Visit]:
    """Follow N texts until each has ended or has had its limit of visits.

    The first decoding writes: tokens are drawn from it at `temperature` with `uniforms`, or are those `given`. Texts
    that have ended are dropped from the batch.

    Args:
        decodings: of the same texts, one for each policy.
        at: ``(N,)`` the row of the decodings from which each text starts (rows may be shared).
        limits: ``(N,)`` most visits of each text.
        uniforms: ``(N, T)`` in [0, 1); what text i draws at step t is a function of ``uniforms[i, t]``.
        given: ``(N, T)`` token ids, instead of `uniforms`.
        temperature: of what is drawn; 0 takes the likeliest token.
    """
    rows = torch.nonzero(limits > 0).squeeze(1)
    at, step = at[rows], 0
    going = ~decodings[0].ended().cpu()[at]
    rows, at = rows[going], at[going]
    while len(rows):
        lead = decodings[0].log_probs()
        logp = (lead, *(decoding.log_probs().to(lead.device) for decoding in decodings[1:]))
        if not _is_identity(at, len(lead)):
            logp = tuple(part[at.to(lead.device)] for part in logp)
        if given is not None:
            tokens = given[rows, step]
        else:
            assert uniforms is not None
            tokens = draw(tempered(logp[0], temperature), uniforms[rows, step]).cpu()
        yield Visit(step, rows, logp, tokens)
        del lead, logp
        step += 1
        on = limits[rows] > step
        rows, at, tokens = rows[on], at[on], tokens[on]
        if not len(rows):
            return
        decodings = [decoding.extend(at, tokens) for decoding in decodings]
        at = torch.nonzero(~decodings[0].ended().cpu()).squeeze(1)
        rows = rows[at]


def tempered(logp: Tensor, temperature: float) -> Tensor:
    """Log-probabilities ``(..., V)`` at `temperature`, from those at 1; at 0 the first likeliest token has it all."""
    if temperature == 1.0:
        return logp
    if temperature == 0.0:
        likeliest = logp.argmax(-1, keepdim=True)
        return torch.full_like(logp, -torch.inf).scatter_(-1, likeliest, 0.0)
    return (logp / temperature).log_softmax(-1)


def draw(logp: Tensor, uniforms: Tensor) -> Tensor:
    """The token at which the cumulative probability passes each uniform number: ``(M, V)`` and ``(M,)`` to ``(M,)``.

    Summed in float64: in float32 the last of 150,000 tokens would be drawn with the wrong probability.
    """
    return draw_by_weight(logp.exp(), uniforms)


def draw_by_weight(weights: Tensor, uniforms: Tensor) -> Tensor:
    """As `draw`, from weights >= 0 that need not sum to one."""
    cumulative = weights.double().cumsum(-1)
    total = cumulative[:, -1]
    reached = torch.minimum(uniforms.to(total) * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, reached.unsqueeze(-1), right=True).squeeze(-1)


def _is_identity(at: Tensor, count: int) -> bool:
    return len(at) == count and bool((at == torch.arange(count)).all())
