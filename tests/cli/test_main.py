import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from bridgegarden.cli import main as main_module
from bridgegarden.cli.main import COMMANDS, cli
from bridgegarden.errors import DataError, NonFiniteError
from docs.write_cli_reference import PAGE, reference


@pytest.fixture
def command_that_raises(monkeypatch):
    """A function that makes ``bridgegarden broken`` raise the error it is given."""

    def install(error: BaseException) -> None:
        @click.command()
        def broken() -> None:
            raise error

        monkeypatch.setattr(main_module, "broken", broken, raising=False)
        monkeypatch.setitem(COMMANDS, "broken", "bridgegarden.cli.main:broken")

    return install


@pytest.mark.parametrize("error", [DataError("rows.jsonl:17: not an object."), NonFiniteError("loss is nan.")])
def test_a_user_s_error_is_one_line_on_stderr_and_status_2(command_that_raises, error):
    command_that_raises(error)
    result = CliRunner().invoke(cli, ["broken"])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == f"Error: {error}\n"


def test_our_own_bug_keeps_its_traceback(command_that_raises):
    command_that_raises(RuntimeError("our bug"))
    with pytest.raises(RuntimeError, match="our bug"):
        CliRunner().invoke(cli, ["broken"], catch_exceptions=False)


def test_an_interrupt_is_one_line_and_status_130(command_that_raises):
    command_that_raises(KeyboardInterrupt())
    result = CliRunner().invoke(cli, ["broken"])
    assert result.exit_code == 130
    assert result.stderr == "Error: interrupted.\n"


def test_an_unknown_command_is_a_usage_error():
    result = CliRunner().invoke(cli, ["trian"])
    assert result.exit_code == 2
    assert "trian" in result.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_answers_help(name):
    result = CliRunner().invoke(cli, [name, "-h"])
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage:")


def test_the_module_runs_as_the_command_does():
    done = subprocess.run([sys.executable, "-m", "bridgegarden", "--version"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("bridgegarden, version ")


def test_the_installed_script_is_the_command():
    script = Path(sys.executable).with_name("bridgegarden")
    done = subprocess.run([script, "recipes", "list"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "qwen2.5-7b-3b\t" in done.stdout


def test_the_command_line_page_is_what_help_says():
    assert PAGE.read_text(encoding="utf-8") == reference(), "docs/cli.md is out of date; run: make docs"
