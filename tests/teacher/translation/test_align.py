"""Where a student's tokens begin inside a teacher's."""

import unicodedata

import pytest

from bridgegarden.errors import DataError
from bridgegarden.teacher.translation.align import align
from bridgegarden.teacher.translation.byte_view import ByteView
from tests.teacher.translation.small import ids, view
from tests.tiny import tiny_tokenizer


def of(found: object) -> tuple[list[int], list[int]]:
    token, inside = found  # type: ignore[misc]
    return token.tolist(), inside.tolist()


@pytest.fixture(scope="module")
def teacher() -> ByteView:
    return view("a b", "ab c")


@pytest.fixture(scope="module")
def student() -> ByteView:
    return view("b c", "c a")


def test_a_position_is_in_the_token_that_holds_its_first_byte(teacher: ByteView, student: ByteView):
    assert of(align(teacher, student, ids(teacher, b"abca"), ids(student, b"abca"))) == ([0, 0, 1, 2], [0, 1, 0, 0])


def test_two_texts_are_held_together_as_far_as_both_go(teacher: ByteView, student: ByteView):
    found = align(teacher, student, teacher.encode(b"abc") or [], student.encode(b"abcca") or [])
    assert of(found) == ([0, 0, -1], [0, 1, 0])
    assert of(align(teacher, student, [], student.encode(b"ab") or [])) == ([-1, -1], [0, 0])


def test_a_space_that_one_side_alone_writes_first_is_passed_over(teacher: ByteView, student: ByteView):
    spaced = view("Ġ a")
    assert of(align(spaced, student, ids(spaced, b" abc"), ids(student, b"abc"))) == ([0, 1, 3], [1, 0, 0])
    assert of(align(teacher, spaced, ids(teacher, b"abc"), ids(spaced, b" abc"))) == ([-1, 0, 0, 1], [0, 1, 2, 0])


def test_a_difference_of_bytes_names_the_place(teacher: ByteView, student: ByteView):
    with pytest.raises(DataError, match="row 7: teacher and student write different bytes from byte 2 on"):
        align(teacher, student, ids(teacher, b"abc"), ids(student, b"aba"), "row 7")
    with pytest.raises(DataError, match="different bytes from byte 1 on"):
        align(teacher, student, ids(teacher, b"a"), ids(student, b"aba"))


def test_texts_that_differ_by_their_normal_form_alone_are_refused_by_that_name():
    """As a tokenizer writes them that normalises (Qwen's does, NFC), beside one that does not."""
    view = ByteView(tiny_tokenizer())
    composed, apart = (unicodedata.normalize(form, "Le café est là.") for form in ("NFC", "NFD"))
    ids = [view.encode(text.encode()) for text in (composed, apart)]
    with pytest.raises(DataError, match="different bytes from byte 6 on, and the same text but for its Unicode"):
        align(view, view, *ids, "row 7")
    other = view.encode(apart.replace("est", "ist").encode())
    with pytest.raises(DataError, match="expected the same answer behind both chat templates"):
        align(view, view, ids[0], other, "row 7")
