"""Sums of p^g over the tail come back within what two bytes can say."""

import numpy as np
import pytest
import torch

from bridgegarden.teacher.cache.tail_power import LEVELS, TailPowers

EXPONENTS = (0.1, 0.5, 1.0, 2.0)


def tails(tokens):
    """Log-probabilities of tails from one token to evenly spread ones, most of them nearly nothing."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(50, tokens, generator=generator, dtype=torch.float64) * torch.linspace(0, 40, 50)[:, None]
    return values.log_softmax(1) - torch.rand(50, 1, generator=generator, dtype=torch.float64) * 80


@pytest.mark.parametrize("tokens", [1, 2, 300, 5000])
def test_a_sum_is_off_by_half_a_level_at_most(tokens):
    logp = tails(tokens)
    truth = torch.stack([(g * logp).logsumexp(1) for g in EXPONENTS], 1).numpy()
    log_tail = logp.logsumexp(1).numpy()
    layout = TailPowers(EXPONENTS, tokens)
    found = layout.decode(layout.encode(truth, log_tail), log_tail)
    most = np.abs(1 - np.array(EXPONENTS)) * np.log(max(tokens, 2)) / (2 * LEVELS)
    assert (np.abs(found - truth) <= most + 1e-6 * np.abs(truth) + 1e-9).all()


def test_the_bound_that_is_documented_holds_for_a_large_vocabulary():
    assert 0.9 * np.log(256_000) / (2 * LEVELS) < 9e-5


def test_both_ends_are_reached_and_nothing_stays_nothing():
    layout = TailPowers((0.5,), 100)
    log_tail = np.array([-3.0, -3.0, -np.inf], np.float32)
    sums = np.array([[-1.5], [-1.5 + 0.5 * np.log(100)], [-np.inf]])
    codes = layout.encode(sums, log_tail)
    assert codes.ravel().tolist() == [0, LEVELS, 0]
    np.testing.assert_allclose(layout.decode(codes, log_tail), sums, rtol=1e-6)


def test_rounding_beyond_an_end_is_cut_there():
    layout = TailPowers((0.1, 2.0), 100)
    log_tail = np.array([-3.0])
    sums = np.array([[-0.3 - 1e-3, -6.0 + 1e-3]])
    np.testing.assert_allclose(layout.decode(layout.encode(sums, log_tail), log_tail), [[-0.3, -6.0]], rtol=1e-6)
