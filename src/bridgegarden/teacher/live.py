"""A teacher in memory: asked at every step, only where a token is supervised."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import AutoModelForCausalLM, PreTrainedModel

from bridgegarden.causal_lm import (
    add_hidden_loss,
    freeze,
    head_size,
    input_device,
    is_split,
    is_split_by_zero,
    language_model_in,
    name_of,
    read_hidden,
    take_off_wrappers,
    whole_in_every_process,
)
from bridgegarden.errors import ConfigError, ModelError
from bridgegarden.model_probes import check_causal_lm
from bridgegarden.objective.alignment import SupervisedPositions
from bridgegarden.objective.fused import ProjectedTeacher

if TYPE_CHECKING:
    from peft import PeftModel

# What a collator may add that has no meaning for a model's forward.
_NOT_FOR_THE_MODEL = ("labels", "row", "teacher_number", "use_cache", "output_router_logits")


class LiveTeacher:
    """A frozen causal language model that gives its distribution at supervised positions.

    Its logits are made chunk by chunk where the loss is computed, never for a whole batch.
    """

    def __init__(
        self,
        model: "PreTrainedModel | PeftModel",
        *,
        top_k: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """
        Args:
            model: the teacher, with or without adapters of PEFT; frozen and put in evaluation mode here, its dtype
                kept.
            top_k: tokens kept per position, with the tail; None keeps the whole vocabulary (exact).
            device: where it runs; the student's device by default (set by the trainer). A model that is already
                split over devices, or sharded over processes by FSDP2, stays where it is.

        Raises:
            ConfigError: `top_k` < 1.
            ModelError: the teacher's head cannot be read, its weights are not here, or it is more than a model with
                adapters in its layers.
        """
        model = _without_adapters(model)
        if top_k is not None and top_k < 1:
            raise ConfigError(f"teacher.top_k must be >= 1 or null (whole vocabulary), got {top_k}.")
        # Of one that accelerate has split, what has no value here is kept on the CPU or on disk.
        if any((p.is_meta and not is_split(model)) or is_split_by_zero(p) for p in model.parameters()):
            raise ModelError(
                f"teacher {name_of(model)}: its weights are not in this process. "
                "Once training arguments with FSDP (fsdp_cpu_ram_efficient_loading) or ZeRO-3 exist, transformers "
                "loads every model in one process of a machine alone, or in pieces: load the teacher before them, or "
                "train from a cache."
            )
        freeze(model)
        take_off_wrappers(model)
        # Called as a whole: what shards a model gathers its weights in hooks around that call.
        add_hidden_loss(model)
        self.model = model
        self.top_k = top_k
        self._device = None if device is None else torch.device(device)
        check_causal_lm(model)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        dtype: str = "auto",
        top_k: int | None = None,
        device: torch.device | str | None = None,
    ) -> "LiveTeacher":
        """A teacher by its name on the hub, or its folder: safetensors only, no code from the hub.

        Args:
            name: of the model.
            revision: branch, tag or commit on the hub; None is the newest.
            dtype: of its weights; ``auto`` is the type they were saved in.
            top_k: as above.
            device: as above.

        Raises:
            ConfigError: as above.
            ModelError: it cannot be loaded, its files lack weights; and as above.
        """
        return cls(_load(str(name), revision, dtype), top_k=top_k, device=device)

    @property
    def name(self) -> str:
        """The model's name or path."""
        return name_of(self.model)

    @property
    def width(self) -> int:
        """Rows of the projection, padding included."""
        return head_size(self.model)

    def place(self, student_device: torch.device) -> None:
        """Move the teacher to its device, the student's unless another was asked for."""
        if not is_split(self.model) and not isinstance(self.model, FSDPModule):
            cast(nn.Module, self.model).to(self._device or student_device)

    def at(
        self,
        positions: SupervisedPositions,
        inputs: Mapping[str, Any],
        *,
        vocab_size: int,
        exponents: tuple[float, ...],
    ) -> ProjectedTeacher:
        """One forward without gradient; logits are made where the loss asks for them. See :class:`Teacher`."""
        device = input_device(self.model)
        own = {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in inputs.items()
            if name not in _NOT_FOR_THE_MODEL
        }
        with torch.no_grad():
            # A student's autocast must not change the teacher's own precision.
            with torch.autocast(device.type, enabled=False):
                hidden, head = read_hidden(self.model, own)
                hidden = positions.of(hidden)
        return ProjectedTeacher(
            hidden, head, self.top_k, vocab_size, exponents, device=positions.row.device, labels=positions.target
        )


def _without_adapters(model: "PreTrainedModel | PeftModel") -> PreTrainedModel:
    """The model that adapters were put into; they are part of it, unless they are a prompt."""
    inner = language_model_in(model)
    if inner is not model and cast("PeftModel", model).active_peft_config.is_prompt_learning:
        raise ModelError(
            f"teacher {name_of(inner)}: its adapter is a learnt prompt, which is "
            "not part of its layers and would be left out. Use adapters in its layers (LoRA and the like), or train "
            "from answers that it wrote."
        )
    return inner


def _load(name: str, revision: str | None, dtype: str) -> PreTrainedModel:
    try:
        with whole_in_every_process():
            model, info = AutoModelForCausalLM.from_pretrained(
                name,
                revision=revision,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )  # pyright: ignore[reportGeneralTypeIssues]  a pair, with loading info
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(" .:")
        raise ModelError(
            f"teacher {name!r}: cannot be loaded ({reason}). Is it a folder or a name on the hub?"
        ) from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ModelError(
            f"teacher {name!r}: its files lack {len(missing)} weights ({missing[0]}{', ...' if missing[1:] else ''}), "
            "which would be random. Are its files complete?"
        )
    return model
