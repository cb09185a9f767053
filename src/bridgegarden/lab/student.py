"""One student of the lab: trained by the package's own trainer, stopped by its own validation loss."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from bridgegarden.lab.data import LabData
from bridgegarden.lab.settings import LabSettings
from bridgegarden.objective.hybrid import HybridObjective
from bridgegarden.objective.soft_weight import CurriculumWeight
from bridgegarden.study.arms import LlamaSize
from bridgegarden.study.students import build_tokenizer, distil, new_llama


@dataclass(frozen=True, kw_only=True)
class TrainedStudent:
    """A student as it was when its validation loss was lowest, and what it cost."""

    model: PreTrainedModel
    """In evaluation mode."""

    kept_step: int
    """Optimiser steps after which it was kept."""

    steps: int
    """Optimiser steps until training ended."""

    validation: tuple[tuple[int, float], ...]
    """Step and validation loss of every look, in nats a token of its own objective."""

    seconds: float
    """Wall time of the training."""

    cpu_seconds: float
    """Processor time of the training."""


def train_student(
    objective: HybridObjective,
    size: LlamaSize,
    seed: int,
    settings: LabSettings,
    data: LabData,
    on_step: Callable[[int], None],
) -> TrainedStudent:
    """Distil the exact processes of `data` into a new student. Depends on its arguments and the libraries alone.

    Args:
        objective: what to minimise, on training and validation data alike.
        size: of the student.
        seed: of the first weights and of the order of the rows; objectives of one seed share both.
        settings: steps, batch, rate, and when to stop.
        data: rows and teacher.
        on_step: called with the number of steps done.
    """
    best = _BestStudent(patience=settings.patience, settled=_settled(objective, settings.steps))
    trained = distil(
        new_llama(data.world, size, seed),
        data.teacher,
        objective,
        data.train,
        settings,
        seed=seed,
        tokenizer=build_tokenizer(data.world),
        on_step=on_step,
        held_out=data.validation,
        callbacks=[best],
        per_device_eval_batch_size=64,
        eval_strategy="steps",
        eval_steps=settings.evaluate_every,
        logging_strategy="no",
    )
    trained.model.load_state_dict(best.weights)
    return TrainedStudent(
        model=trained.model,
        kept_step=best.step,
        steps=trained.state.global_step,
        validation=tuple(best.losses),
        seconds=trained.seconds,
        cpu_seconds=trained.cpu_seconds,
    )


def _settled(objective: HybridObjective, steps: int) -> float:
    """The step from which an objective means the same at every look, so that its losses can be compared."""
    rule = objective.soft_weight
    return rule.warmup_ratio * steps if isinstance(rule, CurriculumWeight) else 0.0


class _BestStudent(TrainerCallback):
    """Keeps the weights with the lowest validation loss, and ends training when it has not fallen for a while."""

    def __init__(self, *, patience: int, settled: float) -> None:
        self.patience, self.settled = patience, settled
        self.losses: list[tuple[int, float]] = []
        self.weights: dict[str, Tensor] = {}
        self.step = -1
        self._lowest, self._waited = float("inf"), 0

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        metrics: Mapping[str, float] = kwargs["metrics"]
        loss = metrics["eval_loss"]
        self.losses.append((state.global_step, loss))
        if state.global_step < self.settled:
            return
        if loss < self._lowest:
            model: PreTrainedModel = kwargs["model"]
            self.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
            self._lowest, self._waited, self.step = loss, 0, state.global_step
            return
        self._waited += 1
        if self._waited >= self.patience:
            control.should_training_stop = True
