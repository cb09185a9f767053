"""DeepSpeed's ZeRO in one process on the CPU. Skipped where DeepSpeed is not installed."""

import importlib.util
import json
import os
import socket
import subprocess
import sys

import pytest

from tests.distributed.launch import ROOT

pytestmark = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_a_student_that_deepspeed_trains_is_the_one_that_is_trained_without_it(stage, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    run = subprocess.run(
        [sys.executable, "-m", "tests.distributed.zero_cases", str(tmp_path), str(stage), str(port)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    found = json.loads((tmp_path / "zero.json").read_text())
    assert found["zero"]["wrapped"] == "DeepSpeedEngine"
    assert found["zero"]["loss"] == pytest.approx(found["alone"]["loss"], rel=1e-5)
    assert found["moved"] > 1e-3
    assert found["error"] < 1e-6
