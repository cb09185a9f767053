"""The projection from hidden states to logits."""

import pytest
import torch

from bridgegarden.objective.head import LanguageModelHead

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
