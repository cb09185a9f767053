"""A diagnosis of students whose teacher has another tokenizer, in words and tables."""

from collections.abc import Mapping

from markupsafe import Markup

from bridgegarden.diagnostics.diagnosis import Diagnosis, StudentDiagnosis
from bridgegarden.report.page import findings
from bridgegarden.statistics import Estimate
from bridgegarden.table import BITS, Cell, Column, Table, mean_cell

LEFT_OUT = {
    "Kappa, where it comes from, and which rule suits": "one model would have to go on from the other's next token. A "
    "token of the student's may end inside one of the teacher's, and how likely the teacher finds what begins there is "
    "known in part alone, also where both begin a token.",
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
