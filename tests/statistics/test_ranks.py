import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu, spearmanr

from bridgegarden.statistics import Bootstrapped, auc, resampled, spearman

COLUMNS = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3), st.integers(1, 4)), min_size=3, max_size=12)


def value_of(statistic, *columns):
    """Of one weighted sample."""
    found = statistic(*columns).item()
    return None if math.isnan(found) else found


@given(COLUMNS)
def test_whole_weights_are_repetitions(rows):
    first, second, weight = (torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True))
    times = weight.long()
    one, other = first.repeat_interleave(times), second.repeat_interleave(times)
    got = value_of(spearman, first, second, weight)
    if one.unique().numel() == 1 or other.unique().numel() == 1:
        assert got is None
    else:
        assert abs(got - spearmanr(one.numpy(), other.numpy()).statistic) < 1e-12


@given(COLUMNS, st.floats(0.1, 10.0))
def test_only_ranks_and_relative_weights_count(rows, factor):
    first, second, weight = (torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True))
    got, scaled = value_of(spearman, first, second, weight), value_of(spearman, first.exp(), second, factor * weight)
    assert (got is None and scaled is None) or abs(got - scaled) < 1e-12


def test_a_rank_correlation_is_one_for_any_growing_function_and_minus_one_for_any_falling_one():
    values, weight = torch.tensor([0.1, 2.0, -3.0, 0.5]).double(), torch.tensor([1.0, 2.5, 0.1, 3.0]).double()
    assert spearman(values, values.exp(), weight) == pytest.approx(1.0)
    assert spearman(values, -values.pow(3), weight) == pytest.approx(-1.0)


def test_rounding_makes_no_ranks():
    """Kappa of forced positions is 0 but for the last digit; that must not order them."""
    noise = 1e-16 * torch.tensor([1.0, -1.0, 2.0, 0.0, 0.0]).double()
    first = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0]).double()
    rising, once = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]).double(), torch.ones(5).double()
    assert spearman(first + noise, rising, once) == spearman(first, rising, once)
    upper = torch.tensor([True, False, True, False, False])
    assert auc(first + noise, upper, ~upper, once) == auc(first, upper, ~upper, once) == pytest.approx(1 / 3)


def test_rank_statistics_of_many_samples_are_scipys():
    rng = np.random.default_rng(0)
    first, second = (torch.tensor(rng.integers(0, 6, 40)).double() for _ in range(2))
    above, below = torch.arange(40) < 15, torch.arange(40) > 22
    weight = torch.cat([torch.ones(1, 40), torch.tensor(rng.integers(0, 3, (5, 40)))]).double()
    for row, correlation, share in zip(
        weight.long(), spearman(first, second, weight), auc(first, above, below, weight), strict=True
    ):
        at = torch.arange(40).repeat_interleave(row)
        assert correlation == pytest.approx(spearmanr(first[at], second[at]).statistic)
        up, down = first[at][above[at]], first[at][below[at]]
        assert share == pytest.approx(mannwhitneyu(up, down).statistic / (len(up) * len(down)))


def test_rank_statistics_do_not_exist_without_spread_or_without_one_of_the_kinds():
    rising, once = torch.arange(5).double(), torch.ones(5).double()
    one_place = torch.tensor([0.0, 0.0, 3.0, 0.0, 0.0]).double()
    none, every = torch.zeros(5, dtype=torch.bool), torch.ones(5, dtype=torch.bool)
    assert value_of(spearman, torch.ones(5).double(), rising, once) is None
    assert value_of(spearman, rising, rising, one_place) is None
    assert value_of(auc, rising, none, every, once) is None
    nothing = torch.zeros(0, dtype=torch.float64)
    assert value_of(spearman, nothing, nothing, nothing) is None


def test_a_sample_has_the_value_beside_others_that_it_has_alone():
    generator = torch.Generator().manual_seed(5)
    first, second = torch.randn(2, 200, generator=generator, dtype=torch.float64)
    weight = torch.rand(7, 200, generator=generator, dtype=torch.float64)
    alone = [spearman(first, second, row).item() for row in weight]
    assert spearman(first, second, weight).tolist() == pytest.approx(alone, rel=1e-12)


def test_whole_units_are_resampled():
    weight = resampled([3, 3, 9, 4, 9, 9], torch.Generator().manual_seed(0), 500)
    assert weight.shape == (501, 6)
    assert (weight[0] == 1).all()
    assert (weight[:, 0] == weight[:, 1]).all()
    assert (weight[:, 2] == weight[:, 4]).all()
    assert (weight[:, [0, 2, 3]].sum(1) == 3).all()
    assert weight.mean(0).tolist() == pytest.approx([1.0] * 6, abs=0.1)


def test_a_resampled_statistic_without_anything_to_show_is_seldom_called():
    rng, called = np.random.default_rng(6), 0
    for seed in range(300):
        units = np.repeat(np.arange(8), 4)
        first, second = (torch.tensor(rng.normal(size=8)[units] + rng.normal(size=32)) for _ in range(2))
        weight = resampled(units.tolist(), torch.Generator().manual_seed(seed), 200)
        called += Bootstrapped.of(lambda w, a=first, b=second: spearman(a, b, w), weight, 8).interval.side() != 0
    assert called / 300 < 0.085


def test_a_statistic_that_most_resamples_lack_has_no_interval():
    weight = resampled([0, 1, 2], torch.Generator().manual_seed(0), 100)
    lacking = Bootstrapped.of(lambda w: torch.where(w[:, 0] > 0, w[:, 0], math.nan), weight, 3)
    assert lacking == Bootstrapped(value=1.0, interval=None)
    assert Bootstrapped.of(lambda w: w[:, 0] * math.nan, weight, 3) == Bootstrapped(value=None, interval=None)
