"""Arguments of TRL's trainer that contradict the objective."""

import logging
from collections.abc import Mapping
from typing import Any, cast

from transformers import PreTrainedModel, TrainingArguments
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from bridgegarden.errors import ConfigError

logger = logging.getLogger(__name__)


def as_sft_config(args: TrainingArguments | None) -> SFTConfig | None:
    """`args` with the fields that :class:`~trl.SFTConfig` adds, at their defaults, where it is not one already."""
    if args is None or isinstance(args, SFTConfig):
        return args
    # The token is hidden in what is written down.
    given: dict[str, Any] = args.to_dict() | {"hub_token": args.hub_token}
    return SFTConfig(**given)


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
