"""Students as draft models: by prompt as the diagnosis has it, and what the table says."""

from dataclasses import replace

import pytest
import torch

from bridgegarden.compare.findings import DRAFTED, DRAFTS, draft_table, drafts_by_prompt, summary
from bridgegarden.compare.report import objectives_csv, report_page, tables_markdown, terminal_tables
from bridgegarden.diagnostics.acceptance import DraftModel
from bridgegarden.diagnostics.exposure_bias import exposure_bias
from bridgegarden.diagnostics.rollout import Sampling
from tests.compare.made_up import made_up_result
from tests.diagnostics.worlds import HORIZON, make_world

RESULT = made_up_result()


def test_by_prompt_it_is_what_a_diagnosis_of_equally_long_texts_says():
    world = make_world(1, difference=1.5)
    sampling = Sampling(samples=40, max_new_tokens=HORIZON, max_rows=5000)
    bias = exposure_bias(world.teacher, world.student, [()] * 60, sampling, generator=torch.Generator().manual_seed(0))
    found, model = drafts_by_prompt(bias), DraftModel.of(bias)
    means = {name: sum(column.values()) / len(column) for name, column in found.items()}
    assert {len(column) for column in found.values()} == {60}
    # The mean of ratios is not the ratio of means, but of forty texts each it is nearly.
    assert means["accepted"] == pytest.approx(model.teacher_texts.acceptance.mean, rel=5e-3)
    assert means["accepted_own"] == pytest.approx(model.student_texts.acceptance.mean, rel=5e-3)
    assert means["same_likeliest"] == pytest.approx(model.teacher_texts.agreement.mean, rel=2e-2)
    tokens = model.teacher_texts.drafts[DRAFTED - 1].tokens_per_pass.mean
    assert means["tokens_a_pass"] == pytest.approx(tokens, rel=5e-3)
    assert len({round(value, 2) for value in means.values()}) == 4, "no two are the same number"


def test_the_table_is_on_terminal_page_and_files():
    table = draft_table(RESULT)
    assert table is not None
    ratio = RESULT.pair.student_parameters / RESULT.pair.teacher_parameters
    for name, row in zip(RESULT.objectives, table.rows, strict=True):
        tokens = summary(RESULT, name, "tokens_a_pass").value
        assert row[0] == RESULT.label(name)
        assert float(row[4].text) == pytest.approx(tokens, rel=1e-2)
        assert float(row[5].text) == pytest.approx(tokens / (DRAFTED * ratio + 1), rel=1e-2)
    assert any(one.note == table.note for one in terminal_tables(RESULT))
    assert "## As draft models" in tables_markdown(RESULT)
    assert all(name in objectives_csv(RESULT).splitlines()[0] for name in DRAFTS)
    assert any(section.anchor == "drafts" for section in report_page(RESULT).sections)


def test_trainings_that_were_measured_before_have_no_such_table():
    def without(run):
        kept = {name: values for name, values in run.measured.by_unit.items() if name != "accepted_own"}
        return replace(run, measured=replace(run.measured, by_unit=kept))

    old = replace(RESULT, runs=(*map(without, RESULT.runs[:1]), *RESULT.runs[1:]))
    assert draft_table(old) is None
    assert "As draft models" not in tables_markdown(old)
    assert not any(section.anchor == "drafts" for section in report_page(old).sections)
    assert "accepted" not in objectives_csv(old)
