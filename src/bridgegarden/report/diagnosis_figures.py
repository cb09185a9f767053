"""What a diagnosis shows: its charts, and its texts token by token with what colours them and what their cards say."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from markupsafe import Markup

from bridgegarden.diagnostics.attribution import Share
from bridgegarden.diagnostics.diagnosis import Diagnosis, Findings, Likely, ShownText, ShownToken, StudentDiagnosis
from bridgegarden.diagnostics.exposure_bias import CurvePoint as LossPoint
from bridgegarden.diagnostics.kappa import PositionKappa
from bridgegarden.report.charts import WIDE, Curve, CurvePoint, Dot, Row, SignedBar, curve_chart, dot_plot, signed_bars
from bridgegarden.report.diagnosis_words import SPACE, measured
from bridgegarden.report.marks import Axis, Reading
from bridgegarden.report.page import details
from bridgegarden.report.tokens import (
    CardTable,
    Facet,
    KindLayer,
    Layer,
    NumberLayer,
    Panel,
    Thought,
    Token,
    heatmap,
    heatmap_data,
    visible,
)
from bridgegarden.statistics import Estimate
from bridgegarden.table import number, probability

MANY = 0.25
"""Share of the texts that must reach a position for its interval to decide how far an axis reaches."""


LONG = 600
"""Characters of a prompt from which on it is folded away."""


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
            name=name if share.contribution.known else f"{name}: unknown",
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
    points = [point for point in student.exposure_bias.excess_error if point.per_cent.known]
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
    """Without a whisker where nothing is known; the words say so."""
    if not estimate.known:
        return Reading(estimate.mean, estimate.mean, estimate.mean)
    return Reading(estimate.mean, *estimate.interval())


def texts_section(diagnosis: Diagnosis) -> Markup:
    """The texts and how to read them."""
    findings = diagnosis.findings
    count = max(len(student.texts) for student in findings.students)
    if count == 0:
        return Markup("<p>No texts were to be shown, or the run was interrupted before.</p>")
    how = Markup(
        "<p>{}, each written by the student itself at temperature {}. Point at a token, tap it or walk there with the "
        "arrow keys to see what both models expected there and what each choice costs later.</p>"
    ).format(
        "One text" if count == 1 else f"{count} texts of each student, from the first prompts and not picked",
        number(diagnosis.settings.temperature),
    )
    return how + heatmap(_panels(findings), _facets(findings), _layers(findings))


def texts_data(findings: Findings) -> dict[str, Any]:
    """The same for the page's script."""
    if not any(student.texts for student in findings.students):
        return {"layers": [], "tokens": []}
    return heatmap_data(_panels(findings), _layers(findings))


def _facets(findings: Findings) -> list[Facet]:
    count = max(len(student.texts) for student in findings.students)
    return [
        Facet(name="Student", options=tuple(student.name for student in findings.students if student.texts)),
        Facet(name="Text", options=tuple(str(index + 1) for index in range(count))),
    ]


def _panels(findings: Findings) -> list[Panel]:
    with_texts = [student for student in findings.students if student.texts]
    return [
        Panel(
            choice=(row, column),
            title=f"Text {column + 1} of {student.name}",
            before=_prompt(text),
            tokens=tuple(_token(findings, student, token, first=at == 0) for at, token in enumerate(text.tokens)),
        )
        for row, student in enumerate(with_texts)
        for column, text in enumerate(student.texts)
    ]


def _prompt(text: ShownText) -> Markup:
    quoted = Markup("<blockquote>{}</blockquote>").format(visible(text.prompt_text))
    return details("The prompt", quoted) if len(text.prompt_text) > LONG else quoted


