"""Teachers with another tokenizer: what they say, in the student's vocabulary, at the student's positions.

Each of the two reads a row behind its own chat template and in its own tokens. What is learnt is the same text, so
their stretches of it are held against each other by their bytes (:mod:`bridgegarden.teacher.translation`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from bridgegarden.data.chat import Conversation
from bridgegarden.data.encode import IGNORED, RowTokeniser, TokenisedRow
from bridgegarden.data.teacher_prompt import TEACHER_IDS, TEACHER_LABELS, learnt_stretches
from bridgegarden.errors import ConfigError, DataError, ModelError
from bridgegarden.objective.alignment import SupervisedPositions
from bridgegarden.objective.head import chunks, default_chunk_tokens
from bridgegarden.objective.hybrid import HybridObjective
from bridgegarden.objective.support import TeacherSignal
from bridgegarden.teacher.cache.reader import SIGNAL, TeacherCache, teacher_signal
from bridgegarden.teacher.translation.align import align
from bridgegarden.teacher.translation.byte_view import END_BYTES, ByteView
from bridgegarden.teacher.translation.first_token import FirstTokens
from bridgegarden.teacher.translation.translate import ALIGNED, CONDITIONAL, HARD_ONLY, Translated, Translation

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from bridgegarden.teacher.live import LiveTeacher
    from bridgegarden.teacher.mixture import MixedTeacher

SHARES = (
    *("aligned_share", "conditional_share", "hard_only_share"),
    *("exact_mass", "approximate_mass", "open_mass", "unknown_mass"),
)
"""What is logged of translated signals, a mean over positions each; see
:class:`~bridgegarden.teacher.translation.translate.Shares`."""
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
        theirs, self._opening_ids = _opening(tokenizer, translation.teacher)
        self._openings = theirs, _opening(student, translation.student)[0]

    @property
    def settings(self) -> dict[str, float]:
        """What has to be known, by the recipe's names."""
        return {"threshold": self.translation.threshold, "tolerance": self.translation.tolerance}

    @property
    def settings_text(self) -> str:
        """The same, for a person."""
        return ", ".join(f"{name} {value:g}" for name, value in self.settings.items())

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
        written = self.translation.student.join(answer)
        if first is None:
            return {TEACHER_IDS: list(read), TEACHER_LABELS: [IGNORED] * len(read)}
        lead: list[int] = []
        if written.startswith(self._openings[1]):  # in the teacher's words, where it has any
            written, lead = written[len(self._openings[1]) :], self._opening_ids
        found = self.translation.teacher.encode(written)
        if found is None:  # words, which begin with a space
            found = self.translation.teacher.encode(b" " + written) or []
        ids = [*lead, *found]
        return {TEACHER_IDS: [*read[:first], *ids], TEACHER_LABELS: [IGNORED] * first + ids}

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


@dataclass(frozen=True)
class TranslatedSignal:
    """A :class:`~bridgegarden.objective.fused.TeacherSource` in the student's vocabulary, with how much is known."""

    signal: TeacherSignal
    """At M student positions."""
    facts: Tensor
    """``(M, 7)`` what :data:`SHARES` are the means of."""

    def __getitem__(self, index: slice, /) -> TeacherSignal:
        return self.signal[index]

    @property
    def sums(self) -> Tensor:
        """``(7,)`` float64: of `facts` over the positions."""
        return self.facts.sum(0, dtype=torch.float64)


def as_parts(translated: Translated) -> dict[str, Tensor]:
    """What a batch carries of a translated signal."""
    signal, kind = translated.signal, translated.kind
    known, exact, unknown = (value.float() for value in (translated.known, translated.exact, translated.unknown))
    kinds = [(kind == each).float() for each in (ALIGNED, CONDITIONAL, HARD_ONLY)]
    masses = [exact, known - exact, (1 - known - unknown).clamp(min=0), unknown]
    assert signal.ids is not None
    assert signal.log_tail is not None
    assert signal.label_logp is not None
    return {
        "ids": signal.ids.int(),
        "logp": signal.logp.float(),
        "log_tail": signal.log_tail.float(),
        "entropy": signal.entropy.float(),
        "argmax": signal.argmax.int(),
        "max_logp": signal.max_logp.float(),
        "label_logp": signal.label_logp.float(),
        "facts": torch.stack([*kinds, *masses], 1),
    }


