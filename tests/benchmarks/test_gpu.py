"""The benchmarks that need a GPU: each of their lines still runs, on a CPU with tiny sizes."""

import os
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


@pytest.mark.slow
def test_every_benchmark_of_a_gpu_still_runs(tmp_path):
    ran = run("--rehearse", str(tmp_path))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    summary = (tmp_path / "summary.md").read_text()
    assert "waiting" in summary
    assert {path.stem for path in tmp_path.glob("*.log")} == {path.stem for path in tmp_path.glob("*.md")} - {"summary"}
