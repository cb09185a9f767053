"""Rows that come in are distributions, or are refused."""

import math

import pytest
import torch

from bridgegarden.errors import DataError
from bridgegarden.exact.rows import chunks, expectation, normalised


def name(row):
    return f"row {row}"


def test_float32_rows_sum_to_one_in_float64_afterwards():
    rows = torch.randn(5, 1000, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    assert (rows.double().exp().sum(-1) - 1).abs().max() > 1e-9
    got = normalised(rows, name)
    assert got.dtype == torch.float64
    assert (got.exp().sum(-1) - 1).abs().max() < 1e-14
    assert torch.allclose(got, rows.double(), atol=1e-5)


def test_no_mass_stays_no_mass_and_certainty_stays_certain():
    rows = torch.tensor([[0.0, -math.inf, -math.inf]])
    assert normalised(rows, name).tolist() == [[0.0, -math.inf, -math.inf]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([0.0, 0.0], "row 1: the next-token distribution sums to 2; expected"),
        ([-math.inf, -math.inf], "row 1: the next-token distribution sums to 0; expected"),
        ([math.nan, 0.0], "row 1: the next-token distribution contains NaN; expected"),
        ([math.inf, 0.0], "row 1: the next-token distribution sums to inf; expected"),
    ],
)
def test_a_row_that_does_not_sum_to_one_is_refused(row, message):
    with pytest.raises(DataError, match=message):
        normalised(torch.tensor([[math.log(0.5)] * 2, row]), name)


def test_a_float64_row_is_held_to_more_digits():
    row = torch.tensor([[math.log(0.5), math.log(0.5) + 1e-6]], dtype=torch.float64)
    with pytest.raises(DataError, match="sums to 1"):
        normalised(row, name)
    assert normalised(row.float(), name).exp().sum().item() == pytest.approx(1, abs=1e-15)


def test_an_infinite_value_counts_only_where_there_is_mass():
    prob = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    values = torch.tensor([[1.0, math.inf, math.inf], [2.0, math.inf, math.inf]], dtype=torch.float64)
    assert expectation(prob, values, finite=False).tolist() == [math.inf, 2.0]
    assert expectation(prob, torch.ones(2, 3).double(), finite=True).tolist() == [1.0, 1.0]


def test_pieces_are_bounded_and_lose_nothing():
    rows = torch.arange(1000)
    pieces = list(chunks(rows, 10_000))
    assert torch.equal(torch.cat(pieces), rows)
    assert max(map(len, pieces)) * 10_000 <= 1 << 18
    assert [len(piece) for piece in chunks(rows[:3], 10**9)] == [1, 1, 1]
