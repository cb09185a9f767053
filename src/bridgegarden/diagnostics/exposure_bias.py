r"""Exposure bias from roll-outs: what a student loses on its own texts beyond what it loses on its teacher's.

.. math:: L_d = E_{y \sim d} \Big[ \sum_t l(s_t) \Big], \qquad
          \text{exposure bias} = L_{d_\theta} - L_{d_T}, \qquad l(s) = D(p(\cdot|s) \,\|\, q(\cdot|s))

:math:`d_T` and :math:`d_\theta` are the texts that teacher and student write from the same prompts, at one temperature
and at most T tokens long; :math:`l` is at temperature 1 whatever the texts were written at. Prompts are the independent
units of every error: texts of one prompt are averaged first. Losses are skewed, so the intervals are the cautious ones
of :meth:`~bridgegarden.statistics.Estimate.cautious`: where no two prompts differ they have no ends. Sums are nats a
text; per-token values are the ratio of the mean sum to the mean length. The exact value of the same quantity on finite
worlds is in `bridgegarden.exact`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from bridgegarden.diagnostics.rollout import RollOuts, Sampling, roll_out
from bridgegarden.errors import DataError
from bridgegarden.policy import Policy
from bridgegarden.statistics import Estimate, to_plain


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """The loss at one position, over the texts that reach it."""

    position: int
    """Tokens written before, from 0."""
    loss: Estimate
    """Nats: mean of l over the survivors; the error is over prompts."""
    survivors: int
    """Texts that reach this position."""


@dataclass(frozen=True, kw_only=True)
class ExcessErrorPoint:
    r"""ExAccErr of Arora et al., 2022 (arXiv:2204.01171), up to a length."""

    length: int
    """Positions that are summed, from the first."""
    per_cent: Estimate
    r"""100 (L_dtheta - L_dT) / L_dT, both summed over the first `length` positions."""


@dataclass(frozen=True, kw_only=True)
class LossPerByte:
    """The losses over the bytes of the texts, which do not depend on how a text is cut into tokens. The end of a text
    counts as a byte."""

    teacher_loss: Estimate
    """Nats a byte, on the teacher's texts."""
    student_loss: Estimate
    """Nats a byte, on the student's."""
    exposure_bias: Estimate
    """Their difference, paired by prompt."""
    teacher_bytes: Estimate
    """Bytes of the teacher's texts."""
    student_bytes: Estimate
    """Bytes of the student's."""

    @classmethod
    def of(cls, teacher_texts: RollOuts, student_texts: RollOuts) -> "LossPerByte | None":
        """Of the only student in both; None where the bytes are not counted."""
        sizes = [None if t.sizes is None else t.per_prompt(t.sizes) for t in (teacher_texts, student_texts)]
        if sizes[0] is None or sizes[1] is None:
            return None
        on_teacher, on_student = (
            linearised(_sums(texts), size) for texts, size in ((teacher_texts, sizes[0]), (student_texts, sizes[1]))
        )
        return cls(
            teacher_loss=Estimate.cautious(on_teacher, beside=on_student),
            student_loss=Estimate.cautious(on_student, beside=on_teacher),
            exposure_bias=Estimate.cautious(on_student - on_teacher, size=_largest(on_student, on_teacher)),
            teacher_bytes=Estimate.over(sizes[0]),
            student_bytes=Estimate.over(sizes[1]),
        )


