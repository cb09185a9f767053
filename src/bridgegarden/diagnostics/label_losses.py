"""Whether the teacher knows the rows better than the student does: what both lose on the same answers."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch

from bridgegarden.diagnostics.rollout import walk
from bridgegarden.policy import Policy
from bridgegarden.statistics import Estimate, Interval
from bridgegarden.terminal import counted

SURE = 0.999
"""Confidence of the interval that has to leave out :data:`LEAST_GAP`: at 8 rows whose differences are as skewed as
exponential ones, about 1 in 100 equal teachers is called worse, and with 64 rows 1 in 1,000 at most."""
LEAST_GAP = 0.05
"""Nats a token: what a teacher in 4 bits loses, or a server's rounding, is less."""
FEWEST_ROWS = 8
"""Rows behind a verdict on the teacher."""


class RowLoss(NamedTuple):
    """What teacher and student lose on a row."""

    row: int
    """Its number in the data; -1 where that is not known."""
    teacher: float
    """Sum of minus the log-probability of the supervised tokens of which the teacher's is known, nats."""
    student: float
    """The same of the student."""
    tokens: int
    """How many these are."""


@dataclass(frozen=True, kw_only=True)
class LabelLosses:
    """What teacher and student lose on the same supervised tokens: whether there is anything to learn."""

    teacher: float
    """Nats a token."""
    student: float
    """Nats a token."""
    difference: Estimate | None
    """Teacher minus student, nats a token, over rows, which are independent; None where there are fewer than two, or a
    loss is infinite."""
    rows: int
    tokens: int

    @classmethod
    def over(cls, found: Sequence[RowLoss]) -> "LabelLosses | None":
        """Of all rows together; None where there is no token of which the teacher says anything.

        The parts of a row that was cut are put together again, wherever they were.
        """
        parts = [(loss.row if loss.row >= 0 else ("unnamed", place), loss) for place, loss in enumerate(found)]
        rows: dict[Any, list[float]] = {}
        for key, loss in parts:
            rows[key] = [a + b for a, b in zip(rows.get(key, [0.0, 0.0, 0.0]), loss[1:], strict=True)]
        if not rows:
            return None
        teacher, student, tokens = zip(*rows.values(), strict=True)
        known = len(rows) > 1 and all(map(math.isfinite, (*teacher, *student)))
        gaps = [a - b for a, b in zip(teacher, student, strict=True)]
        return cls(
            teacher=sum(teacher) / sum(tokens),
            student=sum(student) / sum(tokens),
            difference=Estimate.ratio(gaps, tokens) if known else None,
            rows=len(rows),
            tokens=int(sum(tokens)),
        )

    @property
    def interval(self) -> Interval | None:
        """Where the difference lies, :data:`SURE`; None where nothing is known."""
        return None if self.difference is None else self.difference.interval(SURE)

    @property
    def standing(self) -> Literal["better", "no better", "worse", "undecided"]:
        """How the teacher stands: *better* or *worse* by more than :data:`LEAST_GAP`, *no better* where it is ruled out
        that it is better by so much; *undecided* where the interval leaves more than one open, or rows are too few."""
        interval = self.interval
        if self.rows < FEWEST_ROWS or interval is None:
            return "undecided"
        if interval.low > LEAST_GAP:
            return "worse"
        if interval.high < -LEAST_GAP:
            return "better"
        return "no better" if interval.low > -LEAST_GAP else "undecided"

    @property
    def teacher_is_worse(self) -> bool:
        """Whether the teacher loses more than the student, by more than any rounding and noise could make it."""
        return self.standing == "worse"

    def __str__(self) -> str:
        """For a person, one line."""
        counts = f"{counted(self.rows, 'row')}, {counted(self.tokens, 'supervised token')}"
        return (
            f"before training, on the first step's rows ({counts}), the teacher's loss is {self.teacher:.3f} nats a "
            f"token and the student's {self.student:.3f}"
        )

    @property
    def warning(self) -> str:
        """What it means that the teacher is worse, and what to do."""
        assert self.interval is not None
        low, high = self.interval
        return (
            f"the teacher is worse on these rows than the student before training: {self.teacher:.3f} nats a token "
            f"against {self.student:.3f}, a difference of {low:.2f} to {high:.2f} ({100 * SURE:g} % interval, "
            f"{counted(self.rows, 'row')}). Its labels move the student away from the data: distillation will not help "
            "here. Take a better teacher, learn the data alone (objective.preset=hard, objective.hard_target=data), or "
            "let the teacher write the answers (bridgegarden generate RECIPE)."
        )


