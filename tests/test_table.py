import csv
import io

import pytest
from markupsafe import Markup
from rich.console import Console

from bridgegarden.table import Cell, Column, Table, mean_cell

TABLE = Table(
    columns=["objective", "right", Column("memory", detail=True), Column("verdict", words=True)],
    rows=[
        ["soft", Cell("94.9", "± 0.4", "%"), 12, Cell("holds", "+0.3 (0.1 to 0.5)", strong=True, tone="good")],
        ["a|b [red]", Cell("7"), 3.5, None],
    ],
    title="[bold] title",
    note="nats a text",
)


@pytest.mark.parametrize(("low", "high", "half"), [(1.0, 3.0, "± 1.0"), (-0.25, 0.25, "± 0.25"), (2.0, 2.0, "± 0.0")])
def test_what_stands_after_plus_minus_is_half_of_the_interval(low, high, half):
    assert mean_cell((low + high) / 2, (low, high)).beside == half
    assert mean_cell((low + high) / 2, (low, high), times=100).beside.startswith("± ")
    assert mean_cell(-0.3, (-11.3, 10.7)).text == "0"
    shown = float(mean_cell(0.5, (0.45, 0.55), times=100).beside.removeprefix("± "))
    assert shown == pytest.approx(5)


def test_a_terminal_has_everything_but_details_and_breaks_numbers_only_where_it_must():
    wide, narrow = TABLE.text(100), TABLE.text(31)
    assert "94.9 ± 0.4 %" in wide
    assert "94.9 ± 0.4 %" not in narrow
    assert "± 0.4 %" in narrow
    assert "memory" not in wide
    assert wide.splitlines()[0].strip() == "[bold] title"
    assert wide.rstrip().endswith("nats a text")
    assert "a|b [red]" in wide


def test_a_terminal_shows_no_control_character_as_markup():
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system="standard")
    console.print(TABLE)
    assert "[red]" in console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_rows_that_are_set_apart_have_a_line_above_them():
    apart = Table(columns=["part", "bytes"], rows=[["one", "1"], ["sum", "1"]], last=1)
    lines = apart.text().splitlines()
    at = next(place for place, line in enumerate(lines) if "sum" in line)
    assert not lines[at - 1].strip(" ─")
    assert lines[at - 1] != lines[at - 2]


def test_markdown_keeps_one_line_a_row_and_bars_inside_cells():
    lines = TABLE.markdown().splitlines()
    assert lines[0] == "| objective | right | memory | verdict |"
    assert lines[2] == "| soft | 94.9 ± 0.4 % | 12 | holds +0.3 (0.1 to 0.5) |"
    assert lines[3] == "| a\\|b [red] | 7 | 3.5 |  |"


def test_html_escapes_everything_but_markup_and_puts_errors_below():
    evil = Table(columns=["<b>"], rows=[["<img>"], [Markup("<code>ok</code>")]], note="<i>")
    page = str(evil.html())
    assert "<img>" not in page
    assert "<b>" not in page
    assert "<i>" not in page
    assert "<code>ok</code>" in page
    shown = str(TABLE.html())
    assert "<td>94.9 %<small>± 0.4 %</small></td>" in shown
    assert "<strong>holds</strong>" in shown
    assert 'class="wordy"' in shown
    assert 'class="wordy"' not in str(evil.html())


def test_a_program_reads_numbers_as_they_are():
    table = Table.of([{"name": "soft", "loss": 0.1234567890123}, {"name": "hard", "other": None}])
    rows = list(csv.DictReader(io.StringIO(table.csv())))
    assert rows[0] == {"name": "soft", "loss": "0.1234567890123", "other": ""}
    assert rows[1] == {"name": "hard", "loss": "", "other": ""}
