"""What is kept of a model, chosen and cut out."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bridgegarden.pruning.importance import Importance, most_important
from bridgegarden.pruning.shape import Shape, cut_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LAYER = re.compile(r"(.*\.layers\.)(\d+)\.(.+)")
"""A parameter's name: what comes before the layer, its number, and the parameter's own."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The parts of a model that are kept, by their numbers in it."""

    layers: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...] | None = None
    """Groups of heads of each layer that is kept, as many in each; None is all."""
    channels: tuple[tuple[int, ...], ...] | None = None
    """Channels of its MLP, likewise."""


def choose(importance: Importance, layers: Sequence[int] | int, groups: int | None, channels: int | None) -> Kept:
    """The most important parts.

    Args:
        importance: of all parts.
        layers: the layers that are kept, or how many of them.
        groups: how many groups of heads of each layer; None is all.
        channels: how many channels of each; None is all.
    """
    chosen = most_important(importance.layers, layers) if isinstance(layers, int) else tuple(layers)
    return Kept(
        layers=chosen,
        groups=None if groups is None else tuple(most_important(importance.groups[n], groups) for n in chosen),
        channels=None if channels is None else tuple(most_important(importance.channels[n], channels) for n in chosen),
    )


def cut(model: "PreTrainedModel", kept: Kept) -> "PreTrainedModel":
    """The model that is left of `model`, with `kept` alone: its embeddings, layers, last norm and head, as they are.

    A layer that is left out hands the residual stream on as it is; without a head or a channel the model computes what
    the whole one does where its output is zero.
    """
    shape = Shape.of(model.config)
    config = cut_config(
        model.config,
        kept.layers,
        heads=None if kept.groups is None else shape.group_size * len(kept.groups[0]),
        channels=None if kept.channels is None else len(kept.channels[0]),
    )
    place = {layer: number for number, layer in enumerate(kept.layers)}
    state: dict[str, Tensor] = {}
    for name, weight in model.state_dict().items():
        match = LAYER.fullmatch(name)
        if match is None:
            state[name] = weight
        elif int(match[2]) in place:
            number = place[int(match[2])]
            state[f"{match[1]}{number}.{match[3]}"] = _narrowed(weight, match[3], kept, number, shape)
    student = type(model).from_pretrained(None, config=config, state_dict=state, dtype=model.dtype)
    student.generation_config = model.generation_config
    return student.eval()


def _narrowed(weight: Tensor, name: str, kept: Kept, layer: int, shape: Shape) -> Tensor:
    """A weight or bias of a layer, without the heads or channels that are not kept."""
    projection = name.rpartition(".")[0].rpartition(".")[2]
    if kept.groups is not None and projection in ("q_proj", "k_proj", "v_proj", "o_proj"):
        size = shape.head_size * (1 if projection in ("k_proj", "v_proj") else shape.group_size)
        numbers = _spans(kept.groups[layer], size)
    elif kept.channels is not None and projection in ("gate_proj", "up_proj", "down_proj"):
        numbers = torch.tensor(kept.channels[layer])
    else:
        return weight
    if projection in ("o_proj", "down_proj"):
        # Back into the residual stream, which is as wide as it was: so is the bias.
        return weight[:, numbers] if weight.ndim == 2 else weight
    return weight[numbers]


def _spans(groups: Sequence[int], size: int) -> Tensor:
    """The numbers of all rows of groups of `size` rows."""
    return (torch.tensor(groups)[:, None] * size + torch.arange(size)).flatten()
