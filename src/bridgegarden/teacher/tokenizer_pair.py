"""How rows are read by two tokenizers: which stretches of the teacher's tokens and the student's are the same text."""

from collections.abc import Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from bridgegarden.data.chat import Conversation
from bridgegarden.data.encode import IGNORED, RowTokeniser, TokenisedRow
from bridgegarden.data.teacher_prompt import TEACHER_IDS, TEACHER_LABELS, learnt_stretches
from bridgegarden.errors import DataError
from bridgegarden.objective.support import TeacherSignal
from bridgegarden.teacher.translation.align import align
from bridgegarden.teacher.translation.byte_view import END_BYTES, ByteView
from bridgegarden.teacher.translation.first_token import FirstTokens
from bridgegarden.teacher.translation.translate import Translated, Translation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STRETCHES, STUDENT_LABELS, OWN_TEXTS = "stretches", "student_labels", "own_texts"
"""Beside what a teacher in memory reads: ``(S, 2)`` its tokens and the student's of each stretch; ``(M,)`` the
student's; whether the texts are the student's own, so that its tokens are no labels."""
ANSWER = "yes"
PROBE = Conversation(
    form="chat", messages=({"role": "user", "content": "no"}, {"role": "assistant", "content": ANSWER}), learn_from=1
)
"""A conversation that shows what a chat template has the assistant write before its words."""
Paired = tuple[list[int], list[int]]
"""Of one stretch the teacher's tokens and the student's."""


