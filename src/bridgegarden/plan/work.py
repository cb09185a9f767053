"""What a run computes: tokens, and operations by what they are spent on."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bridgegarden.errors import ConfigError
from bridgegarden.plan.rows import Rows
from bridgegarden.preflight.flops import ForwardFlops, forward_flops, forwards_a_training_step
from bridgegarden.preflight.memory import trained_parameters

if TYPE_CHECKING:
    from peft import LoraConfig

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


@dataclass(frozen=True, kw_only=True)
class StepFlops:
    """What a student's training step costs, forward and backward, by what the cost depends on.

    A product has two more in the backward: the gradients of both its sides. That of a weight that is not trained is
    left out; the two sides of attention's products are activations, whose gradients are needed in any case.
    """

    forward: ForwardFlops
    adapters: float
    """Operations a token in the adapters' forward: twice their weights. 0 where all weights are trained."""
    gradient_checkpointing: bool
    frozen: bool
    """Whether adapters are trained, and neither the weights under them nor the head are."""

    @classmethod
    def of(cls, student: "ModelFacts", *, lora: "LoraConfig | None", gradient_checkpointing: bool) -> "StepFlops":
        """Of a student.

        Args:
            student: the model that is trained.
            lora: its adapters; None where all weights are trained.
            gradient_checkpointing: whether the layers are computed again in the backward.

        Raises:
            ConfigError: the adapters fit no layer.
            ModelError: it has layers whose operations cannot be counted.
        """
        return cls(
            forward=forward_flops(student.config),
            adapters=0.0 if lora is None else 2.0 * trained_parameters(student, lora)[0],
            gradient_checkpointing=gradient_checkpointing,
            frozen=lora is not None,
        )

    def layers(self, context: float) -> float:
        """Operations for one token in all layers.

        Args:
            context: keys that it attends to; see :meth:`ForwardFlops.layers`.
        """
        trained = forwards_a_training_step(gradient_checkpointing=self.gradient_checkpointing)
        weights = forwards_a_training_step(gradient_checkpointing=self.gradient_checkpointing, frozen=self.frozen)
        attention = self.forward.layers(context) - self.forward.weights
        return weights * self.forward.weights + trained * (attention + self.adapters)

    @property
    def head(self) -> float:
        """Operations of the vocabulary projection and its gradients at one position. It is never computed again."""
        return forwards_a_training_step(frozen=self.frozen) * self.forward.head


def training_work(
    student: "ModelFacts",
    teacher: "ModelFacts | None",
    rows: Rows,
    schedule: Schedule,
    *,
    gradient_checkpointing: bool,
    lora: "LoraConfig | None",
    on_policy: "OnPolicy | None",
) -> Work:
    """What training takes; what a cache or an evaluation takes is not in it.

    Args:
        student: the model that is trained.
        teacher: the model that is asked at every step; None where what it said is on disk.
        rows: of the data, packed if they are.
        schedule: how often they are read.
        gradient_checkpointing: whether the layers are computed again in the backward.
        lora: adapters that are trained in place of all weights.
        on_policy: which batches the student answers itself.

    Raises:
        ModelError: a model has layers whose operations cannot be counted.
    """
    once = rows.padded_mean(schedule.batch, lambda length: length)
    tokens, positions = schedule.rows_read * once, schedule.rows_read * rows.positions / rows.count
    ours = StepFlops.of(student, lora=lora, gradient_checkpointing=gradient_checkpointing)
    flops: dict[str, float] = {}
    if teacher is not None:
        flops["teacher"] = _read(forward_flops(teacher.config), rows, schedule, positions)
    row = rows.padded_mean(schedule.batch, lambda length: length * ours.layers((length + 1) / 2))
    flops["student"] = schedule.rows_read * row + ours.head * positions
    if on_policy is not None and on_policy.lmbda > 0:
        flops["student's own texts"] = on_policy.lmbda * _written(
            ours.forward, rows, schedule, on_policy.max_new_tokens
        )
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
