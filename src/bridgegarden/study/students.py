"""Tiny Llamas that learn worlds small enough to be solved: made, given a tokenizer, trained by our own trainer."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl.trainer.sft_config import SFTConfig

from bridgegarden.exact.world import ASSISTANT, END, PAD, SPECIAL_TOKENS, UNKNOWN, USER, World
from bridgegarden.objective.hybrid import HybridObjective
from bridgegarden.study.arms import LlamaSize, TrainingSettings
from bridgegarden.teacher.protocol import Teacher
from bridgegarden.training.trainer import HybridDistillationTrainer

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}" + SPECIAL_TOKENS[USER] + "{{ message['content'] }}" + SPECIAL_TOKENS[END] + ""
    "{% elif message['role'] == 'assistant' %}" + SPECIAL_TOKENS[ASSISTANT] + ""
    "{% generation %}{{ message['content'] }}" + SPECIAL_TOKENS[END] + "{% endgeneration %}"
    "{% else %}{{ raise_exception('roles are user and assistant, got ' + message['role']) }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}" + SPECIAL_TOKENS[ASSISTANT] + "{% endif %}"
)
"""Each turn ends with the end token, the assistant's included; a conversation is a prefix of every longer one."""


def build_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """The tokenizer of `world`: token ids are places in `world.vocabulary`, words are split as `world.encode` does."""
    tokenizer = Tokenizer(WordLevel(dict(world.ids), unk_token=SPECIAL_TOKENS[UNKNOWN]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL_TOKENS[PAD],
        unk_token=SPECIAL_TOKENS[UNKNOWN],
        eos_token=SPECIAL_TOKENS[END],
        additional_special_tokens=[SPECIAL_TOKENS[USER], SPECIAL_TOKENS[ASSISTANT]],
        padding_side="right",
        model_max_length=128,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def new_llama(world: World, size: LlamaSize, seed: int) -> LlamaForCausalLM:
    """An untrained model whose weights depend on `seed` alone; torch's global generator is left as it was.

    Weights are drawn with standard deviation 1 / sqrt(hidden). The usual 0.02 is meant for wide models; at these widths
    it multiplies the steps needed.
    """
    config = LlamaConfig(
        vocab_size=len(world.vocabulary),
        hidden_size=size.hidden,
        intermediate_size=size.feed_forward,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=size.hidden**-0.5,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


@dataclass(frozen=True, kw_only=True)
class Untrained:
    """A student before its training."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    """The teacher's, too."""
    seed: int
    """Of the weights, and of the order in which rows are read."""


@dataclass(frozen=True, kw_only=True)
class Distilled:
    """A student after its training, and what that cost."""

    model: PreTrainedModel
    """In evaluation mode."""

    state: TrainerState
    """The trainer's: steps, tokens, log."""

    seconds: float
    """Wall time of the training alone."""

    cpu_seconds: float
    """Processor time of the training alone."""

    @property
    def steps(self) -> int:
        """Optimiser steps until it ended."""
        return self.state.global_step

    @property
    def tokens(self) -> int:
        """Tokens that the student read, prompts included and padding left out; if the trainer counted them so."""
        return int(self.state.num_input_tokens_seen)

    @property
    def final_loss(self) -> float:
        """Mean objective over the steps since the last log but one, nats a token."""
        return next(entry["loss"] for entry in reversed(self.state.log_history) if "loss" in entry)


class Clock(TrainerCallback):
    """Times a training alone, without loading, evaluating and saving after it; tells how many steps are done."""

    def __init__(self, on_step: Callable[[int], None]) -> None:
        self._on_step = on_step
        self.seconds = self.cpu_seconds = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._on_step(state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.seconds, self.cpu_seconds = time.perf_counter() - self._wall, time.process_time() - self._cpu


def distil(
    student: Untrained,
    teacher: PreTrainedModel | Teacher,
    objective: HybridObjective,
    rows: Dataset,
    settings: TrainingSettings,
    *,
    on_step: Callable[[int], None],
    held_out: Dataset | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    **arguments: Any,
) -> Distilled:
    """Train the model of `student` in place. Depends on its arguments and the libraries' versions alone.

    Args:
        student: whose model it is.
        teacher: a model, asked at every step, or what is known of its distributions.
        objective: what to minimise.
        rows: token ids and labels.
        settings: steps, batch and learning rate.
        on_step: called with the number of steps done.
        held_out: rows that are evaluated, if `arguments` say when.
        callbacks: of the trainer.
        arguments: further ones of the trainer.
    """
    clock = Clock(on_step)
    with tempfile.TemporaryDirectory(prefix="bridgegarden-") as folder:
        trainer = HybridDistillationTrainer(
            student.model,
            teacher,
            objective,
            _arguments(folder, settings, seed=student.seed, **arguments),
            train_dataset=rows,
            eval_dataset=held_out,
            processing_class=student.tokenizer,
            callbacks=[*callbacks, clock],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    # The trainer turns the cache off, for good; answers are written with it.
    student.model.config.use_cache = True
    return Distilled(
        model=student.model.eval(), state=trainer.state, seconds=clock.seconds, cpu_seconds=clock.cpu_seconds
    )


def _arguments(folder: str, settings: TrainingSettings, *, seed: int, **arguments: Any) -> SFTConfig:
    """The same for all students of the lab and of the quickstart, but for `arguments`."""
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
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **arguments,
    )
