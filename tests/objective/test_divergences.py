"""Divergences against sums written out cell by cell in float64, and against the laws that define them."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bridgegarden.objective.divergences import (
    DIVERGENCES,
    adaptive_kl,
    alpha_beta,
    forward_kl,
    head_tail_kl,
    jensen_shannon,
    lk_hybrid,
    reverse_kl,
    skewed_forward_kl,
    skewed_reverse_kl,
    token_wise_kl,
    total_variation,
)

AB = partial(alpha_beta, alpha=0.2, beta=0.7)
ALL = {
    **{name: function for name, function in DIVERGENCES.items() if name != "alpha_beta"},
    "jensen_shannon_0.1": partial(jensen_shannon, beta=0.1),
    "alpha_beta_0.2_0.7": AB,
    "alpha_beta_2_-1": partial(alpha_beta, alpha=2.0, beta=-1.0),
}
F_DIVERGENCES = (
    "forward_kl",
    "reverse_kl",
    "jensen_shannon",
    "jensen_shannon_0.1",
    "skewed_forward_kl",
    "skewed_reverse_kl",
    "total_variation",
    "token_wise_kl",
)
HELD_FAST = ("head_tail_kl", "token_wise_kl", "lk_hybrid")
"""By definition their gradient is not that of their value: a factor is held fast."""


def random_pair(cells: int = 6, batch: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, batch, cells, generator=generator, dtype=torch.float64)
    return logits.log_softmax(-1).to(dtype).unbind(0)


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a > 0)


def entropy(p: list[float]) -> float:
    return -sum(a * math.log(a) for a in p if a > 0)


def mixture(p: list[float], q: list[float], weight: float) -> list[float]:
    return [weight * a + (1 - weight) * b for a, b in zip(p, q, strict=True)]


def by_definition(name: str, p: list[float], q: list[float]) -> float:
    """Each divergence from its definition, one cell at a time, in Python's floats."""
    if name == "forward_kl":
        return kl(p, q)
    if name == "reverse_kl":
        return kl(q, p)
    if name.startswith("jensen_shannon"):
        beta = 0.1 if name.endswith("0.1") else 0.5
        m = mixture(p, q, beta)
        return beta * kl(p, m) + (1 - beta) * kl(q, m)
    if name == "skewed_forward_kl":
        return kl(p, mixture(p, q, 0.1))
    if name == "skewed_reverse_kl":
        return kl(q, mixture(q, p, 0.1))
    if name == "total_variation":
        return 0.5 * sum(abs(a - b) for a, b in zip(p, q, strict=True))
    if name == "adaptive_kl":
        sure_p, sure_q = math.exp(-0.5 * entropy(p)), math.exp(-0.5 * entropy(q))
        w = sure_p / (sure_p + sure_q)
        return w * kl(p, q) + (1 - w) * kl(q, p)
    if name in HELD_FAST:
        weights = held_fast(name, p, q)
        return with_weights(name, p, q, weights)
    alpha, beta = (0.2, 0.7) if name == "alpha_beta_0.2_0.7" else (2.0, -1.0)
    s = alpha + beta
    terms = (a**alpha * b**beta - alpha / s * a**s - beta / s * b**s for a, b in zip(p, q, strict=True))
    return -sum(terms) / (alpha * beta)


def held_fast(name: str, p: list[float], q: list[float]) -> list[float]:
    """The factors of a method, from its paper's definition."""
    if name == "token_wise_kl":
        return [1 / (1 + math.exp(-(math.log(a) - math.log(b)))) for a, b in zip(p, q, strict=True)]
    if name == "lk_hybrid":
        return [math.exp(-3 * sum(min(a, b) for a, b in zip(p, q, strict=True)))]
    # Cells from the teacher's likeliest down; the first is always in the head, and then what half of the mass holds.
    down, mass, head, tail = sorted(range(len(p)), key=lambda c: -p[c]), 0.0, 0.0, 0.0
    for place, cell in enumerate(down):
        mass += p[cell]
        gap = abs(p[cell] - q[cell])
        head, tail = (head + gap, tail) if place == 0 or mass <= 0.5 else (head, tail + gap)
    return [head / (head + tail)]


