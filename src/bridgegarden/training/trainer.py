"""TRL's supervised fine-tuning trainer with the hybrid objective in place of its loss."""

import logging
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakSet

import torch
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments
from transformers.trainer_utils import PredictionOutput
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from bridgegarden.causal_lm import head_size, language_model_in, take_off_wrappers
from bridgegarden.data import Columns, vocabulary_size
from bridgegarden.data.teacher_prompt import TEACHER_IDS, TEACHER_LABELS, TEACHER_NUMBER
from bridgegarden.diagnostics.label_losses import LabelLosses, RowLoss
from bridgegarden.objective.alignment import SupervisedPositions
from bridgegarden.objective.fused import FusedLoss, fused_hybrid_loss
from bridgegarden.objective.head import LanguageModelHead
from bridgegarden.objective.hybrid import HybridObjective
from bridgegarden.objective.loss_route import LossKernel, loss_route, whole_vocabulary_error
from bridgegarden.objective.soft_weight import TrainProgress
from bridgegarden.teacher.cache.reader import SIGNAL
from bridgegarden.teacher.protocol import DataTokens, Teacher
from bridgegarden.teacher.tokenizer_pair import TokenizerPair
from bridgegarden.teacher.translated import TranslatedSignal, TranslatedTeacher
from bridgegarden.training.arguments import (
    check_launch,
    check_prepared,
    checked_arguments,
    leave_out_router_loss,
    row_rules,
    withheld,
)
from bridgegarden.training.batches import (
    BESIDE_THE_MODEL,
    ROW,
    TEACHER,
    CacheOfRows,
    Reach,
    copy_ahead,
    evened,
    prepare,
    with_rows,
)
from bridgegarden.training.measured import (
    Cost,
    LogWindow,
    Mode,
    TrainingLog,
    check_finite_weights,
    non_finite_gradient,
    non_finite_loss,
    row_losses,
)
from bridgegarden.training.models import (
    as_teacher,
    check_apart,
    check_cached_teacher,
    check_loaded,
    check_models,
    check_same_teacher,
    check_teacher_rows,
    gives_whole_vocabulary,
    learn_rounded,
    models_of,
    readers_of,
    take_hidden_loss,
)
from bridgegarden.training.on_policy import OnPolicy, check_on_policy
from bridgegarden.training.student_writer import StudentWriter

if TYPE_CHECKING:
    from peft import PeftModel


logger = logging.getLogger(__name__)


