import csv
import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from bridgegarden.compare.findings import listed, percent, price, sentences, summary, times_less
from bridgegarden.compare.report import cheapness
from bridgegarden.compare.tables import (
    cheaper,
    cost_caption,
    objectives_csv,
    short,
    tables_markdown,
    task_rows,
    terminal_tables,
)
from tests.compare.made_up import made_up_result

RESULT = made_up_result()


def shown(result, width):
    console = Console(width=width, record=True, file=io.StringIO())
    for table in terminal_tables(result, width):
        console.print(table)
    return console.export_text()


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_shows_every_name_and_head_whole(width):
    text = shown(RESULT, width)
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


def test_losses_stand_under_their_own_names_with_half_of_their_intervals():
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in tables_markdown(RESULT).splitlines()]
    heads, row = next((heads, lines[at + 2]) for at, heads in enumerate(lines) if "L_dT" in heads)
    names = {"L_dT": "teacher_loss", "L_dθ": "student_loss", "exposure bias": "exposure_bias"}
    found = {head: re.fullmatch(r"(\S+) ± (\S+)", row[heads.index(head)]) for head in names}
    objective = next(name for name in RESULT.objectives if RESULT.label(name) == row[0])
    for head, quantity in names.items():
        mean, match = summary(RESULT, objective, quantity), found[head]
        assert match is not None
        value, half = (float(part.replace("\N{MINUS SIGN}", "-")) for part in match.groups())
        assert value == pytest.approx(mean.value, rel=0.05)
        assert half == pytest.approx((mean.interval.high - mean.interval.low) / 2, rel=0.1)
    assert summary(RESULT, objective, "student_loss").value != summary(RESULT, objective, "teacher_loss").value


def test_a_share_stands_with_half_of_its_interval():
    assert percent(0.5, 0.4, 0.6) == "50 ± 10 %"


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
    assert task_rows(RESULT) == ([], [])

    def another(run):
        tasks = {**run.measured.by_task, "gsm": {"greedy": 0.25}}
        return replace(run, measured=replace(run.measured, by_task=tasks))

    heads, rows = task_rows(replace(RESULT, runs=tuple(another(run) for run in RESULT.runs)))
    assert heads[-1] == "gsm, greedy"
    assert rows[0][-1] == "25.0"
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
        r"On fixed rows a training takes [\d.]+× more to [\d.]+× less time and [\d.]+× more to [\d.]+× fewer FLOPs "
        r"than GKD, with its share of asking the teacher\.",
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
