import subprocess
import sys

import pytest
from click.testing import CliRunner

from bridgegarden.cli.main import cli

RECIPE = "llama3.1-8b-1b"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--greedy", "--temperature", "1"], "exclude each other"),
        (["--model", "big"], "--model goes with --base-url"),
        (["--top-logprobs", "3"], "go with a server"),
        (["--api-key-env", "NAME"], "go with a server"),
        (["--base-url", "localhost:8000"], "the server's address must be like"),
        (["--temperature", "-1"], "--temperature"),
        (
            ["--set", "teacher.server=http://h/v1", "--set", "teacher.top_k=3"],
            "teacher.top_k: does not go with teacher.server",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(arguments, message):
    result = CliRunner().invoke(cli, ["generate", RECIPE, *arguments])
    assert result.exit_code == 2
    assert message in result.stderr


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from click.testing import CliRunner; from bridgegarden.cli.main import cli; "
        "assert CliRunner().invoke(cli, ['generate', '--help']).exit_code == 0; "
        "sys.exit(bool({'torch', 'transformers', 'datasets'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    "address", ["http://me:canary@host/v1", "http://host/v1?key=canary", f"http://canary@{'h' * 5000}"]
)
@pytest.mark.parametrize("command", [["train", "--dry-run"], ["train"], ["plan"], ["cache", "build"], ["generate"]])
def test_an_address_with_a_secret_is_refused_by_every_command_without_being_shown(command, address):
    for options in (["--set", f"teacher.server={address}"], ["--set", f"teacher={{server: '{address}', model: m}}"]):
        result = CliRunner().invoke(cli, [*command, RECIPE, *options])
        assert result.exit_code == 2
        assert "teacher.server: the server's address" in result.stderr
        assert "canary" not in result.output