def with_weights(name: str, p: list[float], q: list[float], weights: list[float]) -> float:
    """A method's value, given its factors."""
    if name == "token_wise_kl":
        return sum(
            w * a * math.log(a / b) + (1 - w) * b * math.log(b / a) for w, a, b in zip(weights, p, q, strict=True)
        )
    other = kl(q, p) if name == "head_tail_kl" else 0.5 * sum(abs(a - b) for a, b in zip(p, q, strict=True))
    return weights[0] * kl(p, q) + (1 - weights[0]) * other


@pytest.mark.parametrize("name", ALL)
def test_value_is_the_sum_written_in_the_definition(name):
    teacher, student = random_pair()
    got = ALL[name](teacher, student)
    expected = [by_definition(name, p.exp().tolist(), q.exp().tolist()) for p, q in zip(teacher, student, strict=True)]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", HELD_FAST)
def test_the_gradient_is_that_of_the_value_with_its_factors_held_fast(name):
    """By differences of the definition, cell by cell of the student's logits."""
    teacher, student = random_pair(cells=5, batch=4)
    logits = student.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(ALL[name](teacher, logits.log_softmax(-1)).sum(), logits)
    for row in range(4):
        p = teacher[row].exp().tolist()
        weights = held_fast(name, p, student[row].exp().tolist())
        for cell in range(5):
            ends = []
            for step in (1e-6, -1e-6):
                moved = student[row].clone()
                moved[cell] += step
                ends.append(with_weights(name, p, moved.softmax(-1).tolist(), weights))
            assert gradient[row, cell].item() == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-7)


def test_token_wise_kl_has_the_value_of_the_symmetric_kl_and_another_gradient():
    teacher, student = random_pair()
    logits = student.clone().requires_grad_()
    value = token_wise_kl(teacher, logits.log_softmax(-1))
    both = forward_kl(teacher, logits.log_softmax(-1)) + reverse_kl(teacher, logits.log_softmax(-1))
    torch.testing.assert_close(value, both)
    ours, theirs = (torch.autograd.grad(one.sum(), logits)[0] for one in (value, both))
    assert (ours - theirs).abs().max() > 0.01


def test_lk_hybrid_without_eta_is_the_forward_kl_and_with_much_of_it_the_total_variation():
    pair = random_pair()
    torch.testing.assert_close(lk_hybrid(*pair, eta=0.0), forward_kl(*pair))
    torch.testing.assert_close(lk_hybrid(*pair, eta=1e4), total_variation(*pair))


def test_head_tail_kl_is_forward_where_all_that_differs_is_in_the_head_and_reverse_where_it_is_in_the_tail():
    teacher = torch.tensor([[0.4, 0.3, 0.2, 0.1]], dtype=torch.float64).log()
    head = torch.tensor([[0.3, 0.4, 0.2, 0.1]], dtype=torch.float64).log()
    tail = torch.tensor([[0.4, 0.3, 0.1, 0.2]], dtype=torch.float64).log()
    torch.testing.assert_close(head_tail_kl(teacher, head, mu=0.7 + 1e-9), forward_kl(teacher, head))
    torch.testing.assert_close(head_tail_kl(teacher, tail, mu=0.7 + 1e-9), reverse_kl(teacher, tail))


