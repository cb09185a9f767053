"""Words to ids and back."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from bridgegarden.exact.vocabulary import (
    ASSISTANT,
    END,
    SPECIAL_TOKENS,
    UNKNOWN,
    USER,
    SpokenWorld,
    ask,
    split_words,
)


class Small(SpokenWorld):
    name = "small"

    def spoken(self):
        return ("two", "one"), ["one day, soon.", "( so ) !"]

    def prompt(self, problem, generator):
        return problem


SMALL = Small()


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
