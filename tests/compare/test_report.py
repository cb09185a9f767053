import csv
import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from bridgegarden.compare.findings import percent, price, sentences, summary, times_less
from bridgegarden.compare.report import (
    cheaper,
    cheapness,
    cost_caption,
    objectives_csv,
    quality_table,
    report_page,
    short,
    tables_markdown,
    task_table,
    terminal_tables,
)
from bridgegarden.compare.result import CompareRun
from bridgegarden.table import mean_cell
from bridgegarden.terminal import listed
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


def shown_on_terminal(result, width):
    console = Console(width=width, record=True, file=io.StringIO())
    for table in terminal_tables(result):
        console.print(table)
    return console.export_text()


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_shows_every_name_and_head_whole(width):
    text = shown_on_terminal(RESULT, width)
    assert "…" not in text
    for word in ("soft", "confidence", "GKD", "teacher", "FLOPs", "exposure"):
        assert word in text
    assert all(len(line) <= width for line in text.splitlines())


def test_large_numbers_are_short_on_a_terminal():
    assert [short(value) for value in (0, 12.34, 999.4, 999.6, 116_711, 3.338e11)] == [
        "0",
        "12.3",
        "999",
        "1 k",
        "117 k",
        "334 G",
    ]


def test_the_file_for_programs_has_plain_numbers():
    rows = {row["objective"]: row for row in csv.DictReader(io.StringIO(objectives_csv(RESULT)))}
    assert list(rows) == ["soft", "confidence", "gkd"]
    assert float(rows["soft"]["flops_with_share_of_cache"]) == price(RESULT, "soft").flops
    assert float(rows["gkd"]["generated_tokens"]) == 90_000
    low, mean, high = (float(rows["soft"][f"sampled{end}"]) for end in ("_low", "", "_high"))
    assert 0.4 < low < mean < high < 0.8


def test_losses_stand_under_their_own_names():
    table = quality_table(RESULT)
    names = {"L_dT": "teacher_loss", "L_dθ": "student_loss", "exposure bias": "exposure_bias"}
    for objective, row in zip(RESULT.objectives, table.rows, strict=True):
        for head, quantity in names.items():
            mean = summary(RESULT, objective, quantity)
            shown = float(row[list(table.columns).index(head)].text.replace("\N{MINUS SIGN}", "-"))
            assert shown == pytest.approx(mean.value, rel=0.05)
    assert summary(RESULT, "soft", "student_loss").value != summary(RESULT, "soft", "teacher_loss").value


@pytest.mark.parametrize("quantity", ["teacher_loss", "student_loss", "exposure_bias"])
def test_every_printed_half_is_half_of_an_interval(quantity):
    page = str(report_page(RESULT).render())
    for objective in RESULT.objectives:
        mean = summary(RESULT, objective, quantity)
        half = (mean.interval.high - mean.interval.low) / 2
        text, beside, *_ = mean_cell(mean.value, mean.interval)
        assert float(beside.removeprefix("± ")) == pytest.approx(half, rel=0.06)
        for shown in (shown_on_terminal(RESULT, 120), tables_markdown(RESULT)):
            line = next(line for line in shown.splitlines() if line.strip("| ").startswith(RESULT.label(objective)))
            assert f" {text} {beside} " in line
        assert f"<td>{text}<small>{beside}</small></td>" in page


def test_a_share_stands_with_half_of_its_interval():
    assert percent(0.5, 0.4, 0.6) == "50 ± 10 %"
    assert percent(0.5, 0.0, 0.9) == "50 [0, 90] %"
    assert percent(0.9, 0.7, 1.0) == "90 [70, 100] %"


def test_the_file_for_readers_says_command_findings_and_differences():
    text = tables_markdown(RESULT)
    assert "`bridgegarden compare my.yaml`" in text
    assert "## Against GKD" in text
    row = next(line for line in text.splitlines() if line.startswith("| confidence | +"))
    assert ", higher |" in row
    assert ", open |" in row


