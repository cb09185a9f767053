"""Supports: what is kept of a distribution and where the rest goes."""

import math

import pytest
import torch

from bridgegarden.errors import ConfigError
from bridgegarden.objective.divergences import forward_kl
from bridgegarden.objective.support import StudentSupport, TeacherSignal

V = 11
LOGITS = 2 * torch.randn(7, V, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
LOGP = LOGITS.log_softmax(-1)


def test_dense_signal_is_the_whole_distribution():
    signal = TeacherSignal.from_logits(LOGITS)
    assert signal.ids is None
    assert signal.log_tail is None
    torch.testing.assert_close(signal.cells(), LOGP)
    assert signal.captured_mass.tolist() == [1.0] * 7


def test_top_k_keeps_exact_log_probabilities_and_the_rest_in_the_tail():
    signal = TeacherSignal.from_logits(LOGITS, k=3)
    for row in range(7):
        order = sorted(range(V), key=lambda v: -LOGP[row, v].item())
        assert signal.ids is not None
        assert signal.log_tail is not None
        assert signal.ids[row].tolist() == order[:3]
        assert signal.logp[row].tolist() == pytest.approx([LOGP[row, v].item() for v in order[:3]])
        assert signal.log_tail[row].exp().item() == pytest.approx(sum(LOGP[row, v].exp().item() for v in order[3:]))
        assert signal.argmax[row].item() == order[0]
    torch.testing.assert_close(signal.cells().exp().sum(-1), torch.ones(7, dtype=torch.float64))


def test_entropy_is_exact_whatever_is_kept():
    expected = -(LOGP.exp() * LOGP).sum(-1)
    for k in (None, 1, 4):
        torch.testing.assert_close(TeacherSignal.from_logits(LOGITS, k=k).entropy, expected)


@pytest.mark.parametrize("k", [V, V + 5])
def test_keeping_as_many_as_there_are_is_dense(k):
    assert TeacherSignal.from_logits(LOGITS, k=k).ids is None


def test_padding_of_the_vocabulary_goes_to_the_tail_and_is_never_kept():
    logits = LOGITS.clone()
    logits[:, 8:] += 10.0
    signal = TeacherSignal.from_logits(logits, k=4, vocab_size=8)
    assert signal.ids is not None
    assert signal.log_tail is not None
    assert (signal.ids < 8).all()
    assert (signal.argmax < 8).all()
    torch.testing.assert_close(signal.cells().exp().sum(-1), torch.ones(7, dtype=torch.float64))
    assert (signal.log_tail.exp() > 0.9).all()


@pytest.mark.parametrize("k", [None, 4])
def test_what_padding_holds_is_not_captured_and_never_the_likeliest(k):
    logits = LOGITS.clone()
    logits[:, 8:] += 3.0
    signal = TeacherSignal.from_logits(logits, k=k, vocab_size=8)
    p = logits.softmax(-1)[:, :8]
    assert (logits.argmax(-1) >= 8).any()
    assert signal.argmax.tolist() == p.argmax(-1).tolist()
    torch.testing.assert_close(signal.max_logp, p.max(-1).values.log())
    torch.testing.assert_close(signal.captured_mass, p.sum(-1) if k is None else p.topk(k).values.sum(-1))


def test_tail_of_a_sure_teacher_keeps_its_digits():
    logits = torch.full((1, 1000), -40.0)
    logits[0, 5] = 0.0
    signal = TeacherSignal.from_logits(logits, k=1)
    assert signal.log_tail is not None
    # One minus the kept mass is exactly 0 in float32; the stored tail is not.
    assert 1.0 - signal.logp.exp().item() == 0.0
    assert signal.log_tail.item() == pytest.approx(-40 + math.log(999), rel=1e-6)


@pytest.mark.parametrize("k", [None, 1, 4])
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_cells_at_a_temperature_are_those_of_the_tempered_logits(k, temperature):
    signal = TeacherSignal.from_logits(LOGITS, k=k, exponents=(1 / temperature,))
    tempered = (LOGITS / temperature).softmax(-1)
    got = signal.cells(temperature).exp()
    if k is None:
        torch.testing.assert_close(got, tempered)
    else:
        assert signal.ids is not None
        torch.testing.assert_close(got[:, :-1], tempered.gather(-1, signal.ids))
        torch.testing.assert_close(got[:, -1], 1 - got[:, :-1].sum(-1))


def test_a_tail_at_a_temperature_that_was_not_prepared_is_refused():
    with pytest.raises(ConfigError, match=r"exponents=\(0.5,\)"):
        TeacherSignal.from_logits(LOGITS, k=2).cells(temperature=2.0)


def test_impossible_tokens_have_no_mass_and_no_nan():
    logits = LOGITS.clone()
    logits[:, 2:9] = -math.inf
    for k in (None, 3, 6):
        signal = TeacherSignal.from_logits(logits, k=k, exponents=(0.5,))
        for values in (signal.entropy, signal.max_logp, signal.cells(), signal.cells(2.0)):
            assert not values.isnan().any()
        torch.testing.assert_close(signal.cells().exp().sum(-1), torch.ones(7, dtype=torch.float64))


def test_bfloat16_logits_are_normalised_in_float32():
    signal = TeacherSignal.from_logits(LOGITS.bfloat16(), k=3)
    assert signal.logp.dtype == torch.float32
    torch.testing.assert_close(signal.cells().exp().sum(-1), torch.ones(7))


def test_slicing_positions_keeps_every_field_in_step():
    signal = TeacherSignal.from_logits(LOGITS, k=3, exponents=(0.5,))
    part, alone = signal[2:5], TeacherSignal.from_logits(LOGITS[2:5], k=3, exponents=(0.5,))
    torch.testing.assert_close(part.cells(), alone.cells())
    torch.testing.assert_close(part.cells(2.0), alone.cells(2.0))
    assert part.argmax.tolist() == alone.argmax.tolist()


@pytest.mark.parametrize(
    ("k", "vocab_size", "match"), [(0, None, "k must be >= 1"), (None, 12, "between 1 and"), (2, 0, "got 0")]
)
def test_sizes_out_of_range_are_refused(k, vocab_size, match):
    with pytest.raises(ConfigError, match=match):
        TeacherSignal.from_logits(LOGITS, k=k, vocab_size=vocab_size)


def student_on(signal: TeacherSignal, logits: torch.Tensor) -> StudentSupport:
    assert signal.ids is not None
    return StudentSupport(
        logits=logits.gather(-1, signal.ids),
        log_rest=None,
        target_logit=logits[:, 0],
        log_normaliser=logits.logsumexp(-1),
    )


def test_sampled_support_is_unbiased_for_the_forward_kl_and_its_gradient():
    teacher = LOGITS[:1].expand(20_000, V)
    base = torch.randn(1, V, generator=torch.Generator().manual_seed(3), dtype=torch.float64).requires_grad_()
    dense = forward_kl(LOGP[:1], base.log_softmax(-1))
    (dense_gradient,) = torch.autograd.grad(dense.sum(), base)
    signal = TeacherSignal.from_samples(teacher, 4, generator=torch.Generator().manual_seed(7))
    assert signal.weights is not None
    student = student_on(signal, base.expand(20_000, V))
    values = (signal.weights * (signal.logp - student.logp_at_support())).sum(-1)
    (gradient,) = torch.autograd.grad(values.mean(), base)
    assert abs(values.mean().item() - dense.item()) < 4 * values.std().item() / math.sqrt(20_000)
    torch.testing.assert_close(gradient, dense_gradient, atol=0.01, rtol=0)
