import errno
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from torch import OutOfMemoryError

from bridgegarden.cli import main as main_module
from bridgegarden.cli.main import BUG, COMMANDS, cli
from bridgegarden.errors import DataError, NonFiniteError
from bridgegarden.recipe import list_recipes
from bridgegarden.teacher.cache.manifest import FORMAT, MANIFEST
from docs.write_cli_reference import PAGE, contexts, reference
from tests.documented import check_shell, commands


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
    assert result.stderr == f"Error: {error} [docs/errors.md#{error.code.lower()}]\n"


@pytest.mark.parametrize(
    ("typed", "code"),
    [
        ("train llama3.1-8b-1b --dry-run --set data.limit=0", "bg100"),
        ("train llama3.1-8b-1b --dry-run --set objective.preset=confidense", "bg101"),
        ("train llama3.1-8b-1b --dry-run --set objective.presett=soft", "bg101"),
        ("train llama3.1-8b-1b --set output=FILE", "bg103"),
        ("cache info FOLDER", "bg104"),
        ("generate llama3.1-8b-1b --base-url localhost", "bg105"),
        ("cache info DAMAGED", "bg201"),
    ],
)
def test_what_can_be_mended_names_its_section(typed, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").touch()
    (tmp_path / "FOLDER").mkdir()
    (tmp_path / "DAMAGED").mkdir()
    written = {"format": FORMAT, "versions": {"bridgegarden": "0"}, "spec": {}, "sha256": "0"}
    (tmp_path / "DAMAGED" / MANIFEST).write_text(json.dumps(written), encoding="utf-8")
    result = CliRunner().invoke(cli, typed.split())
    assert result.exit_code == 2, result.output
    assert result.stderr.splitlines()[-1].endswith(f" [docs/errors.md#{code}]")


def test_our_own_bug_keeps_its_traceback(command_that_raises):
    command_that_raises(RuntimeError("our bug"))
    with pytest.raises(RuntimeError, match="our bug"):
        CliRunner().invoke(cli, ["broken"], catch_exceptions=False)


def command(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    """The command in a process of its own."""
    line = [sys.executable, "-m", "bridgegarden", *arguments]
    return subprocess.run(line, stderr=subprocess.PIPE, text=True, **options)


def test_a_bug_of_ours_ends_with_status_1_and_asks_for_a_report(command_that_raises, monkeypatch, capfd):
    command_that_raises(RuntimeError("our bug"))
    monkeypatch.setattr(sys, "argv", ["bridgegarden", "broken"])
    with pytest.raises(SystemExit) as ended:
        main_module.main()
    assert ended.value.code == 1
    lines = capfd.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-2:] == ["RuntimeError: our bug", BUG]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.ENOTDIR])
def test_what_the_machine_refuses_is_one_line_with_the_file(command_that_raises, number):
    command_that_raises(OSError(number, os.strerror(number), "runs/out/run.json"))
    result = CliRunner().invoke(cli, ["broken"])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: {os.strerror(number)}: runs/out/run.json. ")


def test_a_file_that_is_missing_is_not_taken_for_the_machine_s(command_that_raises):
    command_that_raises(FileNotFoundError(errno.ENOENT, "No such file or directory", "x"))
    assert isinstance(CliRunner().invoke(cli, ["broken"]).exception, FileNotFoundError)


@pytest.mark.parametrize("error", [MemoryError(), OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")])
def test_too_little_memory_is_one_line(command_that_raises, error):
    command_that_raises(error)
    result = CliRunner().invoke(cli, ["broken"])
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: out of memory")


def test_a_result_that_cannot_be_printed_is_one_line():
    with open("/dev/full", "w") as full:
        done = command("recipes", "list", stdout=full)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: stdout: No space left on device, so that not all was printed.")
    assert done.stderr.count("\n") == 1


def test_what_the_encoding_of_stdout_lacks_is_replaced():
    line = "import sys; from bridgegarden.cli import main; main.cli = lambda **_: print('é 家'); main.main()"
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, env=environment)
    assert (done.returncode, done.stdout) == (0, b"\xe9 ?\n")


def test_a_working_directory_that_is_gone_is_said(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    line = f"cd {gone}; rmdir {gone}; {sys.executable} -m bridgegarden train llama3.1-8b-1b --dry-run"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "the working directory is gone" in done.stderr


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


@pytest.mark.skipif(
    tuple(map(int, version("click").split(".")[:2])) < (8, 5), reason="older releases of click shorten help elsewhere"
)
def test_the_command_line_page_is_what_help_says():
    assert PAGE.read_text(encoding="utf-8") == reference(), "docs/cli.md is out of date; run: make docs"


HELP = sorted(contexts("bridgegarden", cli), key=lambda context: context.command_path)


@pytest.mark.parametrize("context", HELP, ids=lambda context: context.command_path)
def test_help_ends_with_examples_that_can_be_typed(context):
    """Of the command itself, in real options, keys and choices, and with recipes that are shipped or a reader's own."""
    _, _, after = context.get_help().partition("For example:\n")
    lines = [line.strip() for line in after.splitlines()]
    assert lines, "say example(...) in the command's decorator"
    assert any(line.startswith(f"{context.command_path} ") or line == context.command_path for line in lines)
    for line in lines:
        assert line.startswith("bridgegarden "), "nothing comes after the examples"
        assert len(line) <= 96
        check_shell(line)
        for words in commands(line):
            assert named_recipe(words[1:]) in {None, "my.yaml", *list_recipes()}


def named_recipe(words: list[str]) -> str | None:
    """What a command that is typed says for RECIPE."""
    command: click.Command = cli
    while isinstance(command, click.Group):
        command, words = command.get_command(click.Context(command), words[0]), words[1:]  # pyright: ignore
    params = command.make_context(command.name, list(words)).params
    return params["name"] if command.name == "show" else params.get("recipe")


@pytest.mark.parametrize("group", ["", "cache", "lab", "recipes"])
def test_no_summary_in_a_list_of_commands_is_cut_short(group):
    listed = CliRunner().invoke(cli, [*group.split(), "--help"], terminal_width=60).output.partition("Commands:\n")[2]
    assert listed
    assert "..." not in listed.replace("PART...", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_told_how_to_complete(shell):
    """As docs/install.md says it."""
    page = (Path(__file__).parents[2] / "docs" / "install.md").read_text(encoding="utf-8")
    assert f"_BRIDGEGARDEN_COMPLETE={shell}_source bridgegarden" in page
    done = CliRunner().invoke(cli, prog_name="bridgegarden", env={"_BRIDGEGARDEN_COMPLETE": f"{shell}_source"})
    assert done.exit_code == 0
    assert f"_BRIDGEGARDEN_COMPLETE={shell}_complete" in done.stdout


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("bridgegarden tr", {"train"}),
        ("bridgegarden cache b", {"build"}),
        ("bridgegarden train my.yaml --dry", {"--dry-run"}),
        ("bridgegarden plan my.yaml --sharding f", {"fsdp"}),
    ],
)
def test_commands_options_and_choices_are_completed(line, offered):
    words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1), "_BRIDGEGARDEN_COMPLETE": "bash_complete"}
    done = CliRunner().invoke(cli, prog_name="bridgegarden", env=words)
    assert {answer.partition(",")[2] for answer in done.stdout.split()} == offered
