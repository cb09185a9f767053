"""Two processes for the tests, by torchrun, as a user starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def on_two_processes(folder: Path, kind: str, timeout: float = 900) -> dict[str, Any]:
    """What ``worker.py`` found in its cases of this `kind`, by name.

    Fails unless two processes that spoke to each other wrote it.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
        "HF_HUB_OFFLINE": "1",
    }
    run = subprocess.run(
        [*command, str(Path(__file__).with_name("worker.py")), str(folder), kind],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    found = json.loads((folder / f"{kind}.json").read_text())
    assert found["processes"] == [0, 1]
    return found["cases"]
