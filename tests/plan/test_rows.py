import itertools

import numpy as np
import pytest

from bridgegarden.plan.rows import Rows

LENGTHS = np.array([3, 4, 4, 7, 9, 12])
ROWS = Rows(lengths=LENGTHS, supervised=np.array([1, 2, 2, 3, 5, 6]))


@pytest.mark.parametrize("batch", [1, 2, 3, 6])
def test_padding_is_the_mean_over_all_batches_there_can_be(batch):
    longest = [max(chosen) for chosen in itertools.combinations(LENGTHS.tolist(), batch)]
    assert ROWS.padded_mean(batch, lambda length: length) == pytest.approx(np.mean(longest))
    assert ROWS.padded_mean(batch, lambda length: length**2) == pytest.approx(np.mean(np.square(longest)))


def test_a_batch_larger_than_the_data_is_all_of_it():
    assert ROWS.padded_mean(100, lambda length: length) == pytest.approx(12)


def test_the_largest_batch_is_of_the_longest_rows():
    batch = ROWS.largest_batch(2)
    assert (batch.rows, batch.length, batch.supervised) == (2, 12, 11)


def test_what_the_student_writes_makes_rows_longer():
    batch = ROWS.largest_batch(2, extra=5)
    assert (batch.length, batch.supervised) == (17, 21)


def test_packing_leaves_the_tokens_and_drops_the_padding():
    packed = ROWS.packed(13)
    assert packed.count == 3
    assert packed.tokens == 39
    assert packed.positions == pytest.approx(ROWS.positions)
    assert packed.padded_mean(2, lambda length: length) == pytest.approx(13)
