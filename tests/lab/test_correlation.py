import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from bridgegarden.lab.correlation import weighted_spearman

COLUMNS = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3), st.integers(1, 4)), min_size=3, max_size=12)


@given(COLUMNS)
def test_whole_weights_are_repetitions(rows):
    first, second, weight = (torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True))
    times = weight.long()
    one, other = first.repeat_interleave(times), second.repeat_interleave(times)
    got = weighted_spearman(first, second, weight)
    if one.unique().numel() == 1 or other.unique().numel() == 1:
        assert got is None
    else:
        assert abs(got - spearmanr(one.numpy(), other.numpy()).statistic) < 1e-12


@given(COLUMNS, st.floats(0.1, 10.0))
def test_only_ranks_and_relative_weights_count(rows, factor):
    first, second, weight = (torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True))
    got, scaled = weighted_spearman(first, second, weight), weighted_spearman(first.exp(), second, factor * weight)
    assert (got is None and scaled is None) or abs(got - scaled) < 1e-12


def test_it_is_one_for_any_growing_function_and_minus_one_for_any_falling_one():
    values, weight = torch.tensor([0.1, 2.0, -3.0, 0.5]).double(), torch.tensor([1.0, 2.5, 0.1, 3.0]).double()
    assert weighted_spearman(values, values.exp(), weight) == pytest.approx(1.0)
    assert weighted_spearman(values, -values.pow(3), weight) == pytest.approx(-1.0)


def test_rounding_makes_no_ranks():
    """Kappa of forced positions is 0 but for the last digit; that must not order them."""
    noise = 1e-16 * torch.tensor([1.0, -1.0, 2.0, 0.0, 0.0]).double()
    first = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0]).double() + noise
    assert weighted_spearman(first, torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]).double(), torch.ones(5).double()) == (
        weighted_spearman(first - noise, torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]).double(), torch.ones(5).double())
    )
