"""What a run computes: tokens, and operations by what they are spent on."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bridgegarden.errors import ConfigError
from bridgegarden.plan.rows import Rows
from bridgegarden.preflight.flops import ForwardFlops, forward_flops, forwards_a_training_step

if TYPE_CHECKING:
    from bridgegarden.preflight import ModelFacts
    from bridgegarden.training.on_policy import OnPolicy


MOST_ROWS = 2**53
"""Rows read in a run, up to which they can be counted one by one in floating point."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How often rows are read."""

    batch: int
    """Rows a process reads at once."""
    accumulation: int
    """Batches behind a step of the optimiser."""
    processes: int
    steps: int
    """Of the optimiser."""
    rows_read: float
    """Of all processes, over the whole run."""

    @classmethod
    def of(cls, arguments: Any, count: int, processes: int) -> "Schedule":
        """As the trainer makes it of its arguments and so many rows."""
        batch, accumulation = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
        if arguments.max_steps > 0:
            steps = int(arguments.max_steps)
            rows = float(steps * batch * accumulation * processes)
        else:
            batches = math.ceil(count / (batch * processes))
            epochs = arguments.num_train_epochs
            if epochs * count > MOST_ROWS:
                raise ConfigError(
                    f"training.num_train_epochs: {epochs:g} epochs of {count:,} rows are too many to plan with; at "
                    f"most {MOST_ROWS:,} rows are."
                )
            steps = math.ceil(epochs * max(1, math.ceil(batches / accumulation)))
            rows = epochs * count
        return cls(batch=batch, accumulation=accumulation, processes=processes, steps=steps, rows_read=rows)


@dataclass(frozen=True, kw_only=True)
class Work:
    """Tokens and operations of a run, all processes together."""

    tokens: float
    """Read by the student while it trains, padding included."""
    positions: float
    """Of these, supervised."""
    padding: float
    """Share of `tokens` that is padding."""
    flops: Mapping[str, float]
    """By what they are spent on."""

    @property
    def total(self) -> float:
        """Operations."""
        return sum(self.flops.values())


def training_work(
    student: "ModelFacts",
    teacher: "ModelFacts | None",
    rows: Rows,
    schedule: Schedule,
    *,
    gradient_checkpointing: bool,
    frozen: bool,
    on_policy: "OnPolicy | None",
) -> Work:
    """What training takes; what a cache or an evaluation takes is not in it.

    Args:
        student: the model that is trained.
        teacher: the model that is asked at every step; None where what it said is on disk.
        rows: of the data, packed if they are.
        schedule: how often they are read.
        gradient_checkpointing: whether the layers are computed again in the backward.
        frozen: whether adapters are trained, and the weights under them are not.
        on_policy: which batches the student answers itself.

    Raises:
        ModelError: a model has layers whose operations cannot be counted.
    """
    once = rows.padded_mean(schedule.batch, lambda length: length)
    tokens, positions = schedule.rows_read * once, schedule.rows_read * rows.positions / rows.count
    ours = forward_flops(student.config)
    all_weights = forwards_a_training_step(gradient_checkpointing=gradient_checkpointing, frozen=frozen)
    scores = forwards_a_training_step(gradient_checkpointing=gradient_checkpointing)

    def student_row(length: float) -> float:
        attention = ours.layers((length + 1) / 2) - ours.weights
        return length * (all_weights * ours.weights + scores * attention)

    flops: dict[str, float] = {}
    if teacher is not None:
        flops["teacher"] = _read(forward_flops(teacher.config), rows, schedule, positions)
    student_layers = schedule.rows_read * rows.padded_mean(schedule.batch, student_row)
    # The gradients of head and hidden states; only the latter where the head is not trained.
    flops["student"] = student_layers + (2 if frozen else 3) * ours.head * positions
    if on_policy is not None and on_policy.lmbda > 0:
        flops["student's own texts"] = on_policy.lmbda * _written(ours, rows, schedule, on_policy.max_new_tokens)
    return Work(
        tokens=tokens,
        positions=positions,
        padding=1 - rows.tokens / rows.count / once,
        flops=flops,
    )


def cache_work(teacher: "ModelFacts", rows: Rows) -> float:
    """Operations of asking the teacher once about every row; padding, which is little there, is not counted."""
    parts = forward_flops(teacher.config)
    layers = rows.count * rows.padded_mean(1, lambda length: length * parts.layers((length + 1) / 2))
    return layers + parts.head * rows.positions


def _read(parts: ForwardFlops, rows: Rows, schedule: Schedule, positions: float) -> float:
    row = rows.padded_mean(schedule.batch, lambda length: length * parts.layers((length + 1) / 2))
    return schedule.rows_read * row + parts.head * positions


def _written(parts: ForwardFlops, rows: Rows, schedule: Schedule, most: int) -> float:
    """If texts are as long as the data's answers, or are cut: prompt and new tokens, each once, with a cache."""
    answer = min(rows.positions / rows.count, most)
    prompt = (rows.tokens - rows.positions) / rows.count
    reading = prompt * parts.layers((prompt + 1) / 2)
    writing = answer * (parts.layers(prompt + (answer + 1) / 2) + parts.head)
    return schedule.rows_read * (reading + writing)
