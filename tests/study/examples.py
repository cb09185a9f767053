"""Jobs for tests of worker processes, which must be able to import them."""

import os
import signal
import time

import torch

from bridgegarden.errors import DataError
from bridgegarden.study.run import Tell


def threads(job: int, tell: Tell) -> tuple[int, int, int]:
    """The job, the process, and the threads that PyTorch uses there."""
    tell(f"job {job}", job)
    return job, os.getpid(), torch.get_num_threads()


def fail_on_one(job: int, tell: Tell) -> int:
    """Job 1 fails at once, the others take a minute."""
    if job == 1:
        raise DataError("job 1: a row is wrong.")
    time.sleep(60)
    return job


def killed(job: int, tell: Tell) -> int:
    """Ends its process as the system does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)
    return job
