"""What the library needs of a Hugging Face causal language model: final hidden states and the projection after them.

Calling a model's own forward would build the whole [B, T, V] logits. Instead its decoder is run alone and its head is
read off; :func:`check_head` proves on a few tokens that reading was right for this architecture.
"""

import functools
import types
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PretrainedConfig, PreTrainedModel

from bridgegarden.errors import ModelError
from bridgegarden.objective.head import LanguageModelHead

HiddenLoss = Callable[[Tensor, LanguageModelHead], Mapping[str, Tensor]]
"""From final hidden states ``(B, T, D)`` and the head to a mapping of tensors."""


def head_of(model: PreTrainedModel) -> LanguageModelHead:
    """The projection of `model` from final hidden states to logits, read from its modules and config.

    Raises:
        ModelError: the model has no linear output projection, or an adapter on it.
    """
    module: Any = model.get_output_embeddings()
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or hasattr(module, "base_layer"):
        raise ModelError(
            f"{type(model).__name__}: expected a linear output projection, got {type(module).__name__}. Adapters on "
            "the language-model head are not supported: leave it out of the adapter's target modules."
        )
    config = model.config.get_text_config()
    return LanguageModelHead(
        weight=_whole(weight),
        bias=None if module.bias is None else _whole(module.bias),
        softcap=getattr(config, "final_logit_softcapping", None),
        scale=_logit_scale(config),
    )


def hidden_states(model: PreTrainedModel, inputs: Mapping[str, Any]) -> Tensor:
    """Final hidden states ``(B, T, D)``, after the last norm, of the decoder of `model` on `inputs`.

    Raises:
        ModelError: the decoder returned another number of positions than it was given.
    """
    output = model.base_model(**inputs, use_cache=False).last_hidden_state
    if output.shape[:2] != inputs["input_ids"].shape:
        raise ModelError(
            f"{type(model).__name__}: got hidden states of shape {tuple(output.shape)} for input ids of shape "
            f"{tuple(inputs['input_ids'].shape)}. Methods that add virtual tokens (prompt tuning) are not supported."
        )
    return output


def add_hidden_loss(model: PreTrainedModel) -> None:
    """Teach `model` the argument ``hidden_loss``: run the decoder, hand its hidden states and the head to a function.

    The function runs *inside* the forward, so that the hooks of DistributedDataParallel and of FSDP (which gathers the
    head's weight for the duration of the forward) see an ordinary call. Without the argument nothing changes.
    """
    original_forward = model.forward

    # Wrapped so that `generate` and the trainer see the signature they inspect.
    @functools.wraps(type(model).forward)
    def forward(self: PreTrainedModel, *args: Any, hidden_loss: HiddenLoss | None = None, **kwargs: Any) -> Any:
        if hidden_loss is None:
            return original_forward(*args, **kwargs)
        return hidden_loss(hidden_states(self, kwargs), head_of(self))

    model.forward = types.MethodType(forward, model)


def check_head(model: PreTrainedModel) -> None:
    """Make sure that decoder and head, as read here, give the model's own logits on a few tokens.

    Raises:
        ModelError: they do not, and training on them would optimise another model; or they are not finite.
    """
    ids = torch.arange(4, device=model.device).unsqueeze(0)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        own = model(input_ids=ids, use_cache=False).logits[0].float()
        ours = head_of(model).logits(hidden_states(model, {"input_ids": ids})[0])
    model.train(was_training)
    if not torch.isfinite(own).all():
        raise ModelError(
            f"{model.config._name_or_path or type(model).__name__}: its logits are not finite in {model.dtype}. Its "
            "weights are damaged, or it needs bfloat16 or float32."
        )
    off = (own - ours).abs().max().item()
    # Half-precision models round their logits once more than we do.
    tolerance = 1e-3 if model.dtype in (torch.float32, torch.float64) else 2e-2
    if not off <= tolerance * max(1.0, own.abs().max().item()):
        raise ModelError(
            f"{type(model).__name__} ({model.config.model_type}): logits computed from its hidden states and head "
            f"differ from its own by up to {off:.3g}. Its head does more than project, scale and cap; this "
            "architecture is not supported."
        )


def _logit_scale(config: PretrainedConfig) -> float:
    """The factor on the logits: a multiplier (Cohere, Falcon-H1) or one over a divisor (Granite)."""
    for name in ("logit_scale", "lm_head_multiplier"):
        value = getattr(config, name, None)
        if value is not None:
            return float(value)
    divisor = getattr(config, "logits_scaling", None)
    return 1.0 if divisor is None else 1.0 / float(divisor)


def _whole(parameter: Tensor) -> Tensor:
    """The whole of a parameter that FSDP2 may have sharded; one gather, differentiable."""
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def freeze(model: nn.Module) -> None:
    """Evaluation mode, no gradients: a teacher."""
    model.eval()
    model.requires_grad_(False)
