"""Arguments of TRL's trainer, and how it was started: what contradicts the objective, or would be left out unsaid."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import psutil
from accelerate import Accelerator
from accelerate.utils import DistributedType
from datasets import Dataset
from transformers import PreTrainedModel, TrainingArguments
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from bridgegarden.data import Columns, RowRules
from bridgegarden.errors import ConfigError, DataError

logger = logging.getLogger(__name__)
ASKED_BY = {"ACCELERATE_USE_FSDP": DistributedType.FSDP, "ACCELERATE_USE_DEEPSPEED": DistributedType.DEEPSPEED}
"""Variables by which ``accelerate launch`` asks for a way of sharding."""
TEXT = "text"
"""TRL's default for the column of plain text."""
SKIP = "skip_prepare_dataset"
"""The one key of TRL's ``dataset_kwargs``."""
OF_PREPARATION = (
    "dataset_text_field",
    "completion_only_loss",
    "assistant_only_loss",
    "truncation_mode",
    "shuffle_dataset",
)
"""Fields of ``SFTConfig`` that say how rows are prepared; rows may be as long as they are where they are prepared."""


def checked_arguments(
    args: TrainingArguments | None, kwargs: Mapping[str, Any], columns: Columns | None
) -> SFTConfig | None:
    """`args` with the fields that :class:`~trl.SFTConfig` adds, at their defaults, where it is not one already.

    Args:
        args: of the trainer.
        kwargs: the further arguments that are handed to :class:`~trl.SFTTrainer`.
        columns: which columns are read.

    Raises:
        ConfigError: something would be ignored, or would replace the objective; says what to do.
    """
    if args is not None and not isinstance(args, SFTConfig):
        # The token is hidden in what is written down.
        given: dict[str, Any] = args.to_dict() | {"hub_token": args.hub_token}
        args = SFTConfig(**given)
    check_arguments(args, kwargs)
    if args is not None:
        _check_data_arguments(args, kwargs, columns)
    return args


def check_arguments(args: SFTConfig | None, kwargs: Mapping[str, Any]) -> None:
    """Refuse what would be ignored, or would replace the objective.

    Args:
        args: of the trainer.
        kwargs: the further arguments that are handed to :class:`~trl.SFTTrainer`.

    Raises:
        ConfigError: says which, and what to do.
    """
    if kwargs.get("compute_loss_func") is not None:
        raise ConfigError("compute_loss_func: the objective is the loss; pass `objective` instead.")
    if kwargs.get("compute_metrics") is not None or kwargs.get("preprocess_logits_for_metrics") is not None:
        raise ConfigError("compute_metrics needs the student's whole logits, which are never built; use a callback.")
    if args is None:
        return
    _check_compilation(args)
    if args.loss_type != "nll":
        raise ConfigError(f"training.loss_type: the objective is the loss; got {args.loss_type!r}, remove it.")
    if args.label_smoothing_factor:
        raise ConfigError(
            "training.label_smoothing_factor: not part of the objective; soft labels do its work. Set it to 0."
        )
    if args.use_liger_kernel:
        raise ConfigError("training.use_liger_kernel: its fused loss would replace the objective; set it to false.")
    if args.activation_offloading and args.device.type == "cpu":
        raise ConfigError("training.activation_offloading: needs an accelerator, to offload from; set it to false.")
    if kwargs.get("formatting_func") is not None and (args.completion_only_loss or args.assistant_only_loss):
        raise ConfigError(
            "formatting_func: makes one text of a row, of which training.completion_only_loss and assistant_only_loss "
            "can tell no part; leave out one or the other."
        )
    if args.eval_packing and not args.packing:
        raise ConfigError(
            "training.eval_packing: evaluation rows are packed only where training rows are, or they would read each "
            "other; set packing too, or leave it out."
        )
    if args.packing and args.packing_strategy != "bfd":
        raise ConfigError(
            f"training.packing_strategy: got {args.packing_strategy!r}, which cuts documents in two, so that neither "
            "model would see the prompt of what it predicts. Use 'bfd'."
        )


