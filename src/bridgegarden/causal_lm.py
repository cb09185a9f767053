"""What the library needs of a Hugging Face causal language model: final hidden states and the projection after them.

Calling a model's own forward would build the whole [B, T, V] logits. Instead its decoder is run alone and its head is
read off; :mod:`~bridgegarden.model_probes` proves on a few tokens that reading was right for this architecture.

The objective reads the head's weight itself and never calls the head's module, so whatever would gather a weight that
is spread over processes before that call (hooks of FSDP2 or of DeepSpeed's ZeRO-3) has to be asked for here.
"""

import functools
import inspect
import os
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import align_module_device
from accelerate.utils.operations import ConvertOutputsToFp32
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PretrainedConfig, PreTrainedModel

from bridgegarden.errors import ModelError
from bridgegarden.fake_quantisation import weight_of
from bridgegarden.objective.head import LanguageModelHead

HiddenLoss = Callable[[Tensor, LanguageModelHead], Mapping[str, Tensor]]
"""From final hidden states ``(B, T, D)`` and the head to a mapping of tensors."""
Decode = Callable[[nn.Module, Mapping[str, Any]], Tensor]
"""From a decoder and its inputs to final hidden states ``(B, T, D)``: :func:`last_hidden`, plain or compiled."""


def head_of(model: PreTrainedModel) -> LanguageModelHead:
    """The projection of `model` from final hidden states to logits, read from its modules and config.

    Raises:
        ModelError: the model has no linear output projection, or an adapter on it; or its weight is sharded and a
            gradient is wanted outside :func:`add_hidden_loss`.
    """
    module, name = _projection(model), type(model).__name__
    # Embeddings that serve as heads (tied, a few of their rows trained) have no bias.
    config = model.config.get_text_config()
    # What accelerate keeps on the CPU or on disk is brought to where it is computed with; our tensors stay there.
    with align_module_device(module):
        bias = getattr(module, "bias", None)
        return LanguageModelHead(
            weight=whole(weight_of(module), name),
            bias=None if bias is None else whole(bias, name),
            softcap=getattr(config, "final_logit_softcapping", None),
            scale=_logit_scale(config),
        )


def is_split(model: PreTrainedModel) -> bool:
    """Whether `model` was loaded with a device map: over several devices, or with layers that are kept elsewhere."""
    return getattr(model, "hf_device_map", None) is not None


def input_device(model: PreTrainedModel) -> torch.device:
    """Where token ids go. Of a model that accelerate has split, its hooks carry them on, layer by layer."""
    if model.device.type != "meta" or not is_split(model):
        return model.device
    # The first layers are kept on the CPU or on disk, and computed on the first device that has any.
    device_map: Any = model.hf_device_map
    found = [device for device in device_map.values() if device not in ("cpu", "disk")]
    return torch.device(found[0] if found else "cpu")


def head_size(model: PreTrainedModel) -> int:
    """Rows of the projection of `model`, padding included; nothing is gathered.

    Raises:
        ModelError: as in :func:`head_of`.
    """
    return rows(_projection(model).weight)


def _projection(model: PreTrainedModel) -> Any:
    module: Any = model.get_output_embeddings()
    if not isinstance(getattr(module, "weight", None), Tensor) or hasattr(module, "base_layer"):
        raise ModelError(
            f"{type(model).__name__}: expected a linear output projection, got {type(module).__name__}. Adapters on "
            "the language-model head are not supported: leave it out of the adapter's target modules."
        )
    return module


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """Everything of `model` but its head: what turns token ids into final hidden states.

    Raises:
        ModelError: it has no such part.
    """
    if model.base_model is not model:
        return model.base_model
    # Llama 4 calls it otherwise than its class says.
    inner = [child for child in model.children() if isinstance(child, PreTrainedModel)]
    if len(inner) != 1:
        raise ModelError(
            f"{architecture(model)}: no part of it gives final hidden states, which its head would project. Load a "
            "causal language model (AutoModelForCausalLM), or another architecture."
        )
    return inner[0]


def architecture(model: PreTrainedModel) -> str:
    """How errors call the kind of `model`: its class, and the type that its config names."""
    return f"{type(model).__name__} ({model.config.model_type})"


def name_of(model: PreTrainedModel) -> str:
    """How errors call `model` itself: the name or path that it was loaded by, else its class."""
    return model.config.name_or_path or type(model).__name__