def _layers(findings: Findings) -> list[Layer]:
    tokens = [token for student in findings.students for text in student.texts for token in text.tokens]
    places = [token.kappa for token in tokens]
    results = {student.name: student.kappa or student.shown_kappa for student in findings.students}
    thresholds = ", ".join(
        f"{number(result.threshold)} nats for {name}" for name, result in results.items() if result is not None
    )
    layers: list[Layer] = [
        KindLayer(
            values=tuple(None if place is None else place.kind.value for place in places),
            name="Bridge or Garden",
            group="Measured",
            about=f"By whether the 95 % interval of κ(s) lies above or below the threshold: {thresholds}, a tenth of "
            "the loss on one of its texts.",
        ),
        _signed(
            "κ(s)",
            places,
            lambda place: place.state_kappa.mean,
            "Summed over the likeliest tokens of both models. Colours grow with the square root, so that small values "
            "show beside large ones.",
        ),
        _signed(
            "contribution",
            places,
            lambda place: place.contribution.mean,
            "What the place adds to exposure bias; over all places of all texts the mean sum is the exposure bias. "
            "Colours grow with the square root.",
        ),
    ]
    for rule in tokens[0].soft_weights if tokens else ():
        layers.append(
            NumberLayer(
                values=tuple(token.soft_weights[rule] for token in tokens),
                name=rule,
                group="Soft weight λ",
                scale="weight",
                most=1.0,
                ends=("0: hard label", "1: soft label"),
                about="How much of the training loss this rule would take from the teacher's whole distribution here.",
            )
        )
    layers += [
        _growing("teacher entropy", [t.teacher_entropy for t in tokens], "How undecided the teacher is, in nats."),
        _growing(
            "student surprise", [t.student_surprise for t in tokens], "How unexpected the token was to its writer."
        ),
        _growing("loss l(s)", [t.loss for t in tokens], "How far the student is from the teacher here."),
    ]
    return layers


def _signed(
    name: str, places: Sequence[PositionKappa | None], value: Callable[[PositionKappa], float], about: str
) -> NumberLayer:
    values = [None if place is None else value(place) for place in places]
    return NumberLayer.signed(values, name=name, group="Measured", about=about)


def _growing(name: str, values: Sequence[float], about: str) -> NumberLayer:
    return NumberLayer.growing(values, name=name, group="Models", about=about)


def _token(findings: Findings, student: StudentDiagnosis, shown: ShownToken, *, first: bool) -> Token:
    place = shown.kappa
    weights = " · ".join(f"{rule} {number(value, 2)}" for rule, value in shown.soft_weights.items())
    facts: list[tuple[str, str]] = [("κ(s)", "not measured")]
    if place is not None:
        facts = [
            ("κ(s)", f"{measured(place.state_kappa)} nats: {place.kind.value}"),
            ("contribution", f"{measured(place.contribution)} nats"),
        ]
    facts += [("soft weight λ", weights), ("loss l(s)", f"{number(shown.loss, 2)} nats")]
    heads = ("if it goes on with", "teacher", "student", "κ, later cost")
    return Token(
        text=shown.piece.text,
        gap="" if first else shown.piece.gap,
        facts=tuple(facts),
        table=None if place is None else CardTable(heads=heads, rows=tuple(_actions(findings, place))),
        thoughts=(
            Thought(
                model="teacher",
                top=_top(findings, shown.teacher_top),
                note=f"entropy {number(shown.teacher_entropy, 2)}",
            ),
            Thought(
                model=student.name,
                top=_top(findings, shown.student_top),
                note=f"surprise {number(shown.student_surprise, 2)}",
            ),
        ),
    )


def _actions(findings: Findings, place: PositionKappa) -> Iterator[tuple[bool, tuple[str, ...]]]:
    for action in place.actions:
        yield (
            action.token == place.token,
            (
                findings.tokens[action.token].replace(" ", "␣"),
                probability(action.teacher_prob),
                probability(action.student_prob),
                # A cell shows what hides in a token, such as a space that does not break; this one is ours.
                measured(action.kappa).replace(SPACE, " "),
            ),
        )


def _top(findings: Findings, top: Sequence[Likely]) -> tuple[tuple[str, float], ...]:
    return tuple((findings.tokens[likely.token], likely.prob) for likely in top)
