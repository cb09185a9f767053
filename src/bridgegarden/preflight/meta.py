"""A model's modules without its weights: shapes on the meta device, from the configuration alone."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def meta_model(config: "PretrainedConfig") -> "PreTrainedModel":
    """The causal language model of `config`; no memory is taken, and its parameters have shapes and no values."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def parameter_count(model: "PreTrainedModel") -> int:
    """Parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
