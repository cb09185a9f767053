"""One student of the lab: trained by the package's own trainer, stopped by its own validation loss."""

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl.trainer.sft_config import SFTConfig

from bridgegarden.lab.data import LabData
from bridgegarden.lab.models import new_llama
from bridgegarden.lab.settings import LabSettings, LlamaSize
from bridgegarden.lab.tokenizer import build_tokenizer
from bridgegarden.objective.hybrid import HybridObjective
from bridgegarden.objective.soft_weight import CurriculumWeight
from bridgegarden.training.trainer import HybridDistillationTrainer


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
    student = new_llama(data.world, size, seed)
    best = _BestStudent(patience=settings.patience, settled=_settled(objective, settings.steps))
    with tempfile.TemporaryDirectory(prefix="bridgegarden-") as folder:
        trainer = HybridDistillationTrainer(
            student,
            data.teacher,
            objective,
            _arguments(settings, seed, folder),
            train_dataset=data.train,
            eval_dataset=data.validation,
            processing_class=build_tokenizer(data.world),
            callbacks=[best, _Steps(on_step)],
        )
        trainer.remove_callback(PrinterCallback)
        wall, cpu = time.perf_counter(), time.process_time()
        trainer.train()
        seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    student.load_state_dict(best.weights)
    # The trainer turns the cache off, for good; texts are followed with it.
    student.config.use_cache = True
    return TrainedStudent(
        model=student.eval(),
        kept_step=best.step,
        steps=trainer.state.global_step,
        validation=tuple(best.losses),
        seconds=seconds,
        cpu_seconds=cpu_seconds,
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


class _Steps(TrainerCallback):
    """Tells how many steps are done."""

    def __init__(self, on_step: Callable[[int], None]) -> None:
        self.on_step = on_step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.on_step(state.global_step)


def _arguments(settings: LabSettings, seed: int, folder: str) -> SFTConfig:
    return SFTConfig(
        folder,
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch,
        per_device_eval_batch_size=64,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, settings.steps // 20),
        adam_beta2=0.95,
        weight_decay=0.01,
        max_length=None,
        seed=seed,
        eval_strategy="steps",
        eval_steps=settings.evaluate_every,
        # Models this small are slower on a GPU, and the CPU gives everybody the same numbers.
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
