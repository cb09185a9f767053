"""Two token sequences over the same bytes: where a student's token begins, and inside which of the teacher's."""

from collections.abc import Sequence
from typing import NamedTuple
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from bridgegarden.errors import DataError, quoted
from bridgegarden.teacher.translation.byte_view import ByteView

SHOWN = 20
"""Bytes around a difference that a message quotes."""


class Alignment(NamedTuple):
    """For each of M student tokens, where its first byte is for the teacher."""

    token: NDArray[np.int64]
    """``(M,)`` place of the teacher's token that holds it; -1 where none does."""
    inside: NDArray[np.int64]
    """``(M,)`` bytes of that token before it: 0 where both begin there (*aligned*), more where the teacher is in the
    middle of a token (*conditional*)."""


def _same_when_normalised(one: bytes, other: bytes) -> bool:
    """Whether the shorter of two texts is how the other begins, in the same Unicode normal form."""
    first, second = (normalize("NFKC", text.decode(errors="replace")).strip(" ") for text in (one, other))
    size = min(len(first), len(second))
    return size > 0 and first[:size] == second[:size]


def align(
    teacher: ByteView, student: ByteView, teacher_ids: Sequence[int], student_ids: Sequence[int], place: str = "answer"
) -> Alignment:
    """Hold the teacher's tokens of a supervised stretch against the student's.

    One of the two may be cut shorter; student tokens beyond the teacher's text belong to none of its tokens. A space
    that only one side writes before everything else (SentencePiece's, a word-level vocabulary's) is passed over.

    Raises:
        DataError: they write different bytes.
    """
    written = teacher.join(teacher_ids), student.join(student_ids)
    shift = 0
    if written[0][:1] == b" " and written[1][:1] not in (b" ", b""):
        shift = 1
    elif written[1][:1] == b" " and written[0][:1] not in (b" ", b""):
        shift = -1
    ours, theirs = written[1][max(-shift, 0) :], written[0][max(shift, 0) :]
    common = min(len(ours), len(theirs))
    if ours[:common] != theirs[:common]:
        at = next(i for i in range(common) if ours[i] != theirs[i])
        if _same_when_normalised(*written):
            raise DataError(
                f"{place}: teacher and student write different bytes from byte {at} on, and the same text but for its "
                "Unicode normal form: the tokenizer of one of them normalises text (NFC or the like) and the other's "
                "does not. Normalise the rows (unicodedata.normalize('NFC', text)), or leave this one out."
            )
        shown = [quoted(text[max(0, at - SHOWN) : at + SHOWN].decode(errors="replace")) for text in (theirs, ours)]
        raise DataError(
            f"{place}: teacher and student write different bytes from byte {at} on: {shown[0]} and {shown[1]}; "
            "expected the same answer behind both chat templates. Leave the row out, or give its text without what "
            "one template changes."
        )
    lengths = [
        view.lengths[np.array(ids, dtype=np.int64)] for view, ids in ((teacher, teacher_ids), (student, student_ids))
    ]
    begins = np.cumsum(lengths[0]) - lengths[0]
    at = np.cumsum(lengths[1]) - lengths[1] + shift
    token = np.searchsorted(begins, at, side="right") - 1
    inside = at - begins[token] if len(begins) else np.zeros_like(at)
    held = (token >= 0) & (lengths[1] > 0)
    if len(begins):
        held &= inside < lengths[0][token]
    return Alignment(np.where(held, token, -1), np.where(held, inside, 0))
