"""The map's cells with transformers, made small: training, keeping, and the claims that are told."""

import csv
import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from bridgegarden.lab.map import confirm
from bridgegarden.lab.map.cells import ARMS
from bridgegarden.lab.map.confirm import (
    CONFIRMED,
    ConfirmFolder,
    ConfirmJob,
    ConfirmSettings,
    lab_confirm,
    terminal_tables,
)

pytestmark = pytest.mark.slow

SETTINGS = ConfirmSettings(
    arms=("hard", "soft", "confidence"),
    seeds=2,
    steps=4,
    batch=4,
    evaluate_every=2,
    validation_problems=4,
    judged_problems=2,
    test_problems=2,
    wordings=2,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    output, text = tmp_path_factory.mktemp("confirm"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(confirm, "ROWS", {"few": 8, "many": 12})
        result = lab_confirm(output, SETTINGS, command="typed", workers=1, console=Console(file=text, width=200))
        yield output, result, text.getvalue()


@pytest.mark.slow
def test_every_arm_has_a_student_of_every_seed_in_every_cell(made):
    output, result, _ = made
    assert [run.cell for run in result.runs] == list(CONFIRMED)
    for run in result.runs:
        (measures,) = run.measures.values()
        assert tuple(measures) == SETTINGS.arms
        for found in measures.values():
            assert all(len(set(column)) == 2 for name, column in found.items() if name != "right_greedy")
            parts = [found[name][0] for name in ("drift_bridges", "drift_gardens")]
            # What is left is caused where the script forces a token: at the end.
            assert abs(found["student_loss"][0] - found["teacher_loss"][0] - sum(parts)) < 0.05
    assert len(list((output / "students").rglob("*.json"))) == 2 * 3 * 2


def test_every_measure_is_the_one_of_its_name(monkeypatch, tmp_path):
    from bridgegarden.lab import student

    seen, original = [], student.measured
    monkeypatch.setattr(student, "measured", lambda solved: seen.append(original(solved)) or seen[-1])
    monkeypatch.setattr(confirm, "ROWS", {"few": 8, "many": 12})
    job = ConfirmJob(cell=CONFIRMED[0], arm="soft", seed=0, settings=SETTINGS, folder=ConfirmFolder(tmp_path))
    run = job.run(lambda done: None)
    judged, found = seen
    assert (run.held_out_loss, run.held_out_right) == (judged.teacher_loss, judged.success_greedy)
    assert run.off_script == found.violation
    assert run.measures == {
        "teacher_loss": found.teacher_loss,
        "student_loss": found.student_loss,
        "teacher_loss_bridges": found.teacher_loss_by_role["bridge"],
        "student_loss_bridges": found.student_loss_by_role["bridge"],
        "drift_bridges": found.exposure_bias_by_role["bridge"],
        "drift_gardens": found.exposure_bias_by_role["garden"],
        "variety": found.diversity,
        "right": found.success,
        "right_greedy": found.success_greedy,
    }


def test_students_are_kept_and_what_decides_a_number_makes_them_anew(made):
    output, result, _ = made
    text = io.StringIO()
    again = lab_confirm(output, SETTINGS, command="typed", workers=1, console=Console(file=text, width=200))
    assert "12 of 12 students were finished before" in text.getvalue()
    assert again.runs == result.runs
    job = ConfirmJob(cell=CONFIRMED[0], arm="soft", seed=0, settings=SETTINGS, folder=ConfirmFolder(output))
    assert job.kept() is not None
    assert replace(job, settings=replace(SETTINGS, steps=6)).kept() is None
    assert replace(job, settings=replace(SETTINGS, seeds=5)).kept() is not None


def test_a_terminal_shows_in_80_columns_whether_some_arm_does_what_is_claimed(made):
    _, result, _ = made
    words, *shown = terminal_tables(result)
    assert [row[0] for row in words.rows] == ["1", "2", "3a", "3b", "4", "right", "right, sampled"]
    for cell, run, verdicts, arms in zip(CONFIRMED, result.runs, shown[::2], shown[1::2], strict=True):
        assert [row[0] for row in arms.rows] == ["hard (argmax)", "soft", "confidence"]
        mean = sum(run.measures["one setting"]["soft"]["student_loss"]) / 2
        assert float(arms.rows[1][4].text) == pytest.approx(mean, rel=0.06)
        for row in verdicts.rows:
            here = [one for one in result.effects if (one.cell, one.claim.name) == (cell, row[0])]
            holds = [one.arm for one in here if one.decision.verdict == "holds"]
            assert (row[1].text == "holds") == bool(holds)
            assert row[3] == ARMS[max(here, key=lambda one: one.difference.mean).arm].label
    text = io.StringIO()
    for table in terminal_tables(result):
        Console(file=text, width=80).print(table)
    assert "…" not in text.getvalue()
    assert max(map(len, text.getvalue().splitlines())) <= 80


def test_files_hold_the_claims_that_can_be_told_here(made):
    output, result, _ = made
    tree = json.loads((output / "result.json").read_text())
    assert set(tree["off_script"]) == {cell.name for cell in CONFIRMED}
    claims = list(csv.DictReader(io.StringIO((output / "claims.csv").read_text())))
    assert {row["claim"] for row in claims} == {"1", "2", "3a", "3b", "4", "right", "right, sampled"}
    cells = list(csv.DictReader(io.StringIO((output / "cells.csv").read_text())))
    assert len(cells) == 2 * 3
    mean = sum(result.runs[0].measures["one setting"]["soft"]["student_loss"]) / 2
    assert float(next(row for row in cells if row["arm"] == "soft")["L_dθ"]) == pytest.approx(mean, rel=1e-4)
    page = (output / "report.html").read_text()
    assert "What came of the claims" in page
    assert "every kind of labels" in page
    assert "soft labels of a sharpened teacher" not in page  # no arm here tells that claim
