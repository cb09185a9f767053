"""A head whose weights are spread over processes, whole while it is used: one gather, whoever spread them.

The objective reads the head's weight itself and never calls the head's module, so whatever would gather the weight
before that call (hooks of FSDP2 or of DeepSpeed's ZeRO-3) has to be asked for here.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from bridgegarden.errors import ModelError


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
