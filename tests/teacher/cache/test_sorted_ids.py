import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridgegarden.teacher.cache.sorted_ids import SortedIds


@given(st.data())
def test_sorted_ids_come_back_as_they_were(data):
    largest = data.draw(st.integers(0, 300_000))
    count = data.draw(st.integers(1, 70))
    rows = data.draw(st.lists(st.lists(st.integers(0, largest), min_size=count, max_size=count), max_size=5))
    ids = np.sort(np.array(rows, dtype=np.int64).reshape(-1, count), axis=1)
    code = SortedIds(count, largest)
    encoded = code.encode(ids)
    assert encoded.shape == (len(ids), code.width)
    assert (code.decode(encoded) == ids).all()


@pytest.mark.parametrize("row", [[0] * 64, [151_936] * 64, [*range(63), 151_936], list(range(151_873, 151_937))])
def test_extremes_fit(row):
    code = SortedIds(64, 151_936)
    assert code.decode(code.encode(np.array([row]))).tolist() == [row]


def test_rows_that_do_not_hold_as_many_ids_are_refused():
    code = SortedIds(4, 300)
    encoded = code.encode(np.array([[1, 70, 140, 299], [0, 1, 2, 3]]))
    for first, second in ((0b1, 0), (0b1, 0b1_0000)):  # one taken away, one moved to the other row
        harmed = encoded.copy()
        harmed[0, 0] ^= first
        harmed[1, 0] ^= second
        with pytest.raises(ValueError, match="not 4 ids"):
            code.decode(harmed)


def test_sixty_four_ids_of_a_large_vocabulary_take_106_bytes():
    assert SortedIds(64, 151_936).width == 106


def test_no_more_than_two_bits_an_id_above_the_least_possible():
    from math import comb, log2

    for count, largest in ((8, 49_152), (64, 49_152), (64, 256_000), (128, 151_936)):
        least = log2(comb(largest + 1, count))
        assert 8 * SortedIds(count, largest).width <= least + 2 * count + 16
