"""Keys of every study's jobs."""

import os
import subprocess
import sys

import pytest

KEYS = """
from pathlib import Path
from bridgegarden.lab.map.cells import MapSettings
from bridgegarden.lab.map.confirm import CONFIRMED, ConfirmFolder, ConfirmJob, ConfirmSettings
from bridgegarden.lab.map.run import CellJob, MapFolder
from bridgegarden.lab.result import Arm, LabSettings
from bridgegarden.lab.run import LabFolder, LabJob
from bridgegarden.quickstart.run import QuickstartFolder, QuickstartJob, plan

here, arm = Path("x"), Arm(regime="small", objective="confidence")
jobs = [
    QuickstartJob(objective="risk_guided", seed=1, settings=plan(full=True), folder=QuickstartFolder(here)),
    LabJob(world="control", arm=arm, seed=2, settings=LabSettings(worlds=("control",)), folder=LabFolder(here)),
    CellJob(cell=MapSettings().cells[0], settings=MapSettings(), folder=MapFolder(here)),
    ConfirmJob(cell=CONFIRMED[0], arm="soft", seed=0, settings=ConfirmSettings(), folder=ConfirmFolder(here)),
]
keys = [job.key for job in jobs]
"""


@pytest.mark.slow
def test_a_key_is_the_same_in_another_process():
    """One that held anything of this process (an address, a hash of a string) would make every resume start over."""
    here: dict = {}
    exec(KEYS, here)
    assert len(set(here["keys"])) == 4
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    code = f"{KEYS}\nprint(*keys)"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert there.stdout.split() == here["keys"]
