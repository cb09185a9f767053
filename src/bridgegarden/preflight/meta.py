"""A model's modules without its weights: shapes on the meta device, from the configuration alone."""

from typing import TYPE_CHECKING

from bridgegarden.errors import ModelError, foreign

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def meta_model(config: "PretrainedConfig") -> "PreTrainedModel":
    """The causal language model of `config`; no memory is taken, and its parameters have shapes and no values.

    Raises:
        ModelError: the architecture has no such setting, or its sizes do not fit each other.
    """
    import torch
    from transformers import AutoModelForCausalLM

    def refusal(words: str) -> ModelError:
        return ModelError(f"model {config._name_or_path!r}: config.json: no model can be built of it ({words}).")

    with foreign(refusal), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def parameter_count(model: "PreTrainedModel") -> int:
    """Parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
