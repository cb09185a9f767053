"""Teachers with another tokenizer: what they say, in the student's vocabulary, at the student's positions.

Each of the two reads a row behind its own chat template and in its own tokens. What is learnt is the same text, so
their stretches of it are held against each other by their bytes (:mod:`bridgegarden.teacher.translation`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bridgegarden.data.teacher_prompt import TEACHER_IDS, TEACHER_LABELS
from bridgegarden.errors import ConfigError, DataError, ModelError
from bridgegarden.objective.alignment import SupervisedPositions
from bridgegarden.objective.head import chunks, default_chunk_tokens
from bridgegarden.objective.hybrid import HybridObjective
from bridgegarden.objective.support import TeacherSignal
from bridgegarden.teacher.cache.reader import SIGNAL, TeacherCache, teacher_signal
from bridgegarden.teacher.cache.shard import documents_in
from bridgegarden.teacher.tokenizer_pair import OWN_TEXTS, STRETCHES, STUDENT_LABELS, TokenizerPair
from bridgegarden.teacher.translation.translate import ALIGNED, CONDITIONAL, HARD_ONLY, Translated

if TYPE_CHECKING:
    from datasets import Dataset

    from bridgegarden.teacher.live import LiveTeacher
    from bridgegarden.teacher.mixture import MixedTeacher

SHARES = (
    *("aligned_share", "conditional_share", "hard_only_share"),
    *("exact_mass", "approximate_mass", "open_mass", "unknown_mass"),
)
"""What is logged of translated signals, a mean over positions each; see
:class:`~bridgegarden.teacher.translation.translate.Shares`."""


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
        said = self.teacher.said([document for example in examples for document in documents_in(_as_read(example))])
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
        self.teacher.check_tokenizer(self.pair.tokenizer, max_length, self.pair.whose)
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
