"""Which student token a text begins with, when of the text only a teacher's token is known.

A teacher's token t writes u from where the student stands. Whatever the teacher writes next, the student's encoding
of it all begins with some token. It is *decided* where that is the same token for every continuation; else t is *open*,
and what its mass can reach is kept beside it. Two things can make it open: a longer student token begins with u and the
teacher can go on to it from t (it can where its own encoding of that token begins with t), and merges that come later
cut u otherwise than it is cut alone.

Both are decided for every continuation, and *proved*, where the vocabularies are small and merges alone cut texts, and
where no other student token begins with u or u with it. Elsewhere each longer token is tried as if it stood alone, and
later merges are not looked at: that can be wrong, and how often it is, is measured on texts.

The teacher is taken to write as its tokenizer does: it does not spell ``the`` as ``t|he`` where ``the`` is one token.
"""

from collections.abc import Sequence
from typing import NamedTuple

from bridgegarden.teacher.translation.byte_view import END_BYTES, ByteView

WIDEST = 128
"""Longer student tokens that are looked at one by one in the middle of a token; beyond, it is open to them all."""
PROVABLE = 1000
"""Tokens of a vocabulary for which every continuation is tried."""


class FirstToken(NamedTuple):
    """What is known of the student's token behind some of the teacher's."""

    token: int
    """The student's token, or -1 where it is open."""
    proved: bool
    """Whether that holds for every continuation, or was tried with each longer token alone."""
    reach: tuple[tuple[int, int], ...]
    """Where it is open, the tokens that may come: runs of places in the student's order, from and to."""

    def reaches(self, place: int) -> bool:
        """Whether the token at `place` may be the one."""
        return any(low <= place < high for low, high in self.reach)


class FirstTokens:
    """Decisions for one pair of vocabularies, each made once."""

    def __init__(self, teacher: ByteView, student: ByteView) -> None:
        self.teacher, self.student = teacher, student
        self._by_teacher: dict[int, list[int] | None] = {}
        self._follow: dict[tuple[int, int, int], bool] = {}
        merges_alone = not any(view.cuts_first or view.kind != "bytes" for view in (teacher, student))
        self.provable = merges_alone and max(len(teacher), len(student)) <= PROVABLE
        """Whether every decision is proved."""

    def after(self, path: Sequence[int], inside: int) -> FirstToken:
        """The student's first token, `inside` bytes into the teacher's tokens `path` (within the first of them)."""
        student = self.student
        written = self.teacher.join(path)
        before, text = written[:inside], written[inside:]
        if not text:
            return FirstToken(-1, False, ())
        alone = student.first_of(text)
        shorter = set() if alone is None else {alone}
        low, high = student.beginning_with(text)
        while low < high and len(student.tokens[student.order[low]]) == len(text):
            low += 1
        if high - low > WIDEST and before and not self.provable:
            return FirstToken(-1, False, _runs([*(student.ranks[token] for token in shorter), *range(low, high)]))
        longer = {student.order[place] for place in range(low, high)}
        certain = not longer and len(set(student.prefixes_of(text))) == 1
        if self.provable:
            shorter |= {token for token in student.prefixes_of(text) if self._can_begin(token, text)}
            longer = {t for t in longer if self._covers(self.teacher, path[-1], student.tokens[t][len(text) :])}
        else:
            longer = {token for token in longer if self._leads_to(path, before, token)}
        if len(shorter) == 1 and not longer:
            return FirstToken(shorter.pop(), certain or self.provable or text == END_BYTES, ())
        return FirstToken(-1, False, _runs([student.ranks[token] for token in shorter | longer]))

    def _leads_to(self, path: Sequence[int], before: bytes, token: int) -> bool:
        """Whether the teacher's encoding of `before` and the student's `token` begins with `path`.

        So it is said, too, where it has none.
        """
        if before:
            found = self.teacher.encode(before + self.student.tokens[token])
        else:
            if token not in self._by_teacher:
                self._by_teacher[token] = self.teacher.encode(self.student.tokens[token])
            found = self._by_teacher[token]
        return found is None or found[: len(path)] == list(path)

    def _can_begin(self, token: int, text: bytes) -> bool:
        """Whether the student's encoding of some continuation of `text` begins with `token`."""
        written = self.student.tokens[token]
        if self.student.encode(written) != [token]:
            return False
        return text == END_BYTES or self._covers(self.student, token, text[len(written) :])

    def _covers(self, view: ByteView, last: int, rest: bytes) -> bool:
        """Whether tokens of `view` can go on behind `last` so that they write `rest`, and maybe more.

        Byte-pair merges are local: a sequence of tokens is what a text is cut into exactly if every two neighbours are
        what their own bytes are cut into.
        """
        if not rest:
            return True
        low, high = view.beginning_with(rest)
        if any(self._can_follow(view, last, view.order[place]) for place in range(low, high)):
            return True
        return any(
            self._can_follow(view, last, token) and self._covers(view, token, rest[len(view.tokens[token]) :])
            for token in view.prefixes_of(rest)
            if len(view.tokens[token]) < len(rest)
        )

    def _can_follow(self, view: ByteView, left: int, right: int) -> bool:
        key = (0 if view is self.teacher else 1, left, right)
        if key not in self._follow:
            self._follow[key] = view.encode(view.tokens[left] + view.tokens[right]) == [left, right]
        return self._follow[key]


def _runs(places: list[int]) -> tuple[tuple[int, int], ...]:
    """Places as runs, from and to, in order."""
    found: list[list[int]] = []
    for place in sorted(set(places)):
        if found and found[-1][1] == place:
            found[-1][1] += 1
        else:
            found.append([place, place + 1])
    return tuple((low, high) for low, high in found)
