import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from bridgegarden.cli.main import cli
from bridgegarden.quickstart import TEACHER


def run(*arguments):
    return CliRunner().invoke(cli, ["evaluate", *map(str, arguments)])


def test_the_packaged_teacher_is_scored_without_a_network(tmp_path):
    done = run(TEACHER, "--limit", "8", "--output", tmp_path)
    assert done.exit_code == 0, done.output
    assert "bridgegarden_arithmetic greedy acc 100.00 (≥ 63.1)" in " ".join(done.stdout.split())
    assert str(tmp_path / "results.json") in done.stdout.replace("\n", "")
    assert "bridgegarden_programs is left out: it runs what the model writes" in done.stderr
    assert "generate_until" not in done.stdout
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["model"] == str(TEACHER)
    assert results["scores"][0]["mean"] == 1.0
    assert results["settings"]["lm_eval"].startswith("0.4.")
    assert "| bridgegarden_arithmetic | greedy | acc | 100.00 (≥ 63.1) | 8 |" in (tmp_path / "results.md").read_text()
    assert len((tmp_path / "problems.jsonl").read_text().splitlines()) == 16


def test_json_is_all_that_is_on_stdout(tmp_path):
    done = run(TEACHER, "--limit", "2", "--samples", "0", "--output", tmp_path, "--json")
    assert [score["task"] for score in json.loads(done.stdout)["scores"]] == ["bridgegarden_arithmetic"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "coding"], "--allow-code-execution"),
        (["--tasks", "arithmetics,"], "unknown task 'arithmetics'"),
        (["--set", "training.max_steps=1"], "--set changes a recipe"),
        (["--batch-size", "many"], "expected a number of sequences, or auto"),
        (["--temperature", "0"], "--temperature"),
    ],
)
def test_what_cannot_be_is_one_line_and_status_2(arguments, message, monkeypatch):
    from bridgegarden.evaluation import harness

    # All of lm-eval's own tasks take ten seconds to index.
    usual = harness.TaskManager
    monkeypatch.setattr(harness, "TaskManager", lambda **options: usual(**{**options, "include_defaults": False}))
    done = run(TEACHER, *arguments)
    assert done.exit_code == 2
    assert message in done.stderr


def test_a_recipe_that_is_not_trained_says_how_to(tmp_path):
    done = run("qwen2.5-7b-3b", "--set", f"output={tmp_path}")
    assert done.exit_code == 2
    assert "has no trained model yet. Train it (bridgegarden train qwen2.5-7b-3b)" in done.stderr


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from click.testing import CliRunner; from bridgegarden.cli.main import cli; "
        "assert CliRunner().invoke(cli, ['evaluate', '--help']).exit_code == 0; "
        "assert CliRunner().invoke(cli, ['judge', '--help']).exit_code == 0; "
        "sys.exit(bool({'torch', 'transformers', 'datasets', 'lm_eval'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
