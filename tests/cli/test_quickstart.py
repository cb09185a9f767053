import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from bridgegarden.cli.main import cli
from bridgegarden.quickstart import run as run_module
from bridgegarden.quickstart.result import QuickstartResult, finding
from tests.quickstart.made_up import made_up_result


@pytest.fixture
def calls(monkeypatch):
    """What the command asked for; it is given a made-up result."""
    seen = []

    def quickstart(output, **options):
        seen.append((output, options))
        return made_up_result(seeds=(0, 1, 2) if options["full"] else (0,))

    monkeypatch.setattr(run_module, "quickstart", quickstart)
    return seen


def invoke(*arguments: str):
    return CliRunner().invoke(cli, ["quickstart", *arguments], env={"COLUMNS": "140"})


def test_without_options_it_is_the_short_run(calls):
    assert invoke().exit_code == 0
    assert calls == [(Path("runs/quickstart"), {"full": False, "seed": 0, "workers": None})]


def test_options_are_handed_over(calls):
    assert invoke("--full", "--seed", "3", "--workers", "1", "--output", "somewhere").exit_code == 0
    assert calls == [(Path("somewhere"), {"full": True, "seed": 3, "workers": 1})]


def test_the_full_run_has_a_folder_of_its_own(calls):
    invoke("--full")
    assert calls[0][0] == Path("runs/quickstart-full")


def test_it_prints_the_table_what_was_seen_and_where_the_report_is(calls):
    shown = invoke().stdout
    for label in ("hard (argmax)", "soft", "static", "confidence", "entropy", "teacher"):
        assert label in shown
    assert " ".join(finding(made_up_result()).split()) in " ".join(shown.split())
    assert shown.splitlines()[-1] == f"The report is {Path('runs/quickstart/report.html')}"


def test_numbers_come_with_their_errors(calls):
    row = next(line for line in invoke().stdout.splitlines() if line.strip().startswith("soft"))
    assert row.count("±") == 6


def test_json_is_the_whole_result_and_nothing_else(calls):
    assert QuickstartResult.from_dict(json.loads(invoke("--json").stdout)) == made_up_result()


def test_open_shows_the_report(calls, monkeypatch):
    shown = []
    monkeypatch.setattr("click.launch", shown.append)
    invoke("--open", "--output", "there")
    assert shown == [str(Path("there/report.html"))]


def test_a_negative_seed_is_refused(calls):
    assert invoke("--seed", "-1").exit_code == 2
    assert calls == []
