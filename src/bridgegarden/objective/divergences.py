r"""Divergences between a teacher's and a student's next-token distribution.

Every function takes log-probabilities over the same ``C`` cells (single tokens, or kept tokens and one tail cell) and
returns one number of nats per position: unmasked, unreduced. ``p`` is the teacher, ``q`` the student. A cell that both
sides leave empty (``-inf``) contributes nothing to value or gradient. All are f-divergences except :func:`adaptive_kl`,
:func:`head_tail_kl`, :func:`lk_hybrid` and :func:`alpha_beta`, so merging cells can only lower them (the
data-processing inequality).
"""

import math
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from bridgegarden.objective.registry import Registry

LogProbs: TypeAlias = Float[Tensor, "*batch C"]
PerPosition: TypeAlias = Float[Tensor, "*batch"]


@runtime_checkable
class Divergence(Protocol):
    """A function of teacher and student log-probabilities, ``(*batch, C)`` each, to ``(*batch,)`` nats."""

    def __call__(self, teacher_logp: LogProbs, student_logp: LogProbs, /) -> PerPosition: ...


def forward_kl(teacher_logp: LogProbs, student_logp: LogProbs) -> PerPosition:
    r"""Forward Kullback-Leibler divergence, :math:`KL(p \| q) = \sum_c p_c (\log p_c - \log q_c)`.

    Args:
        teacher_logp: ``(*batch, C)`` nats; ``-inf`` where the teacher puts no mass.
        student_logp: ``(*batch, C)`` nats.

    Returns:
        ``(*batch,)`` nats, >= 0. Infinite where q = 0 and p > 0.

    References:
        Hinton et al., 2015, arXiv:1503.02531, section 2, at temperature 1.
    """
    teacher_logp, student_logp = _at_least_float32(teacher_logp, student_logp)
    return _ExpectedLogRatio.apply(teacher_logp, student_logp)


def reverse_kl(teacher_logp: LogProbs, student_logp: LogProbs) -> PerPosition:
    r"""Reverse Kullback-Leibler divergence, :math:`KL(q \| p)`.

    Shapes as in :func:`forward_kl`. Infinite where p = 0 and q > 0.

    References:
        Gu et al., 2024, arXiv:2306.08543 (MiniLLM), equation 1.
    """
    return forward_kl(student_logp, teacher_logp)


def jensen_shannon(teacher_logp: LogProbs, student_logp: LogProbs, beta: float = 0.5) -> PerPosition:
    r"""Generalised Jensen-Shannon divergence, in TRL's meaning of `beta`.

    .. math:: \beta \, KL(p \| m) + (1 - \beta) \, KL(q \| m), \qquad m = \beta p + (1 - \beta) q

    Args:
        teacher_logp: ``(*batch, C)`` nats.
        student_logp: ``(*batch, C)`` nats.
        beta: in [0, 1]. The ends are, by convention, the forward (0) and the reverse (1) KL divergence, not the limit
            of the formula (which is 0).

    Returns:
        ``(*batch,)`` nats; at most log 2 for 0 < beta < 1.

    References:
        Agarwal et al., 2024, arXiv:2306.13649 (GKD), section 2.
    """
    if beta == 0:
        return forward_kl(teacher_logp, student_logp)
    if beta == 1:
        return reverse_kl(teacher_logp, student_logp)
    mixture = _log_mixture(teacher_logp, student_logp, beta)
    return beta * forward_kl(teacher_logp, mixture) + (1 - beta) * forward_kl(student_logp, mixture)


def skewed_forward_kl(teacher_logp: LogProbs, student_logp: LogProbs, skew: float = 0.1) -> PerPosition:
    r"""Skewed forward KL, :math:`KL(p \| \alpha p + (1 - \alpha) q)` with :math:`\alpha` = `skew` in [0, 1].

    Shapes as in :func:`forward_kl`. Finite even where q = 0, for `skew` > 0.

    References:
        Ko et al., 2024, arXiv:2402.03898 (DistiLLM), section 3.
    """
    return forward_kl(teacher_logp, _log_mixture(teacher_logp, student_logp, skew))


def skewed_reverse_kl(teacher_logp: LogProbs, student_logp: LogProbs, skew: float = 0.1) -> PerPosition:
    r"""Skewed reverse KL, :math:`KL(q \| (1 - \alpha) p + \alpha q)` with :math:`\alpha` = `skew` in [0, 1].

    Shapes as in :func:`forward_kl`. Finite even where p = 0, for `skew` > 0.

    References:
        Ko et al., 2024, arXiv:2402.03898 (DistiLLM), section 3.
    """
    return forward_kl(student_logp, _log_mixture(student_logp, teacher_logp, skew))


