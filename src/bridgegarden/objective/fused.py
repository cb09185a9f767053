"""The fast path: the hybrid objective from hidden states, gradients included, one chunk of positions at a time.

The objective is local to a position (the risk term looks one ahead), so a chunk's loss *and* gradient can be finished
while its logits exist. Three large products a step, as in plain fine-tuning; neither model's [N, V] logits exist.

Against the two-pass route (:func:`~bridgegarden.objective.head.selected_logits`, whose backward projects again) it
takes 0.69 times the processor time: 3.5 s and 5.1 s for 512 positions, 151,936 tokens, hidden size 512, on one CPU
thread (``python benchmarks/head_and_loss.py``; docs/benchmarks.md). So this is what the trainer uses.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from bridgegarden.objective.alignment import Places, Position
from bridgegarden.objective.head import (
    HeadGradients,
    LanguageModelHead,
    chunks,
    compute_dtype,
    default_chunk_tokens,
    free_memory,
    select_support,
)
from bridgegarden.objective.hybrid import RANKED_BY, HybridLoss, HybridObjective, dense_student_support
from bridgegarden.objective.loss_route import check_kernels, whole_vocabulary_error
from bridgegarden.objective.soft_weight import TrainProgress
from bridgegarden.objective.support import Bounds, StudentSupport, TeacherSignal, acceptance_bounds


@runtime_checkable
class TeacherSource(Protocol):
    """A teacher at N positions: slicing gives the signal at some of them. A :class:`TeacherSignal` is one."""

    def __getitem__(self, index: slice, /) -> TeacherSignal: ...


@dataclass(frozen=True)
class ProjectedTeacher:
    """A teacher at N positions by its hidden states; the signal is made where it is asked for."""

    hidden: Float[Tensor, "N D"]
    """Final hidden states."""
    head: LanguageModelHead
    """The teacher's projection."""
    top_k: int | None
    """Tokens kept; None keeps all."""
    vocab_size: int
    """Size of the vocabulary both models share."""
    exponents: tuple[float, ...] = ()
    """Tail power sums to make; see :attr:`HybridObjective.exponents`."""
    device: torch.device | None = None
    """Where the signal is wanted, when not where the hidden states are."""
    labels: Int[Tensor, "N"] | None = None
    """The tokens in the data, where the teacher's own loss on them is to be known; on `device`, if there is one."""

    def __getitem__(self, index: slice, /) -> TeacherSignal:
        with torch.no_grad():
            logits = self.head.logits(self.hidden[index])
            if self.device is not None:
                logits = logits.to(self.device)
            signal = TeacherSignal.from_logits(logits, self.top_k, self.vocab_size, exponents=self.exponents)
            return signal if self.labels is None else signal.with_labels(logits, self.labels[index])


@dataclass(frozen=True)
class FusedLoss:
    """The objective over a batch of N supervised positions."""

    loss: Float[Tensor, ""]
    """Sum of the total over positions, divided by the number of items; the only field with a gradient."""
    terms: HybridLoss
    """Terms per position, ``(N,)``, without gradient."""
    teacher_entropy: Float[Tensor, "N"]
    """Nats."""
    student_entropy: Float[Tensor, "N"] | None
    """Nats; None unless asked for."""
    captured_mass: Float[Tensor, "N"]
    """Teacher probability of the kept tokens."""
    teacher_label_logp: Float[Tensor, "N"]
    """Nats: the teacher's log-probability of the token in the data; NaN where the teacher does not say."""
    student_label_logp: Float[Tensor, "N"]
    """Nats: the student's."""
    student_hit: Bool[Tensor, "N"] | None
    """Whether the token in the data is the student's likeliest; None unless asked for."""
    acceptance: Bounds | None
    """Between what the share of the student's tokens lies that the teacher would accept, ``(N,)`` each, NaN where the
    signal does not say; None unless asked for."""

    @classmethod
    def of(cls, loss: Tensor, records: Sequence[Tensor], *, measured: bool) -> "FusedLoss":
        """From what a walk records per position, in the order of :func:`_chunk`."""
        terms, others = records[: len(fields(HybridLoss))], records[len(fields(HybridLoss)) :]
        entropy, hit, *bounds = others[4:] if measured else (None, None)
        return cls(
            loss,
            HybridLoss(*terms),
            teacher_entropy=others[0],
            student_entropy=entropy,
            captured_mass=others[1],
            teacher_label_logp=others[2],
            student_label_logp=others[3],
            student_hit=hit,
            acceptance=Bounds(*bounds) if measured else None,
        )


