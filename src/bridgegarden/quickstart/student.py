"""One student of the quickstart: its data, and its training with the package's own trainer."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl.trainer.sft_config import SFTConfig

from bridgegarden.exact.process import sample
from bridgegarden.exact.tasks.arithmetic import ArithmeticWorld, make_problems
from bridgegarden.lab.models import new_llama
from bridgegarden.lab.objectives import ComparedObjective
from bridgegarden.objective.alignment import IGNORE
from bridgegarden.quickstart import TEACHER
from bridgegarden.quickstart.examples import prompt_ids
from bridgegarden.quickstart.models import STUDENT_SIZE
from bridgegarden.quickstart.settings import QuickstartSettings
from bridgegarden.teacher.protocol import Teacher
from bridgegarden.training.trainer import HybridDistillationTrainer

LOGS = 10
"""How many times a training logs its loss."""


@dataclass(frozen=True, kw_only=True)
class TrainedStudent:
    """A student and what it cost."""

    model: PreTrainedModel
    """In evaluation mode."""

    seconds: float
    """Wall time of the training alone."""

    cpu_seconds: float
    """Processor time of the training alone."""

    tokens: int
    """Tokens that the student read, prompts included and padding left out."""

    final_loss: float
    """Mean objective over the last tenth of the steps, nats a token."""


def load_teacher() -> PreTrainedModel:
    """The packaged teacher, in float32: bfloat16 is slow on most CPUs."""
    return AutoModelForCausalLM.from_pretrained(TEACHER, dtype=torch.float32, use_safetensors=True).eval()


def load_tokenizer() -> PreTrainedTokenizerBase:
    """The packaged teacher's, and its students'."""
    return AutoTokenizer.from_pretrained(TEACHER)


def training_rows(world: ArithmeticWorld, problems: int, seed: int) -> Dataset:
    """Token ids and labels of training problems with one answer each, drawn from the process, slips included.

    The packaged teacher is within a thousandth of a nat of the process: these are the answers that it would sample.
    """
    generator = torch.Generator().manual_seed(2 * seed)
    rows = []
    for row, problem in enumerate(make_problems(problems, seed, split="train", world=world)):
        prompt = prompt_ids(world, world.prompt(problem, generator))
        answer = sample(world.process(problem), generator)
        rows.append({"input_ids": prompt + answer, "labels": [IGNORE] * len(prompt) + answer, "row": row})
    return Dataset.from_list(rows)


def train_student(
    objective: ComparedObjective,
    seed: int,
    settings: QuickstartSettings,
    rows: Dataset,
    teacher: PreTrainedModel | Teacher,
    on_step: Callable[[int], None],
) -> TrainedStudent:
    """Distil `teacher` into a new student. Depends on its arguments and the libraries' versions alone.

    Args:
        objective: what to minimise.
        seed: decides the first weights and the order of the rows; the same for every objective.
        settings: steps, batch and learning rate.
        rows: of `training_rows`.
        teacher: a model, asked at every step, or a cache of what it said about `rows`.
        on_step: called with the number of steps done.
    """
    student = new_llama(ArithmeticWorld(), STUDENT_SIZE, seed)
    with tempfile.TemporaryDirectory(prefix="bridgegarden-") as folder:
        trainer = HybridDistillationTrainer(
            student,
            teacher,
            objective.build(),
            _arguments(settings, seed, folder),
            train_dataset=rows,
            processing_class=load_tokenizer(),
            callbacks=[_Steps(on_step)],
        )
        trainer.remove_callback(PrinterCallback)
        wall, cpu = time.perf_counter(), time.process_time()
        trainer.train()
        seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    # The trainer turns the cache off, for good; answers are written with it.
    student.config.use_cache = True
    return TrainedStudent(
        model=student.eval(),
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        tokens=int(trainer.state.num_input_tokens_seen),
        final_loss=next(entry["loss"] for entry in reversed(trainer.state.log_history) if "loss" in entry),
    )


def _arguments(settings: QuickstartSettings, seed: int, folder: str) -> SFTConfig:
    return SFTConfig(
        folder,
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, settings.steps // 20),
        adam_beta2=0.95,
        weight_decay=0.01,
        max_length=None,
        seed=seed,
        # Models this small are slower on a GPU, and the CPU gives everybody the same numbers.
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        logging_steps=max(1, settings.steps // LOGS),
        include_num_input_tokens_seen="non_padding",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


class _Steps(TrainerCallback):
    """Tells how many steps are done."""

    def __init__(self, on_step: Callable[[int], None]) -> None:
        self.on_step = on_step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object):
        self.on_step(state.global_step)
