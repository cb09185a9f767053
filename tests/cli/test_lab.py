import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from bridgegarden.cli.main import cli
from bridgegarden.cli.study import OBJECTIVE_NAMES, WORLD_NAMES
from bridgegarden.exact import checks
from bridgegarden.exact.tasks import WORLDS
from bridgegarden.lab import run as run_module
from bridgegarden.lab.result import LabSettings
from bridgegarden.study.arms import OBJECTIVES
from tests.lab.made_up import made_up_result


@pytest.fixture
def calls(monkeypatch):
    """What the command asked for; it is given a made-up result."""
    seen = []

    def lab(output, settings, **options):
        seen.append((output, settings, options))
        return made_up_result()

    monkeypatch.setattr(run_module, "lab", lab)
    return seen


def invoke(*arguments: str):
    return CliRunner().invoke(cli, ["lab", *arguments], env={"COLUMNS": "160"})


def test_without_options_everything_is_run(calls):
    assert invoke("run").exit_code == 0
    output, settings, options = calls[0]
    assert output == Path("runs/lab")
    assert settings == LabSettings(worlds=tuple(WORLDS), seeds=(0, 1, 2))
    assert options == {"command": "bridgegarden lab run --world all --objectives all --seeds 3", "workers": None}


def test_the_help_counts_the_students_that_are_trained():
    shown = " ".join(invoke("run", "--help").stdout.split())

    def students(worlds, sweep):
        settings = LabSettings(worlds=worlds, sweep=sweep)
        return len(settings.seeds) * sum(len(run_module.arms_in(world, settings)) for world in worlds)

    for worlds, sweep in ((("dialogue",), False), (("dialogue",), True), (tuple(WORLDS), True)):
        assert f"({students(worlds, sweep)}" in shown


def test_options_are_handed_over(calls):
    arguments = ("--world", "program,control", "--objectives", "soft,hard", "--seeds", "2", "--no-sweep")
    assert invoke("run", *arguments, "--workers", "1", "--output", "somewhere").exit_code == 0
    output, settings, options = calls[0]
    assert output == Path("somewhere")
    assert settings == LabSettings(
        worlds=("program", "control"), objectives=("soft", "hard"), seeds=(0, 1), sweep=False
    )
    assert options["workers"] == 1
    assert options["command"].endswith("--world program,control --objectives soft,hard --seeds 2 --no-sweep")


def test_it_prints_what_became_of_the_claims_and_where_the_numbers_are(calls):
    shown = invoke("run").stdout
    assert "a hybrid has the lowest total inference loss" in " ".join(shown.split())
    assert (
        shown.splitlines()[-1]
        == f"The report is {Path('runs/lab/report.html')}, the numbers are in result.json beside it"
    )


def test_json_is_the_file(calls, tmp_path):
    (tmp_path / "result.json").write_text('{"runs": []}\n')
    assert invoke("run", "--json", "--output", str(tmp_path)).stdout == '{"runs": []}\n'


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--world", "dialog"), "--world: unknown name 'dialog'. Did you mean 'dialogue'?"),
        (("--objectives", "sfot"), "--objectives: unknown name 'sfot'. Did you mean 'soft'?"),
        (("--world", "control,control"), "none twice"),
    ],
)
def test_a_wrong_name_is_the_users_error(calls, option, message):
    result = invoke("run", *option)
    assert result.exit_code == 2
    assert message in result.stderr
    assert calls == []


def test_the_names_are_those_of_the_library():
    assert tuple(WORLDS) == WORLD_NAMES
    assert tuple(OBJECTIVES) == OBJECTIVE_NAMES


def test_worlds_are_listed_with_an_example():
    shown = invoke("worlds").stdout
    assert shown.startswith("dialogue: ")
    assert "[Monday]" in shown
    assert [world["name"] for world in json.loads(invoke("worlds", "--json").stdout)] == list(WORLDS)


def test_check_tells_what_holds(monkeypatch):
    result = invoke("check", "--cases", "5")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1].endswith("hold, to 1e-10 nats.")
    assert "checked: kappa has mean zero under the teacher" in result.stderr


def test_a_check_that_fails_is_status_one(monkeypatch):
    failed = checks.Check(name="sums close", cases=3, worst=0.5, passed=False)
    monkeypatch.setattr(checks, "run_checks", lambda cases, progress: [failed])
    result = invoke("check")
    assert result.exit_code == 1
    assert "DOES NOT HOLD: sums close (3 cases, largest error 5.0e-01)" in result.stdout
    assert json.loads(invoke("check", "--json").stdout)[0]["passed"] is False


def test_the_map_is_asked_for_whole_or_quick_and_its_tables_are_printed(monkeypatch, tmp_path):
    from bridgegarden.lab.map import run as module
    from bridgegarden.lab.map.cells import QUICK, MapSettings
    from tests.lab.map.test_run import SETTINGS

    asked, original = [], module.lab_map

    def lab_map(output, settings, **rest):
        asked.append((settings, rest["command"]))
        return original(output, SETTINGS, **rest)

    monkeypatch.setattr(module, "lab_map", lab_map)
    monkeypatch.setattr(module, "BUDGETS", {"short": 2, "long": 3})
    folder = tmp_path / "map"
    quick = CliRunner().invoke(cli, ["lab", "map", "--quick", "--workers", "1", "--output", str(folder)])
    assert quick.exit_code == 0, quick.output
    assert "Settings: tuned by right answers" in quick.stdout
    assert "report.html" in quick.stdout
    whole = CliRunner().invoke(cli, ["lab", "map", "--json", "--workers", "1", "--output", str(folder)])
    assert json.loads(whole.stdout)["command"] == "bridgegarden lab map"
    assert asked == [(QUICK, "bridgegarden lab map --quick"), (MapSettings(), "bridgegarden lab map")]


def test_the_help_counts_what_is_on_the_map():
    from bridgegarden.lab.map.cells import ARMS, QUICK, MapSettings

    shown = " ".join(invoke("map", "--help").stdout.split())
    assert len(ARMS) == 14
    assert "Fourteen kinds of labels" in shown
    assert f"{MapSettings().seeds} seeds" in shown
    assert len(QUICK.cells) == 4
    assert f"Four cells of the {len(MapSettings().cells)} with {QUICK.seeds} seeds" in shown