@dataclass(frozen=True, kw_only=True)
class ExposureBias:
    """One student against its teacher."""

    teacher_loss: Estimate
    """L_dT: nats a text, on the teacher's texts."""
    student_loss: Estimate
    """L_dtheta: nats a text, on the student's own texts."""
    exposure_bias: Estimate
    """Their difference, paired by prompt; nats a text."""
    teacher_loss_per_token: Estimate
    """Nats a token, on the teacher's texts."""
    student_loss_per_token: Estimate
    """Nats a token, on the student's."""
    exposure_bias_per_token: Estimate
    """Their difference, paired by prompt."""
    teacher_length: Estimate
    """Tokens of the teacher's texts."""
    student_length: Estimate
    """Tokens of the student's."""
    teacher_full: Estimate
    """Share of the teacher's texts that are as long as allowed: cut off, or ended by the very last token."""
    student_full: Estimate
    """Share of the student's."""
    teacher_curve: tuple[CurvePoint, ...]
    """By position on the teacher's texts, as far as two prompts reach."""
    student_curve: tuple[CurvePoint, ...]
    """By position on the student's texts."""
    excess_error: tuple[ExcessErrorPoint, ...]
    """The ExAccErr curve; empty where the student loses nothing on the teacher's texts."""
    samples: int
    """Texts a prompt, of each writer."""
    temperature: float
    """What the texts were written at."""
    max_new_tokens: int
    """Most tokens a text could have."""
    generated_tokens: int
    """Tokens written for this student: its own and the teacher's."""
    teacher_texts: RollOuts = field(repr=False)
    """The teacher's texts; this student is the only one in it. Not part of `to_dict`."""
    student_texts: RollOuts = field(repr=False)
    """The student's own texts. Not part of `to_dict`."""
    per_byte: LossPerByte | None = None
    """The losses by the byte, where teacher and student have different tokenizers."""

    @classmethod
    def of(cls, teacher_texts: RollOuts, student_texts: RollOuts, *, temperature: float) -> "ExposureBias":
        """Summarise roll-outs of one student and its teacher from the same prompts.

        Raises:
            DataError: fewer than two prompts, or a loss that is not finite.
        """
        if teacher_texts.prompts != student_texts.prompts:
            raise DataError("exposure bias: teacher and student wrote from different prompts; they must be the same.")
        on_teacher, on_student = _sums(teacher_texts), _sums(student_texts)
        lengths = [texts.per_prompt(texts.lengths.double()) for texts in (teacher_texts, student_texts)]
        per_token = [linearised(sums, length) for sums, length in zip((on_teacher, on_student), lengths, strict=True)]
        full = [texts.per_prompt(texts.full) for texts in (teacher_texts, student_texts)]
        return cls(
            teacher_loss=Estimate.cautious(on_teacher, beside=on_student),
            student_loss=Estimate.cautious(on_student, beside=on_teacher),
            exposure_bias=Estimate.cautious(on_student - on_teacher, size=_largest(on_student, on_teacher)),
            teacher_loss_per_token=Estimate.cautious(per_token[0], beside=per_token[1]),
            student_loss_per_token=Estimate.cautious(per_token[1], beside=per_token[0]),
            exposure_bias_per_token=Estimate.cautious(per_token[1] - per_token[0], size=_largest(*per_token)),
            teacher_length=Estimate.over(lengths[0]),
            student_length=Estimate.over(lengths[1]),
            teacher_full=Estimate.over(full[0]),
            student_full=Estimate.over(full[1]),
            teacher_curve=_curve(teacher_texts),
            student_curve=_curve(student_texts),
            excess_error=_excess_error(teacher_texts, student_texts),
            samples=student_texts.samples,
            temperature=temperature,
            max_new_tokens=student_texts.horizon,
            generated_tokens=int(teacher_texts.lengths.sum() + student_texts.lengths.sum()),
            teacher_texts=teacher_texts,
            student_texts=student_texts,
            per_byte=LossPerByte.of(teacher_texts, student_texts),
        )

    def per_prompt(self) -> Tensor:
        """``(P,)`` float64 nats: exposure bias prompt by prompt."""
        return _sums(self.student_texts) - _sums(self.teacher_texts)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it; estimates with their 95% intervals."""
        return to_plain(self, leave_out=("teacher_texts", "student_texts"))


def exposure_bias(
    teacher: Policy,
    student: Policy,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    generator: torch.Generator,
) -> ExposureBias:
    """Exposure bias of `student`; see `compare_students`, of which it is the case of one."""
    return compare_students(teacher, {"student": student}, prompts, sampling, generator=generator)["student"]


def compare_students(
    teacher: Policy,
    students: Mapping[str, Policy],
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    generator: torch.Generator,
) -> dict[str, ExposureBias]:
    """Exposure bias of several students on the same prompts, teacher texts and random numbers.

    Args:
        teacher: p.
        students: each q, by name.
        prompts: at least two; they are the independent units of the errors, so more prompts serve better than more
            samples of each.
        sampling: how texts are written.
        generator: on the CPU; the same state gives the same numbers whatever `max_rows` is (up to rounding).

    Raises:
        ConfigError: a setting out of range, or no students.
        DataError: fewer than two prompts, different vocabularies, or a loss that is not finite.
    """
    uniforms = sampling.uniforms(len(prompts), len(students), generator)

    def texts(writer: Policy, readers: Sequence[Policy]) -> RollOuts:
        return roll_out(
            teacher,
            readers,
            prompts,
            writer=writer,
            uniforms=uniforms,
            temperature=sampling.temperature,
            divergence=sampling.divergence,
            max_rows=sampling.max_rows,
        )

    on_teacher = texts(teacher, list(students.values()))
    return {
        name: ExposureBias.of(on_teacher.of_student(index), texts(student, [student]), temperature=sampling.temperature)
        for index, (name, student) in enumerate(students.items())
    }


@dataclass(frozen=True, kw_only=True)
class StudentDifference:
    """Two students on the same prompts: the first's value minus the second's."""

    first: str
    """Name of one student."""
    second: str
    """Name of the other."""
    measure: str
    """`exposure_bias`, `student_loss` or `teacher_loss`: nats a text."""
    difference: Estimate
    """First minus second, paired by prompt."""

    @property
    def lower(self) -> str | None:
        """Which of the two has less, by more than chance explains; None where the 95% interval holds zero."""
        return (None, self.second, self.first)[self.difference.interval().side()]

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return to_plain(self)


def paired_differences(results: Mapping[str, ExposureBias]) -> tuple[StudentDifference, ...]:
    """Every pair of students of one `compare_students` call, for each measure."""
    found = []
    for first, second in combinations(results, 2):
        pair = [results[first], results[second]]
        measures = {
            "exposure_bias": [one.per_prompt() for one in pair],
            "student_loss": [_sums(one.student_texts) for one in pair],
            "teacher_loss": [_sums(one.teacher_texts) for one in pair],
        }
        if pair[0].teacher_texts.tokens != pair[1].teacher_texts.tokens:
            raise DataError(
                f"{first} and {second}: were measured on different texts of the teacher; compare them at once."
            )
        for measure, (one, other) in measures.items():
            difference = Estimate.cautious(one - other, size=_largest(one, other))
            found.append(StudentDifference(first=first, second=second, measure=measure, difference=difference))
    return tuple(found)


def _sums(texts: RollOuts) -> Tensor:
    """``(P,)`` mean over the texts of each prompt of the summed loss of the only student."""
    assert len(texts.losses) == 1
    return texts.per_prompt(texts.losses[0].sum(-1))


def linearised(numerator: Tensor, denominator: Tensor) -> Tensor:
    """One value a prompt whose mean is the ratio of the means and whose spread is the ratio's, to first order."""
    ratio = numerator.mean() / denominator.mean()
    return ratio + (numerator - ratio * denominator) / denominator.mean()


