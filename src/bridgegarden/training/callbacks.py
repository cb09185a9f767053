"""What is added to the trainer's loop: early stopping, and the student's loss on texts of its own."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

import torch
from accelerate.utils import DistributedType, broadcast_object_list
from datasets import Dataset
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from bridgegarden.causal_lm_policy import CausalLMPolicy
from bridgegarden.data import end_of_turn_ids, vocabulary_size
from bridgegarden.data.encode import IGNORED
from bridgegarden.data.teacher_prompt import TEACHER_IDS, TEACHER_LABELS
from bridgegarden.diagnostics.exposure_bias import ExposureBias, exposure_bias
from bridgegarden.diagnostics.label_losses import LabelLosses
from bridgegarden.diagnostics.rollout import Sampling
from bridgegarden.diagnostics.two_tokenizers import PairReader, Prompt, compare_across
from bridgegarden.errors import ConfigError, lookup
from bridgegarden.teacher.live import LiveTeacher
from bridgegarden.teacher.tokenizer_pair import TokenizerPair
from bridgegarden.teacher.translated import TranslatedTeacher
from bridgegarden.training.trainer import HybridDistillationTrainer

SAMPLING = Sampling(samples=1, max_new_tokens=64, max_rows=16)
"""Few and short texts: they are written again and again while training waits."""

SELECT_BY: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "free_running_loss": MappingProxyType(
            {"metric_for_best_model": "eval_free_running_loss", "greater_is_better": False}
        ),
        "exposure_bias": MappingProxyType({"metric_for_best_model": "eval_exposure_bias", "greater_is_better": False}),
    }
)
"""Ways to select a checkpoint, as fields of :class:`~trl.SFTConfig`.

