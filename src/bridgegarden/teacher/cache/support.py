"""Which tokens of the teacher's distribution are kept at a position."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from bridgegarden.errors import ConfigError
from bridgegarden.objective.support import TeacherSignal

MOST_SLOTS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Support:
    """The likeliest tokens and the tail, or draws from the teacher."""

    kind: Literal["topk", "mass", "sampled"] = "topk"
    """``topk``: the `k` likeliest tokens. ``mass``: as few of them as hold `mass`, `k` at most. ``sampled``: `k` draws,
    unbiased for the forward KL at temperature 1 and of no use for anything else."""
    k: int = 64
    """Slots per position, >= 1. As large as the vocabulary, it keeps everything."""
    mass: float | None = None
    """Probability that ``mass`` keeps at least, in (0, 1)."""

    def __post_init__(self) -> None:
        if not 1 <= self.k <= MOST_SLOTS:
            raise ConfigError(f"cache: the number of kept tokens must be between 1 and {MOST_SLOTS}, got {self.k}.")
        if (self.mass is not None) != (self.kind == "mass"):
            raise ConfigError(f"cache: a mass belongs to the support 'mass' and to no other; got kind {self.kind!r}.")
        if self.mass is not None and not 0 < self.mass < 1:
            raise ConfigError(f"cache: the mass to keep must be between 0 and 1, both excluded; got {self.mass:g}.")

    def __str__(self) -> str:
        match self.kind:
            case "topk":
                return f"top {self.k}"
            case "mass":
                return f"mass {self.mass:g}, top {self.k} at most"
            case "sampled":
                return f"{self.k} draws"

    def signal(
        self, logits: Tensor, *, vocab_size: int, exponents: Sequence[float], generator: torch.Generator | None
    ) -> TeacherSignal:
        """The signal of ``(N, V)`` logits; `generator` is for draws."""
        if self.kind == "sampled":
            return TeacherSignal.from_samples(logits, self.k, generator=generator, vocab_size=vocab_size)
        signal = TeacherSignal.from_logits(logits, self.k, vocab_size, exponents=exponents)
        return signal if self.mass is None else _least_tokens(signal, self.mass)


def _least_tokens(signal: TeacherSignal, mass: float) -> TeacherSignal:
    """Move what is kept beyond `mass` to the tail; its slots are empty then."""
    assert signal.ids is not None
    assert signal.log_tail is not None
    probabilities = signal.logp.exp()
    before = probabilities.cumsum(-1) - probabilities
    dropped = before >= mass
    dropped[..., 0] = False

    def with_dropped(tail: Tensor, exponent: float) -> Tensor:
        moved = (exponent * signal.logp).masked_fill(~dropped, -math.inf).logsumexp(-1)
        return torch.logaddexp(tail, moved)

    return replace(
        signal,
        ids=signal.ids.masked_fill(dropped, -1),
        logp=signal.logp.masked_fill(dropped, -math.inf),
        log_tail=with_dropped(signal.log_tail, 1.0),
        tail_powers={g: with_dropped(power, g) for g, power in signal.tail_powers.items()},
    )