def test_the_cost_of_asking_once_is_told_shared_and_whole():
    told = cost_caption(RESULT)
    assert "a share of 1/6" in told
    assert "If soft alone had to pay for all of it, it would take 6.2× less time and 1.8× fewer FLOPs than GKD." in told
    unknown = replace(RESULT, cache=replace(RESULT.cache, seconds=None, cpu_seconds=None))
    assert "its time is not known and not counted" in cost_caption(unknown)
    assert cost_caption(replace(RESULT, cache=None)) == "Means over seeds. FLOPs are estimated."


def test_sentences_rank_only_what_chance_does_not_explain():
    found = sentences(RESULT)
    assert re.fullmatch(
        r"Right, sampled: confidence is highest with [\d.]+ ± [\d.]+ % and keeps 90 % of the teacher's entropy; "
        r"every other objective is lower by more than chance explains\.",
        found[0],
    )
    assert found[1] == "Right, greedy: no objective is told apart from the highest, 100.0 % (≥ 95.5 %)."
    assert any(line.startswith("On fixed rows a training takes 9.1× less time and 3.3× fewer FLOPs") for line in found)


def test_tasks_have_a_table_where_there_are_several():
    assert task_table(RESULT) is None

    def another(run):
        tasks = {**run.measured.by_task, "gsm": {"greedy": 0.25}}
        return replace(run, measured=replace(run.measured, by_task=tasks))

    table = task_table(replace(RESULT, runs=tuple(another(run) for run in RESULT.runs)))
    assert table is not None
    assert table.columns[-1] == "gsm, greedy"
    assert table.rows[0][-1] == "25.0"
    assert "## Task by task" in tables_markdown(replace(RESULT, runs=tuple(another(run) for run in RESULT.runs)))


def test_names_are_listed_as_one_says_them():
    assert [listed(names) for names in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]


def dearer(result):
    """`result` with a soft that costs more than the baseline."""

    def change(run):
        if run.objective != "soft":
            return run
        return replace(
            run, spent=replace(run.spent, flops=100 * run.spent.flops, cpu_seconds=100 * run.spent.cpu_seconds)
        )

    return replace(result, runs=tuple(change(run) for run in result.runs))


def test_what_costs_more_is_not_said_to_cost_less():
    result = dearer(RESULT)
    found = cheaper(result, "soft")
    assert all(cell.endswith("× more") for cell in found)
    assert float(found[1].split("×")[0]) == pytest.approx(1 / cheapness(result, "soft", "flops"), rel=0.01)
    (line,) = [line for line in sentences(result) if line.startswith("On fixed rows")]
    assert re.fullmatch(
        r"On fixed rows a training takes 0\.[\d.]+× to [\d.]+× the time and 0\.[\d.]+× to [\d.]+× the FLOPs of GKD, "
        r"with its share of asking the teacher\.",
        line,
    )
    assert re.search(r"it would take [\d.]+× more time and [\d.]+× more FLOPs than GKD", cost_caption(result))


@pytest.mark.parametrize(
    ("ratios", "text"),
    [([2.0], "2× fewer"), ([0.5], "2× more"), ([2.0, 3.0], "2× to 3× fewer"), ([0.25, 0.5], "2× to 4× more"),
     ([0.5, 3.0], "2× more to 3× fewer"), ([1.0], "1× fewer")],
)  # fmt: skip
def test_ratios_are_said_with_the_word_that_fits(ratios, text):
    assert times_less(ratios, "fewer") == text


def test_a_share_of_asking_the_teacher_is_not_claimed_where_its_time_is_not_known():
    unknown = replace(RESULT, cache=replace(RESULT.cache, seconds=None, cpu_seconds=None))
    (line,) = [line for line in sentences(unknown) if line.startswith("On fixed rows")]
    assert line.endswith("is in the FLOPs, and not in the time, which the cache does not say.")
    (line,) = [line for line in sentences(replace(RESULT, cache=None)) if line.startswith("On fixed rows")]
    assert line.endswith("FLOPs than GKD.")
