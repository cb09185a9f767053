"""One student of the quickstart: its data, what the teacher says about it (asked once, kept on disk), its training.

The vocabulary is small, so all of it is kept, in 16 bits a token: every objective is what it is with the teacher
itself, its temperature and entropies included.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from bridgegarden.data import chat_template_fingerprint, tokenizer_fingerprint, vocabulary_size
from bridgegarden.errors import BridgegardenError
from bridgegarden.exact.process import answered_row
from bridgegarden.exact.tasks.arithmetic import ArithmeticWorld, make_problems
from bridgegarden.quickstart import TEACHER
from bridgegarden.quickstart.result import STUDENT_SIZE, QuickstartSettings
from bridgegarden.quickstart.teacher import prompt_ids
from bridgegarden.study.arms import ComparedObjective
from bridgegarden.study.students import distil, new_llama
from bridgegarden.teacher.cache.manifest import read_spec
from bridgegarden.teacher.cache.shard import documents_of
from bridgegarden.teacher.cache.spec import CacheSpec, Support, weights_fingerprint
from bridgegarden.teacher.cache.writer import BuildResult, build_cache
from bridgegarden.teacher.protocol import Teacher

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

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


def keep_signals(
    folder: Path, rows: "Dataset", teacher: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase"
) -> BuildResult:
    """Ask `teacher` about what `folder` does not hold yet of `rows`; a cache of another kind there is removed first."""
    spec = signals_spec(teacher, tokenizer)
    if not _holds(folder, spec):
        shutil.rmtree(folder, ignore_errors=True)
    return build_cache(folder, teacher, [rows], spec)


def signals_spec(teacher: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> CacheSpec:
    """The whole vocabulary of the packaged teacher at every token."""
    size = vocabulary_size(tokenizer)
    return CacheSpec(
        teacher=TEACHER.name,
        revision=None,
        weights=weights_fingerprint(TEACHER),
        dtype=str(teacher.dtype).removeprefix("torch."),
        tokenizer=tokenizer_fingerprint(tokenizer),
        chat_template=chat_template_fingerprint(tokenizer),
        max_length=None,
        vocab_size=size,
        teacher_width=teacher.config.vocab_size,
        support=Support(k=size),
        exponents=(),
        bits=16,
    )


def tokens_asked(rows: "Dataset") -> int:
    """Tokens of `rows` at which the teacher is asked; equal rows are asked once."""
    return sum(document.positions for document in {document.key: document for document in documents_of(rows)}.values())


def _holds(folder: Path, spec: CacheSpec) -> bool:
    try:
        return not read_spec(folder).differences(spec)
    except BridgegardenError:
        # Nothing there, or not ours to read: built anew.
        return False