class Answer(NamedTuple):
    """The answer of a row, behind its prompt."""

    prompt: tuple[int, ...]
    """Token ids before the first that is learnt."""
    tokens: tuple[int, ...]
    """Token ids from there on."""
    learnt: tuple[bool, ...]
    """Which of `tokens` are."""


def answer_losses(
    teacher: Policy, students: Mapping[str, Policy], answers: Sequence[Answer], *, longest: int, max_rows: int
) -> dict[str, LabelLosses]:
    """What each of `students` and the teacher lose on `answers`, by the student's name; empty without answers.

    Args:
        teacher: p.
        students: each q.
        answers: one a row; of a longer one only its beginning is read, of several turns the first.
        longest: tokens of an answer.
        max_rows: answers read at a time.
    """
    kept = [one for one in answers if any(one.learnt[:longest])]
    losses, tokens = _followed((teacher, *students.values()), kept, longest, max_rows)
    return _by_student(students, losses, tokens)


def losses_across(
    teacher: Policy,
    students: Mapping[str, Policy],
    answers: Sequence[tuple[Answer, Answer]],
    *,
    longest: int,
    max_rows: int,
) -> dict[str, LabelLosses]:
    """As :func:`answer_losses`, of a teacher with another tokenizer: each reads the same answers in its own tokens, and
    what they lose on a whole answer does not depend on those. By the token is by the student's.

    Args:
        teacher: p.
        students: each q, all of one vocabulary.
        answers: one a row, as the teacher reads it and as the students do; those that are longer for one are left out.
        longest: tokens of an answer.
        max_rows: answers read at a time.
    """
    kept = [pair for pair in answers if all(len(one.tokens) <= longest and all(one.learnt) for one in pair)]
    theirs, _ = _followed((teacher,), [pair[0] for pair in kept], longest, max_rows)
    ours, tokens = _followed(tuple(students.values()), [pair[1] for pair in kept], longest, max_rows)
    return _by_student(students, torch.cat([theirs, ours]), tokens)


def _followed(
    policies: Sequence[Policy], kept: Sequence[Answer], longest: int, max_rows: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """``(P, N)`` what each policy loses on each answer, and ``(N,)`` how many tokens of it are learnt."""
    losses = torch.zeros(len(policies), len(kept), dtype=torch.float64)
    tokens = torch.zeros(len(kept), dtype=torch.long)
    for first in range(0, len(kept), max_rows):
        part = kept[first : first + max_rows]
        lengths = torch.tensor([min(len(one.tokens), longest) for one in part])
        width = int(lengths.max())
        given = torch.tensor([[*one.tokens[:width], *[0] * (width - len(one.tokens))] for one in part])
        learnt = torch.tensor([[*one.learnt[:width], *[False] * (width - len(one.learnt))] for one in part])
        decodings = [policy.start([one.prompt for one in part]) for policy in policies]
        for visit in walk(decodings, torch.arange(len(part)), limits=lengths, given=given):
            counts = learnt[visit.rows, visit.step]
            tokens[first + visit.rows] += counts
            for number, logp in enumerate(visit.logp):
                found = logp.gather(-1, visit.tokens.to(logp.device).unsqueeze(-1)).squeeze(-1).double().cpu()
                losses[number, first + visit.rows] -= torch.where(counts, found, 0.0)
    return losses, tokens


def _by_student(students: Iterable[str], losses: torch.Tensor, tokens: torch.Tensor) -> dict[str, LabelLosses]:
    """From the teacher's losses, which are the first, and each student's."""
    found = {}
    for number, name in enumerate(students, 1):
        rows = zip(range(len(tokens)), losses[0].tolist(), losses[number].tolist(), tokens.tolist(), strict=True)
        over = LabelLosses.over([row for row in map(RowLoss._make, rows) if row.tokens])
        if over is not None:
            found[name] = over
    return found
