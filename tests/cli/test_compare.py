from pathlib import Path

import pytest
from click.testing import CliRunner

from bridgegarden.cli.main import cli
from bridgegarden.compare import run as run_module
from bridgegarden.compare.result import CompareSettings
from bridgegarden.compare.run import CompareFolder
from bridgegarden.evaluation.lm_eval import EvaluationOptions
from bridgegarden.study.arms import DEFAULT
from tests.compare.made_up import made_up_result


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """What the command asked for; it is given a made-up result."""
    seen = []

    def compare(source, settings, **options):
        seen.append((source, settings, options))
        (tmp_path / "result.json").write_text('{"made": "up"}\n')
        return made_up_result(), CompareFolder(tmp_path)

    monkeypatch.setattr(run_module, "compare", compare)
    return seen


def invoke(*arguments: str):
    return CliRunner().invoke(cli, ["compare", "my.yaml", *arguments], env={"COLUMNS": "120"})


def test_without_options_what_trains_from_one_cache_is_compared_on_offline_tasks(calls):
    assert invoke().exit_code == 0
    source, settings, options = calls[0]
    assert source == "my.yaml"
    assert settings == CompareSettings(objectives=DEFAULT, baseline="sft")
    assert (options["overrides"], options["output"], options["workers"]) == ((), None, 1)


def test_options_are_handed_over(calls):
    arguments = ["--objectives", "soft, gkd", "--seeds", "2", "--budget", "compute", "--tasks", "gsm8k,bbh"]
    arguments += ["--limit", "9", "--answers", "4", "--batch-size", "7", "--allow-code-execution", "--prompts", "5"]
    arguments += ["--texts", "3", "--max-new-tokens", "11", "--no-keep-models", "--workers", "2", "--output", "out"]
    assert invoke(*arguments, "--set", "training.max_steps=9").exit_code == 0
    _, settings, options = calls[0]
    assert settings == CompareSettings(
        objectives=("soft", "gkd"),
        seeds=(0, 1),
        budget="compute",
        baseline="gkd",
        evaluation=EvaluationOptions(
            tasks=("gsm8k", "bbh"), limit=9, samples=4, batch_size=7, allow_code_execution=True
        ),
        prompts=5,
        samples=3,
        max_new_tokens=11,
        keep_models=False,
    )
    assert (options["overrides"], options["output"], options["workers"]) == (("training.max_steps=9",), Path("out"), 2)


def test_without_tasks_only_drift_is_measured(calls):
    assert invoke("--tasks", "none", "--baseline", "soft").exit_code == 0
    assert calls[0][1].evaluation is None
    assert calls[0][1].baseline == "soft"


def test_it_prints_tables_findings_and_where_the_page_is(calls, tmp_path):
    shown = invoke().stdout
    assert "exposure bias" in shown
    assert "* Right, sampled: confidence is highest" in shown
    assert (
        shown.splitlines()[-1] == f"The report is {tmp_path / 'report.html'}, the numbers are in result.json beside it"
    )
    assert invoke("--json").stdout == '{"made": "up"}\n'


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--baseline", "gkd"], "--baseline: unknown name 'gkd'"),
        (["--objectives", ","], "names nothing"),
        (["--objectives", "sotf"], "Did you mean 'soft'"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments, message, tmp_path):
    (tmp_path / "my.yaml").write_text(
        "teacher: {model: t}\nstudent: {model: s}\ndata: {train: r.jsonl}\ntraining: {max_steps: 1}\n"
    )
    result = CliRunner().invoke(cli, ["compare", str(tmp_path / "my.yaml"), *arguments])
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