def _check_compilation(args: SFTConfig, environment: Mapping[str, str] = os.environ) -> None:
    if environment.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() not in ("", "no"):
        raise ConfigError(
            "launch: --dynamo_backend would compile the model with the loss in it, anew at every step; leave it out, "
            "and set training.torch_compile."
        )
    if not args.torch_compile:
        return
    if args.fsdp or args.deepspeed or any(_is_set(environment, name) for name in ASKED_BY):
        raise ConfigError(
            "training.torch_compile: not with FSDP or DeepSpeed, which gather weights between the layers that would be "
            "compiled as one. Set it to false, or train on whole models (DistributedDataParallel)."
        )


def _is_set(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "").lower() in ("true", "1")


def _check_data_arguments(args: SFTConfig, kwargs: Mapping[str, Any], columns: Columns | None) -> None:
    """Refuse what `args` say of data and would be ignored, and tell what makes no difference."""
    if args.dataset_num_proc is not None:
        logger.warning("training.dataset_num_proc: makes no difference; rows are prepared by one process.")
    if kwargs.get("data_collator") is not None:
        for name in ("pad_token", "pad_to_multiple_of"):
            if getattr(args, name) is not None:
                raise ConfigError(f"training.{name}: is up to data_collator; leave out one or the other.")
    # Text that was no JSON object is still text.
    asked = args.dataset_kwargs if isinstance(args.dataset_kwargs, Mapping) else {args.dataset_kwargs or SKIP: False}
    unknown = [key for key in asked if key != SKIP]
    if unknown:
        raise ConfigError(f"training.dataset_kwargs: got {unknown[0]!r}; expected nothing but {{{SKIP!r}: True}}.")
    if not asked.get(SKIP):
        return
    defaults = {field.name: field.default for field in fields(SFTConfig) if field.name in OF_PREPARATION}
    ignored = [f"training.{name}" for name, default in defaults.items() if getattr(args, name) != default]
    ignored += ["formatting_func"] if kwargs.get("formatting_func") is not None else []
    ignored += ["columns"] if columns is not None else []
    if ignored:
        raise ConfigError(
            f"training.dataset_kwargs: with {SKIP} rows are trained on as they are, so that {', '.join(ignored)} would "
            "be ignored; leave out one or the other."
        )


def check_prepared(data: Mapping[str, Any]) -> None:
    """Make sure that rows which nobody prepares here hold token ids.

    Args:
        data: data sets by name; what makes its rows when they are read is believed.

    Raises:
        DataError: names the first that does not.
    """
    for name, dataset in data.items():
        if isinstance(dataset, Dataset) and dataset.format["type"] != "custom" and "input_ids" not in dataset.features:
            raise DataError(
                f"{name} data: has {', '.join(dataset.column_names)}, but no 'input_ids'. Tokenise the rows, or leave "
                f"out {SKIP} in training.dataset_kwargs."
            )


def row_rules(
    args: SFTConfig,
    columns: Columns | None = None,
    formatting_func: Callable[[dict[str, Any]], str] | None = None,
) -> RowRules:
    """How rows are read by `args`.

    Args:
        args: of the trainer.
        columns: which columns are read; a ``dataset_text_field`` other than TRL's default names one, too.
        formatting_func: makes a text of a row.

    Raises:
        ConfigError: columns are named in two ways, or `args` cut rows as nobody does.
    """
    columns = columns or Columns()
    if args.dataset_text_field != TEXT:
        if columns.named:
            raise ConfigError(
                f"training.dataset_text_field: names {args.dataset_text_field!r}, and `columns` names "
                f"{', '.join(map(repr, columns.named))}; give one of them."
            )
        columns = Columns(text=args.dataset_text_field)
    if args.truncation_mode not in ("keep_start", "keep_end"):
        raise ConfigError(
            f"training.truncation_mode: got {args.truncation_mode!r}; expected 'keep_start' or 'keep_end'."
        )
    return RowRules(
        columns=columns,
        completion_only=args.completion_only_loss,
        assistant_only=args.assistant_only_loss,
        max_length=args.max_length,
        keep="start" if args.truncation_mode == "keep_start" else "end",
        formatting=formatting_func,
        ends_with=args.eos_token,
    )


