"""Hidden states to logits and back; chosen logits and normalisers without [N, V] logits, against the dense ones."""

import math

import pytest
import torch

from bridgegarden.objective import head as head_module
from bridgegarden.objective.head import (
    FREE_PER_CHUNK,
    LARGEST_CHUNK,
    SMALLEST_CHUNK,
    LanguageModelHead,
    default_chunk_tokens,
    free_memory,
    select_support,
    selected_logits,
)

H = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
W = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
B = torch.randn(6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def test_logits_are_scaled_before_they_are_capped():
    head = LanguageModelHead(weight=W, bias=B, softcap=2.0, scale=0.5)
    expected = 2.0 * torch.tanh(0.5 * (H @ W.T + B) / 2.0)
    torch.testing.assert_close(head.logits(H), expected)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_pull_back_is_the_gradient_through_scale_and_cap(softcap, scale):
    head = LanguageModelHead(weight=W, softcap=softcap, scale=scale)
    hidden = H.clone().requires_grad_()
    logits = head.logits(hidden)
    gradient = torch.randn_like(logits)
    (expected,) = torch.autograd.grad(logits, hidden, gradient)
    torch.testing.assert_close(head.pull_back(logits.detach(), gradient.clone()) @ W, expected)


def test_logits_of_low_precision_models_are_float32():
    assert LanguageModelHead(weight=W.bfloat16()).logits(H.bfloat16()).dtype == torch.float32


def test_autocast_decides_the_dtype_of_the_product():
    head = LanguageModelHead(weight=W.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = head.logits(H.float())
    torch.testing.assert_close(got, (H.bfloat16() @ W.bfloat16().T).float())


N, D, V, K = 11, 5, 23, 4


def problem(dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(V, D, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    bias = torch.randn(V, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    ids = torch.stack([torch.randperm(V, generator=generator)[:K] for _ in range(N)])
    return hidden, weight, bias, ids


def dense(hidden, weight, bias, ids, softcap, scale):
    logits = LanguageModelHead(weight=weight, bias=bias, softcap=softcap, scale=scale).logits(hidden)
    rest = logits.scatter(1, ids, -math.inf).logsumexp(1)
    return logits.logsumexp(1), logits.gather(1, ids), rest


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_values_and_gradients_are_those_of_dense_logits_whatever_the_chunk(chunk, softcap, scale):
    hidden, weight, bias, ids = problem()
    got = selected_logits(hidden, weight, ids, bias=bias, softcap=softcap, scale=scale, chunk_tokens=chunk)
    expected = dense(hidden, weight, bias, ids, softcap, scale)
    outputs = (got.log_normaliser, got.logits, got.log_rest)
    seeds = [torch.randn_like(x) for x in outputs]
    for ours, theirs in zip(outputs, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    inputs = (hidden, weight, bias)
    for ours, theirs in zip(
        torch.autograd.grad(outputs, inputs, seeds), torch.autograd.grad(expected, inputs, seeds), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_gradcheck():
    hidden, weight, bias, ids = problem()
    assert torch.autograd.gradcheck(
        lambda h, w, b: tuple(vars(selected_logits(h, w, ids, bias=b, softcap=3.0, chunk_tokens=4)).values()),
        (hidden, weight, bias),
    )


def test_repeated_ids_count_once_in_the_normaliser():
    hidden, weight, _, ids = problem()
    ids = torch.cat([ids, ids[:, :2]], 1)
    got = selected_logits(hidden, weight, ids)
    torch.testing.assert_close(got.log_normaliser, (hidden @ weight.T).logsumexp(1))
    got.log_normaliser.sum().backward()
    expected = (hidden @ weight.T).softmax(1) @ weight
    torch.testing.assert_close(hidden.grad, expected.detach())


def test_selecting_the_whole_vocabulary_leaves_nothing_and_no_nan():
    hidden, weight, _, _ = problem()
    ids = torch.arange(V).expand(N, V)
    got = selected_logits(hidden, weight, ids, chunk_tokens=2)
    assert (got.log_rest == -math.inf).all()
    torch.testing.assert_close(got.log_normaliser, (hidden @ weight.T).logsumexp(1))
    (gradient,) = torch.autograd.grad(got.log_normaliser.sum(), hidden)
    torch.testing.assert_close(gradient, ((hidden @ weight.T).softmax(1) @ weight).detach())


def test_the_rest_of_a_very_sure_student_keeps_its_digits():
    weight = torch.tensor([[60.0], [0.0], [0.0], [0.0]])
    got = selected_logits(torch.ones(1, 1), weight, torch.tensor([[0]]))
    assert got.log_rest.item() == pytest.approx(math.log(3))
    assert got.log_normaliser.item() == 60.0


def test_a_frozen_head_gets_no_gradient():
    hidden, weight, _, ids = problem()
    got = selected_logits(hidden, weight.detach(), ids)
    got.logits.sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None


def test_no_positions_give_empty_results_and_zero_gradients():
    _, weight, _, _ = problem()
    hidden = torch.zeros(0, D, dtype=torch.float64, requires_grad=True)
    got = selected_logits(hidden, weight, torch.zeros(0, K, dtype=torch.long))
    (gradient,) = torch.autograd.grad(got.log_normaliser.sum(), weight)
    assert got.logits.shape == (0, K)
    assert (gradient == 0).all()


@pytest.mark.parametrize("chunk", [3, 100])
def test_no_worse_than_dense_code_at_the_same_precision(chunk):
    hidden, weight, bias, ids = problem(torch.bfloat16)
    truth = dense(hidden.double(), weight.double(), bias.double(), ids, None, 1.0)
    plain = (hidden @ weight.T + bias).float()
    usual = plain.logsumexp(1), plain.gather(1, ids), plain.scatter(1, ids, -math.inf).logsumexp(1)
    got = selected_logits(hidden, weight, ids, bias=bias, chunk_tokens=chunk)
    for ours, theirs, true in zip((got.log_normaliser, got.logits, got.log_rest), usual, truth, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - true).abs().max() <= (theirs - true).abs().max() + 1e-5


def test_weight_gradient_of_many_chunks_in_bfloat16_does_not_drown():
    """Summed up in bfloat16, two thousand equal small addends stop growing long before the end."""
    hidden = torch.ones(2048, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    ids = torch.zeros(2048, 1, dtype=torch.long)
    selected_logits(hidden, weight, ids, chunk_tokens=1).log_normaliser.sum().backward()
    assert weight.grad is not None
    assert weight.grad.flatten().tolist() == [1024.0, 1024.0]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_support_of_one_chunk_has_exact_gradients(temperature):
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(3, 9, generator=generator, dtype=torch.float64, requires_grad=True)
    ids = torch.stack([torch.randperm(9, generator=generator)[:3] for _ in range(3)])
    targets = torch.tensor([0, 8, int(ids[2, 1])])

    def outputs(z: torch.Tensor) -> tuple[torch.Tensor, ...]:
        student = select_support(z, ids, targets, temperature)
        return student.cells(temperature), student.target_logit, student.log_normaliser

    assert torch.autograd.gradcheck(outputs, (logits,))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_second_backward_over_a_retained_graph_gives_the_gradient_of_the_first(temperature):
    logits = torch.randn(3, 9, generator=torch.Generator().manual_seed(6), dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([[0, 1], [4, 2], [8, 7]])
    student = select_support(logits, ids, torch.tensor([0, 3, 8]), temperature)
    loss = student.cells(temperature).square().sum() + student.log_normaliser.sum()
    (first,) = torch.autograd.grad(loss, logits, retain_graph=True)
    first = first.clone()
    (second,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(second, first, rtol=0, atol=0)


def test_a_logit_that_is_not_a_number_is_not_hidden_by_the_gradient():
    logits = torch.zeros(1, 4)
    logits[0, 3] = math.nan
    logits.requires_grad_()
    student = select_support(logits, torch.tensor([[0]]), torch.tensor([0]), 1.0)
    (gradient,) = torch.autograd.grad(student.log_normaliser.sum(), logits)
    assert gradient.isnan().any()


def test_empty_slots_of_a_support_hold_no_mass():
    logits = torch.randn(2, 6, dtype=torch.float64)
    ids = torch.tensor([[3, 1, -1], [5, -1, -1]])
    student = select_support(logits, ids, torch.tensor([0, 0]), 1.0)
    cells = student.cells().exp()
    torch.testing.assert_close(cells.sum(-1), torch.ones(2, dtype=torch.float64))
    assert (cells[ids.new_tensor([[0, 0, 1, 0], [0, 1, 1, 0]]).bool()] == 0).all()
    torch.testing.assert_close(student.log_normaliser, logits.logsumexp(-1))


def test_default_chunk_shrinks_with_the_vocabulary_and_never_vanishes():
    assert default_chunk_tokens(10, "cpu") > default_chunk_tokens(150_000, "cpu") >= 16
    assert default_chunk_tokens(10**9, "cpu") == 16
    assert default_chunk_tokens(150_000, "cuda") > default_chunk_tokens(150_000, "cpu")


GIB = 2**30


@pytest.mark.parametrize("vocab_size", [32_000, 151_936])
def test_a_chunk_grows_with_the_free_memory_of_a_gpu_within_bounds(vocab_size):
    sizes = [4 * vocab_size * default_chunk_tokens(vocab_size, "cuda", free * GIB // 8) for free in range(1200)]
    assert sizes == sorted(sizes)
    for eighths, size in enumerate(sizes):
        assert size <= max(eighths * GIB / 8 / FREE_PER_CHUNK, SMALLEST_CHUNK)
        assert size <= LARGEST_CHUNK
    assert sizes[-1] > 0.99 * LARGEST_CHUNK
    assert default_chunk_tokens(vocab_size, "cuda", 0) == default_chunk_tokens(vocab_size, "cuda", GIB // 2) >= 16


def test_a_little_more_or_less_free_memory_leaves_a_chunk_as_it_is():
    chunks = {default_chunk_tokens(151_936, "cuda", 12 * GIB + other * 2**20) for other in range(-2000, 2000, 7)}
    assert chunks == {GIB // 2 // (4 * 151_936)}


def test_free_is_what_the_driver_has_left_and_what_pytorch_keeps_unused(monkeypatch):
    kept = {"reserved_bytes.all.current": 700, "allocated_bytes.all.current": 300}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 5000))
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: kept)
    assert free_memory(torch.device("cuda", 0)) == 1400
    # Before anything was allocated PyTorch has no numbers.
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: {})
    assert free_memory(torch.device("cuda")) == 1000
    assert free_memory(torch.device("cpu")) is None


def test_the_two_pass_route_goes_by_the_free_memory_too(monkeypatch):
    sizes = []
    monkeypatch.setattr(head_module, "free_memory", lambda device: 7)
    monkeypatch.setattr(head_module, "default_chunk_tokens", lambda *given: sizes.append(given) or 3)
    hidden, weight = torch.randn(5, 2), torch.randn(11, 2)
    selected_logits(hidden, weight, torch.zeros(5, 1, dtype=torch.long))
    assert sizes == [(11, "cpu", 7)]
