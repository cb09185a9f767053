"""Numbered problems and their splits, words and their ids."""

from hashlib import sha256
from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bridgegarden.errors import ConfigError
from bridgegarden.exact.world import (
    ASSISTANT,
    END,
    SPECIAL_TOKENS,
    SPLIT_SHARES,
    UNKNOWN,
    USER,
    World,
    ask,
    digits,
    first_phrases,
    phrase_at,
    split_of,
    split_words,
)


class Small(World):
    name = "small"
    process = succeeds = None

    def __init__(self, count=500):
        self.radices, self.sizes = [count], f"{count} numbers"

    def problem_of(self, choices):
        return str(*choices)

    def spoken(self):
        return ("two", "one"), ["one day, soon.", "( so ) !"]

    def prompt(self, problem, generator):
        return problem


SMALL = Small()


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


def test_problems_are_distinct_of_their_split_and_decided_by_the_seed():
    assert len(set(SMALL.problems(100, 0))) == 100
    assert {split_of(problem) for problem in SMALL.problems(30, 0, split="test")} == {"test"}
    assert SMALL.problems(20, 1) == SMALL.problems(20, 1) != SMALL.problems(20, 2)


def test_all_problems_are_in_some_split():
    everything = [str(number) for number in range(500)]
    sizes = {split: sum(split_of(problem) == split for problem in everything) for split in SPLIT_SHARES}
    found = [problem for split, size in sizes.items() for problem in SMALL.problems(size, 3, split=split)]
    assert sorted(found) == sorted(everything)


def test_more_than_there_are_is_refused_with_what_decides_how_many():
    with pytest.raises(ConfigError, match=r"small: asked for 500 train problems, but 500 numbers give \d+\."):
        SMALL.problems(500, 0)


def test_special_tokens_come_first_then_the_named_then_the_rest_once_and_sorted():
    assert SMALL.vocabulary == (*SPECIAL_TOKENS, "two", "one", "!", "(", ")", ",", ".", "day", "so", "soon")
    assert SMALL.ids["two"] == len(SPECIAL_TOKENS)


def test_marks_are_words_of_their_own_and_close_up_to_the_word_before():
    assert split_words("one day,soon.") == ["one", "day", ",", "soon", "."]
    assert SMALL.decode(SMALL.encode("one day , soon . ( so ) !")) == "one day, soon. ( so )!"


def test_unknown_words_are_unknown_and_special_tokens_are_not_spoken():
    assert SMALL.encode("one elephant") == [SMALL.ids["one"], UNKNOWN]
    assert SMALL.decode([USER, SMALL.ids["one"], UNKNOWN, END]) == "one"


@given(st.lists(st.integers(len(SPECIAL_TOKENS), len(SMALL.vocabulary) - 1)))
def test_any_tokens_survive_the_round_trip(tokens):
    assert SMALL.encode(SMALL.decode(tokens)) == tokens


def test_phrases_keep_their_weights():
    assert SMALL.encode_phrases({"one day": 0.5, "so": 2.0}) == {
        (SMALL.ids["one"], SMALL.ids["day"]): 0.5,
        (SMALL.ids["so"],): 2.0,
    }


def test_a_prompt_stands_between_the_users_mark_and_the_assistants():
    assert ask([7, 8]) == [USER, 7, 8, END, ASSISTANT]
    assert SMALL.prompt_ids("one day", torch.Generator()) == ask(SMALL.encode("one day"))


def test_phrases_are_drawn_in_proportion_to_their_weights():
    table = {"a": 2.0, "b": 1.0, "c": 1.0}
    drawn = [phrase_at(table, (place + 0.5) / 400) for place in range(400)]
    assert [drawn.count(phrase) for phrase in table] == [200, 100, 100]
    assert (phrase_at(table, 0.0), phrase_at(table, 1 - 1e-12)) == ("a", "c")


def test_the_first_phrases_keep_their_order_and_weights():
    assert list(first_phrases({"a": 2.0, "b": 1.0, "c": 1.0}, 2).items()) == [("a", 2.0), ("b", 1.0)]
