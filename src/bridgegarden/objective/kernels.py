r"""Triton kernels for a chunk of logits on a GPU: two passes over it in its own type, whatever the objective.

Of a row of logits an objective over a sparse support sees three things only: the logits at the support's ids, the one
at the hard target, and the logsumexp of the rest (at temperature 1, and at the loss temperature T). So one pass finds
them, the objective itself stays ordinary autograd on ``[n, K + 1]``, and a second pass writes the gradient

.. math:: dz_v = d_{rest} e^{z_v - rest} + d_T / T \, e^{z_v / T - rest_T}

where the logits were, with the support's own and the target's put in place of or added to it. Everything is summed in
float32. :func:`bridgegarden.objective.head.select_support` is the same by PyTorch's operations, and what this is tested
against. Triton comes with CUDA builds of PyTorch; nothing else imports this module before the kernels are asked for.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, no_type_check

import torch
import triton  # pyright: ignore[reportMissingImports]  comes with PyTorch for CUDA
import triton.language as tl  # pyright: ignore[reportMissingImports]
from jaxtyping import Float, Int
from torch import Tensor

from bridgegarden.objective.head import distinct_logits, support_of
from bridgegarden.objective.support import StudentSupport

BLOCK = 4096
"""Logits that one program takes at a time."""


def _jit(kernel: Callable[..., None]) -> Any:
    # Every kernel is `no_type_check` too, so that checks of shapes at run time stay out of it: its source is compiled.
    return triton.jit(kernel)


@_jit
@no_type_check
def _sum_up(
    logits,
    stride,
    width,
    inverse_temperature,
    highest,
    rest,
    tempered,
    mean,
    TEMPERED: tl.constexpr,
    MEAN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A row a program: the largest logit, logsumexp at 1 and at T, and the mean logit under the softmax."""
    row = tl.program_id(0).to(tl.int64)
    top = float("-inf")
    total = 0.0
    tempered_total = 0.0
    moment = 0.0
    for first in range(0, width, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        z = tl.load(logits + row * stride + columns, mask=columns < width, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(top, tl.max(z, 0))
        # While nothing but -inf was seen there is nothing to subtract.
        base = tl.where(higher == float("-inf"), 0.0, higher)
        terms = tl.exp(z - base)
        shrink = tl.exp(top - base)
        total = total * shrink + tl.sum(terms, 0)
        if MEAN:
            moment = moment * shrink + tl.sum(terms * tl.where(z == float("-inf"), 0.0, z), 0)
        if TEMPERED:
            tempered_terms = tl.exp((z - base) * inverse_temperature)
            tempered_total = tempered_total * tl.exp((top - base) * inverse_temperature) + tl.sum(tempered_terms, 0)
        top = higher
    base = tl.where(top == float("-inf"), 0.0, top)
    tl.store(rest + row, base + tl.log(total))
    if TEMPERED:
        tl.store(tempered + row, base * inverse_temperature + tl.log(tempered_total))
    if MEAN:
        tl.store(highest + row, top)
        tl.store(mean + row, tl.where(total == 0.0, 0.0, moment / total))


@_jit
@no_type_check
def _through(z, log_sum, gradient):
    """The gradient at logits `z` from that of their logsumexp; none where nothing was summed."""
    nothing = log_sum == float("-inf")
    return tl.where(nothing, 0.0, gradient) * tl.exp(z - tl.where(nothing, 0.0, log_sum))


@_jit
@no_type_check
def _spread_out(
    logits,
    out,
    stride,
    width,
    inverse_temperature,
    rest,
    d_rest,
    tempered,
    d_tempered,
    TEMPERED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A block of a row a program: the gradient from the logsumexps alone; `out` may be `logits`."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    z = tl.load(logits + row * stride + columns, mask=inside, other=float("-inf")).to(tl.float32)
    gradient = _through(z, tl.load(rest + row), tl.load(d_rest + row))
    if TEMPERED:
        d_scaled = tl.load(d_tempered + row) * inverse_temperature
        gradient += _through(z * inverse_temperature, tl.load(tempered + row), d_scaled)
    tl.store(out + row * stride + columns, gradient.to(out.dtype.element_ty), mask=inside)


@_jit
@no_type_check
def _put_in_place(
    out,
    stride,
    inverse_temperature,
    ids,
    d_picked,
    count,
    target_ids,
    target_logit,
    d_target,
    rest,
    d_rest,
    tempered,
    d_tempered,
    TEMPERED: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """A row a program: the gradient at the ids and at the target, summed in float32 where ids are repeated."""
    row = tl.program_id(0).to(tl.int64)
    slots = tl.arange(0, SLOTS)
    held = slots < count
    mine = tl.load(ids + row * count + slots, mask=held, other=-1)
    target = tl.load(target_ids + row)
    d_hard = tl.load(d_target + row)
    total = tl.where(mine == target, d_hard, 0.0)
    for slot in range(0, count):
        other = tl.load(ids + row * count + slot)
        total += tl.where(mine == other, tl.load(d_picked + row * count + slot), 0.0)
    tl.store(out + row * stride + mine, total.to(out.dtype.element_ty), mask=held)
    z = tl.load(target_logit + row)
    alone = d_hard + _through(z, tl.load(rest + row), tl.load(d_rest + row))
    if TEMPERED:
        d_scaled = tl.load(d_tempered + row) * inverse_temperature
        alone += _through(z * inverse_temperature, tl.load(tempered + row), d_scaled)
    among = tl.max((mine == target).to(tl.int32), 0)
    tl.store(out + row * stride + target, alone.to(out.dtype.element_ty), mask=among == 0)


INTERPRETED = not isinstance(_through, triton.JITFunction)
"""Whether Triton runs the kernels in Python (``TRITON_INTERPRET=1`` at its first import): slow, on any device."""


@dataclass(frozen=True, kw_only=True)
class SweptLogits:
    """A chunk of logits after the first pass; its four leaves have gradients for the second."""

    picked: Float[Tensor, "n K"]
    """Logits at the ids, float32."""
    target_logit: Float[Tensor, "n"]
    """At the hard target."""
    rest: Float[Tensor, "n"]
    """Logsumexp of those that are not at an id; ``-inf`` where there are none."""
    tempered: Float[Tensor, "n"]
    """The same of the logits over `temperature`; unused where that is 1."""
    highest: Float[Tensor, "n"] | None
    """The largest of the rest; None unless the student is measured."""
    mean: Float[Tensor, "n"] | None
    """Mean of the rest under its own softmax, likewise."""
    temperature: float
    _logits: Tensor
    _ids: Tensor
    _empty: Tensor
    _target_ids: Tensor

    @classmethod
    def of(
        cls,
        logits: Float[Tensor, "n V"],
        ids: Int[Tensor, "n K"],
        target_ids: Int[Tensor, "n"],
        temperature: float,
        *,
        measure: bool = False,
    ) -> "SweptLogits":
        """The first pass. `logits` is used up: ``-inf`` is written at the ids, later the gradient everywhere."""
        empty = ids < 0
        ids = torch.where(empty, ids[:, :1], ids).contiguous()
        target_ids = target_ids.contiguous()
        count, width = logits.shape
        picked = logits.gather(1, ids).float()
        target = logits.gather(1, target_ids.unsqueeze(1)).squeeze(1).float()
        logits.scatter_(1, ids, -math.inf)
        rest = torch.empty_like(target)
        tempered = torch.empty_like(target) if temperature != 1.0 else rest.new_zeros(count)
        highest, mean = (torch.empty_like(target), torch.empty_like(target)) if measure else (None, None)
        if count:
            _sum_up[(count,)](
                logits,
                logits.stride(0),
                width,
                1.0 / temperature,
                rest if highest is None else highest,
                rest,
                tempered,
                rest if mean is None else mean,
                TEMPERED=temperature != 1.0,
                MEAN=measure,
                BLOCK=_block(width),
                num_warps=8,
            )
        return cls(
            picked=picked.requires_grad_(),
            target_logit=target.requires_grad_(),
            rest=rest.requires_grad_(),
            tempered=tempered.requires_grad_(),
            highest=highest,
            mean=mean,
            temperature=temperature,
            _logits=logits,
            _ids=ids,
            _empty=empty,
            _target_ids=target_ids,
        )

    def student(self) -> StudentSupport:
        """The student's view of the support, differentiable in the leaves."""
        leaves = self.picked, self.target_logit, self.rest, self.tempered
        return support_of(*leaves, ids=self._ids, empty=self._empty, temperature=self.temperature)

    def gradient(self, loss: Float[Tensor, ""], *, keep_logits: bool = False) -> tuple[Tensor, Tensor]:
        """The second pass: the logits as they were, and the gradient of `loss` at each, in their type.

        The gradient takes the logits' place, so that both are one tensor, unless `keep_logits` asks for both.
        """
        leaves = self.picked, self.target_logit, self.rest, self.tempered
        found = torch.autograd.grad(loss, leaves, materialize_grads=True)
        d_picked, d_target, d_rest, d_tempered = (part.contiguous() for part in found)
        logits = self._logits
        out = torch.empty_like(logits) if keep_logits else logits
        count, width = logits.shape
        sums = self.rest.detach(), d_rest, self.tempered.detach(), d_tempered
        tempered, block, inverse = self.temperature != 1.0, _block(width), 1.0 / self.temperature
        if count:
            _spread_out[(count, triton.cdiv(width, block))](
                logits, out, logits.stride(0), width, inverse, *sums, TEMPERED=tempered, BLOCK=block, num_warps=8
            )
            _put_in_place[(count,)](
                out,
                out.stride(0),
                inverse,
                *(self._ids, d_picked, self._ids.shape[1]),
                *(self._target_ids, self.target_logit.detach(), d_target, *sums),
                TEMPERED=tempered,
                SLOTS=max(16, triton.next_power_of_2(self._ids.shape[1])),
            )
        if keep_logits:
            logits.scatter_(1, self._ids, self.picked.detach().to(logits.dtype))
        return logits, out

    def measured(self, log_normaliser: Float[Tensor, "n"], label_logit: Float[Tensor, "n"]) -> tuple[Tensor, Tensor]:
        """Entropy in nats, and whether `label_logit` is the largest; ``(n,)`` each.

        Raises:
            RuntimeError: the first pass was not asked to measure.
        """
        if self.highest is None or self.mean is None:
            raise RuntimeError("the first pass over the logits did not measure the student")
        picked, rest = self.picked.detach(), self.rest.detach()
        distinct = distinct_logits(picked, self._ids)
        shares = (distinct - log_normaliser.unsqueeze(1)).exp()
        of_picked = torch.where(distinct == -math.inf, 0.0, shares * distinct).sum(1)
        entropy = log_normaliser - of_picked - (rest - log_normaliser).exp() * self.mean
        return entropy, label_logit >= torch.maximum(self.highest, picked.amax(1))


def _block(width: int) -> int:
    return min(BLOCK, triton.next_power_of_2(width))