def _largest(*columns: Tensor) -> float:
    """What the rounding of a difference is to be held against."""
    return max(column.abs().max().item() for column in columns)


def _curve(texts: RollOuts) -> tuple[CurvePoint, ...]:
    alive = texts.lengths[:, None] > torch.arange(texts.horizon)
    points = []
    for position in range(texts.horizon):
        share = texts.per_prompt(alive[:, position].double())
        if (share > 0).sum() < 2:
            break
        loss = Estimate.ratio(texts.per_prompt(texts.losses[0, :, position]), share)
        points.append(CurvePoint(position=position, loss=loss, survivors=int(alive[:, position].sum())))
    return tuple(points)


def _excess_error(teacher_texts: RollOuts, student_texts: RollOuts) -> tuple[ExcessErrorPoint, ...]:
    """Up to the longest text that was written."""
    on_teacher, on_student = (
        texts.per_prompt(texts.losses[0].cumsum(-1).T).T for texts in (teacher_texts, student_texts)
    )
    longest = int(max(teacher_texts.lengths.max(), student_texts.lengths.max()))
    points = []
    for length in range(1, longest + 1):
        below, above = on_teacher[:, length - 1], on_student[:, length - 1]
        if below.mean() > 0:
            per_cent = Estimate.cautious(100 * linearised(above - below, below), size=100.0)
            points.append(ExcessErrorPoint(length=length, per_cent=per_cent))
    return tuple(points)