@pytest.mark.parametrize("name", [name for name in ALL if name not in HELD_FAST])
def test_gradient_passes_gradcheck(name):
    logits = [x.clone().requires_grad_() for x in random_pair(cells=4, batch=2)]
    assert torch.autograd.gradcheck(
        lambda p, q: ALL[name](p.log_softmax(-1), q.log_softmax(-1)), logits, eps=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_zero_exactly_when_equal_and_positive_otherwise(name, seed):
    teacher, student = random_pair(seed=seed)
    assert ALL[name](teacher, teacher).abs().max() < 1e-12
    assert (ALL[name](teacher, student) > 1e-6).all()


@pytest.mark.parametrize("name", F_DIVERGENCES)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), cell=st.integers(0, 4))
def test_merging_two_cells_never_raises_an_f_divergence(name, seed, cell):
    pair = random_pair(seed=seed)
    merged = [
        torch.cat([x[:, :cell], x[:, cell + 2 :], x[:, cell : cell + 2].logsumexp(-1, keepdim=True)], -1) for x in pair
    ]
    assert (ALL[name](*merged) <= ALL[name](*pair) + 1e-12).all()


@pytest.mark.parametrize("name", F_DIVERGENCES)
def test_merging_cells_of_equal_ratio_changes_nothing(name):
    teacher, student = random_pair()
    split = [torch.cat([x, x[:, -1:] + math.log(0.25)], -1) for x in (teacher, student)]
    split = [torch.cat([x[:, :-2], x[:, -2:-1] + math.log(0.75), x[:, -1:]], -1) for x in split]
    torch.testing.assert_close(ALL[name](*split), ALL[name](teacher, student))


@pytest.mark.parametrize("name", ALL)
def test_a_cell_that_both_leave_empty_changes_neither_value_nor_gradient(name):
    teacher, student = (x.clone().requires_grad_() for x in random_pair())
    empty = torch.full_like(teacher[:, :1], -math.inf)
    without = ALL[name](teacher, student)
    within = ALL[name](torch.cat([teacher, empty], -1), torch.cat([student, empty], -1))
    torch.testing.assert_close(within, without)
    for a, b in zip(
        torch.autograd.grad(without.sum(), (teacher, student)),
        torch.autograd.grad(within.sum(), (teacher, student)),
        strict=True,
    ):
        torch.testing.assert_close(b, a)


@pytest.mark.parametrize("name", ["forward_kl", "jensen_shannon", "skewed_forward_kl", "total_variation"])
def test_teacher_without_mass_on_a_cell_gives_a_finite_value_and_gradient(name):
    teacher = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64).log()
    logits = torch.tensor([[0.1, -0.3, 0.2]], dtype=torch.float64, requires_grad=True)
    value = ALL[name](teacher, logits.log_softmax(-1))
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert torch.isfinite(value).all()
    assert torch.isfinite(gradient).all()


def test_forward_kl_is_infinite_where_only_the_student_is_empty_and_reverse_where_only_the_teacher_is():
    some, none = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[1.0, 0.0]]).log()
    assert forward_kl(some, none).item() == math.inf
    assert reverse_kl(none, some).item() == math.inf
    assert math.isfinite(skewed_forward_kl(some, none).item())
    assert math.isfinite(skewed_reverse_kl(none, some).item())


def test_forward_kl_gradient_in_the_logits_is_student_minus_teacher_probability():
    teacher, student = random_pair()
    logits = student.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(forward_kl(teacher, logits.log_softmax(-1)).sum(), logits)
    torch.testing.assert_close(gradient, student.exp() - teacher.exp())


@pytest.mark.parametrize(("beta", "limit"), [(0.0, forward_kl), (1.0, reverse_kl)])
def test_jensen_shannon_at_its_ends_is_a_kl_divergence(beta, limit):
    pair = random_pair()
    torch.testing.assert_close(jensen_shannon(*pair, beta=beta), limit(*pair))


def test_jensen_shannon_scaled_by_its_share_tends_to_the_forward_kl():
    pair = random_pair()
    torch.testing.assert_close(jensen_shannon(*pair, beta=1e-6) / 1e-6, forward_kl(*pair), rtol=1e-4, atol=1e-4)