def fused_hybrid_loss(
    hidden: Float[Tensor, "N D"],
    head: LanguageModelHead,
    teacher: TeacherSource,
    data_ids: Int[Tensor, "N"],
    has_successor: Bool[Tensor, "N"],
    objective: HybridObjective,
    *,
    num_items: Tensor | int,
    progress: TrainProgress | None = None,
    chunk_tokens: int | None = None,
    measure_student: bool = False,
    kernels: bool = False,
) -> FusedLoss:
    """The objective at N supervised positions, in order, differentiable in `hidden` and the head.

    Args:
        hidden: ``(N, D)`` the student's final hidden states at supervised positions, row by row, in order.
        head: the student's projection.
        teacher: the teacher at the same positions.
        data_ids: ``(N,)`` the token in the data that each position predicts.
        has_successor: ``(N,)`` whether position i + 1 is the next one of the same sequence.
        objective: what to compute.
        num_items: what the sum is divided by.
        progress: for rules that change as training goes on.
        chunk_tokens: positions at a time; None goes by the memory that is free on a GPU
            (:func:`~bridgegarden.objective.head.default_chunk_tokens`). The result does not depend on it, but for how
            sums are rounded.
        measure_student: also measure the student's exact entropy, whether its likeliest token is the one in the data,
            and how much of what it draws the teacher would accept (two more passes over each chunk's logits, and three
            over the support).
        kernels: read and write each chunk's logits by Triton's kernels (:mod:`bridgegarden.objective.kernels`): on a
            CUDA GPU, for a teacher signal that has ids.

    An objective that ranks the positions of the batch (:attr:`HybridObjective.ranks`) takes a further walk over all
    chunks, of both heads, without gradients.

    Raises:
        ConfigError: the kernels were asked for where they cannot run.
    """
    if kernels:
        check_kernels(hidden.device, compute_dtype(hidden, head.weight))
    places, chosen = Places(has_successor), None
    if objective.ranks is not None:
        options = {"chunk_tokens": chunk_tokens, "measure_student": True, "kernels": kernels}
        with torch.no_grad():
            seen = fused_hybrid_loss(hidden, head, teacher, data_ids, has_successor, RANKED_BY, num_items=1, **options)
        assert seen.student_entropy is not None
        chosen = objective.ranks.choose(seen.student_entropy, seen.terms.soft, places)
    walk = _Walk(
        head=head,
        teacher=teacher,
        data_ids=data_ids,
        has_successor=has_successor,
        places=places,
        chosen=chosen,
        objective=objective,
        progress=progress,
        num_items=_count(num_items, hidden.device).clamp(min=1),
        chunk=chunk_tokens or default_chunk_tokens(head.vocab_size, hidden.device.type, free_memory(hidden.device)),
        with_gradient=torch.is_grad_enabled(),
        measure_student=measure_student,
        kernels=kernels,
        # Cast once, not once a chunk, where autocast or a mixed pair asks for another dtype.
        dtype=compute_dtype(hidden, head.weight),
    )
    loss, *records = _FusedHybridLoss.apply(hidden, head.weight, head.bias, walk)
    return FusedLoss.of(loss, records, measured=measure_student)


def _count(number: Tensor | int, device: torch.device) -> Tensor:
    # Filled in on the device: a copy from the CPU's memory would wait for the GPU.
    return number.to(device) if isinstance(number, Tensor) else torch.full((), number, device=device)