def total_variation(teacher_logp: LogProbs, student_logp: LogProbs) -> PerPosition:
    r"""Total variation distance, :math:`\frac12 \sum_c |p_c - q_c|`, in [0, 1] (a probability, not nats).

    Shapes as in :func:`forward_kl`.

    References:
        Wen et al., 2023, arXiv:2307.15190 (f-DISTILL), table 1.
    """
    teacher_logp, student_logp = _at_least_float32(teacher_logp, student_logp)
    return 0.5 * (teacher_logp.exp() - student_logp.exp()).abs().sum(-1)


def adaptive_kl(teacher_logp: LogProbs, student_logp: LogProbs, mu: float = 0.5) -> PerPosition:
    r"""Forward and reverse KL, mixed by which side is the surer one.

    .. math:: w \, KL(p \| q) + (1 - w) \, KL(q \| p), \qquad
              w = \frac{e^{-\mu H(p)}}{e^{-\mu H(p)} + e^{-\mu H(q)}}

    The gradient flows through `w` as well: it is the gradient of this value. Entropies are those of the cells given.

    Args:
        teacher_logp: ``(*batch, C)`` nats.
        student_logp: ``(*batch, C)`` nats.
        mu: >= 0; 0 is the mean of the two divergences.

    References:
        The form of the release of arXiv:2605.26246. Wu et al., 2025, arXiv:2404.02657, gate by head and tail instead.
    """
    weight = torch.sigmoid(mu * (entropy(student_logp) - entropy(teacher_logp)))
    return weight * forward_kl(teacher_logp, student_logp) + (1 - weight) * reverse_kl(teacher_logp, student_logp)


def head_tail_kl(teacher_logp: LogProbs, student_logp: LogProbs, mu: float = 0.5) -> PerPosition:
    r"""Forward and reverse KL, mixed by where the two differ: in the teacher's likely cells or in the rest.

    .. math:: \frac{g_h \, KL(p \| q) + g_t \, KL(q \| p)}{g_h + g_t}, \qquad
              g_h = \sum_{c \in head} |p_c - q_c|, \quad g_t = \sum_{c \notin head} |p_c - q_c|

    The head is the teacher's likeliest cell and, down from it, the cells up to which :math:`\sum p \le \mu`. No
    gradient flows through :math:`g_h, g_t`. A tail cell counts as one cell, so a small support may differ from the
    vocabulary.

    Args:
        teacher_logp: ``(*batch, C)`` nats.
        student_logp: ``(*batch, C)`` nats.
        mu: in [0, 1].

    References:
        Wu et al., 2025, arXiv:2404.02657 (AKL), equations 14-16, with the head of its release.
    """
    teacher_logp, student_logp = _at_least_float32(teacher_logp, student_logp)
    with torch.no_grad():
        p, order = teacher_logp.exp().sort(dim=-1, descending=True, stable=True)
        gap = (p - student_logp.exp().gather(-1, order)).abs()
        in_head = p.cumsum(-1) <= mu
        in_head[..., 0] = True
        head = torch.where(in_head, gap, 0.0).sum(-1)
        both = gap.sum(-1)
        share = torch.where(both > 0, head / both, 0.5)
    return share * forward_kl(teacher_logp, student_logp) + (1 - share) * reverse_kl(teacher_logp, student_logp)


def token_wise_kl(teacher_logp: LogProbs, student_logp: LogProbs) -> PerPosition:
    r"""Forward and reverse KL, mixed cell by cell: forward where the student gives too little, reverse where too much.

    .. math:: \sum_c \alpha_c \, p_c \log \frac{p_c}{q_c} + (1 - \alpha_c) \, q_c \log \frac{q_c}{p_c}, \qquad
              \alpha_c = \sigma\!\left(\log \frac{p_c}{q_c}\right)

    No gradient flows through :math:`\alpha_c = p_c / (p_c + q_c)`, and that is all there is to it: each cell's *value*
    is :math:`(p^2 - q^2) / (p + q) \, \log(p / q) = (p - q) \log(p / q)`, that of the symmetric sum
    :math:`KL(p \| q) + KL(q \| p)`, of which this has another gradient.

    Shapes as in :func:`forward_kl`. Infinite where one side alone is 0.

    References:
        Jung et al., 2025, arXiv:2505.16297 (ToDi), equations 8-10.
    """
    teacher_logp, student_logp = _at_least_float32(teacher_logp, student_logp)
    empty = (teacher_logp == -math.inf) & (student_logp == -math.inf)
    log_p, log_q = teacher_logp.masked_fill(empty, 0.0), student_logp.masked_fill(empty, 0.0)
    with torch.no_grad():
        alpha = torch.sigmoid(log_p - log_q)
    up, down = alpha * _log_ratio_terms(log_p, log_q), (1 - alpha) * _log_ratio_terms(log_q, log_p)
    return (up + down).masked_fill(empty, 0.0).sum(-1)


