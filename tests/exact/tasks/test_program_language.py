"""The tiny language: what is a program, and what it returns."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridgegarden.errors import DataError
from bridgegarden.exact.tasks.program import Assignment, Branch, Program, parse, run, same_results
from bridgegarden.exact.world import split_words

TEXT = "t1 = sub ( a , b ) ; if t1 > 2 : return a ; return t1"
PROGRAM = Program(
    assignments=(Assignment("t1", "sub", "a", "b"),), branches=(Branch("t1", ">", 2, "a"),), otherwise="t1"
)


def read(text):
    return parse(split_words(text), ("a", "b"))


@pytest.mark.parametrize("text", [TEXT, TEXT.replace(" ;", " # so much for that ;", 1), TEXT + " # done"])
def test_a_text_is_read_as_the_program_it_spells_comments_left_out(text):
    assert read(text) == PROGRAM


@pytest.mark.parametrize(("a", "b", "result"), [(5, 2, 5), (4, 2, 2), (0, 3, -3)])
def test_a_program_returns_what_its_text_says(a, b, result):
    assert run(PROGRAM, {"a": a, "b": b}) == result


@given(st.integers(-20, 20), st.integers(-20, 20))
def test_a_longer_program_agrees_with_the_same_thing_in_python(a, b):
    text = (
        "t1 = add ( a , b ) ; t2 = mul ( t1 , b ) ; t3 = sub ( a , t2 ) ; "
        "if t3 < 1 : return t2 ; if t2 > 9 : return a ; return t1"
    )
    t1 = a + b
    t2 = t1 * b
    t3 = a - t2
    assert run(read(text), {"a": a, "b": b}) == (t2 if t3 < 1 else a if t2 > 9 else t1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected assignments"),
        ("return c", "expected a name with a value, of a, b"),
        ("t1 = div ( a , b ) ; return t1", "expected an operator"),
        ("t1 = add ( a , t2 ) ; return t1", "expected names with a value"),
        ("if a = 2 : return a ; return b", "expected a comparator"),
        ("if a > b : return a ; return b", "expected a whole number"),
        ("if a > 2 : return t1 ; return b", "expected names with a value"),
        ("return a ; return b", "expected assignments"),
        ("t1 = add ( a , b ) ; if t1 > 1 : return a", "expected assignments"),
        ("if a > 2 : return a ; t1 = add ( a , b ) ; return t1", "expected assignments"),
        ("t1 = add ( a , b )", "expected assignments"),
        ("return a ;", "expected assignments"),
        ("please return a", "'please return a': expected assignments"),
    ],
)
def test_what_is_no_program_is_refused_with_the_statement_at_fault(text, message):
    with pytest.raises(DataError, match=message):
        read(text)


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ("u1 = sub ( a , b ) # so ; if u1 > 2 : return a ; return u1", True),
        ("t1 = sub ( a , b ) ; if t1 < 3 : return t1 ; return a", True),
        ("t1 = sub ( b , a ) ; if t1 > 2 : return a ; return t1", False),
        ("t1 = sub ( a , b ) ; if t1 < 2 : return t1 ; return a", False),
        ("t1 = sub ( a , b ) ; if t1 > 1 : return a ; return t1", False),
    ],
)
def test_programs_are_compared_by_what_they_return(other, same):
    assert same_results(PROGRAM, read(other), ("a", "b"), range(-4, 5)) is same
