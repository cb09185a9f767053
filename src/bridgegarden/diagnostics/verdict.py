"""What a diagnosis comes to: whether this teacher can teach this student anything, and what it is good for as it is.

Every answer is decided by an interval, or said to be undecided.
"""

from dataclasses import dataclass
from typing import Literal

from bridgegarden.diagnostics.acceptance import Acceptance, Draft, DraftModel
from bridgegarden.diagnostics.advise import Advice, Rule
from bridgegarden.diagnostics.exposure_bias import ExposureBias
from bridgegarden.diagnostics.label_losses import LabelLosses

ALIKE = 0.99
"""Share of a student's tokens that its teacher accepts, from which on the two are taken to be the same."""
NOTICEABLE = 0.1
"""Exposure bias that is a smaller share of the loss on the student's own texts is as good as none."""

Rows = Literal["better", "no better", "worse", "undecided", "unknown"]
"""How the teacher stands on the answers of the rows; *unknown* where there are none."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """On one student."""

    distilling: Literal["can help", "nothing left", "will not help", "undecided"]
    """Whether training it further on this teacher's labels can bring it forward: *nothing left* where it writes as the
    teacher does, *will not help* where the teacher knows the rows no better."""
    rows: Rows
    """What decides that, where the two differ."""
    drift: Literal["drifts", "does not drift", "easier", "undecided"]
    """*Easier*: its own texts cost it less than the teacher's. *Does not drift*: less than :data:`NOTICEABLE`."""
    rule: Rule | None
    """Which rule for the soft weight; None is undecided."""
    draft: Literal["worth it", "not worth it", "undecided", "not defined"]
    """As a draft model: whether it makes the teacher faster; *not defined* where their tokens differ."""
    drafted: int | None
    """Length of drafts that is fastest; None where there are none."""

    @classmethod
    def of(
        cls,
        *,
        bias: ExposureBias,
        draft_model: DraftModel | None,
        advice: Advice | None,
        losses: LabelLosses | None,
        cost_ratio: float,
    ) -> "Verdict":
        """From what was measured.

        Args:
            bias: its exposure bias.
            draft_model: what it is as a draft model; None where that is not defined.
            advice: None if interrupted before.
            losses: on the answers of the rows; None without any.
            cost_ratio: of a token of the student to one of the teacher.
        """
        rows: Rows = "unknown" if losses is None else losses.standing
        texts = [] if draft_model is None else [draft_model.teacher_texts, draft_model.student_texts]
        best = None if draft_model is None else draft_model.fastest(cost_ratio)
        return cls(
            distilling=_distilling(rows, texts),
            rows=rows,
            drift=_drift(bias),
            rule=None if advice is None else advice.recommended,
            draft="not defined" if best is None else _draft(best, cost_ratio),
            drafted=None if best is None else best.drafted,
        )


def _distilling(
    rows: Rows, texts: list[Acceptance]
) -> Literal["can help", "nothing left", "will not help", "undecided"]:
    if rows == "worse":
        return "will not help"
    if texts and all(one.acceptance.interval().low > ALIKE for one in texts):
        return "nothing left"
    if rows == "no better":
        return "will not help"
    return "can help" if rows == "better" else "undecided"


def _drift(bias: ExposureBias) -> Literal["drifts", "does not drift", "easier", "undecided"]:
    interval = bias.exposure_bias.interval()
    if max(map(abs, interval)) < NOTICEABLE * bias.student_loss.mean:
        return "does not drift"
    side = interval.side()
    return "drifts" if side > 0 else "easier" if side < 0 else "undecided"


def _draft(best: Draft, cost_ratio: float) -> Literal["worth it", "not worth it", "undecided"]:
    side = best.speed_up(cost_ratio).interval().side(of=1.0)
    return "worth it" if side > 0 else "not worth it" if side < 0 else "undecided"
