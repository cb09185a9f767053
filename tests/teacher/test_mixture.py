"""The mixture of several teachers: p = sum_i w_i p_i at every token, against float64 from the definition."""

import math

import pytest
import torch

from bridgegarden.errors import ConfigError
from bridgegarden.objective.alignment import SupervisedPositions
from bridgegarden.teacher.live import LiveTeacher
from bridgegarden.teacher.mixture import MixedTeacher, Mixture, mixture_logits
from tests.tiny import tiny_model

WEIGHTS = (0.6, 0.3, 0.1)


@pytest.fixture
def logits():
    """Of three teachers, the second with two ids less, one token that the third rules out, one position far apart."""
    generator = torch.Generator().manual_seed(0)
    parts = [3 * torch.randn(5, width, generator=generator) for width in (11, 9, 11)]
    parts[2][1, 4] = -math.inf
    parts[0][2] *= 30
    return parts


def by_definition(parts, weights):
    width = max(part.shape[-1] for part in parts)
    p = torch.zeros(len(parts[0]), width, dtype=torch.float64)
    for part, weight in zip(parts, weights, strict=True):
        p[:, : part.shape[-1]] += weight * part.double().softmax(-1)
    return p


def test_log_probabilities_are_those_of_the_definition(logits):
    want = by_definition(logits, WEIGHTS)
    torch.testing.assert_close(mixture_logits(logits, WEIGHTS).double().exp(), want, rtol=1e-5, atol=1e-9)
    assert mixture_logits([part.double() for part in logits], WEIGHTS).dtype == torch.float64
    half = mixture_logits([part.half() for part in logits], WEIGHTS)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.exp().sum(-1), torch.ones(5))


def test_weights_that_are_none_of_a_mixture_are_refused_with_the_teachers():
    teachers = [LiveTeacher(tiny_model("llama")) for _ in range(2)]
    for weights in ((0.5, 0.6), (1.5, -0.5)):
        with pytest.raises(ConfigError, match="mixture"):
            MixedTeacher(teachers, weights)
    with pytest.raises(ConfigError, match="got 2 teachers and 1 weights"):
        MixedTeacher(teachers, (1.0,))


@pytest.mark.parametrize("top_k", [None, 4])
def test_what_is_kept_is_the_mixtures_own(top_k):
    models = [tiny_model("llama", vocab, seed=seed) for vocab, seed in ((264, 1), (259, 2), (264, 3))]
    teacher = MixedTeacher([LiveTeacher(model, top_k=2) for model in models], WEIGHTS, top_k=top_k)
    assert teacher.width == 264
    ids = torch.randint(0, 250, (2, 7), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[0, :4] = -100
    positions = SupervisedPositions.from_labels(labels)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    signal = teacher.at(positions, inputs, vocab_size=259, exponents=(0.5,))[0 : len(positions)]
    with torch.no_grad():
        parts = [positions.of(model.double()(ids).logits) for model in models]
    p = by_definition(parts, WEIGHTS)
    if top_k is None:
        kept = p[:, :259]
        torch.testing.assert_close(signal.logp.double().exp(), kept, rtol=1e-4, atol=1e-9)
        rest = p[:, 259:]
    else:
        kept, ids = p[:, :259].topk(top_k)
        assert (signal.ids == ids).all()
        torch.testing.assert_close(signal.logp.double().exp(), kept, rtol=1e-4, atol=1e-9)
        rest = p.scatter(1, ids, 0.0)
        torch.testing.assert_close(signal.tail_powers[0.5].double(), rest.sqrt().sum(-1).log(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(signal.log_tail.double().exp(), rest.sum(-1), rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(signal.entropy.double(), -torch.special.xlogy(p, p).sum(-1), rtol=1e-4, atol=1e-6)
    assert (signal.argmax == p[:, :259].argmax(-1)).all()


def test_weights_that_are_none_of_a_mixture_are_refused():
    models = (tiny_model("llama", seed=1), tiny_model("llama", seed=2))
    with pytest.raises(ConfigError, match=r"^mixture: weights must be positive and sum to 1, got 0: 0.5, 1: 0.6"):
        Mixture(models, (0.5, 0.6))
    with pytest.raises(ConfigError, match=r"^mixture: got 2 teachers and 1 weights"):
        MixedTeacher([LiveTeacher(model) for model in models], (1.0,))
    assert Mixture(models, (1 / 3, 0.666667)).weights == (1 / 3, 0.666667)
