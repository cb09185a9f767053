"""A model's modules without its weights: shapes on the meta device, from the configuration alone."""

from typing import TYPE_CHECKING

from bridgegarden.errors import ModelError, foreign

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

FIRST_ROWS = 8
"""Rows at the start of a table of positions that some architectures leave out, at most."""


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


def position_table(config: "PretrainedConfig") -> int | None:
    """How many positions the model of `config` looks up in a table; None where it computes them (rotary, ALiBi).

    From shapes alone: an embedding beside that of the tokens, with a row for every position (and a few to spare).
    """
    from torch import nn

    stated = getattr(config.get_text_config(), "max_position_embeddings", None)
    if stated is None:
        return None
    model = meta_model(config)
    words = model.get_input_embeddings()
    tables = (module for module in model.modules() if isinstance(module, nn.Embedding) and module is not words)
    return stated if any(0 <= table.num_embeddings - stated <= FIRST_ROWS for table in tables) else None
