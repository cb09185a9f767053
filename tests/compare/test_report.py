from dataclasses import replace
from pathlib import Path

import pytest

from bridgegarden.compare.report import report_page
from bridgegarden.compare.result import CompareRun
from tests.chromium import chromium, needs_chromium
from tests.compare.made_up import made_up_result

RESULT = made_up_result()
EVIL = '</script><img src=x onerror="document.title=1"><b>'


def text_of(result, tmp_path: Path) -> str:
    return report_page(result).write(tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("seeds", [1, 3])
def test_every_objective_is_there_with_its_cost_and_quality(seeds, tmp_path):
    text = text_of(made_up_result(seeds), tmp_path)
    for name in ("soft", "confidence", "GKD"):
        assert f'<th scope="row">{name}</th>' in text
        assert f">{name}</text>" in text
    assert "times less time than GKD" in text
    assert ("over 3 seeds and the problems" in text) == (seeds == 3)
    assert RESULT.command in text


def test_without_tasks_there_is_no_chart_of_quality(tmp_path):
    def strip(run):
        kept = {name: values for name, values in run.measured.by_unit.items() if "loss" in name or "bias" in name}
        return replace(run, measured=replace(run.measured, by_unit=kept, by_task={}))

    text = text_of(replace(RESULT, runs=tuple(strip(run) for run in RESULT.runs)), tmp_path)
    assert 'id="frontier"' not in text
    assert 'id="drift"' in text


def test_a_training_that_failed_is_named_with_its_reason(tmp_path):
    def fail(run):
        if (run.objective, run.seed) != ("soft", 2):
            return run
        return CompareRun(objective="soft", seed=2, spent=None, measured=None, failure="step 9: the loss is nan")

    text = text_of(replace(RESULT, runs=tuple(fail(run) for run in RESULT.runs)), tmp_path)
    assert "soft failed with seed 2: step 9: the loss is nan" in text
    assert "<td>failed</td>" in text


def test_names_from_outside_cannot_become_markup(tmp_path):
    pair = replace(RESULT.pair, teacher=EVIL, student=EVIL)
    text = text_of(replace(RESULT, pair=pair, recipe=EVIL, command=EVIL), tmp_path)
    assert EVIL not in text


@needs_chromium
def test_the_page_asks_nothing_of_the_network_and_fits_a_telephone(tmp_path):
    path = report_page(RESULT).write(tmp_path / "report.html")
    with chromium() as browser:
        browser.look(390, 900)
        browser.open(path)
        assert browser.run("document.documentElement.scrollWidth") <= 390
        assert browser.run("document.querySelectorAll('svg').length") >= 5
        assert browser.logged == []
        assert [url for url in browser.requested if not url.startswith("file:")] == []
