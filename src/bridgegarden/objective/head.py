"""The last layer of a language model: from hidden states to logits and back, all of them or those at chosen ids.

An objective needs few of the student's [N, V] logits: the projection is walked in chunks of positions, and only the
logits at chosen ids and a logsumexp leave a chunk. Everything is exact and differentiable in hidden states, weight and
bias.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from bridgegarden.objective.support import StudentSupport

CHUNK_BYTES, CHUNK_BYTES_GPU = 128 * 2**20, 512 * 2**20
"""Size of one chunk of float32 logits on a CPU, and elsewhere where the free memory is not known; a handful of such
buffers is alive at a time.

A GPU needs more: below some hundred positions it waits for the CPU to launch kernels, and reads and writes the weight's
gradient too often: docs/benchmarks.md has time and memory of several sizes on an H200.
"""
SMALLEST_CHUNK, LARGEST_CHUNK = 64 * 2**20, 1024 * 2**20
"""Of a chunk whose size goes by the free memory. Beyond the largest, little time is left to gain."""
FREE_PER_CHUNK = 16
"""A chunk is at most one part of so many of what is free: the loss of a teacher's whole vocabulary has six such buffers
(:data:`bridgegarden.preflight.memory.LOSS_BUFFERS`), and gradients come on top."""


@dataclass(frozen=True, kw_only=True)
class LanguageModelHead:
    r"""Logits as a function of hidden states: :math:`z = cap \tanh(scale (W h + b) / cap)`, without cap if None."""

    weight: Float[Tensor, "V D"]
    """Vocabulary projection (tied to the embedding or not)."""
    bias: Float[Tensor, "V"] | None = None
    """Added before scaling."""
    softcap: float | None = None
    """Final logit soft-capping (Gemma 2)."""
    scale: float = 1.0
    """Factor on the logits (Cohere), or one over the divisor (Granite)."""

    @property
    def vocab_size(self) -> int:
        """Number of rows of the projection, padding included."""
        return self.weight.shape[0]

    def logits(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        """Logits in float32 or better, multiplied out in the dtype of the weight or the one autocast asks for."""
        logits = self._product(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            if self.bias is not None:
                logits = logits + self.bias
            if self.scale != 1.0:
                logits = logits * self.scale
            return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def narrow_logits(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        """The same numbers in the dtype of the product, unless a bias, scale or cap makes others of them."""
        plain = self.bias is None and self.softcap is None and self.scale == 1.0
        return self._product(hidden) if plain else self.logits(hidden)

    def _product(self, hidden: Tensor) -> Tensor:
        dtype = compute_dtype(hidden, self.weight)
        with torch.autocast(hidden.device.type, enabled=False):
            return torch.nn.functional.linear(hidden.to(dtype), self.weight.to(dtype))

    def pull_back(self, logits: Float[Tensor, "N V"], gradient: Float[Tensor, "N V"]) -> Float[Tensor, "N V"]:
        """Turn the gradient for `logits` into that for ``W h + b``, in place where it can."""
        if self.softcap is not None:
            gradient = gradient.mul_(1 - (logits / self.softcap).square())
        return gradient if self.scale == 1.0 else gradient.mul_(self.scale)


def compute_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """The dtype in which `hidden` and `weight` are multiplied: autocast's where it is on, else the common one."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device) and hidden.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return torch.promote_types(hidden.dtype, weight.dtype)


