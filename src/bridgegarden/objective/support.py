"""The part of the vocabulary a divergence looks at, seen from the teacher and from the student.

A support is a list of cells: some tokens one by one and, where there is more vocabulary than that, one *tail* cell
with all remaining mass, on both sides. The tail is stored as its own logarithm: computed as one minus the kept mass it
would be zero exactly when the teacher is sure.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bridgegarden.errors import ConfigError

ABSENT_LOG_MASS = math.log(1e-10)
"""What a teacher whose vocabulary ends earlier is taken to give, in total, to all tokens that only the student has.

Exactly zero would make every divergence that looks from the student's side infinite. The forward KL feels 1e-10 of it.
"""

_FLOOR = -1e5
"""Stands for ``-inf`` where a product with a zero probability follows."""


@dataclass(frozen=True, kw_only=True)
class TeacherSignal:
    """What the objective needs from the teacher at each position; small enough to keep on disk.

    Three kinds of support: *dense* (`ids` is None: the tokens ``0 .. K-1`` in order), *top-k* (`ids` and a tail), and
    *sampled* (`ids` drawn from the teacher, `weights` their shares, no tail: unbiased for the forward KL; Sparse Logit
    Sampling, arXiv:2503.16870). A slot with the id -1 is empty and has log-probability ``-inf``; slot 0 never is.
    """

    ids: Int[Tensor, "*batch K"] | None
    """Kept token ids, or None when the first K tokens of the vocabulary are kept."""
    logp: Float[Tensor, "*batch K"]
    """Their exact log-probabilities at temperature 1 in nats, normalised over the teacher's whole vocabulary."""
    log_tail: Float[Tensor, "*batch"] | None
    """Log of the remaining mass; None when nothing remains."""
    entropy: Float[Tensor, "*batch"]
    """Exact Shannon entropy at temperature 1 over the teacher's whole vocabulary, nats."""
    argmax: Int[Tensor, "*batch"]
    """The teacher's most likely real token."""
    max_logp: Float[Tensor, "*batch"]
    """Its log-probability."""
    vocab_size: int
    """Size of the real vocabulary, without padding rows of the embedding."""
    weights: Float[Tensor, "*batch K"] | None = None
    """Shares of the draws, for a sampled support."""
    tail_powers: Mapping[float, Float[Tensor, "*batch"]] = field(default_factory=dict)
    """For an exponent g, log of the sum of p^g over the tail: what temperature 1/g and power entropies need."""
    label_logp: Float[Tensor, "*batch"] | None = None
    """Log-probability of the token in the data, which no objective needs: minus its mean is the teacher's own loss. NaN
    where it is not known; None where it is known nowhere."""
    hard_only: Bool[Tensor, "*batch"] | None = None
    """Where too little is known of the teacher to be learnt, so that the soft weight is zero whatever the rule; None
    where that is nowhere."""
    untaught: Bool[Tensor, "*batch"] | None = None
    """Where nothing is learnt at all: as `hard_only`, in a text of the student's own, of which its token is no label;
    None where that is nowhere."""

    @classmethod
    def from_logits(
        cls,
        logits: Float[Tensor, "*batch V"],
        k: int | None = None,
        vocab_size: int | None = None,
        *,
        exponents: Sequence[float] = (),
    ) -> "TeacherSignal":
        """Keep the `k` likeliest tokens and the tail, or everything.

        Args:
            logits: ``(*batch, V)`` of any float type; ``-inf`` for impossible tokens.
            k: how many tokens to keep. None (or at least `vocab_size`) keeps all: dense, exact.
            vocab_size: size of the vocabulary both models share. Mass on ids from there on goes to the tail. The
                width of `logits` by default.
            exponents: store `tail_powers` for these.

        Raises:
            ConfigError: `k` or `vocab_size` out of range.
        """
        width = logits.shape[-1]
        size = width if vocab_size is None else vocab_size
        if not 1 <= size <= width:
            raise ConfigError(f"vocab_size must be between 1 and the width of the logits, {width}; got {vocab_size}.")
        if k is not None and k < 1:
            raise ConfigError(f"top-k support: k must be >= 1, got {k}.")
        if k is not None and k < size:
            return cls._top_k(logits, k, size, exponents)
        logp = _log_softmax(logits)
        tail = logp[..., size:]
        max_logp, argmax = logp[..., :size].max(-1)
        # 0 * -inf would be NaN; the floor is far below what any probability resolves.
        entropy = -torch.einsum("...v,...v->...", logp.exp(), logp.clamp(min=_FLOOR))
        return cls(
            ids=None,
            logp=logp[..., :size],
            log_tail=tail.logsumexp(-1) if size < width else None,
            entropy=entropy,
            argmax=argmax,
            max_logp=max_logp,
            vocab_size=size,
            tail_powers={g: (g * tail).logsumexp(-1) for g in exponents} if size < width else {},
        )

    @classmethod
    def _top_k(cls, logits: Tensor, k: int, size: int, exponents: Sequence[float]) -> "TeacherSignal":
        """Few passes over the vocabulary: everything is taken relative to the least logit that is kept.

        Every term of the tail is then at most 1, and nothing is subtracted to find it.
        """
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        kept, ids = logits[..., :size].topk(k, dim=-1)
        least = kept[..., -1:].clamp(min=_FLOOR)
        relative = (logits - least).clamp_(min=_FLOOR)

        def tail_terms(exponent: float) -> Tensor:
            terms = (relative if exponent == 1.0 else exponent * relative).exp()
            return terms.scatter_(-1, ids, 0.0)

        terms = tail_terms(1.0)
        tail = least.squeeze(-1) + terms.sum(-1).log()
        normaliser = torch.logaddexp(kept.logsumexp(-1), tail)
        logp = kept - normaliser.unsqueeze(-1)
        offset = least.squeeze(-1) - normaliser
        # Sum of p log p over the tail, with log p = relative + offset.
        in_tail = offset.exp() * torch.einsum("...v,...v->...", terms, relative) + (tail - normaliser).exp() * offset
        return cls(
            ids=ids,
            logp=logp,
            log_tail=tail - normaliser,
            entropy=-(logp.exp() * logp.clamp(min=_FLOOR)).sum(-1) - in_tail,
            argmax=ids[..., 0],
            max_logp=logp[..., 0],
            vocab_size=size,
            tail_powers={g: tail_terms(g).sum(-1).log() + g * offset for g in exponents},
        )

    @classmethod
    def from_samples(
        cls,
        logits: Float[Tensor, "*batch V"],
        draws: int,
        *,
        generator: torch.Generator | None = None,
        vocab_size: int | None = None,
    ) -> "TeacherSignal":
        """Keep `draws` independent draws from the teacher, each with weight 1 / `draws`.

        The forward KL over them is an unbiased estimate of the dense one, in value and gradient.
        """
        dense = cls.from_logits(logits, vocab_size=vocab_size)
        flat = dense.logp.reshape(-1, dense.logp.shape[-1])
        ids = torch.multinomial(flat.exp(), draws, replacement=True, generator=generator)
        ids = ids.reshape(*dense.logp.shape[:-1], draws)
        return cls(
            ids=ids,
            logp=dense.logp.gather(-1, ids),
            log_tail=None,
            entropy=dense.entropy,
            argmax=dense.argmax,
            max_logp=dense.max_logp,
            vocab_size=dense.vocab_size,
            weights=torch.full_like(ids, 1 / draws, dtype=dense.logp.dtype),
        )

    @property
    def captured_mass(self) -> Float[Tensor, "*batch"]:
        """Probability the teacher gives to the kept tokens; 1 when the support has no tail."""
        return torch.ones_like(self.entropy) if self.log_tail is None else self.logp.exp().sum(-1)

    def cells(self, temperature: float = 1.0) -> Float[Tensor, "*batch C"]:
        """Log-probabilities of the support's cells at `temperature`, tail last; they sum to one.

        Raises:
            ConfigError: a tail at a temperature whose power sum was not stored.
        """
        if temperature == 1.0:
            return _with_tail(self.logp, self.log_tail)
        tail = None if self.log_tail is None else self._tail_power(1.0 / temperature)
        return _with_tail(self.logp / temperature, tail).log_softmax(-1)

    def log_power_sum(self, exponent: float) -> Float[Tensor, "*batch"]:
        """Log of the sum of p^exponent over the whole vocabulary."""
        kept = (exponent * self.logp).logsumexp(-1)
        return kept if self.log_tail is None else torch.logaddexp(kept, self._tail_power(exponent))

    def __getitem__(self, index: slice | Tensor) -> "TeacherSignal":
        """The same signal at some of its positions (the first batch dimension)."""

        def at(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[index]

        return TeacherSignal(
            ids=at(self.ids),
            logp=self.logp[index],
            log_tail=at(self.log_tail),
            entropy=self.entropy[index],
            argmax=self.argmax[index],
            max_logp=self.max_logp[index],
            vocab_size=self.vocab_size,
            weights=at(self.weights),
            tail_powers={g: power[index] for g, power in self.tail_powers.items()},
            label_logp=at(self.label_logp),
            hard_only=at(self.hard_only),
            untaught=at(self.untaught),
        )

    def with_labels(self, logits: Float[Tensor, "*batch V"], labels: Int[Tensor, "*batch"]) -> "TeacherSignal":
        """The same, knowing the log-probability of `labels`; `logits` are those that it was made from."""
        # From the likeliest token's, so that nothing is summed over the vocabulary again.
        ids = torch.stack([labels, self.argmax], -1)
        of_label, highest = logits.gather(-1, ids).to(self.max_logp.dtype).unbind(-1)
        return replace(self, label_logp=self.max_logp + of_label - highest)

    def logp_of(self, tokens: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Log-probability of `tokens`: as kept, or else that of the token in the data, if these are such.

        NaN where it is neither kept nor known.

        Raises:
            ConfigError: not every token is kept, and of tokens in the data nothing is known.
        """
        if self.ids is None:
            return self.logp.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        if self.label_logp is None:
            raise ConfigError(
                "teacher signal: a rule asks for the log-probability of the token in the data, which this teacher does "
                "not give beside the kept tokens. Keep the whole vocabulary, or make the signal with_labels()."
            )
        found = (self.ids == tokens.unsqueeze(-1)) & (self.logp > -math.inf)
        kept = self.logp.masked_fill(~found, -math.inf).amax(-1)
        return torch.where(found.any(-1), kept, self.label_logp.to(kept.dtype))

    def _tail_power(self, exponent: float) -> Tensor:
        if exponent not in self.tail_powers:
            raise ConfigError(
                f"teacher signal: the tail's sum of p^{exponent:g} was not stored (stored exponents: "
                f"{sorted(self.tail_powers) or 'none'}), but the loss temperature, the sharpening or the power entropy "
                f"of this objective needs it. Make the signal with exponents=({exponent:g},), or keep the whole "
                "vocabulary."
            )
        return self.tail_powers[exponent]


@dataclass(frozen=True)
class StudentSupport:
    """What the objective needs from the student at each position: logits on the teacher's support, and the rest.

    The rest is the logsumexp of the logits *outside* the support, found without subtracting anything, so that the
    student's tail keeps its digits however sure the student is.
    """

    logits: Float[Tensor, "*batch K"]
    """Raw logits at the support's tokens; ``-inf`` in empty slots."""
    log_rest: Float[Tensor, "*batch"] | None
    """Logsumexp of all other logits; None when there are no others."""
    target_logit: Float[Tensor, "*batch"]
    """Raw logit of the hard target."""
    log_normaliser: Float[Tensor, "*batch"]
    """Logsumexp of all logits."""
    tempered_log_rest: Float[Tensor, "*batch"] | None = None
    """Logsumexp of all other logits divided by the loss temperature; needed where that is not 1."""

    def cells(self, temperature: float = 1.0) -> Float[Tensor, "*batch C"]:
        """Log-probabilities of the support's cells at `temperature`, tail last; they sum to one."""
        if temperature == 1.0:
            return _with_tail(self.logits, self.log_rest) - self.log_normaliser.unsqueeze(-1)
        return _with_tail(self.logits / temperature, self.tempered_log_rest).log_softmax(-1)

    def logp_at_support(self) -> Float[Tensor, "*batch K"]:
        """Log-probabilities of the support's tokens at temperature 1, whether or not they are distinct."""
        return self.logits - self.log_normaliser.unsqueeze(-1)

    def target_logp(self) -> Float[Tensor, "*batch"]:
        """Log-probability of the hard target at temperature 1."""
        return self.target_logit - self.log_normaliser

    def detach(self) -> "StudentSupport":
        """The same without a gradient."""
        return self._map(Tensor.detach)

    def __getitem__(self, index: slice) -> "StudentSupport":
        """The same at some of its positions (the first batch dimension)."""
        return self._map(lambda values: values[index])

    def _map(self, function: Callable[[Tensor], Tensor]) -> "StudentSupport":
        rest, tempered = self.log_rest, self.tempered_log_rest
        return StudentSupport(
            function(self.logits),
            None if rest is None else function(rest),
            function(self.target_logit),
            function(self.log_normaliser),
            None if tempered is None else function(tempered),
        )


def shared_cells(
    signal: TeacherSignal, student: StudentSupport, teacher_temperature: float = 1.0, student_temperature: float = 1.0
) -> tuple[Float[Tensor, "*batch C"], Float[Tensor, "*batch C"]]:
    """Log-probabilities of teacher and student over the same cells, in one dtype; each sums to one.

    Where one side has a tail and the other nothing beyond the kept tokens, that one is taken to put
    :data:`ABSENT_LOG_MASS` there.

    Raises:
        ConfigError: the signal is sampled, whose draws are no cells; or a tail at a temperature that was not stored.
    """
    if signal.weights is not None:
        raise ConfigError(
            "objective: a rule compares whole distributions, and a sampled teacher signal holds draws, which may "
            "repeat and leave out the rest. Use a top-k signal."
        )
    teacher, other = signal.cells(teacher_temperature), student.cells(student_temperature)
    dtype = torch.promote_types(teacher.dtype, other.dtype)
    teacher, other = teacher.to(dtype), other.to(dtype)
    if teacher.shape[-1] < other.shape[-1]:
        teacher = torch.cat([teacher, torch.full_like(teacher[..., :1], ABSENT_LOG_MASS)], -1)
    elif teacher.shape[-1] > other.shape[-1]:
        other = torch.cat([other, torch.full_like(other[..., :1], ABSENT_LOG_MASS)], -1)
    return teacher, other


class Bounds(NamedTuple):
    """What a number lies between, at each position."""

    least: Float[Tensor, "*batch"]
    most: Float[Tensor, "*batch"]


def acceptance_bounds(signal: TeacherSignal, student: StudentSupport) -> Bounds:
    r"""Between what the teacher's acceptance of the student's next token lies; exact where nothing is left out.

    .. math:: \sum_{k} \min(p_k, q_k) \; \le \; \sum_a \min(p_a, q_a) = 1 - TV(p, q)
              \; \le \; \sum_{k} \min(p_k, q_k) + \min(p_{tail}, q_{tail})

    over the kept tokens k: what both have in the tail may be on the same tokens, or on none. Merging tokens into a cell
    never brings two distributions farther apart, so the upper bound is what their cells overlap.

    Returns:
        ``(*batch,)`` in [0, 1], without gradient; NaN for a sampled signal, which says nothing of it.
    """
    with torch.no_grad():
        if signal.weights is not None:
            unknown = torch.full_like(signal.entropy, torch.nan)
            return Bounds(unknown, unknown)
        shared = torch.minimum(*shared_cells(signal, student)).exp_()
        kept = signal.logp.shape[-1]
        least = shared[..., :kept].sum(-1)
        return Bounds(least, least if shared.shape[-1] == kept else least + shared[..., kept])


def _with_tail(cells: Tensor, tail: Tensor | None) -> Tensor:
    return cells if tail is None else torch.cat([cells, tail.unsqueeze(-1)], -1)


def _log_softmax(logits: Tensor) -> Tensor:
    """In float32, or float64 where the logits are."""
    return torch.log_softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))
