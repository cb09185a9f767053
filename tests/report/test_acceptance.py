"""A student as a draft model, in tables: every number is one that was estimated."""

from dataclasses import replace

import pytest

from bridgegarden.report.diagnosis import diagnosis_page
from bridgegarden.report.diagnosis_words import draft_table, lengths_table
from tests.diagnostics.small import small_diagnosis, small_findings


@pytest.fixture(scope="module")
def whole():
    return small_diagnosis(small_findings())


def shown(cell) -> float:
    """The number that stands there."""
    return float(cell.text)


def test_the_table_has_the_fastest_length_of_every_student(whole):
    for student, row in zip(whole.findings.students, draft_table(whole).rows, strict=True):
        best = student.draft_model.fastest(1.0)
        assert row[0] == student.name
        assert shown(row[1]) == pytest.approx(100 * student.draft_model.teacher_texts.acceptance.mean, rel=1e-2)
        assert row[-4].text == str(best.drafted) == "1", "with a student as dear as its teacher"
        assert shown(row[-1]) == pytest.approx(best.speed_up(1.0).mean, rel=1e-2)
    cheap = replace(whole, settings=replace(whole.settings, cost_ratio=0.01))
    lengths = [int(row[-4].text) for row in draft_table(cheap).rows]
    assert all(length > 1 for length in lengths)
    assert "as given" in draft_table(cheap).note
    assert "by parameters" in draft_table(whole).note


def test_a_cooler_draft_has_a_column_of_its_own(whole):
    cool = small_diagnosis(small_findings(temperature=0.5, names=["near"]), temperature=0.5)
    (row,) = draft_table(cool).rows
    model = cool.findings.students[0].draft_model
    assert shown(row[2]) == pytest.approx(100 * model.teacher_texts.tempered.mean, rel=1e-3)
    assert abs(model.teacher_texts.tempered.mean - model.teacher_texts.acceptance.mean) > 1e-3
    assert "accepted at 0.5" in draft_table(cool).columns
    assert not any("accepted at" in str(column) for column in draft_table(whole).columns)


def test_every_length_is_there_and_one_is_called_the_fastest(whole):
    student = whole.findings.students[0]
    rows = lengths_table(whole, student).rows
    assert [row[0].text for row in rows] == [str(drafted) for drafted in range(1, 9)]
    assert [row[0].text for row in rows if row[3].strong] == [str(student.draft_model.fastest(1.0).drafted)]


def test_page_and_result_have_it(whole, tmp_path):
    text = diagnosis_page(whole).write(tmp_path / "report.html").read_text(encoding="utf-8")
    assert '<section id="draft"' in text
    assert text.count("by length</summary>") == len(whole.findings.students)
    for student, tree in zip(whole.findings.students, whole.to_dict()["findings"]["students"], strict=True):
        found = tree["draft_model"]
        assert found["cost_ratio"] == 1.0
        assert found["temperature"] == 1.0
        assert found["fastest"] == student.draft_model.fastest(1.0).drafted
        for draft, one in zip(student.draft_model.student_texts.drafts, found["student_texts"]["drafts"], strict=True):
            assert one["speed_up"]["mean"] == draft.speed_up(1.0).mean
            assert one["speed_up"]["low"] < one["speed_up"]["mean"] < one["speed_up"]["high"]
            assert one["tokens_per_pass"]["mean"] == draft.tokens_per_pass.mean
