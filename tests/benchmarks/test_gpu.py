"""The benchmarks that need a GPU: each of their lines still runs, on a CPU with tiny sizes."""

import importlib
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.sh"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHON": sys.executable}
    return subprocess.run([str(SCRIPT), *arguments], capture_output=True, text=True, env=environment)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured_and_one_line_says_why(tmp_path):
    ran = run(str(tmp_path / "figures"))
    assert ran.returncode == 2
    assert ran.stderr.count("\n") == 1
    assert "no CUDA GPU" in ran.stderr
    assert not (tmp_path / "figures").exists()


MEASURED = re.findall(r'^ +measure "?([\w.$-]+)"? (\d+) (\w+)\.py(.*)$', SCRIPT.read_text(), re.MULTILINE)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "limit", "script", "arguments"), MEASURED)
def test_every_line_of_the_script_is_one_that_its_benchmark_understands(
    name, limit, script, arguments, monkeypatch, capsys
):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    given = [*shlex.split(arguments.replace("$student", "896")), "--device", "cuda", "--markdown", "x.md"]
    parsed = importlib.import_module(script).options().parse_args(given)
    assert parsed.device == "cuda"
    if script == "plan_accuracy" and parsed.cases:
        cases = importlib.import_module(script)
        assert set(parsed.cases) <= {case.name for case in (*cases.CPU_CASES, *cases.CUDA_CASES)}


def test_every_benchmark_of_a_gpu_is_rehearsed_and_has_a_limit():
    on_gpu = {script for _, limit, script, _ in MEASURED if int(limit)}
    rehearsed = {script for _, limit, script, _ in MEASURED if not int(limit)}
    assert on_gpu == rehearsed == {"head_and_loss", "train_step", "step_profile", "on_policy_cost", "plan_accuracy"}
    whole = re.search(r"^whole=(\d+)$", SCRIPT.read_text(), re.MULTILINE)
    assert whole is not None
    assert int(whole[1]) < 8 * 60


def test_a_route_that_cannot_run_here_is_named_with_the_reason(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    heads = importlib.import_module("head_and_loss")
    monkeypatch.setattr(heads, "INTERPRETED", True)
    monkeypatch.setitem(heads.PACKAGES, "sft, liger", "no_such_package")
    sizes = ("--vocab", "40", "--student", "8", "--teacher", "8", "--tokens", "6", "--repeats", "1")
    routes = ("--routes", "sft", "sft, trl", "sft, liger", "trl distillation")
    monkeypatch.setattr(sys, "argv", ["head_and_loss.py", *sizes, *routes, "--markdown", str(tmp_path / "t.md")])
    heads.main()
    rows = (tmp_path / "t.md").read_text().splitlines()[4:]
    assert rows[2] == "| sft, liger | 6 | not run: the package no_such_package is not installed | | |"
    assert [row.split(" | ")[0] for row in rows if "not run" not in row] == [
        "| sft",
        "| sft, trl",
        "| trl distillation",
    ]


@pytest.mark.parametrize("route", ["sft, trl", "trl distillation"])
def test_what_others_compute_is_what_it_is_compared_with(monkeypatch, route):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    heads = importlib.import_module("head_and_loss")
    problem = heads.Problem(7, 40, 8, 8, "cpu")
    found = heads.ROUTES[route](problem)()
    if route == "sft, trl":
        expected = heads.sft(problem)()
    else:
        logp, other = ((h @ w.T).log_softmax(-1) for h, w in _both(problem))
        mixed = torch.logsumexp(torch.stack([logp, other]), 0) - math.log(2)
        expected = sum((side.exp() * (side - mixed)).sum(-1).mean() / 2 for side in (logp, other))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def _both(problem):
    return (problem.hidden, problem.weight), (problem.teacher_hidden, problem.teacher_weight)


@pytest.mark.slow
def test_every_benchmark_of_a_gpu_still_runs(tmp_path):
    ran = run("--rehearse", str(tmp_path))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    summary = (tmp_path / "summary.md").read_text()
    assert "waiting" in summary
    assert {path.stem for path in tmp_path.glob("*.log")} == {path.stem for path in tmp_path.glob("*.md")} - {"summary"}