def default_chunk_tokens(vocab_size: int, device_type: str, free: int | None = None) -> int:
    """Positions a chunk, 16 or more.

    Args:
        vocab_size: logits of a position.
        device_type: ``cpu`` or another.
        free: bytes that the device has left, :func:`free_memory`. The size of a chunk is the largest power of two that
            is not above a :data:`FREE_PER_CHUNK`-th of them: a little more or less changes nothing, not even how a
            sum is rounded. None is where it is not known; the size is fixed then.
    """
    size = CHUNK_BYTES if device_type == "cpu" else CHUNK_BYTES_GPU
    if free is not None:
        share = max(free // FREE_PER_CHUNK, 1)
        size = min(max(1 << (share.bit_length() - 1), SMALLEST_CHUNK), LARGEST_CHUNK)
    return max(16, size // (4 * vocab_size))


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process can still have on a CUDA GPU, those that PyTorch keeps for later among them; None for
    others. Waits for nothing that was launched."""
    if device.type != "cuda":
        return None
    left, _ = torch.cuda.mem_get_info(device)
    kept = torch.cuda.memory_stats(device)
    return left + kept.get("reserved_bytes.all.current", 0) - kept.get("allocated_bytes.all.current", 0)


@dataclass(frozen=True)
class SelectedLogits:
    """Logits at chosen ids, and enough to normalise them."""

    log_normaliser: Float[Tensor, "N"]
    """Logsumexp over the whole vocabulary."""
    logits: Float[Tensor, "N K"]
    """Raw logits at the ids asked for."""
    log_rest: Float[Tensor, "N"]
    """Logsumexp over everything that was *not* asked for; ``-inf`` where everything was."""


def selected_logits(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    ids: Int[Tensor, "N K"],
    *,
    bias: Float[Tensor, "V"] | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    chunk_tokens: int | None = None,
) -> SelectedLogits:
    """Logits at `ids` and log-normalisers, differentiable in `hidden`, `weight` and `bias`.

    A backward projects the vocabulary again (four large products where plain fine-tuning has three);
    :func:`bridgegarden.objective.fused.fused_hybrid_loss` avoids that when the loss is known in the forward.

    Args:
        hidden: ``(N, D)``.
        weight: ``(V, D)``.
        ids: ``(N, K)`` token ids; repeated ids in a row count once in the normaliser.
        bias: ``(V,)``.
        softcap: logits are ``softcap * tanh(z / softcap)``.
        scale: factor on the logits, before the cap.
        chunk_tokens: positions projected at a time. The result does not depend on it.

    Returns:
        All in float32 or better, whatever the inputs.
    """
    head = LanguageModelHead(weight=weight, bias=bias, softcap=softcap, scale=scale)
    chunk = chunk_tokens or default_chunk_tokens(head.vocab_size, hidden.device.type, free_memory(hidden.device))
    logits, log_rest = _SelectFromHidden.apply(hidden, weight, bias, head, ids, chunk)
    return SelectedLogits(log_normaliser(logits, ids, log_rest), logits, log_rest)


def log_normaliser(
    logits: Float[Tensor, "N K"], ids: Int[Tensor, "N K"], log_rest: Float[Tensor, "N"]
) -> Float[Tensor, "N"]:
    """Logsumexp over the vocabulary from the logits at `ids` (each distinct id once) and that of the rest."""
    return torch.cat([distinct_logits(logits, ids), log_rest.unsqueeze(-1)], -1).logsumexp(-1)


def distinct_logits(logits: Float[Tensor, "N K"], ids: Int[Tensor, "N K"]) -> Float[Tensor, "N K"]:
    """The logits at `ids`, with ``-inf`` where the same id stands earlier in the row."""
    return logits.masked_fill(~_first_of_its_kind(ids), -math.inf)


def select_support(
    logits: Float[Tensor, "N V"], ids: Int[Tensor, "N K"], target_ids: Int[Tensor, "N"], temperature: float
) -> StudentSupport:
    """The student's view of a sparse support from one chunk of logits; empty slots (id -1) hold ``-inf``."""
    empty = ids < 0
    filled = torch.where(empty, ids[:, :1], ids)
    found = _SelectFromLogits.apply(logits, filled, target_ids, temperature)
    return support_of(*found, ids=filled, empty=empty, temperature=temperature)


def support_of(
    picked: Float[Tensor, "N K"],
    target_logit: Float[Tensor, "N"],
    rest: Float[Tensor, "N"],
    tempered: Float[Tensor, "N"],
    *,
    ids: Int[Tensor, "N K"],
    empty: Tensor,
    temperature: float,
) -> StudentSupport:
    """The student's view from its logits at `ids`, of which some stand in for `empty` slots, and the rest's sums."""
    return StudentSupport(
        logits=picked.masked_fill(empty, -math.inf),
        log_rest=rest,
        target_logit=target_logit,
        log_normaliser=log_normaliser(picked, ids, rest),
        tempered_log_rest=None if temperature == 1.0 else tempered,
    )


class _SelectFromLogits(torch.autograd.Function):
    """One chunk: logits ``(n, V)`` to logits at ids and at targets, and the rest's logsumexp at T = 1 and at T.

    The gradient is written out, and made in the one ``(n, V)`` buffer that the forward filled; autograd's own would
    hold several. On a CPU every fresh buffer is paid for twice, in memory and in page faults.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor, target_ids: Tensor, temperature: float) -> tuple[Tensor, ...]:
        picked = logits.gather(1, ids)
        target = logits.gather(1, target_ids.unsqueeze(1)).squeeze(1)
        tempered = None if temperature == 1.0 else _rest_terms(logits, ids, temperature)[1]
        ctx.terms, rest, sums = _rest_terms(logits, ids, 1.0)
        ctx.save_for_backward(logits, ids, target_ids, sums, tempered)
        ctx.temperature = temperature
        return picked, target, rest, rest.clone() if tempered is None else tempered

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_picked: Tensor, d_target: Tensor, d_rest: Tensor, d_tempered: Tensor
    ) -> tuple[Tensor | None, ...]:
        logits, ids, target_ids, sums, tempered = ctx.saved_tensors
        # The first backward uses the buffer up; one that comes after it, over a retained graph, fills its own.
        terms, ctx.terms = ctx.terms, None
        gradient = _rest_terms(logits, ids, 1.0)[0] if terms is None else terms
        gradient.mul_(torch.where(sums == 0, 0.0, d_rest / sums).unsqueeze(1))
        if tempered is not None:
            # Selected entries may overflow here; they are overwritten below, never multiplied by zero.
            gradient += _softmax_against(logits / ctx.temperature, tempered).mul_(
                d_tempered.unsqueeze(1) / ctx.temperature
            )
            gradient.scatter_(1, ids, 0.0)
        gradient.scatter_add_(1, ids, d_picked)
        gradient.scatter_add_(1, target_ids.unsqueeze(1), d_target.unsqueeze(1))
        return gradient, None, None, None


def _rest_terms(logits: Tensor, ids: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of the tokens not in `ids`, relative to the likeliest: ``exp(logits / T)`` (n, V), its logsumexp and sum (n,).

    Zero at `ids`. Where nothing is left the sum is zero and the logsumexp ``-inf``.
    """
    terms = logits.scatter(1, ids, -math.inf)
    if temperature != 1.0:
        terms.div_(temperature)
    highest = terms.amax(1, keepdim=True)
    highest.masked_fill_(highest == -math.inf, 0.0)
    sums = terms.sub_(highest).exp_().sum(1)
    return terms, highest.squeeze(1) + sums.log(), sums


class _SelectFromHidden(torch.autograd.Function):
    """Hidden states to logits at ids and the rest's logsumexp; the backward projects again, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: LanguageModelHead,
        ids: Tensor,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(hidden, weight, bias, ids)
        ctx.head, ctx.chunk = head, chunk
        pieces = [_pick(head.logits(hidden[rows]), ids[rows]) for rows in chunks(hidden.shape[0], chunk)]
        return torch.cat([logits for logits, _ in pieces]), torch.cat([rest for _, rest in pieces])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_picked: Tensor, d_rest: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, ids = ctx.saved_tensors
        gradients = HeadGradients(hidden, weight, bias, ctx.needs_input_grad[:3])
        for rows in chunks(hidden.shape[0], ctx.chunk):
            logits = ctx.head.logits(hidden[rows]).requires_grad_()
            with torch.enable_grad():
                outputs = _pick(logits, ids[rows])
            (d_logits,) = torch.autograd.grad(outputs, logits, (d_picked[rows], d_rest[rows]))
            gradients.add(rows, ctx.head.pull_back(logits.detach(), d_logits))
        return *gradients.as_given(), None, None, None


class HeadGradients:
    """Gradients of a loss through a language-model head, gathered chunk by chunk.

    Sums over chunks are kept in float32 when the weight has fewer bits: added up in bfloat16, the small ones would
    vanish.
    """

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, needs: tuple[bool, ...]) -> None:
        self._hidden, self._weight, self._bias = hidden, weight, bias
        self.hidden = torch.zeros_like(hidden) if needs[0] else None
        self.weight = _float32_zeros(weight) if needs[1] else None
        self.bias = _float32_zeros(bias) if bias is not None and needs[2] else None

    # The weight has a gradient: with grad mode on, every chunk's product would be kept for a graph nobody asked for.
    @torch.no_grad()
    def add(self, rows: slice, d_product: Float[Tensor, "n V"]) -> None:
        """Add what the chunk of positions `rows` gives, from the gradient of its ``W h + b``."""
        if self.bias is not None:
            self.bias += d_product.sum(0)
        d_product = d_product.to(torch.promote_types(self._hidden.dtype, self._weight.dtype))
        if self.hidden is not None:
            self.hidden[rows] += d_product @ self._weight.to(d_product.dtype)
        if self.weight is not None:
            chunk = self._hidden[rows].to(d_product.dtype)
            if self.weight.dtype == d_product.dtype:
                self.weight.addmm_(d_product.t(), chunk)
            else:
                self.weight += d_product.t() @ chunk

    def as_given(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of hidden states, weight and bias in the dtypes of what they are gradients of."""
        return self.hidden, _to(self.weight, self._weight), _to(self.bias, self._bias)


def chunks(total: int, size: int) -> list[slice]:
    """Consecutive slices of at most `size` that cover ``0 .. total - 1``; one empty slice when there is nothing."""
    return [slice(start, min(start + size, total)) for start in range(0, max(total, 1), size)]


def _pick(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    picked, _, rest, _ = _SelectFromLogits.apply(logits, ids, ids[:, 0], 1.0)
    return picked, rest


def _softmax_against(logits: Tensor, log_sum: Tensor) -> Tensor:
    """``exp(logits - log_sum)``; where nothing was summed, no entry of it is used, and none is NaN."""
    return (logits - log_sum.masked_fill(log_sum == -math.inf, 0.0).unsqueeze(1)).exp_()


def _first_of_its_kind(ids: Int[Tensor, "N K"]) -> Tensor:
    """``(N, K)`` bool: False where the same id stands earlier in the row."""
    ordered, order = ids.sort(dim=1, stable=True)
    first = torch.ones_like(ids, dtype=torch.bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return torch.empty_like(first).scatter_(1, order, first)


def _to(gradient: Tensor | None, like: Tensor | None) -> Tensor | None:
    return None if gradient is None or like is None else gradient.to(like.dtype)


def _float32_zeros(like: Tensor) -> Tensor:
    return torch.zeros_like(like, dtype=torch.promote_types(like.dtype, torch.float32))