def from_parts(parts: Mapping[str, Tensor], device: torch.device, vocab_size: int) -> TranslatedSignal:
    """What :func:`as_parts` gave, on `device`."""
    here = {name: part.to(device) for name, part in parts.items()}
    facts = here["facts"]
    signal = TeacherSignal(
        ids=here["ids"].long(),
        logp=here["logp"],
        log_tail=here["log_tail"],
        entropy=here["entropy"],
        argmax=here["argmax"].long(),
        max_logp=here["max_logp"],
        vocab_size=vocab_size,
        label_logp=here["label_logp"],
        hard_only=facts[:, HARD_ONLY] > 0,
    )
    return TranslatedSignal(signal, facts)


def check_translated_objective(objective: HybridObjective) -> None:
    """Make sure that `objective` can be computed from a translated signal.

    Raises:
        ConfigError: it needs more of the tail than its mass.
    """
    if objective.exponents:
        raise ConfigError(
            "objective: the teacher has another tokenizer, and of what cannot be translated the mass is known, not its "
            f"sum of p^{objective.exponents[0]:g}, which the temperature, the sharpening or the power entropy of "
            "this objective needs. Take temperature 1, sharpening 1 and another rule for the soft weight (entropy of "
            "kind shannon, confidence, static), or a teacher with the student's tokenizer."
        )


class TranslatedTeacher:
    """What both kinds have: a :class:`~bridgegarden.teacher.protocol.Teacher` of a student with another tokenizer."""

    def __init__(self, teacher: "TeacherCache | LiveTeacher | MixedTeacher", pair: TokenizerPair) -> None:
        """
        Args:
            teacher: as it speaks for itself.
            pair: of its tokenizer and the student's.
        """
        self.teacher, self.pair = teacher, pair

    @property
    def name(self) -> str:
        """What a reader calls it."""
        return self.teacher.name

    @property
    def width(self) -> int:
        """Size of the student's vocabulary."""
        return len(self.pair.translation.student)

    def place(self, student_device: torch.device) -> None:
        """See :class:`~bridgegarden.teacher.protocol.Teacher`."""
        self.teacher.place(student_device)

    def check_objective(self, objective: HybridObjective) -> None:
        """Make sure that `objective` can be computed from a translated signal.

        Raises:
            ConfigError: it needs more of the tail than its mass.
        """
        check_translated_objective(objective)


