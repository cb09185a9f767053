"""Where a step waits for a GPU, counted on a CPU: nowhere but in the places that are listed here, each with its reason.

What transformers asks for itself is not ours: whether a loss is a number before it is added up for the log, and whether
a mask hides anything.
"""

import traceback
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

import bridgegarden
from bridgegarden.objective.hybrid import HybridObjective
from bridgegarden.teacher.cache.reader import TeacherCache
from bridgegarden.teacher.live import LiveTeacher
from tests.teacher.cache.conftest import build, cache_rows
from tests.tiny import tiny_model
from tests.waiting import waits_for_the_device

SOURCE = str(Path(bridgegarden.__file__).parent)
ACCUMULATED = 2
OURS = {
    # How many positions are supervised decides the shape of all that follows.
    ("alignment.py", "from_labels"): ACCUMULATED,
    # A loss or a gradient that is no number stops the run before the weights are touched.
    ("trainer.py", "compute_loss"): ACCUMULATED,
    ("trainer.py", "_get_grad_norm"): 1,
}
THEIRS = {("trainer.py", "_run_epoch"), ("masking_utils.py", "_ignore_causal_mask_sdpa")}


class Waits(TorchDispatchMode):
    """Counts what would wait, by the function that asked: ours, or else the innermost of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.ours: Counter = Counter()
        self.theirs: set[tuple[str, str]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if waits_for_the_device(func, args):
            frames = [f for f in traceback.extract_stack()[:-1] if "/torch/" not in f.filename]
            place = Path(frames[-1].filename).name, frames[-1].name
            if frames[-1].filename.startswith(SOURCE):
                self.ours[place] += 1
            else:
                self.theirs.add(place)
        return func(*args, **(kwargs or {}))


class SecondStep(TrainerCallback):
    """Watches a step that is not logged, from its first operation to the update of the weights."""

    def __init__(self) -> None:
        self.waits = Waits()

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 1:
            self.waits.__enter__()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            self.waits.__exit__(None, None, None)


@pytest.mark.parametrize("preset", ["static", "risk_guided"])
@pytest.mark.parametrize("kind", ["cached", "live", "live, whole vocabulary"])
def test_a_step_waits_for_the_device_where_it_has_to_and_nowhere_else(
    make_trainer, tmp_path, kind, preset, monkeypatch
):
    if kind == "cached":
        teacher = TeacherCache(build(tmp_path / "cache"))
        monkeypatch.setattr(teacher, "_decoded", teacher._decoder.decode)  # as on a GPU
    else:
        teacher = LiveTeacher(tiny_model("llama", 270, hidden_size=48, seed=1), top_k=8 if kind == "live" else None)
    watch = SecondStep()
    trainer = make_trainer(
        HybridObjective.preset(preset),
        teacher=teacher,
        train=cache_rows(),
        max_steps=3,
        logging_steps=50,
        gradient_accumulation_steps=ACCUMULATED,
        dataloader_pin_memory=False,
    )
    trainer.add_callback(watch)
    trainer.train()
    assert watch.waits.ours == OURS
    assert watch.waits.theirs <= THEIRS
    # Counted on the device, and read at the end.
    assert isinstance(trainer.cost.student_tokens, int)
    read = sum(map(len, cache_rows()["input_ids"]))
    assert trainer.cost.student_tokens == read
    assert trainer.cost.teacher_tokens == (0 if kind == "cached" else read)


def test_the_guard_sees_what_would_wait():
    with Waits() as waits:
        values = torch.arange(3.0)
        float(values.sum())
        values[values > 1]
    assert sum(waits.ours.values()) == 0
    assert waits.theirs == {("test_waits.py", "test_the_guard_sees_what_would_wait")}