def test_jensen_shannon_is_symmetric_and_bounded_by_log_two():
    teacher, student = random_pair()
    torch.testing.assert_close(jensen_shannon(teacher, student), jensen_shannon(student, teacher))
    apart = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).log()
    assert jensen_shannon(apart[:1], apart[1:]).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize(("function", "plain"), [(skewed_forward_kl, forward_kl), (skewed_reverse_kl, reverse_kl)])
def test_skew_zero_is_the_plain_divergence_and_skew_one_is_zero(function, plain):
    pair = random_pair()
    torch.testing.assert_close(function(*pair, skew=0.0), plain(*pair))
    assert function(*pair, skew=1.0).abs().max() < 1e-12


def test_adaptive_kl_without_mu_is_the_mean_of_the_two_divergences():
    pair = random_pair()
    torch.testing.assert_close(adaptive_kl(*pair, mu=0.0), 0.5 * (forward_kl(*pair) + reverse_kl(*pair)))


@pytest.mark.parametrize(
    ("alpha", "beta", "cell"),
    [
        (0.0, 0.0, lambda p, q: 0.5 * math.log(p / q) ** 2),
        (1.0, 0.0, lambda p, q: p * math.log(p / q) - p + q),
        (-0.7, 0.0, lambda p, q: (p**-0.7 * math.log((p / q) ** -0.7) - p**-0.7 + q**-0.7) / 0.7**2),
        (0.0, 0.4, lambda p, q: (q**0.4 * math.log((q / p) ** 0.4) - q**0.4 + p**0.4) / 0.4**2),
        (0.5, -0.5, lambda p, q: ((p / q) ** 0.5 - 1 - 0.5 * math.log(p / q)) / 0.5**2),
    ],
)
def test_alpha_beta_at_its_limits_is_the_sum_of_the_limits_formula(alpha, beta, cell):
    teacher, student = random_pair()
    sides = zip(teacher.exp().tolist(), student.exp().tolist(), strict=True)
    expected = [sum(cell(p, q) for p, q in zip(*rows, strict=True)) for rows in sides]
    got = alpha_beta(teacher, student, alpha=alpha, beta=beta)
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(
    ("alpha", "beta", "limit"),
    [
        (1.0, 0.0, forward_kl),
        (0.0, 1.0, reverse_kl),
        (0.0, 0.0, lambda p, q: 0.5 * (p - q).square().sum(-1)),
        (0.5, -0.5, partial(alpha_beta, alpha=0.5, beta=-0.5)),
        (-0.7, 0.0, partial(alpha_beta, alpha=-0.7, beta=0.0)),
        (0.0, -0.7, partial(alpha_beta, alpha=0.0, beta=-0.7)),
    ],
)
@pytest.mark.parametrize("step", [1e-3, 1e-5])
def test_alpha_beta_is_continuous_at_its_limits(alpha, beta, limit, step):
    pair = random_pair()
    near = alpha_beta(*pair, alpha=alpha + step, beta=beta + 2 * step)
    torch.testing.assert_close(near, limit(*pair), rtol=50 * step, atol=50 * step)


def test_alpha_beta_near_a_limit_keeps_its_digits_in_float32():
    teacher, student = random_pair()
    exact = alpha_beta(teacher, student, alpha=1.0, beta=1e-4)
    single = alpha_beta(teacher.float(), student.float(), alpha=1.0, beta=1e-4)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_bfloat16_inputs_are_reduced_in_float32(name):
    teacher, student = (x.bfloat16() for x in random_pair(cells=500))
    got = ALL[name](teacher, student)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), ALL[name](teacher.double(), student.double()), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", ALL)
def test_batch_dimensions_are_kept(name):
    teacher, student = (x.reshape(1, 5, 1, 6) for x in random_pair())
    assert ALL[name](teacher, student).shape == (1, 5, 1)


def test_total_variation_of_disjoint_distributions_is_one():
    apart = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).log()
    assert total_variation(apart[:1], apart[1:]).item() == 1.0
