"""One student of the quickstart: its data, and its training with the package's own trainer."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from bridgegarden.exact.process import answered_row
from bridgegarden.exact.tasks.arithmetic import ArithmeticWorld, make_problems
from bridgegarden.quickstart import TEACHER
from bridgegarden.quickstart.examples import prompt_ids
from bridgegarden.quickstart.models import STUDENT_SIZE
from bridgegarden.quickstart.settings import QuickstartSettings
from bridgegarden.study.arms import ComparedObjective
from bridgegarden.study.students import distil, new_llama
from bridgegarden.teacher.protocol import Teacher

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
        rows.append(answered_row(row, prompt, world.process(problem), generator))
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
    trained = distil(
        new_llama(ArithmeticWorld(), STUDENT_SIZE, seed),
        teacher,
        objective.build(),
        rows,
        settings,
        seed=seed,
        tokenizer=load_tokenizer(),
        on_step=on_step,
        logging_steps=max(1, settings.steps // LOGS),
        include_num_input_tokens_seen="non_padding",
    )
    return TrainedStudent(
        model=trained.model,
        seconds=trained.seconds,
        cpu_seconds=trained.cpu_seconds,
        tokens=int(trained.state.num_input_tokens_seen),
        final_loss=next(entry["loss"] for entry in reversed(trained.state.log_history) if "loss" in entry),
    )