def lk_hybrid(teacher_logp: LogProbs, student_logp: LogProbs, eta: float = 3.0) -> PerPosition:
    r"""For draft models: forward KL while few of its tokens would be accepted, total variation when many are.

    .. math:: \lambda \, KL(p \| q) + (1 - \lambda) \, TV(p, q), \qquad
              \lambda = e^{-\eta \alpha}, \quad \alpha = \sum_c \min(p_c, q_c) = 1 - TV(p, q)

    :math:`\alpha` is how often speculative decoding accepts a token that the student proposes here. No gradient flows
    through :math:`\lambda`.

    Args:
        teacher_logp: ``(*batch, C)`` nats.
        student_logp: ``(*batch, C)`` nats.
        eta: >= 0; 0 is the forward KL, large values the total variation.

    References:
        Samarin et al., 2026, arXiv:2602.23881 (LK losses), sections 4.2 and 4.4, with :math:`\alpha` at each position.
    """
    distance = total_variation(teacher_logp, student_logp)
    weight = torch.exp(-eta * (1 - distance.detach()))
    return weight * forward_kl(teacher_logp, student_logp) + (1 - weight) * distance


def alpha_beta(teacher_logp: LogProbs, student_logp: LogProbs, alpha: float, beta: float) -> PerPosition:
    r"""Alpha-beta divergence.

    .. math:: -\frac{1}{\alpha\beta} \sum_c \Big[ p_c^\alpha q_c^\beta - \frac{\alpha}{\alpha+\beta} p_c^{\alpha+\beta}
              - \frac{\beta}{\alpha+\beta} q_c^{\alpha+\beta} \Big]

    with its limits: (1, 0) is the forward KL, (0, 1) the reverse KL, (0, 0) half the summed squared log-ratio, and
    :math:`\alpha + \beta = 0` the Itakura-Saito-like form. Non-positive exponents are infinite where a side is 0.

    Args:
        teacher_logp: ``(*batch, C)`` nats.
        student_logp: ``(*batch, C)`` nats.
        alpha: exponent of the teacher.
        beta: exponent of the student (not TRL's `beta`).

    Returns:
        ``(*batch,)``, >= 0.

    References:
        Cichocki et al., 2011, Entropy 13(1), equations 19-20; Wang et al., 2025, arXiv:2505.04560 (ABKD).
    """
    teacher_logp, student_logp = _at_least_float32(teacher_logp, student_logp)
    dtype = teacher_logp.dtype
    if any(0 < abs(x) < 0.05 for x in (alpha, beta, alpha + beta)):
        # The terms cancel to order alpha * beta: float32 would keep no digit of the difference.
        teacher_logp, student_logp = teacher_logp.double(), student_logp.double()
    empty = (teacher_logp == -math.inf) & (student_logp == -math.inf)
    log_p, log_q = teacher_logp.masked_fill(empty, 0.0), student_logp.masked_fill(empty, 0.0)
    return _alpha_beta_terms(log_p, log_q, alpha, beta).sum(-1).to(dtype)


class _ExpectedLogRatio(torch.autograd.Function):
    """``sum_c p_c (log p_c - log q_c)``; keeps its inputs alone, where autograd would keep three more of their size."""

    @staticmethod
    def forward(ctx: Any, log_p: Tensor, log_q: Tensor) -> Tensor:
        ctx.save_for_backward(log_p, log_q)
        return _dot(log_p.exp(), _log_ratio(log_p, log_q))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        log_p, log_q = ctx.saved_tensors
        p_gradient = log_p.exp().mul_(gradient.unsqueeze(-1))
        for_p = p_gradient * (_log_ratio(log_p, log_q) + 1) if ctx.needs_input_grad[0] else None
        return for_p, p_gradient.neg_() if ctx.needs_input_grad[1] else None