@dataclass(frozen=True, kw_only=True)
class _Walk:
    """Everything a walk over the chunks needs besides the tensors that have gradients."""

    head: LanguageModelHead
    teacher: TeacherSource
    data_ids: Tensor
    has_successor: Tensor
    places: Places
    chosen: Tensor | None
    objective: HybridObjective
    progress: TrainProgress | None
    num_items: Tensor
    chunk: int
    with_gradient: bool
    measure_student: bool
    kernels: bool
    dtype: torch.dtype


class _FusedHybridLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, walk: _Walk) -> tuple[Tensor, ...]:
        needs = tuple(n and walk.with_gradient for n in ctx.needs_input_grad[:3])
        cast, cast_weight = hidden.to(walk.dtype), weight.to(walk.dtype)
        head = LanguageModelHead(weight=cast_weight, bias=bias, softcap=walk.head.softcap, scale=walk.head.scale)
        gradients = HeadGradients(cast, cast_weight, bias, needs)
        with torch.autocast(hidden.device.type, enabled=False):
            records = [_chunk(rows, cast, head, walk, gradients, any(needs)) for rows in _rows(hidden, walk.chunk)]
        merged = tuple(torch.cat(column) for column in zip(*records, strict=True))
        ctx.gradients = gradients.hidden, gradients.weight, gradients.bias
        ctx.dtypes = hidden.dtype, weight.dtype, None if bias is None else bias.dtype
        ctx.num_items = walk.num_items
        ctx.mark_non_differentiable(*merged)
        ctx.set_materialize_grads(False)
        return merged[0].sum() / walk.num_items, *merged

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the fused hybrid loss keeps its gradients for one backward only")
        gradients, ctx.gradients = ctx.gradients, None
        # Here and not before: in float16 a small part of so many positions would be zero by the time that a gradient
        # scaler multiplies it.
        factor = d_loss / ctx.num_items
        scaled = (
            None if gradient is None else gradient.to(torch.promote_types(gradient.dtype, dtype)).mul_(factor).to(dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        )
        return *scaled, None


def _rows(hidden: Tensor, size: int) -> list[slice]:
    return chunks(hidden.shape[0], size)


def _chunk(
    rows: slice, hidden: Tensor, head: LanguageModelHead, walk: _Walk, gradients: HeadGradients, backward: bool
) -> tuple[Tensor, ...]:
    """Loss of the positions `rows`, its gradient added to `gradients`; returns what is recorded per position."""
    # Whether the last position has a successor is not looked up: on a GPU that would wait for all that was launched.
    looks_ahead = walk.objective.risk_alpha > 0 and rows.stop < hidden.shape[0]
    seen = slice(rows.start, rows.stop + 1) if looks_ahead else rows
    signal_seen = walk.teacher[seen]
    signal = signal_seen[: rows.stop - rows.start]
    piece = _Piece(
        rows=rows,
        seen=seen,
        signal=signal_seen,
        hidden=hidden[seen],
        head=head,
        gradients=gradients if backward else None,
    )
    route = _by_kernels if walk.kernels else _by_autograd
    with torch.set_grad_enabled(backward):
        found = route(piece, walk)
    own = found.terms.map(torch.Tensor.detach)
    unknown = torch.full_like(signal.entropy, torch.nan)
    return (
        *(getattr(own, entry.name) for entry in fields(HybridLoss)),
        *(signal.entropy, signal.captured_mass, unknown if signal.label_logp is None else signal.label_logp),
        *(found.label_logp, *found.measured),
    )


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """One chunk of positions."""

    rows: slice
    """Those whose loss it is."""
    seen: slice
    """Those and the one behind them, where the objective looks ahead."""
    signal: TeacherSignal
    """At what is seen."""
    hidden: Tensor
    """Likewise."""
    head: LanguageModelHead
    gradients: HeadGradients | None
    """To be added to; None where none are wanted."""

    @property
    def count(self) -> int:
        return self.rows.stop - self.rows.start


@dataclass(frozen=True)
class _Found:
    """What a chunk of logits gave, beside its gradient."""

    terms: HybridLoss
    label_logp: Tensor
    measured: tuple[Tensor, ...]


def _by_autograd(piece: _Piece, walk: _Walk) -> _Found:
    """A chunk by PyTorch's operations, on any device, for any support."""
    count, gradients, head = piece.count, piece.gradients, piece.head
    with torch.no_grad():
        logits = head.logits(piece.hidden)
    logits.requires_grad_(gradients is not None)
    student = _student_support(logits, piece.signal, walk, piece.seen)
    terms = _terms(piece.signal[:count], student, walk, piece.rows)
    if gradients is not None:
        (d_logits,) = torch.autograd.grad(terms.total.sum(), logits)
        gradients.add(piece.seen, head.pull_back(logits.detach(), d_logits))
        # As large as the logits: the entropy's buffer can take its place.
        del d_logits
    own_logits, log_normaliser = logits.detach()[:count], student.log_normaliser.detach()[:count]
    label_logit = own_logits.gather(1, walk.data_ids[piece.rows].unsqueeze(1)).squeeze(1)
    measured = ()
    if walk.measure_student:
        hit = label_logit >= own_logits.amax(1)
        measured = _entropy(own_logits, log_normaliser), hit, *_acceptance(piece, student)
    return _Found(terms, label_logit - log_normaliser, measured)


def _by_kernels(piece: _Piece, walk: _Walk) -> _Found:
    """The same by the kernels of :mod:`bridgegarden.objective.kernels`, which read the logits in their own dtype."""
    from bridgegarden.objective.kernels import SweptLogits

    if piece.signal.ids is None:
        raise whole_vocabulary_error()
    count, gradients, head = piece.count, piece.gradients, piece.head
    objective, data_ids = walk.objective, walk.data_ids[piece.seen]
    target_ids = objective.hard_ids(piece.signal, data_ids)
    with torch.no_grad():
        logits = head.narrow_logits(piece.hidden)
        label_logit = logits.gather(1, data_ids.unsqueeze(1)).squeeze(1).float()
    swept = SweptLogits.of(logits, piece.signal.ids, target_ids, objective.temperature, measure=walk.measure_student)
    student = swept.student()
    terms = _terms(piece.signal[:count], student, walk, piece.rows)
    log_normaliser = student.log_normaliser.detach()
    measured = ()
    if walk.measure_student:
        entropy, hit = swept.measured(log_normaliser, label_logit)
        measured = entropy[:count], hit[:count], *_acceptance(piece, student)
    if gradients is not None:
        kept, d_logits = swept.gradient(terms.total.sum(), keep_logits=head.softcap is not None)
        gradients.add(piece.seen, head.pull_back(kept, d_logits))
    return _Found(terms, (label_logit - log_normaliser)[:count], measured)


def _acceptance(piece: _Piece, student: StudentSupport) -> Bounds:
    return acceptance_bounds(piece.signal[: piece.count], student[: piece.count].detach())


def _student_support(logits: Tensor, signal: TeacherSignal, walk: _Walk, seen: slice) -> StudentSupport:
    objective = walk.objective
    target_ids = objective.hard_ids(signal, walk.data_ids[seen])
    if signal.ids is None:
        return dense_student_support(logits, signal.logp.shape[-1], target_ids, objective.temperature)
    return select_support(logits, signal.ids, target_ids, objective.temperature)


def _terms(signal: TeacherSignal, student: StudentSupport, walk: _Walk, rows: slice) -> HybridLoss:
    count = rows.stop - rows.start
    normalisers = student.log_normaliser
    following = torch.cat([normalisers[1:], normalisers[-1:]])[:count]
    ids, own = walk.data_ids[rows], student[:count]
    position = Position(ids, walk.places, rows, None if walk.chosen is None else walk.chosen[rows])
    return walk.objective(signal, own, ids, following, walk.has_successor[rows], walk.progress, position)


def _entropy(logits: Tensor, log_normaliser: Tensor) -> Tensor:
    probabilities = (logits - log_normaliser.detach().unsqueeze(1)).exp_()
    # A product of matrices: `vecdot` would write all N * V products down first.
    return log_normaliser.detach() - torch.einsum("nv,nv->n", probabilities, logits)
