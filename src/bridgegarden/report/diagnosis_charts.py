"""The charts of a diagnosis."""

from collections.abc import Sequence

from markupsafe import Markup

from bridgegarden.diagnostics.attribution import Share
from bridgegarden.diagnostics.diagnosis import Findings, StudentDiagnosis
from bridgegarden.diagnostics.exposure_bias import CurvePoint as LossPoint
from bridgegarden.report.charts import WIDE, Dot, Row, dot_plot
from bridgegarden.report.curves import Curve, CurvePoint, curve_chart
from bridgegarden.report.diagnosis_words import measured
from bridgegarden.report.scale import Axis, Reading, number
from bridgegarden.report.signed_bars import SignedBar, signed_bars
from bridgegarden.statistics import Estimate

MANY = 0.25
"""Share of the texts that must reach a position for its interval to decide how far an axis reaches."""


def bias_chart(findings: Findings, size: int = WIDE) -> Markup:
    """Exposure bias of every student."""
    rows = [
        Row(
            name=student.name,
            dots=(
                Dot(
                    reading=_reading(student.exposure_bias.exposure_bias),
                    about=f"{student.name}\nexposure bias: {measured(student.exposure_bias.exposure_bias)} nats a text",
                ),
            ),
        )
        for student in findings.students
    ]
    return dot_plot(
        rows,
        axis=Axis(label="exposure bias, nats a text →", include=(0.0,)),
        series=[("exposure bias", "disc")],
        about="Exposure bias of every student with its 95 % interval.",
        size=size,
    )


def loss_chart(student: StudentDiagnosis, size: int = WIDE) -> Markup:
    """The loss by position, on the student's own texts and on the teacher's."""
    bias = student.exposure_bias
    curves = [
        _loss_curve(f"on {student.name}'s own texts", bias.student_curve),
        _loss_curve("on the teacher's texts", bias.teacher_curve),
    ]
    return curve_chart(
        [curve for curve in curves if curve.points],
        x=Axis(label="tokens written before →"),
        y=Axis(label="↑ loss l(s), nats", include=(0.0,), least=0.0),
        about=f"Loss of {student.name} by position, on its own texts and on the teacher's.",
        size=size,
    )


def excess_chart(students: Sequence[StudentDiagnosis], size: int = WIDE) -> Markup:
    """ExAccErr of every student by length."""
    curves = [_excess_curve(student) for student in students]
    return curve_chart(
        [curve for curve in curves if curve.points],
        x=Axis(label="up to so many tokens →"),
        y=Axis(label="↑ ExAccErr, %", include=(0.0,)),
        about="Excess accumulated error by length, one curve for each student.",
        size=size,
    )


def position_chart(student: StudentDiagnosis, size: int = WIDE) -> Markup:
    """What positions add to exposure bias, by how far into the text."""
    assert student.attribution is not None
    last = int(student.exposure_bias.student_texts.lengths.max()) - 1
    shares = student.attribution.by_position
    return _shares(
        shares,
        [_range(int(share.low), min(int(share.high) - 1, last)) for share in shares],
        f"What the positions of {student.name}'s texts add to its exposure bias, by position.",
        size,
    )


def confidence_chart(student: StudentDiagnosis, size: int = WIDE) -> Markup:
    """What positions add to exposure bias, by how sure the teacher is."""
    assert student.attribution is not None
    shares = student.attribution.by_confidence
    return _shares(
        shares,
        [f"max p {number(share.low)} to {number(share.high)}" for share in shares],
        f"What the positions of {student.name}'s texts add to its exposure bias, by the teacher's largest probability.",
        size,
    )


def _range(first: int, last: int) -> str:
    return f"token {first}" if first == last else f"tokens {first}–{last}"


def _shares(shares: Sequence[Share], names: Sequence[str], about: str, size: int) -> Markup:
    bars = [
        SignedBar(
            name=name,
            reading=_reading(share.contribution),
            about=f"{name}\n{measured(share.contribution)} nats a text",
        )
        for name, share in zip(names, shares, strict=True)
    ]
    return signed_bars(bars, axis=Axis(label="adds to exposure bias, nats a text →"), about=about, size=size)


def _loss_curve(name: str, points: Sequence[LossPoint]) -> Curve:
    most = max((point.survivors for point in points), default=0)
    return Curve(
        name=name,
        points=tuple(
            CurvePoint(
                point.position,
                _reading(point.loss),
                f"{name}\nafter {point.position} tokens: {measured(point.loss)} nats\n"
                f"{point.survivors} texts are that long",
            )
            for point in points
        ),
        sure=sum(point.survivors >= MANY * most for point in points),
    )


def _excess_curve(student: StudentDiagnosis) -> Curve:
    points = student.exposure_bias.excess_error
    return Curve(
        name=student.name,
        points=tuple(
            CurvePoint(
                point.length,
                _reading(point.per_cent),
                f"{student.name}\nup to {point.length} tokens: {measured(point.per_cent, ' %')}",
            )
            for point in points
        ),
        sure=sum((high - low) / 2 <= 100 for low, high in (point.per_cent.interval() for point in points)),
    )


def _reading(estimate: Estimate) -> Reading:
    return Reading(estimate.mean, *estimate.interval())
