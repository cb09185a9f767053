"""Jobs for tests of worker processes, which must be able to import them."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bridgegarden.errors import DataError
from bridgegarden.study.kept import StudyFolder
from bridgegarden.study.run import Job, Tell, Telling


class CountFolder(StudyFolder):
    command = "bridgegarden count"


def threads(job: int, tell: Telling) -> tuple[int, int, int]:
    """The job, the process, and the threads that PyTorch uses there."""
    tell(f"job {job}", job)
    return job, os.getpid(), torch.get_num_threads()


def fail_on_one(job: int, tell: Telling) -> int:
    """Job 1 fails at once, the others take a minute."""
    if job == 1:
        raise DataError("job 1: a row is wrong.")
    time.sleep(60)
    return job


def killed(job: int, tell: Telling) -> int:
    """Ends its process as the system does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)
    return job


@dataclass(frozen=True, kw_only=True)
class Count(Job[tuple[str, ...], CountFolder, int]):
    """A training that counts how often it was done, in a file of its own."""

    makes = int

    number: int

    @property
    def name(self) -> str:
        return f"job {self.number}"

    @property
    def path(self) -> Path:
        return self.folder.path / "runs" / f"{self.number}.json"

    @property
    def decided_by(self) -> dict[str, Any]:
        return {"number": self.number, "settings": self.settings}

    @property
    def units(self) -> int:
        return 10

    @property
    def turn(self) -> int:
        return self.number % 2

    def run(self, tell: Tell) -> int:
        tell(10)
        with (self.folder.path / "done").open("a") as file:
            file.write(f"{self.number}\n")
        return self.number**2

    def told(self, run: int) -> str:
        return f"{self.name}: {run}"
