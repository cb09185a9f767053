"""Runs that are killed: each attempt in a process forked from this one, whose imports are done."""

import gc
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from bridgegarden.recipe import Recipe
from bridgegarden.run.train import train

TIMED = (
    "time",
    "tokens_per_second",
    "generated_tokens_per_second",
    *(f"{what}_{rate}" for what in ("train", "eval") for rate in ("runtime", "samples_per_second", "steps_per_second")),
)
"""What differs between two runs of the same recipe."""


def in_child(work: Callable[[], Any]) -> int:
    """Start `work` in a process of its own; returns its id. It ends with 0, or 1 and a traceback on stderr."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        gc.freeze()  # the trainer collects garbage, and there are two million objects of modules that are none
        work()
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def ended(child: int) -> int:
    """Wait for it; its exit status, negative where a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def finished(child: int) -> bool:
    """Whether it has ended, well; one that failed is an error."""
    done, status = os.waitpid(child, os.WNOHANG)
    if done == 0:
        return False
    assert status == 0, os.waitstatus_to_exitcode(status)
    return True


def killed_after(recipe: Recipe, seconds: float) -> bool:
    """Train, and send SIGKILL after so many seconds; whether it was still at work."""
    child = in_child(lambda: train(recipe))
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, 0.01))
        if finished(child):
            return False
    os.kill(child, signal.SIGKILL)
    status = ended(child)
    assert status in (0, -signal.SIGKILL)
    return status != 0


def weights(output: Path) -> dict[str, bytes]:
    """Every tensor of the trained model, bit by bit."""
    return {
        name: tensor.numpy().tobytes() for name, tensor in load_file(output / "model" / "model.safetensors").items()
    }


def metrics(output: Path) -> list[dict[str, Any]]:
    """Every line of the log, without times."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMED} for line in lines]


def moments(seconds: float, seed: int) -> Callable[[], float]:
    """Random moments of a run that takes so long, its start and end included."""
    rng = random.Random(seed)
    return lambda: rng.uniform(0.0, 1.1) * seconds
