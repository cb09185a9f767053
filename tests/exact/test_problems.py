"""Numbered problems and their splits."""

from hashlib import sha256
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridgegarden.errors import ConfigError
from bridgegarden.exact.problems import SPLIT_SHARES, digits, draw_problems, split_of


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_numbers_and_digits_belong_to_each_other_one_to_one(radices):
    found = [digits(code, radices) for code in range(prod(radices))]
    assert len(set(map(tuple, found))) == len(found)
    for code, parts in enumerate(found):
        assert all(0 <= part < radix for part, radix in zip(parts, radices, strict=True))
        assert sum(part * prod(radices[:place]) for place, part in enumerate(parts)) == code


@pytest.mark.parametrize("code", [-1, 6])
def test_a_number_beyond_the_last_problem_is_refused(code):
    with pytest.raises(ConfigError, match=f"problem {code}: there are 6"):
        digits(code, [2, 3])


def test_splits_have_their_shares_and_depend_on_content_alone():
    found = [split_of(("problem", number)) for number in range(5000)]
    for split, share in SPLIT_SHARES.items():
        assert abs(found.count(split) / 50 - share) < 2.5
    assert found == [split_of(("problem", number)) for number in range(5000)]


def test_a_problem_s_split_is_that_of_the_hundredth_its_content_falls_into():
    for number in range(500):
        hundredth = int.from_bytes(sha256(repr(number).encode()).digest()[:8]) % 100
        assert split_of(number) == ("train" if hundredth < 80 else "validation" if hundredth < 90 else "test")


def drawn(n, seed, split="train", count=500):
    return draw_problems(n, seed, split=split, count=count, nth=str, world="toy", sizes=f"{count} numbers")


def test_problems_are_distinct_of_their_split_and_decided_by_the_seed():
    assert len(set(drawn(100, 0))) == 100
    assert {split_of(problem) for problem in drawn(30, 0, split="test")} == {"test"}
    assert drawn(20, 1) == drawn(20, 1) != drawn(20, 2)


def test_all_problems_are_in_some_split():
    everything = [str(number) for number in range(500)]
    sizes = {split: sum(split_of(problem) == split for problem in everything) for split in SPLIT_SHARES}
    found = [problem for split, size in sizes.items() for problem in drawn(size, 3, split=split)]
    assert sorted(found) == sorted(everything)


def test_more_than_there_are_is_refused_with_what_decides_how_many():
    with pytest.raises(ConfigError, match=r"toy: asked for 500 train problems, but 500 numbers give \d+\."):
        drawn(500, 0)