class HybridDistillationTrainer(SFTTrainer):
    """Distil `teacher` into `model` with a :class:`HybridObjective`.

    Everything else is TRL's :class:`~trl.SFTTrainer`: data sets (``messages``, ``prompt``/``completion``, ``text``, or
    tokenised ``input_ids`` and ``labels``), :class:`~trl.SFTConfig`, adapters, packing, callbacks, trackers, launching.
    One forward each of teacher and student a step; neither model's logits are built for a batch. The loss is
    normalised by the supervised tokens of the whole accumulated batch over all processes, hard and soft terms alike.

    Logged per supervised position, in nats: ``loss``, ``soft_loss``, ``hard_loss``, ``risk_loss``,
    ``teacher_entropy``, ``student_entropy``, ``teacher_label_loss`` and ``student_label_loss`` (minus the
    log-probability of the token in the data); and ``soft_weight``, ``captured_mass``, ``risk_share``,
    ``tokens_per_second``, and with a rule for it ``position_weight`` (of one that says 0 or 1, the share that counts).
    Evaluation logs the same with the prefix ``eval_``. What training has cost so far is logged
    as ``teacher_tokens``, ``student_tokens`` and ``generated_tokens``; :attr:`cost` has all of it. Names that TRL's
    trainer logs have its meaning: ``entropy`` (the student's), ``mean_token_accuracy`` (share of the supervised tokens
    of the data that are the student's likeliest) and ``num_tokens`` (read in training so far). ``acceptance`` is the
    share of the tokens that the student would draw which the teacher would accept (1 - TV), exact where the teacher
    gives all tokens, else at most that, and at least ``acceptance_least``. In training, what is measured of the student
    is that of the steps that are logged.
    """

    _tag_names = ["bridgegarden", "distillation"]
    _name = "bridgegarden"

    def __init__(
        self,
        model: "str | PreTrainedModel",
        teacher: "str | Path | PreTrainedModel | PeftModel | Teacher",
        objective: HybridObjective | None = None,
        args: SFTConfig | TrainingArguments | None = None,
        *,
        columns: Columns | None = None,
        on_policy: OnPolicy | None = None,
        loss_kernel: LossKernel = "auto",
        quantised: str | None = None,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            model: the student.
            teacher: a frozen causal language model with the same tokenizer, with or without adapters, or its name or
                path; or any :class:`Teacher`: a :class:`LiveTeacher` with options, a :class:`TeacherCache` of what a
                teacher said on this data, exact processes.
            objective: what to minimise; the default :class:`HybridObjective` if None.
            args: training arguments; those that :class:`~trl.SFTConfig` adds to transformers' have its defaults where
                they are not given.
            columns: which columns of the data hold prompt and completion, or messages, when not named so.
            on_policy: let the student answer a share of the batches itself; None trains on the answers of the data.
            loss_kernel: what reads and writes the logits in the loss: ``torch``, or ``triton`` on a CUDA GPU with a
                teacher that gives its top tokens or samples; ``auto`` is what has been shown to be the faster one
                there, see :func:`~bridgegarden.objective.loss_route.loss_route`. :attr:`loss_route` is what is taken.
            quantised: compute with the student's weights as a GGUF file of this type (``Q4_0``, ...) will hold them;
                those that are trained and saved stay whole. The model goes on so until another trainer takes it.
            kwargs: the further arguments of :class:`~trl.SFTTrainer` (``train_dataset``, ``eval_dataset``,
                ``processing_class``, ``peft_config``, ``callbacks``, ...).

        Raises:
            ConfigError: an argument of the trainer contradicts the objective or `on_policy`, or the cache cannot serve
                them; or the kernels cannot run here.
            ModelError: a head that cannot be read; a teacher that shares weights with the student; a cache that was
                built with another tokenizer.
            DataError: a row that the cache does not hold.
        """
        args = checked_arguments(args, kwargs, columns)
        check_loaded(model)
        self.objective = objective if objective is not None else HybridObjective()
        self.teacher = as_teacher(teacher, model, adapters=kwargs.get("peft_config") is not None)
        if isinstance(self.teacher, CacheOfRows | TranslatedTeacher):
            self.teacher.check_objective(self.objective)
        check_on_policy(
            on_policy,
            cached=isinstance(self.teacher, CacheOfRows),
            data_labels=self.objective.learns_data_tokens,
            packed=args is not None and (args.packing or args.padding_free),
        )
        self._loss_kernel: LossKernel = loss_kernel
        self._quantised = quantised
        self._columns = columns
        self._asked = copy(args)
        self._prepared: WeakSet[Dataset | IterableDataset] = WeakSet()
        with withheld(args):
            super().__init__(model=model, args=args, **kwargs)
        self._asked = None
        self._join(on_policy)

    def _join(self, on_policy: OnPolicy | None) -> None:
        """Put teacher, student and data together, once TRL's trainer has its model and its data."""
        cache = self.teacher if isinstance(self.teacher, CacheOfRows) else None
        leave_out_router_loss(self)
        check_launch(self.accelerator, fsdp=bool(self.args.fsdp))
        copy_ahead(self.accelerator, pinned=self.args.dataloader_pin_memory)
        held_out = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"eval": self.eval_dataset}
        data = {"train": self.train_dataset, **held_out}
        reach = self._join_models(data)
        self.vocab_size = min(vocabulary_size(self._tokenizer), head_size(self._student()), self.teacher.width)
        self.loss_route = loss_route(self._loss_kernel, self.accelerator.device, self._student().dtype)
        if self.loss_route == "triton" and gives_whole_vocabulary(self.teacher, self.vocab_size):
            raise whole_vocabulary_error()
        # The loss is summed and divided by the supervised tokens of the whole window: nothing is left to divide.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self._loss_shifts_labels = True
        self.data_collator = with_rows(self.data_collator, cache, reach, self._pair)
        writes = on_policy is not None and on_policy.lmbda > 0
        own_prompts = writes and self._pair is None
        check_teacher_rows(self.teacher, data, self.data_collator, on_policy=own_prompts)
        self._log = TrainingLog(
            self.accelerator,
            weighs_positions=self.objective.position_weight is not None,
            asks_teacher=not isinstance(self.teacher, DataTokens),
        )
        self._window_rows: list[Tensor] = []
        self._first_losses: list[RowLoss] = []
        self._writer = None if on_policy is None else self._student_writer(on_policy)
        if cache is not None:
            check_cached_teacher(
                cache,
                self._tokenizer,
                max_length=cast(SFTConfig, self.args).max_length,
                vocab_size=self.vocab_size,
                collator=self.data_collator,
                data=data,
            )

    def _join_models(self, data: Mapping[str, Any]) -> Reach:
        """Check student and teacher against each other and against `data`, and make both ready for the objective."""
        student, whole = self._student(), cast(nn.Module, self.model)
        asked = models_of(self.teacher)
        for model in asked:
            check_apart(whole, model, adapters=student is not whole)
        take_off_wrappers(whole)
        take_off_wrappers(student)
        learn_rounded(student, self._quantised, self.accelerator, adapters=student is not whole)
        self.teacher.place(self.accelerator.device)
        if self._skip_prepare_dataset:
            check_prepared(data)
        reach = check_models(
            whole,
            asked,
            packed_by=cast(Any, self.data_collator) if self.padding_free else None,
            checkpointing=bool(self.args.gradient_checkpointing),
            data=data,
            translated=self._pair is not None,
        )
        take_hidden_loss(student, asked, self.args)
        check_same_teacher(self.teacher, self.accelerator)
        return reach

    def _student_writer(self, on_policy: OnPolicy) -> StudentWriter:
        """What has the student answer batches itself."""
        return StudentWriter(
            [self._student(), *(models_of(self.teacher) if self._pair is None else ())],
            on_policy,
            tokenizer=self._tokenizer,
            collator=self.data_collator,
            accelerator=self.accelerator,
            vocab_size=self.vocab_size,
            seed=self.args.seed,
            tokens=self._pair,
        )

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective on one batch: teacher, student, loss, and the terms set aside for the log."""
        mode = self._mode
        positions = SupervisedPositions.from_labels(inputs["labels"])
        forward_inputs = {name: value for name, value in inputs.items() if name not in BESIDE_THE_MODEL}
        # With a prompt of its own: the i-th supervised position of what it reads is the i-th of the student's.
        asked = inputs.get(TEACHER, inputs)
        with self._log.costs.phase("teacher", counted=mode == "train"):
            teacher = self.teacher.at(
                positions if asked is inputs else SupervisedPositions.from_labels(asked["labels"]),
                asked,
                vocab_size=self.vocab_size,
                exponents=self.objective.exponents,
            )
        results: list[FusedLoss] = []

        def hidden_loss(hidden: Tensor, head: LanguageModelHead) -> dict[str, Tensor]:
            fused = fused_hybrid_loss(
                positions.of(hidden),
                head,
                teacher,
                positions.target,
                positions.has_successor,
                self.objective,
                num_items=len(positions) if num_items_in_batch is None else num_items_in_batch,
                progress=TrainProgress(self.state.global_step, self.state.max_steps),
                measure_student=mode == "eval" or self._logs_this_step(),
                kernels=self.loss_route == "triton",
            )
            results.append(fused)
            return {"loss": fused.loss}

        outputs = model(**forward_inputs, hidden_loss=hidden_loss)
        # FSDP rounds what a forward returns to its own precision: the gradient goes that way, the number does not.
        loss = outputs["loss"] + (results[0].loss - outputs["loss"]).detach()
        if not torch.isfinite(loss):
            raise non_finite_loss(self._step(), results[0], positions, inputs.get(ROW))
        tokens = _token_count(forward_inputs)
        if mode == "train":
            readers = 0 if SIGNAL in inputs else readers_of(self.teacher)
            of_teacher = tokens if asked is inputs else _token_count(asked)
            self._log.costs.add(student_tokens=tokens, teacher_tokens=readers * of_teacher)
            if ROW in inputs:
                self._window_rows.append(inputs[ROW])
        self._log.terms[mode].add(results[0], tokens, teacher.sums if isinstance(teacher, TranslatedSignal) else None)
        if mode == "train" and self.state.global_step == 0 and self._writer is None:
            self._first_losses += row_losses(results[0], positions, inputs.get(ROW))
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # DistributedDataParallel averages over processes what is already divided by all their tokens.
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self, model: torch.nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor, None, None]:
        """Loss and terms of an evaluation batch; logits are never built, so no others can be returned."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, inputs).detach(), None, None

    def predict(
        self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """Loss and terms on rows in any shape; logits are never built, so there are no predictions beside them."""
        if not self._skip_prepare_dataset:
            args = cast(SFTConfig, self.args)
            packing = args.packing if args.eval_packing is None else args.eval_packing
            test_dataset = self._prepare_dataset(
                test_dataset, self.processing_class, args, packing, self._formatting_func, metric_key_prefix
            )
        return super().predict(test_dataset, ignore_keys, metric_key_prefix)

    def _get_dataloader(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        processes = self.accelerator.num_processes
        if processes > 1 and isinstance(dataset, Dataset) and not kwargs.get("is_training"):
            dataset = evened(dataset, processes * self.args.per_device_eval_batch_size)
        return super()._get_dataloader(cast(Any, dataset), *args, **kwargs)

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """Evaluate; every metric, the loss included, is a mean over positions and not over batches."""
        self._log.terms["eval"].reset()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        means = self._log.means("eval")
        if means.pop("tokens", None) is not None:
            means["num_tokens"] = self.cost.student_tokens
        cast(dict, output.metrics).update({f"{metric_key_prefix}_{name}": value for name, value in means.items()})
        return output

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """The batches of an optimiser step, and how many supervised tokens all processes have in them.

        Where the student answers, it does so here, for the whole step, so that its own tokens are the ones counted.
        """
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self._writer is None or not batches:
            return batches, num_items
        self._log.start_clock()
        with self._log.costs.phase("generation"):
            batches = self._writer.answer(batches, self.state.global_step, self._log.costs)
        return batches, self._get_num_items_in_batch(batches, device)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One micro-batch, on the clock that ``tokens_per_second`` is read from."""
        self._log.start_clock()
        with self._log.costs.phase("step"):
            return super().training_step(*args, **kwargs)

    @property
    def cost(self) -> Cost:
        """What training has cost so far, over all processes: in a distributed run every one of them has to ask."""
        return self._log.costs.total()

    def label_losses_at_start(self) -> LabelLosses | None:
        """What teacher and student lost on the rows of the first step, before the student had learnt anything.

        In a distributed run every process has to ask. None before that step, after a resumption, where the student
        answers rows itself, and with a teacher that does not say what it gives the tokens of the data.
        """
        return LabelLosses.over(gather_object(self._first_losses))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the terms of the objective since the last time."""
        if self._mode == "train":
            logs.update(self._log.of_training(writes=self._writer is not None))
        if "train_loss" in logs:
            # Of all steps, those before a resumption included.
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step, 1)
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the student, for a checkpoint or for good, if all of its weights are numbers."""
        check_finite_weights(cast(nn.Module, self.model), self.state.global_step)
        super().save_model(output_dir, _internal_call)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        self._log.costs.save(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        self._log.costs.begin(checkpoint)

    @property
    def _mode(self) -> Mode:
        return "train" if cast(PreTrainedModel, self.model).training else "eval"

    def _logs_this_step(self) -> bool:
        every = max(int(self.state.logging_steps or 1), 1)
        step = self.state.global_step + 1
        first = step == 1 and self.args.logging_first_step
        return step % every == 0 or first or step >= self.state.max_steps

    @property
    def _pair(self) -> TokenizerPair | None:
        """How a teacher with another tokenizer reads the rows; None where it has the student's."""
        return self.teacher.pair if isinstance(self.teacher, TranslatedTeacher) else None

    def _student(self) -> PreTrainedModel:
        """The causal language model inside adapters."""
        return language_model_in(self.model)

    @property
    def text_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of both models: the one inside, where a processor was given."""
        return self._tokenizer

    def _prepare_dataset(
        self,
        dataset: Any,
        processing_class: Any,
        args: SFTConfig,
        packing: bool,
        formatting_func: Callable | None,
        dataset_name: str,
    ) -> Any:
        """Tokenise, mask, cut, shuffle and pack; nothing of it is TRL's, so that every container goes the same way."""
        if dataset in self._prepared:
            return dataset
        # While TRL's trainer is made, some of it is withheld.
        args = self._asked or args
        rules = replace(row_rules(args, self._columns, formatting_func), teacher_tokens=self._pair)
        prepared = prepare(dataset, self._tokenizer, rules, args, packing=packing, name=dataset_name)
        self._prepared.add(prepared)
        return prepared

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        for name in (ROW, TEACHER_IDS, TEACHER_LABELS, TEACHER_NUMBER):
            if name not in self._signature_columns:
                self._signature_columns.append(name)

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        rows, self._window_rows = self._window_rows, []
        # A gradient scaler (fp16) meets infinite gradients by design, skips the step and lowers its scale.
        if norm is not None and self.accelerator.scaler is None and not torch.isfinite(torch.as_tensor(norm)):
            raise non_finite_gradient(self._step(), float(norm), rows)
        return norm

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        window = self._log.window(
            loss_sum=self._tr_loss.item(),
            loss_sum_logged=self._total_loss_scalar,
            last_logged_step=self._globalstep_last_logged,
        )
        window.save(Path(output_dir), self.args.process_index)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        window = None if checkpoint is None else LogWindow.load(Path(checkpoint), self.args.process_index)
        if window is None:
            return
        self._tr_loss = torch.tensor(window.loss_sum, device=self.args.device)
        self._total_loss_scalar = window.loss_sum_logged
        self._globalstep_last_logged = window.last_logged_step
        if not self._log.take_up(window):
            logger.warning(
                "%s: written by another version, which logged other terms; the first line that is logged now has those "
                "of the steps from here on. Training goes on as it would have.",
                checkpoint,
            )

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # The trainer would train one step more when it is resumed from a last step that does not end an epoch, or was
        # the last one because training had stopped early.
        if self.state.global_step >= self.state.max_steps or self.control.should_training_stop:
            self._load_rng_state(kwargs["resume_from_checkpoint"])
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _send_telemetry(self) -> None:
        """TRL's trainers report their use to the hub; nothing about a run leaves the machine here."""

    def _step(self) -> str:
        return f"step {self.state.global_step + 1}"


def _token_count(inputs: Mapping[str, Any]) -> Tensor | int:
    """Those that are no padding; where that has to be counted, on the device, which nobody waits for."""
    mask = inputs.get("attention_mask")
    return inputs["input_ids"].numel() if mask is None else mask.sum()
