"""A diagnosis of students whose teacher has another tokenizer, in words and tables."""

from collections.abc import Mapping

from markupsafe import Markup

from bridgegarden.diagnostics.diagnosis import Diagnosis, StudentDiagnosis
from bridgegarden.report.diagnosis_words import kind_words
from bridgegarden.report.page import findings
from bridgegarden.report.tokens import visible
from bridgegarden.statistics import Estimate
from bridgegarden.table import BITS, Cell, Column, Table, mean_cell, number
from bridgegarden.terminal import counted

ANNOUNCED = (
    "teacher and student have different tokenizers: exposure bias and losses are of what is known of the teacher, "
    "kappa is measured where both agree on boundaries; attribution, draft models and the view token by token (--show) "
    "are not"
)
"""What is said before anything is measured."""
LEFT_OUT = {
    "Kappa elsewhere, where exposure bias comes from, and which rule suits": (
        "one model would have to go on from a next token that the other has not. A token of the student's may end "
        "inside one of the teacher's, and how likely the teacher finds what begins there is known in part alone."
    ),
    "As a draft model": "the teacher would have to read the student's tokens.",
    "Token by token": "the likeliest tokens of the two are not of one vocabulary.",
}
"""What is not measured between two tokenizers, and why."""


def byte_table(diagnosis: Diagnosis) -> Table:
    """Losses by the byte and by the student's token, and how much of the teacher is known."""
    rows = []
    for student in diagnosis.findings.students:
        bias, known = student.exposure_bias, student.known
        assert bias.per_byte is not None
        assert known is not None
        named, by_byte = Cell(student.name), bias.per_byte
        for what, per_byte, per_token, texts, size in (
            ("on the teacher's texts", by_byte.teacher_loss, bias.teacher_loss_per_token, "teacher_texts", "teacher"),
            ("on its own", by_byte.student_loss, bias.student_loss_per_token, "student_texts", "student"),
            ("exposure bias", by_byte.exposure_bias, bias.exposure_bias_per_token, None, None),
        ):
            share = "–" if texts is None else f"{mass(known[texts]):.0%}"
            bytes_ = "–" if size is None else _cell(getattr(by_byte, f"{size}_bytes"))
            rows.append([named, what, _cell(per_byte, BITS), _cell(per_token), share, bytes_])
            named = Cell("")
    columns = ("student", "loss", "bits a byte", "nats a token", "known", Column("bytes a text", detail=True))
    note = (
        "Teacher and student have different tokenizers, and each reads the bytes that the other wrote in its own. The "
        "loss is over what is known of the teacher: its probabilities of the student's tokens, all else as one; so it "
        "is at least this. Exposure bias, a difference of two such losses, may be more or less than this. "
        "Tokens are the student's. By the byte it can be held against that of students with another "
        "vocabulary. A text counts up to where either has read as many of its own tokens as are allowed."
    )
    return Table(columns=columns, rows=rows, title="By the byte and by the token", note=note)


SHOWN = 8
"""Places with the highest and the lowest kappa that are listed."""


def kappa_words(student: StudentDiagnosis) -> str:
    """At how many places kappa is defined, and what was found there."""
    agreement = student.agreement
    if agreement is None:
        return "not measured: interrupted before."
    if not agreement.all_read:
        return (
            "not measured: the student's vocabulary cannot write all that the teacher's can, so that it could not read "
            "what the teacher goes on with."
        )
    of = (
        f"of {counted(agreement.tokens, 'token')} of its own texts {agreement.both_begin:,} begin where one of the "
        f"teacher's does, and at {agreement.both_have:,} of these each of the likeliest tokens of the two is a token "
        "of both"
    )
    if student.kappa is None:
        return f"defined at no place: {of}. Longer texts, more prompts or --top 1 may give some."
    return f"{kind_words(student)}. It is defined where both agree: {of}."


def kappa_table(student: StudentDiagnosis, diagnosis: Diagnosis) -> Table | None:
    """The places where one token costs most later, and least; None without any."""
    if student.kappa is None:
        return None
    names = diagnosis.findings.tokens
    order = sorted(student.kappa.positions, key=lambda place: -place.state_kappa.mean)
    ends = order if len(order) <= 2 * SHOWN else [*order[:SHOWN], *order[-SHOWN:]]
    rows = [
        [
            f"{place.text + 1}, {place.position + 1}",
            Markup(" ").join(Markup("<code>{}</code>").format(visible(names[one.token])) for one in place.actions),
            " ".join(number(one.teacher_prob, 2) for one in place.actions),
            " ".join(number(one.student_prob, 2) for one in place.actions),
            _cell(place.state_kappa),
            place.kind.value,
        ]
        for place in ends
    ]
    return Table(
        columns=("text, token", "could come next", "teacher", "student", "κ(s), nats", "kind"),
        rows=rows,
        title=f"Kappa of {student.name}",
        note=(
            "Places of the student's own texts with the highest and the lowest κ(s), the sum of κ over the likeliest "
            "tokens of both; with 95 % intervals over rounds. κ is what a token costs later: the student's loss, over "
            "what is known of the teacher, summed over what the teacher goes on with behind it, minus the same where "
            "the teacher goes on by itself."
        ),
    )


def kappa_section(diagnosis: Diagnosis) -> Markup:
    """Kappa where both agree, for the page."""
    shown = Markup("")
    for student in diagnosis.findings.students:
        shown += Markup("<p><b>{}</b>: {}</p>").format(student.name, kappa_words(student))
        table = kappa_table(student, diagnosis)
        shown += Markup("") if table is None else table.html()
    return shown


def left_out() -> Markup:
    """What is not measured, for the page."""
    items = (Markup("<b>{}:</b> {}").format(what, why) for what, why in LEFT_OUT.items())
    return Markup("<p>Of a teacher with another tokenizer these are not measured.</p>") + findings(items)


def left_out_lines() -> list[str]:
    """The same for a terminal."""
    return [f"Not measured ({what[0].lower()}{what[1:]}): {why}" for what, why in LEFT_OUT.items()]


def mass(shares: Mapping[str, float]) -> float:
    """The teacher's probability that is known."""
    return shares["exact_mass"] + shares["approximate_mass"]


def known_words(student: StudentDiagnosis) -> str:
    """How much of the teacher is known, in a sentence."""
    assert student.known is not None
    on_teacher, on_own = (mass(student.known[name]) for name in ("teacher_texts", "student_texts"))
    return (
        f"Of the teacher's probability {on_teacher:.0%} is known on its own texts, {on_own:.0%} on the student's; what "
        "is not known counts as nothing lost."
    )


def _cell(estimate: Estimate, times: float = 1.0) -> Cell:
    return mean_cell(estimate.mean, estimate.interval(), times=times)