class _WithoutGradient(torch.autograd.Function):
    """The identity, whose gradient is zero where `dead`, be it NaN when it comes."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, dead: Tensor) -> Tensor:
        ctx.save_for_backward(dead)
        return values.view_as(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (dead,) = ctx.saved_tensors
        return gradient.masked_fill(dead, 0.0), None


def without_gradient_unless(wanted: Bool[Tensor, "*batch"] | None, values: Tensor) -> Tensor:
    """`values`, ``(*batch)`` or ``(*batch, C)``, with no gradient from positions that are not `wanted`; None is all.

    The flags are not looked at: on a GPU that would wait for everything that was launched before.
    """
    if wanted is None:
        return values
    return _WithoutGradient.apply(values, ~(wanted.unsqueeze(-1) if values.ndim > wanted.ndim else wanted))


def _log_ratio(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Masked before it is multiplied with p: 0 * (-inf + inf) would be NaN."""
    return (log_p - log_q).masked_fill_(log_p == -math.inf, 0.0)


def _log_ratio_terms(log_a: Tensor, log_b: Tensor) -> Tensor:
    """``a log(a / b)`` cell by cell; 0 where a is 0."""
    nothing = log_a == -math.inf
    ratio = log_a.masked_fill(nothing, 0.0) - log_b.masked_fill(nothing, 0.0)
    return log_a.masked_fill(nothing, 0.0).exp() * ratio.masked_fill(nothing, 0.0)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.einsum("...c,...c->...", a, b)


def _alpha_beta_terms(log_p: Tensor, log_q: Tensor, alpha: float, beta: float) -> Tensor:
    if alpha == 0 and beta == 0:
        return 0.5 * (log_p - log_q).square()
    if beta == 0:
        return _extended_kl(alpha * log_p, alpha * log_q) / alpha**2
    if alpha == 0:
        return _extended_kl(beta * log_q, beta * log_p) / beta**2
    if alpha + beta == 0:
        log_ratio = alpha * (log_p - log_q)
        return (torch.expm1(log_ratio) - log_ratio) / alpha**2
    total = alpha + beta
    cross = (alpha * log_p + beta * log_q).exp()
    own = (alpha * (total * log_p).exp() + beta * (total * log_q).exp()) / total
    return (own - cross) / (alpha * beta)


def _extended_kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """``a log(a/b) - a + b`` cell by cell, for masses that need not sum to one."""
    log_ratio = torch.where(log_a > -math.inf, log_a - log_b, 0.0)
    return log_a.exp() * (log_ratio - 1) + log_b.exp()


def _log_mixture(first: Tensor, second: Tensor, weight: float) -> Tensor:
    """``log(weight * exp(first) + (1 - weight) * exp(second))``, with a gradient where both are empty."""
    first, second = _at_least_float32(first, second)
    if weight == 0:
        return second
    if weight == 1:
        return first
    empty = (first == -math.inf) & (second == -math.inf)
    mixed = torch.logaddexp(
        first.masked_fill(empty, 0.0) + math.log(weight), second.masked_fill(empty, 0.0) + math.log1p(-weight)
    )
    return mixed.masked_fill(empty, -math.inf)


def entropy(logp: LogProbs) -> PerPosition:
    """Shannon entropy of each distribution over its cells, nats: that of the vocabulary where every cell is a token."""
    (logp,) = _at_least_float32(logp)
    return -(logp.exp() * torch.where(logp > -math.inf, logp, 0.0)).sum(-1)


def _at_least_float32(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.float() if x.dtype in (torch.float16, torch.bfloat16) else x for x in tensors)


DIVERGENCES: Registry[Callable[..., Tensor]] = Registry(
    "bridgegarden.divergences",
    {
        function.__name__: function
        for function in (
            forward_kl,
            reverse_kl,
            jensen_shannon,
            skewed_forward_kl,
            skewed_reverse_kl,
            total_variation,
            adaptive_kl,
            head_tail_kl,
            token_wise_kl,
            lk_hybrid,
            alpha_beta,
        )
    },
    is_entry=callable,
    expected="a function of teacher and student log-probabilities",
)
"""Every divergence by the name a recipe gives it; `alpha_beta` needs its two exponents bound to be a Divergence."""