class TranslatedCache(TranslatedTeacher):
    """A cache in the teacher's own vocabulary, translated where a batch is made."""

    teacher: TeacherCache

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The signals at the student's positions of a batch; see :meth:`TeacherCache.collate`.

        Raises:
            DataError: a document is not in the cache, or the two do not write the same text.
        """
        said = self.teacher.collate([_as_read(example) for example in examples])
        signal = teacher_signal(said, self.teacher.spec)
        return as_parts(self.pair.translate(signal, self.pair.of_batch(examples), "a batch"))

    def at(
        self,
        positions: SupervisedPositions,
        inputs: Mapping[str, Any],
        *,
        vocab_size: int,
        exponents: tuple[float, ...],
    ) -> TranslatedSignal:
        """The signals that :meth:`collate` put into the batch `inputs`."""
        assert vocab_size == self.width
        assert not exponents
        return from_parts(inputs[SIGNAL], positions.row.device, vocab_size)

    def check_objective(self, objective: HybridObjective) -> None:
        """See :meth:`TranslatedTeacher.check_objective`.

        Raises:
            ConfigError: as there; or the cache holds draws.
        """
        if self.teacher.spec.support.kind == "sampled":
            raise ConfigError(
                f"teacher cache {self.teacher.folder}: holds draws, which cannot be translated for a student with "
                "another tokenizer. Keep the likeliest tokens instead (bridgegarden cache build RECIPE --top-k 64 "
                "--replace)."
            )
        super().check_objective(objective)

    def check_student(self, vocab_size: int, max_length: int | None) -> None:
        """Make sure that rows become what they were when the cache was built, and that the student has its tokens.

        Raises:
            ModelError: the teacher's tokenizer or its chat template is another; the student lacks tokens.
            ConfigError: rows are cut to another length.
        """
        self.teacher.check_tokenizer(self.pair.tokenizer, max_length)
        if vocab_size < self.width:
            raise ModelError(
                f"student: its tokenizer has {self.width} tokens, of which the model knows only {vocab_size}."
            )

    def check_rows(self, dataset: "Dataset", name: str) -> None:
        """Make sure that the cache holds what the teacher reads of every row of a tokenised data set.

        Raises:
            DataError: some are missing, or the rows are not in the teacher's tokens, too.
        """
        self.teacher.check_rows(as_read(dataset, name), name)


class TranslatedModel(TranslatedTeacher):
    """A teacher in memory, which reads every row in its own tokens; what it says is translated at every step."""

    teacher: "LiveTeacher | MixedTeacher"

    def at(
        self,
        positions: SupervisedPositions,
        inputs: Mapping[str, Any],
        *,
        vocab_size: int,
        exponents: tuple[float, ...],
    ) -> TranslatedSignal:
        """Asked at the teacher's `positions` of its own batch `inputs`, answered at the student's; both as the collator
        made them."""
        assert vocab_size == self.width
        assert not exponents
        own = {name: value for name, value in inputs.items() if name not in (STRETCHES, STUDENT_LABELS, OWN_TEXTS)}
        size = min(self.teacher.width, len(self.pair.translation.teacher))
        source = self.teacher.at(positions, own, vocab_size=size, exponents=())
        parts = [
            _on_cpu(source[rows])
            for rows in chunks(len(positions), default_chunk_tokens(size, positions.row.device.type))
        ]
        theirs, ours = positions.target.tolist(), inputs[STUDENT_LABELS].tolist()
        pairs, at = [], [0, 0]
        for counts in inputs[STRETCHES].tolist():
            ends = [start + count for start, count in zip(at, counts, strict=True)]
            pairs.append((theirs[at[0] : ends[0]], ours[at[1] : ends[1]]))
            at = ends
        translated = self.pair.translate(_joined(parts), pairs, "a batch")
        found = from_parts(as_parts(translated), positions.row.device, vocab_size)
        if OWN_TEXTS not in inputs:
            return found
        return replace(found, signal=replace(found.signal, untaught=found.signal.hard_only))


def _on_cpu(signal: TeacherSignal) -> TeacherSignal:
    def moved(values: Tensor | None) -> Tensor | None:
        return None if values is None else values.cpu()

    fields = ("ids", "log_tail", "label_logp")
    return replace(
        signal,
        logp=signal.logp.cpu(),
        entropy=signal.entropy.cpu(),
        argmax=signal.argmax.cpu(),
        max_logp=signal.max_logp.cpu(),
        **{name: moved(getattr(signal, name)) for name in fields},
    )


def _joined(parts: Sequence[TeacherSignal]) -> TeacherSignal:
    """Chunks of positions, one behind the other."""
    if len(parts) == 1:
        return parts[0]

    def joined(name: str) -> Tensor | None:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else torch.cat(values)

    names = ("ids", "logp", "log_tail", "entropy", "argmax", "max_logp", "label_logp")
    return replace(parts[0], **{name: joined(name) for name in names})


def _as_read(example: Mapping[str, Any]) -> dict[str, Any]:
    """An example as the teacher reads it."""
    read = {"input_ids": example[TEACHER_IDS], "labels": example[TEACHER_LABELS]}
    return read | ({"row": example["row"]} if "row" in example else {})


def as_read(dataset: "Dataset", name: str) -> "Dataset":
    """The rows of a tokenised data set as the teacher reads them: what its cache is made of.

    Raises:
        DataError: they are in the student's tokens alone.
    """
    if TEACHER_IDS not in dataset.column_names:
        raise DataError(
            f"{name} data: rows are in the student's tokens alone, and the teacher has another tokenizer. Give rows "
            f"with their text, or with {TEACHER_IDS!r} and {TEACHER_LABELS!r}."
        )
    kept = [TEACHER_IDS, TEACHER_LABELS, *(["row"] if "row" in dataset.column_names else [])]
    return dataset.select_columns(kept).rename_columns({TEACHER_IDS: "input_ids", TEACHER_LABELS: "labels"})