class TokenizerPair:
    """How the rows of a student are read by a teacher with another tokenizer, and what it says is translated. Can be
    pickled."""

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", student: "PreTrainedTokenizerBase", translation: Translation
    ) -> None:
        """
        Args:
            tokenizer: the teacher's, with its chat template.
            student: the student's, with the chat template that it is trained with.
            translation: from the one to the other.
        """
        self.tokenizer, self.translation = tokenizer, translation
        opened = _opening(tokenizer, translation.teacher), _opening(student, translation.student)
        self._openings = opened[0][0], opened[1][0]
        self._opening_ids = opened[0][1], opened[1][1]

    @property
    def settings(self) -> dict[str, float]:
        """What has to be known, by the recipe's names."""
        return {"threshold": self.translation.threshold, "tolerance": self.translation.tolerance}

    @property
    def settings_text(self) -> str:
        """The same, for a person."""
        return ", ".join(f"{name} {value:g}" for name, value in self.settings.items())

    @property
    def whose(self) -> str:
        """The tokenizer in which the teacher reads rows, for messages."""
        return f"that of {self.translation.teacher.name}"

    @property
    def pad_id(self) -> int:
        """An id of the teacher's that fills its batches up."""
        found = self.tokenizer.pad_token_id
        return found if isinstance(found, int) else 0

    def check(self, row: TokenisedRow, place: str) -> None:
        """Make sure that the same text is learnt in both tokenizers; see
        :class:`~bridgegarden.data.teacher_prompt.OtherTokens`.

        Raises:
            DataError: there is no prompt, or the chat templates write the answers differently.
        """
        assert row.teacher is not None
        sides = row.labels, row.teacher.labels
        if any(labels and labels[0] != IGNORED for labels in sides):
            raise DataError(
                f"{place}: has an empty prompt, so its first token is learnt from nothing, and that is another one for "
                "a teacher with another tokenizer. Give it a prompt."
            )
        cut = row.goes_on or row.teacher.goes_on
        ours, theirs = (len(learnt_stretches(labels)) for labels in sides)
        if ours != theirs and not cut:
            raise DataError(
                f"{place}: has {ours} answers to learn, and {theirs} as the teacher's chat template writes it, so "
                "they cannot be held against each other. Give one row per answer."
            )
        pairs = self.paired(*sides)
        for number, (their_ids, our_ids) in enumerate(pairs, start=1):
            if their_ids and our_ids:
                where = place if len(pairs) == 1 else f"{place}, stretch {number}"
                align(self.translation.teacher, self.translation.student, their_ids, our_ids, where)
                if not cut:
                    self._check_whole(their_ids, our_ids, where)

    def _check_whole(self, theirs: list[int], ours: list[int], place: str) -> None:
        """Behind what both write, one may write an end alone."""
        written = [
            view.join(ids).removesuffix(END_BYTES).lstrip(b" ")
            for view, ids in ((self.translation.teacher, theirs), (self.translation.student, ours))
        ]
        if written[0] != written[1]:
            longer = "the teacher" if len(written[0]) > len(written[1]) else "the student"
            raise DataError(
                f"{place}: {longer} reads {abs(len(written[0]) - len(written[1]))} bytes more at the end of the answer "
                "than the other; expected the same answer behind both chat templates. Leave the row out, or give its "
                "text without what one template changes."
            )

    def paired(self, labels: Sequence[int], teacher_labels: Sequence[int]) -> list[Paired]:
        """The tokens to learn of one row, in stretches that begin at the same byte for both.

        What one chat template has the assistant write before its words, and the other has not, is a stretch of its own,
        of which the other side has nothing.
        """
        ours, theirs = (
            [list(side[stretch]) for _, stretch in learnt_stretches(side)] for side in (labels, teacher_labels)
        )
        count = max(len(ours), len(theirs))
        pairs: list[Paired] = []
        for their_ids, our_ids in zip(_filled(theirs, count), _filled(ours, count), strict=True):
            pairs += self._opened(their_ids, our_ids)
        return pairs

    def _opened(self, theirs: list[int], ours: list[int]) -> list[Paired]:
        if self._openings[0] == self._openings[1]:
            return [(theirs, ours)]
        ends = [
            _behind(opening, view, ids)
            for opening, view, ids in zip(
                self._openings, (self.translation.teacher, self.translation.student), (theirs, ours), strict=True
            )
        ]
        if None in ends:  # an opening ends inside a token: of this stretch nothing is known
            return [(theirs, []), ([], ours)]
        at, our_at = ends
        leads: list[Paired] = [(theirs[:at], []), ([], ours[:our_at])]
        return [*(lead for lead in leads if any(lead)), (theirs[at:], ours[our_at:])]

    def translate(self, signal: TeacherSignal, pairs: Sequence[Paired], place: str) -> Translated:
        """`signal` at all of the teacher's tokens of `pairs`, at all of the student's."""
        return self.translation(signal, [pair[0] for pair in pairs], [pair[1] for pair in pairs], place)

    def answered(self, read: Sequence[int], labels: Sequence[int], answer: Sequence[int]) -> dict[str, list[int]]:
        """What the teacher reads in place of a row that it has read, with an answer of the student's.

        Bytes that it cannot write, or a row of which it had no answer to read, leave it none: it says nothing then.

        Args:
            read: the teacher's ids of the row.
            labels: the same where they are learnt.
            answer: the student's tokens.
        """
        first = next((at for at, label in enumerate(labels) if label != IGNORED), None)
        if first is None:
            return {TEACHER_IDS: list(read), TEACHER_LABELS: [IGNORED] * len(read)}
        ids = self.as_teacher_writes(answer)
        return {TEACHER_IDS: [*read[:first], *ids], TEACHER_LABELS: [IGNORED] * first + ids}

    def as_teacher_writes(self, answer: Sequence[int]) -> list[int]:
        """The student's tokens `answer` in the teacher's; empty where it cannot write those bytes."""
        return self._rewritten(answer, (1, 0))

    def as_student_writes(self, answer: Sequence[int]) -> list[int]:
        """The teacher's tokens `answer` in the student's; empty where it cannot write those bytes."""
        return self._rewritten(answer, (0, 1))

    def _rewritten(self, answer: Sequence[int], sides: tuple[int, int]) -> list[int]:
        source, target = ((self.translation.teacher, self.translation.student)[side] for side in sides)
        opening = self._openings[sides[0]]
        written, lead = source.join(answer), []
        if written.startswith(opening):  # in the other's words, where it has any
            written, lead = written[len(opening) :], self._opening_ids[sides[1]]
        found = target.encode(written)
        if found is None:  # words, which begin with a space
            found = target.encode(b" " + written) or []
        return [*lead, *found]

    def at_threshold(self, threshold: float) -> "TokenizerPair":
        """The same, where so much has to be known for a position to be soft; itself if that is so already."""
        other, now = copy(self), self.translation
        if now.threshold == threshold:
            return self
        other.translation = Translation(now.teacher, now.student, threshold=threshold, tolerance=now.tolerance)
        return other

    def decided(self, pairs: Sequence[Paired]) -> "Decided":
        """How much the teacher's own tokens of some stretches say of the student's; no distribution is needed."""
        teacher, student = self.translation.teacher, self.translation.student
        first, counts = FirstTokens(teacher, student), dict.fromkeys(("aligned", "proved", "tried", "positions"), 0)
        for theirs, ours in pairs:
            held = align(teacher, student, theirs, ours)
            counts["positions"] += len(ours)
            for token, inside in zip(held.token.tolist(), held.inside.tolist(), strict=True):
                if token < 0:
                    continue
                found = first.after((theirs[token],), inside)
                counts["aligned"] += inside == 0
                if found.token >= 0:
                    counts["proved" if found.proved else "tried"] += 1
        return Decided(**counts)

    def aligned(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """What a teacher in memory needs beside its own batch of `examples`."""
        pairs = self.of_batch(examples)
        sizes = torch.tensor([[len(theirs), len(ours)] for theirs, ours in pairs], dtype=torch.long).reshape(-1, 2)
        labels = torch.tensor([index for _, ours in pairs for index in ours], dtype=torch.long)
        return {STRETCHES: sizes, STUDENT_LABELS: labels}

    def of_batch(self, examples: Sequence[Mapping[str, Any]]) -> list[Paired]:
        """The stretches of all `examples`, in order."""
        return [pair for one in examples for pair in self.paired(one["labels"], one[TEACHER_LABELS])]


def _filled(stretches: list[list[int]], count: int) -> list[list[int]]:
    return stretches + [[]] * (count - len(stretches))


def _opening(tokenizer: "PreTrainedTokenizerBase", view: ByteView) -> tuple[bytes, list[int]]:
    """What the chat template has the assistant write before its words, and its tokens, special ones too."""
    if tokenizer.chat_template is None:
        return b"", []
    row = RowTokeniser.of(tokenizer).row(PROBE, view.name)
    learnt = [label for label in row.labels if label != IGNORED]
    begins = [at for at in range(len(learnt)) if view.join(learnt[at:]).lstrip(b" ").startswith(ANSWER.encode())]
    lead = learnt[: max(begins, default=0)]
    return view.join(lead), lead


def _behind(opening: bytes, view: ByteView, ids: list[int]) -> int | None:
    """How many of `ids` write `opening`, 0 where they do not begin with it; None where it ends inside a token."""
    if not opening or not view.join(ids).startswith(opening):
        return 0
    count, size = 0, 0
    while size < len(opening):
        size += len(view.tokens[ids[count]])
        count += 1
    return count if size == len(opening) else None


class Decided(NamedTuple):
    """Of the student's positions in some answers, at how many the teacher's token of the text says which comes."""

    aligned: int
    """Where both begin a token."""
    proved: int
    """Where it is sure which of the student's tokens begins, whatever comes behind."""
    tried: int
    """Where that was tried with each longer token."""
    positions: int
    """All of the student's."""

    def __str__(self) -> str:
        """For a person."""
        of = max(self.positions, 1)
        known = (self.proved + self.tried) / of
        return (
            f"{self.aligned / of:.0%} begin where one of the teacher's does, and at {known:.0%} the teacher's token "
            f"decides which of the student's comes (proved at {self.proved / of:.0%})"
        )