``free_running_loss`` is L_dtheta, the whole loss on the student's own texts, fit and drift together: the one to use.
``exposure_bias`` is L_dtheta - L_dT, which is signed. A student that fits its teacher badly, and
writes texts on which the two happen to differ less, has a negative one: the least exposure bias is not the best
student.
"""


class EarlyStopping(TrainerCallback):
    """Ends training after `patience` evaluations in a row that were not better than the best before them.

    The measure is ``metric_for_best_model`` of the training arguments. As transformers' ``EarlyStoppingCallback``, but
    counted from what was logged and not from what was seen: a run that is resumed stops where it would have stopped.
    """

    def __init__(self, patience: int, threshold: float = 0.0, say: Callable[[str], None] | None = None) -> None:
        """
        Args:
            patience: evaluations, >= 1.
            threshold: what counts as better is better by more than this, >= 0.
            say: is told, in a sentence, when and why training ends.
        """
        self.patience, self.threshold, self._say = patience, threshold, say

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._stop_if_due(args, state, control)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._stop_if_due(args, state, control)

    def _stop_if_due(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        assert args.metric_for_best_model is not None  # the recipe sees to it
        name = f"eval_{args.metric_for_best_model.removeprefix('eval_')}"
        values = _measured(state, name)
        if evaluations_without_gain(values, greater=bool(args.greater_is_better), gain=self.threshold) < self.patience:
            return
        control.should_training_stop = True
        if self._say is not None and state.is_world_process_zero:
            by = f" by more than {self.threshold:g}" if self.threshold else ""
            better = "risen" if args.greater_is_better else "fallen"
            self._say(
                f"stopping early at step {state.global_step}: {name} has not {better}{by} in {self.patience} "
                f"evaluation{'' if self.patience == 1 else 's'}"
            )


def evaluations_without_gain(values: Sequence[float], *, greater: bool, gain: float) -> int:
    """How many of the last `values` were in a row not better, by more than `gain`, than the best before each."""
    best, count = None, 0
    for value in values:
        ahead = best is None or (value > best if greater else value < best)
        count = 0 if best is None or (ahead and abs(value - best) > gain) else count + 1
        best = value if ahead else best
    return count


def _measured(state: TrainerState, name: str) -> list[float]:
    """The values of `name` at evaluations; it may have been measured between them, too."""
    evaluated = {entry["step"] for entry in state.log_history if "eval_loss" in entry}
    by_step = {entry["step"]: float(entry[name]) for entry in state.log_history if name in entry}
    return [value for step, value in by_step.items() if step in evaluated]


def selection_arguments(select_by: str) -> dict[str, Any]:
    """Fields of :class:`~trl.SFTConfig` that keep the best checkpoint by `select_by`, a name in `SELECT_BY`.

    They need ``eval_strategy`` and a matching ``save_strategy`` beside them, and the callback on the trainer.

    Raises:
        ConfigError: an unknown name.
    """
    return {"load_best_model_at_end": True, **lookup(SELECT_BY, select_by, field="select_by")}


class TeacherCheck(TrainerCallback):
    """Says after the first step what teacher and student lost on its rows, before the student had learnt anything."""

    def __init__(self, trainer: HybridDistillationTrainer, tell: Callable[[LabelLosses], None]) -> None:
        """
        Args:
            trainer: add the callback to it with ``trainer.add_callback(callback)``.
            tell: is told in the main process, at most once.
        """
        self._trainer, self._tell = trainer, tell

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step != 1 or self._trainer.objective.learns_data_alone:
            return
        losses = self._trainer.label_losses_at_start()
        if losses is not None and state.is_world_process_zero:
            self._tell(losses)


MOSTLY = 0.5
"""Share of positions that learn hard labels alone, from which on it is said."""


class HardOnlyCheck(TrainerCallback):
    """Says once if at most positions too little is known of a teacher with another tokenizer to learn from it."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        """
        Args:
            tell: is told a sentence in the main process, at most once.
        """
        self._tell, self._told = tell, False

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        share = (logs or {}).get("hard_only_share", 0.0)
        if share > MOSTLY and not self._told and state.is_world_process_zero:
            self._told = True
            self._tell(
                f"of {share:.0%} of the positions up to step {state.global_step} too little is known of the teacher, "
                "whose tokenizer is another one: there hard labels alone are learnt. More tokens kept of it "
                "(teacher.top_k, cache build --top-k) or a lower teacher.translation.threshold leave fewer."
            )


class ExposureBiasCallback(TrainerCallback):
    """Measures exposure bias at every evaluation, and every so many steps, on a few fixed prompts.

    Logged, in nats a text: ``eval_exposure_bias`` and its ``_stderr``, ``eval_teacher_forced_loss`` (L_dT),
    ``eval_free_running_loss`` (L_dtheta) and its ``_stderr``; and the cost, ``eval_exposure_bias_seconds`` and
    ``eval_exposure_bias_tokens``. At an evaluation the same are added to its metrics, so that ``metric_for_best_model``
    can name them; see `selection_arguments`. Every measurement uses the same random numbers and, as long as the teacher
    is the same, the same texts of the teacher: what changes is the student.

    Where the teacher has another tokenizer, each reads what the other wrote in its own tokens, and losses are over what
    is known of the teacher (:mod:`bridgegarden.diagnostics.two_tokenizers`); ``eval_free_running_known`` is its known
    probability on the student's texts.

    The defaults write 16 texts of at most 64 tokens by each model, about the work of 2,000 tokens of generation twice
    over. Random numbers of training are not touched.
    """

    def __init__(
        self,
        trainer: HybridDistillationTrainer,
        *,
        prompts: Sequence[Sequence[int]] | None = None,
        limit: int = 16,
        every: int | None = None,
        teacher: PreTrainedModel | None = None,
        sampling: Sampling = SAMPLING,
        seed: int = 0,
    ) -> None:
        """
        Args:
            trainer: add the callback to it with ``trainer.add_callback(callback)``.
            prompts: token ids that texts are written from, two or more; if None, those of the first `limit` rows of
                the trainer's evaluation data (which they are with a teacher of another tokenizer).
            limit: most prompts to take from there.
            every: also measure after every so many optimiser steps, >= 1; None measures at evaluations alone.
            teacher: the teacher's model, where the trainer has only its cache.
            sampling: how many texts are written, and how.
            seed: of the texts.

        Raises:
            ConfigError: `every` < 1, no teacher that can write, no prompts, texts longer than a model can read, a model
                that is sharded over processes, or a selection by exposure bias that would keep the *largest*.
        """
        if every is not None and every < 1:
            raise ConfigError(f"every must be >= 1 or None, got {every}.")
        _check_whole(trainer)
        _check_selection(trainer.args)
        translated = trainer.teacher if isinstance(trainer.teacher, TranslatedTeacher) else None
        asked = trainer.teacher if translated is None else translated.teacher
        own = asked.model if isinstance(asked, LiveTeacher) else teacher
        if own is None:
            raise ConfigError(
                "exposure bias while training: the trainer has the teacher's cache, which cannot judge the student's "
                "own texts. Pass the model as `teacher`."
            )
        self.trainer, self.teacher, self.every = trainer, own, every
        self._tokens = None if translated is None else translated.pair.at_threshold(0.0)
        if translated is not None and prompts is not None:
            raise ConfigError(
                "exposure bias while training: the teacher has another tokenizer, and `prompts` are in the student's "
                "tokens alone. Leave them out: those of the evaluation rows are read by both."
            )
        rows = (
            _prompts_of(trainer, limit, both=translated is not None)
            if prompts is None
            else [(tuple(one),) for one in prompts]
        )
        self.prompts = tuple(row[0] for row in rows)
        self._read_by_teacher = tuple(row[-1] for row in rows)
        self.sampling, self.seed = sampling, seed
        self._last: tuple[int, dict[str, float]] | None = None
        self._training = False
        self._check_fits()

    def _check_fits(self) -> None:
        """Now, rather than at the first evaluation, hours later."""
        for model, prompts in ((self.teacher, self._read_by_teacher), (self.trainer._student(), self.prompts)):
            longest = max(map(len, prompts)) + self.sampling.max_new_tokens
            window = getattr(model.config.get_text_config(), "max_position_embeddings", None)
            if window is not None and longest > window:
                raise ConfigError(
                    f"exposure bias while training: texts of up to {longest} tokens, prompt included, are longer than "
                    f"the {window} that {type(model).__name__} can read. Lower max_new_tokens, or take shorter prompts."
                )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """From now on a step has one measurement."""
        self._last, self._training = None, True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """From now on every evaluation measures anew."""
        self._last, self._training = None, False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure and log, every `every` steps; not where an evaluation follows, which does the same."""
        if self.every is not None and state.global_step % self.every == 0 and not control.should_evaluate:
            self._log(self._metrics(state), control)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Measure, log, and add to `metrics`, from which the trainer picks the best checkpoint."""
        fresh = self._last is None or self._last[0] != state.global_step
        found = self._metrics(state)
        if metrics is not None:
            metrics.update(found)
        if fresh:
            self._log(found, control)

    def measure(self) -> ExposureBias:
        """The student as it is now."""
        return self._measured()[0]

    def _measured(self) -> tuple[ExposureBias, float | None]:
        """Of the student as it is now, and how much is known of a teacher with another tokenizer on its texts."""
        student = self.trainer._student()
        if self._tokens is not None:
            return self._across(self._tokens, student)
        tokenizer = self.trainer.text_tokenizer
        end_ids = end_of_turn_ids(tokenizer, self.teacher.generation_config)
        size = self.trainer.vocab_size
        policies = [CausalLMPolicy(model, end_ids=end_ids, vocab_size=size) for model in (self.teacher, student)]
        generator = torch.Generator().manual_seed(self.seed)
        return exposure_bias(policies[0], policies[1], self.prompts, self.sampling, generator=generator), None

    def _across(self, tokens: TokenizerPair, student: PreTrainedModel) -> tuple[ExposureBias, float]:
        """The same where the two have different tokenizers."""
        policies = [
            CausalLMPolicy(model, end_ids=end_of_turn_ids(tokenizer, model.generation_config), vocab_size=size)
            for model, tokenizer, size in (
                (self.teacher, tokens.tokenizer, vocabulary_size(tokens.tokenizer)),
                (student, self.trainer.text_tokenizer, self.trainer.vocab_size),
            )
        ]
        prompts = [Prompt(*both) for both in zip(self._read_by_teacher, self.prompts, strict=True)]
        generator = torch.Generator().manual_seed(self.seed)
        readers = {"student": PairReader(tokens, *policies)}
        found = compare_across(readers, prompts, self.sampling, generator=generator)["student"]
        return found.bias, found.on_student["exact_mass"] + found.on_student["approximate_mass"]

    def _metrics(self, state: TrainerState) -> dict[str, float]:
        """Measured in the main process, once a step, and told to the others: all must pick the same checkpoint."""
        if self._last is not None and self._last[0] == state.global_step:
            return dict(self._last[1])
        found: list[Any] = [None]
        if self.trainer.accelerator.is_main_process:
            began = time.perf_counter()
            model = cast(torch.nn.Module, self.trainer.model)
            was_training = model.training
            model.eval()
            try:
                result, known = self._measured()
            finally:
                model.train(was_training)
            found = [as_metrics(result, time.perf_counter() - began, known)]
        if self.trainer.accelerator.num_processes > 1:
            broadcast_object_list(found)
        # Outside training the weights can change without a step (the best checkpoint is loaded, say).
        self._last = (state.global_step, found[0]) if self._training else None
        return dict(found[0])

    def _log(self, metrics: dict[str, float], control: TrainerControl) -> None:
        """In evaluation mode: in training mode the trainer would add the training terms so far, and forget them.

        Whatever is logged, transformers takes the step's own log for done; it is not.
        """
        pending = control.should_log
        model = cast(torch.nn.Module, self.trainer.model)
        was_training = model.training
        model.eval()
        self.trainer.log(dict(metrics))
        model.train(was_training)
        control.should_log = pending


def as_metrics(result: ExposureBias, seconds: float, known: float | None = None) -> dict[str, float]:
    """What is logged of one measurement; no standard error where nothing is known of it. `known` is of a teacher with
    another tokenizer."""
    metrics = {
        "eval_exposure_bias": result.exposure_bias.mean,
        "eval_exposure_bias_stderr": result.exposure_bias.stderr,
        "eval_teacher_forced_loss": result.teacher_loss.mean,
        "eval_free_running_loss": result.student_loss.mean,
        "eval_free_running_loss_stderr": result.student_loss.stderr,
        "eval_exposure_bias_seconds": seconds,
        "eval_exposure_bias_tokens": float(result.generated_tokens),
        **({} if known is None else {"eval_free_running_known": known}),
    }
    return {name: value for name, value in metrics.items() if not (name.endswith("_stderr") and math.isinf(value))}


def _check_whole(trainer: HybridDistillationTrainer) -> None:
    kind = trainer.accelerator.distributed_type
    if kind not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise ConfigError(
            f"exposure bias while training: the student is sharded ({kind}); roll-outs need whole weights in one "
            "process. Measure saved checkpoints instead."
        )


def _check_selection(args: TrainingArguments) -> None:
    chosen = (args.metric_for_best_model or "").removeprefix("eval_")
    if chosen in SELECT_BY and args.greater_is_better:
        raise ConfigError(
            f"training.metric_for_best_model: {chosen} with greater_is_better=True keeps the worst checkpoint. Set "
            "training.greater_is_better: false."
        )


def _prompts_of(
    trainer: HybridDistillationTrainer, count: int, *, both: bool = False
) -> list[tuple[tuple[int, ...], ...]]:
    """What stands before the first supervised token of the first evaluation rows, as the student reads it, and with
    `both` as the teacher does; rows without a prompt left out."""
    data = trainer.eval_dataset
    if not isinstance(data, Dataset):
        raise ConfigError("exposure bias while training: pass `prompts`; there is no single evaluation data set.")
    columns = [("input_ids", "labels"), *([(TEACHER_IDS, TEACHER_LABELS)] if both else [])]
    prompts = []
    for row in data.select(range(min(count, len(data)))):
        read = []
        for ids, labels in columns:
            first = next((at for at, label in enumerate(cast(dict, row)[labels]) if label != IGNORED), 0)
            read.append(tuple(cast(dict, row)[ids][:first]))
        if all(read):
            prompts.append(tuple(read))
    if len(prompts) < 2:
        raise ConfigError("exposure bias while training: fewer than two evaluation rows have a prompt; pass `prompts`.")
    return prompts