@contextmanager
def withheld(args: SFTConfig | None) -> Iterator[None]:
    """`args` without what TRL's own trainer does not do as it is done here.

    It would look for marks in the chat template that are not needed, takes it that nobody cuts the rows of batches
    without padding, and would compile the model with the loss in it, anew at every step, and so soon not at all.
    """
    if args is None:
        yield
        return
    assistant_only, max_length = args.assistant_only_loss, args.max_length
    names = "torch_compile", "torch_compile_backend", "torch_compile_mode"
    compilation = {name: getattr(args, name) for name in names}
    args.assistant_only_loss = False
    args.torch_compile, args.torch_compile_backend, args.torch_compile_mode = False, None, None
    if args.padding_free and not args.packing:
        args.max_length = None
    try:
        yield
    finally:
        args.assistant_only_loss, args.max_length = assistant_only, max_length
        for name, value in compilation.items():
            setattr(args, name, value)


def leave_out_router_loss(trainer: SFTTrainer) -> None:
    """Train a mixture of experts without its load-balancing loss, which TRL would take from the model's own forward.

    A coefficient that nobody asked for, the configuration's own, is told of and left out.

    Raises:
        ConfigError: it was asked for.
    """
    if not trainer.aux_loss_enabled:
        return
    if cast(SFTConfig, trainer.args).router_aux_loss_coef:
        raise ConfigError(
            f"training.router_aux_loss_coef: got {trainer.router_aux_loss_coef}, but the load-balancing loss of a "
            "mixture of experts is not part of the objective; remove it, or set it to 0.0."
        )
    logger.warning(
        "The student is a mixture of experts; it is trained without its load-balancing loss (coefficient %s in its "
        "config), which is not part of the objective.",
        trainer.router_aux_loss_coef,
    )
    trainer.aux_loss_enabled = False
    cast(PreTrainedModel, trainer.model).config.get_text_config().output_router_logits = False


def check_launch(accelerator: Accelerator, *, fsdp: bool = False, environment: Mapping[str, str] = os.environ) -> None:
    """Make sure that as many processes run, and shard as they were asked to.

    Args:
        accelerator: of the run.
        fsdp: whether the training arguments ask for FSDP.
        environment: variables of this process.

    Raises:
        ConfigError: they do not.
    """
    found, processes = accelerator.distributed_type, accelerator.num_processes
    asked = [kind for name, kind in ASKED_BY.items() if _is_set(environment, name)]
    for kind in [*asked, *([DistributedType.FSDP] if fsdp else [])]:
        if found != kind:
            raise ConfigError(
                f"launch: {kind.value} was asked for, but accelerate runs this as {found.value} on {processes} "
                f"process(es), device {accelerator.device}: each would hold everything. accelerate shards over several "
                "accelerators alone, and leaves it out elsewhere without a word. Start it on several GPUs, or ask for "
                "no sharding."
            )
    wanted = max(int(environment.get("WORLD_SIZE") or 1), launcher_processes(_parent()))
    if processes < wanted:
        raise ConfigError(
            f"launch: {wanted} processes were asked for, but this one runs alone ({found.value}, device "
            f"{accelerator.device}). `accelerate launch --cpu` starts one process whatever --num_processes says; "
            f"on CPUs use: torchrun --nproc_per_node {wanted} -m bridgegarden train RECIPE"
        )


def launcher_processes(command: Sequence[str]) -> int:
    """How many processes the command line of an ``accelerate launch`` asks for; 1 if it says nothing or is another."""
    if "launch" not in command or not any(Path(word).name.startswith("accelerate") for word in command):
        return 1
    for word, following in zip(command, [*command[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name.replace("-", "_") == "__num_processes":
            number = value if equals else following
            return int(number) if number.isdigit() else 1
    return 1


def _parent() -> list[str]:
    """The command line of the process that started this one; empty where it cannot be read."""
    try:
        parent = psutil.Process().parent()
        return [] if parent is None else parent.cmdline()
    except psutil.Error:
        return []