def last_hidden(decoder: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """Final hidden states ``(B, T, D)`` of `decoder`."""
    return decoder(**inputs, use_cache=False).last_hidden_state


def compiled(backend: str | None, mode: str | None) -> Decode:
    """:func:`last_hidden` through ``torch.compile``.

    Only what is called with it is compiled: a model that also writes token by token, or is saved, is left as it is and
    none of its weights has another name. The losses are outside, since what they close over is new at every step.

    Args:
        backend: of ``torch.compile``; inductor if None.
        mode: of ``torch.compile``.
    """
    # PyTorch counts compilations by the code that is run, and stops compiling after a few: each model has its own.
    own = types.FunctionType(last_hidden.__code__.replace(), last_hidden.__globals__, "last_hidden")
    return torch.compile(own, backend=backend or "inductor", mode=mode)


def hidden_states(model: PreTrainedModel, inputs: Mapping[str, Any], decode: Decode = last_hidden) -> Tensor:
    """Final hidden states ``(B, T, D)``, after the last norm, of the decoder of `model` on `inputs`.

    Raises:
        ModelError: the decoder returned another number of positions than it was given.
    """
    output = decode(decoder_of(model), inputs)
    if output.shape[:2] != inputs["input_ids"].shape:
        raise ModelError(
            f"{type(model).__name__}: got hidden states of shape {tuple(output.shape)} for input ids of shape "
            f"{tuple(inputs['input_ids'].shape)}. Methods that add virtual tokens (prompt tuning) are not supported."
        )
    return output


def cache_argument(module: nn.Module) -> str:
    """By what name the forward of `module` takes keys and values: ``cache``, or ``past_key_values`` as before.

    transformers 5.24 renamed it, architecture by architecture; a model's own forward says which it is.
    """
    return "cache" if "cache" in inspect.signature(module.forward).parameters else "past_key_values"


def add_hidden_loss(model: PreTrainedModel, decode: Decode = last_hidden) -> None:
    """Teach `model` the argument ``hidden_loss``: run the decoder, hand its hidden states and the head to a function.

    The function runs *inside* the forward, so that the hooks of DistributedDataParallel and of FSDP see an ordinary
    call, and there the head is whole, gathered once however many chunks the function makes of its positions. Without
    the argument nothing changes. A model that has learnt it already stays as it is.

    Args:
        model: what learns it.
        decode: how its decoder is called for a ``hidden_loss``.
    """
    if takes_hidden_loss(model):
        return
    # Somebody else's patch, if there is one. The class's own is looked up when called: a copy of the model must not
    # call the original's.
    patched = model.__dict__.get("forward")

    # Wrapped so that `generate` and the trainer see the signature they inspect.
    @functools.wraps(type(model).forward)
    def forward(self: PreTrainedModel, *args: Any, hidden_loss: HiddenLoss | None = None, **kwargs: Any) -> Any:
        if hidden_loss is None:
            return type(self).forward(self, *args, **kwargs) if patched is None else patched(*args, **kwargs)
        hidden = hidden_states(self, kwargs, decode)
        with gathered_for_loss(_projection(self)):
            return hidden_loss(hidden, head_of(self))

    forward.takes_hidden_loss = True  # pyright: ignore[reportAttributeAccessIssue]  a mark on the function
    forward.inside = patched or type(model).forward  # pyright: ignore[reportAttributeAccessIssue]
    model.forward = types.MethodType(forward, model)


def take_off_wrappers(model: nn.Module) -> None:
    """Take off what earlier trainers of this process left around the forward of `model`.

    accelerate's mixed precision, TRL's fused head and :func:`add_hidden_loss` replace the forward of an object for
    good: a model that comes from a training in bfloat16 would go on computing in it, whoever asks, and a copy of one
    with TRL's head would ask the original. Anything else in its place (hooks that move weights between devices, a
    patch of somebody's own) stays.
    """
    outermost: Any = model.__dict__.get("forward")
    forward = outermost
    while (inner := _inside(forward)) is not None:
        forward = inner
    if forward is outermost:
        return
    model.__dict__.pop("_original_forward", None)
    if getattr(forward, "__func__", forward) is type(model).forward:
        del model.forward
    else:
        model.forward = forward


def _inside(forward: Any) -> Any:
    """The forward that a known wrapper calls; None where `forward` is not one."""
    function = getattr(forward, "__func__", forward)
    if not isinstance(function, types.FunctionType):
        return None
    wrapped = getattr(function, "__wrapped__", None)
    if isinstance(wrapped, ConvertOutputsToFp32):
        # Around autocast, which is around the forward, or the function in it where that was bound to the model.
        inner = wrapped.model_forward.__wrapped__
        return types.MethodType(inner, forward.__self__) if hasattr(forward, "__self__") else inner
    if function.__globals__ is globals():
        return getattr(function, "inside", None)
    if (function.__globals__["__name__"], function.__code__.co_name) == ("trl.trainer.utils", "_fused_forward"):
        return inspect.getclosurevars(function).nonlocals["original_forward"]
    return None


def language_model_in(model: Any) -> PreTrainedModel:
    """The causal language model inside adapters, or `model` itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def takes_hidden_loss(model: PreTrainedModel) -> bool:
    """Whether `model` has been through :func:`add_hidden_loss`."""
    return getattr(model.forward, "takes_hidden_loss", False)


def read_hidden(model: PreTrainedModel, inputs: Mapping[str, Any]) -> tuple[Tensor, LanguageModelHead]:
    """Final hidden states ``(B, T, D)`` and the head, without gradient, both on the head's device.

    A model that takes a ``hidden_loss`` is called as a whole, so that it may be sharded.
    """
    with torch.no_grad():
        if not takes_hidden_loss(model):
            head = head_of(model)
            return hidden_states(model, inputs).to(head.weight.device), head
        heads: list[LanguageModelHead] = []

        def keep(hidden: Tensor, head: LanguageModelHead) -> dict[str, Tensor]:
            heads.append(head)
            return {"hidden": hidden}

        hidden = model(**inputs, hidden_loss=keep)["hidden"]
        # FSDP2 may have given back what it had gathered for the forward.
        kept = heads[0].weight.untyped_storage().size() > 0
        head = heads[0] if kept else head_of(model)
        return hidden.to(head.weight.device), head


def _logit_scale(config: PretrainedConfig) -> float:
    """The factor on the logits: a multiplier (Cohere, Falcon-H1) or one over a divisor (Granite)."""
    for name in ("logit_scale", "lm_head_multiplier"):
        value = getattr(config, name, None)
        if value is not None:
            return float(value)
    divisor = getattr(config, "logits_scaling", None)
    return 1.0 if divisor is None else 1.0 / float(divisor)


def freeze(model: nn.Module) -> None:
    """Evaluation mode, no gradients: a teacher."""
    model.eval()
    model.requires_grad_(False)


@contextmanager
def gathered_for_loss(head: nn.Module) -> Iterator[None]:
    """The weights of `head` whole inside, so that a loss made of them has their gradient.

    FSDP2 then reduces the gradient over processes and gives the memory back after the backward, as it does for a module
    that was called: also where the head is a group of its own, whose hooks never run. ZeRO-3 splits the weights again
    on leaving, so the gradient must have been made by then, as the fused loss does.
    """
    if isinstance(head, FSDPModule) and torch.is_grad_enabled():
        # Nothing to do, and nothing done, where the group's hooks gathered it already.
        head.unshard()
    with gathered_by_zero(head.parameters(recurse=False)):
        yield


@contextmanager
def gathered_by_zero(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Those of `parameters` that ZeRO-3 has split, whole inside. Each is gathered once, tied or not."""
    split = list({id(p): p for p in parameters if is_split_by_zero(p)}.values())
    if not split:
        yield
        return
    import deepspeed  # pyright: ignore[reportMissingImports]  whoever has such parameters has it

    with deepspeed.zero.GatheredParameters(split):
        yield


def whole(parameter: Tensor, name: str) -> Tensor:
    """`parameter` in one piece; one gather where it is sharded and no gradient is wanted.

    Raises:
        ModelError: its gradient is wanted. The gradient of a gathered copy would be this process's alone.
    """
    if not isinstance(parameter, DTensor):
        return parameter
    if parameter.requires_grad and torch.is_grad_enabled():
        raise ModelError(
            f"{name}: the weight of its head is sharded over {parameter.device_mesh.size()} processes and was not "
            "gathered. Train through the model's forward (hidden_loss), with FSDP2 or ZeRO-3; tensor parallelism is "
            "not supported for the student's head."
        )
    return parameter.full_tensor()


def stored_parts(parameter: Tensor) -> list[Tensor]:
    """The tensors in memory of which `parameter` is made: its part in this process, or several where it stands for
    rounded weights and their scales (torchao)."""
    if isinstance(parameter, DTensor):
        return [parameter.to_local()]
    flatten = getattr(parameter, "__tensor_flatten__", None)
    return [parameter] if flatten is None else [getattr(parameter, part) for part in flatten()[0]]


def rows(parameter: Tensor) -> int:
    """Rows of `parameter` as a whole, without gathering it."""
    shape: Any = getattr(parameter, "ds_shape", parameter.shape)
    return int(shape[0])


def is_split_by_zero(parameter: Tensor) -> bool:
    """Whether ZeRO-3 has left this process a piece of `parameter` only."""
    status = getattr(parameter, "ds_status", None)
    return status is not None and status.name == "NOT_AVAILABLE"


@contextmanager
def whole_in_every_process() -> Iterator[None]:
    """Keep transformers from loading as it does what will be sharded: in one process alone, or in pieces."""
    from transformers.integrations import deepspeed

    name = "FSDP_CPU_RAM_EFFICIENT_LOADING"
    told, zero = os.environ.get(name), deepspeed._hf_deepspeed_config_weak_ref
    os.environ[name] = "false"
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = zero
        if told is None:
            del os.environ[name]
        else:
            os.environ[name] = told
