"""What a diagnosis says of a student as a draft model: the same tables on the page and on a terminal."""

from markupsafe import Markup

from bridgegarden.diagnostics.acceptance import Draft
from bridgegarden.diagnostics.diagnosis import Diagnosis, StudentDiagnosis
from bridgegarden.report.page import details
from bridgegarden.statistics import Estimate
from bridgegarden.table import Cell, Column, Table, mean_cell, number


def draft_table(diagnosis: Diagnosis) -> Table:
    """Every student as a draft model, with drafts as long as is fastest."""
    cool = diagnosis.settings.temperature != 1.0
    rows = []
    for student in diagnosis.findings.students:
        found, ratio = student.draft_model, diagnosis.cost_ratio(student.name)
        assert found is not None
        on_teacher, on_own = found.teacher_texts, found.student_texts
        best = found.fastest(ratio)
        rows.append(
            [
                student.name,
                _share(on_teacher.acceptance),
                *([_share(on_teacher.tempered)] if cool else []),
                _share(on_own.acceptance),
                _share(on_teacher.agreement),
                _share(on_own.agreement),
                Cell(str(best.drafted)),
                _cell(best.tokens_per_pass),
                Cell(number(ratio, 2)),
                _cell(best.speed_up(ratio)),
            ]
        )
    columns = (
        "student",
        "accepted",
        *([f"accepted at {number(diagnosis.settings.temperature)}"] if cool else []),
        Column("accepted, own texts", detail=True),
        "same likeliest token",
        Column("same likeliest, own texts", detail=True),
        "drafted",
        "tokens a pass",
        "cost",
        "times as fast",
    )
    return Table(columns=columns, rows=rows, title="As a draft model (speculative decoding)", note=_note(diagnosis))


def draft_section(diagnosis: Diagnosis) -> Markup:
    """The table, and every length of drafts."""
    return draft_table(diagnosis).html() + Markup("").join(
        details(f"Drafts of {student.name}, by length", lengths_table(diagnosis, student).html())
        for student in diagnosis.findings.students
    )


def lengths_table(diagnosis: Diagnosis, student: StudentDiagnosis) -> Table:
    """Drafts of every length."""
    found, ratio = student.draft_model, diagnosis.cost_ratio(student.name)
    assert found is not None
    best = found.fastest(ratio)

    def row(on_teacher: Draft, on_own: Draft) -> list[Cell]:
        speed_up = _cell(on_teacher.speed_up(ratio))
        return [
            Cell(str(on_teacher.drafted)),
            _cell(on_teacher.tokens_per_pass),
            Cell(number(on_teacher.independent)),
            speed_up._replace(strong=on_teacher.drafted == best.drafted),
            _cell(on_own.tokens_per_pass),
            _cell(on_own.speed_up(ratio)),
        ]

    drafts = zip(found.teacher_texts.drafts, found.student_texts.drafts, strict=True)
    columns = [
        "drafted",
        "tokens a pass",
        "by the formula",
        "times as fast",
        "tokens a pass, own texts",
        "times as fast, own texts",
    ]
    note = (
        "Tokens a pass include the teacher's own one, so they are the accepted tokens and one. By the formula: "
        "(1 \N{MINUS SIGN} αᵞ⁺¹) / (1 \N{MINUS SIGN} α), as if every token were accepted with the mean probability α "
        "independently of all others, which nobody's tokens are. Own texts: how much of its own text the teacher would "
        "keep, were the text gone on with whatever is refused; no decoder writes so. The fastest length was picked "
        "from these same texts."
    )
    return Table(columns=columns, rows=[row(*both) for both in drafts], note=note)


def _note(diagnosis: Diagnosis) -> str:
    given = diagnosis.settings.cost_ratio is not None
    temperature = number(diagnosis.settings.temperature)
    return (
        "Accepted: 1 \N{MINUS SIGN} TV, the share of a student's tokens that the teacher would take at temperature 1, "
        "on the teacher's texts. Tokens a pass of the teacher, its own one included: expected on its texts (what "
        f"speculative decoding writes), both models at temperature {temperature} without top-k or top-p, of the length "
        "of drafts that is fastest. Cost: of a student's token, the teacher's being one, "
        f"{'as given' if given else 'by parameters unless --cost-ratio says it'}. Times as fast: tokens a pass over "
        "drafted × cost + 1, if a whole draft costs the teacher what one token does."
    )


def _share(estimate: Estimate) -> Cell:
    return mean_cell(estimate.mean, estimate.interval(), times=100.0, unit="%")


def _cell(estimate: Estimate) -> Cell:
    return mean_cell(estimate.mean, estimate.interval())
