"""How deep and wide a decoder is, and the configuration of what is left when it is cut.

The architectures in :data:`ARCHITECTURES` have all that is assumed here: layers between which nothing but the residual
stream is handed on, attention with one projection each for queries, keys, values and output, and a gated MLP. What a
configuration says layer by layer is cut with the layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bridgegarden.errors import ConfigError, foreign

if TYPE_CHECKING:
    from transformers import PretrainedConfig

ARCHITECTURES = ("gemma", "gemma2", "gemma3_text", "llama", "mistral", "qwen2", "qwen3", "smollm3")
"""Those that can be cut, by transformers' ``model_type``."""
BY_LAYER = ("layer_types", "no_rope_layers")
"""Settings with an entry for each layer."""
NOT_KEPT = ("_name_or_path", "quantization_config", "transformers_version")
"""What a configuration says of its own files."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How deep and wide a decoder is; the hidden size is never cut."""

    layers: int
    heads: int
    """Attention heads of a layer: those of queries."""
    groups: int
    """Heads of keys and values, each shared by a group of query heads."""
    channels: int
    """Of a layer's MLP."""
    head_size: int
    """Numbers of a head."""

    @classmethod
    def of(cls, config: "PretrainedConfig") -> "Shape":
        """Of a model of :data:`ARCHITECTURES`."""
        settings: Any = config
        return cls(
            layers=settings.num_hidden_layers,
            heads=settings.num_attention_heads,
            groups=settings.num_key_value_heads,
            channels=settings.intermediate_size,
            head_size=getattr(settings, "head_dim", None) or settings.hidden_size // settings.num_attention_heads,
        )

    @property
    def group_size(self) -> int:
        """Query heads that share keys and values."""
        return self.heads // self.groups


def cut_config(
    config: "PretrainedConfig", layers: Sequence[int], *, heads: int | None = None, channels: int | None = None
) -> "PretrainedConfig":
    """The configuration of a model without some layers, heads and channels.

    Args:
        config: of the whole model, of an architecture in :data:`ARCHITECTURES`.
        layers: the numbers of those that are kept, in order.
        heads: query heads that are kept of each layer, in whole groups; None is all.
        channels: of each layer's MLP; None is all.

    Raises:
        ConfigError: the architecture does not allow such a model, in the words of transformers.
    """
    settings = {name: value for name, value in config.to_dict().items() if name not in NOT_KEPT}
    shape = Shape.of(config)
    settings["num_hidden_layers"] = len(layers)
    for name in BY_LAYER:
        if settings.get(name) is not None:
            settings[name] = [settings[name][layer] for layer in layers]
    if settings.get("max_window_layers") is not None:
        # The layers before it see everything; they are the first ones of those that are kept, too.
        settings["max_window_layers"] = sum(layer < settings["max_window_layers"] for layer in layers)
    if heads is not None:
        # Otherwise a head's size is what the hidden size divided by their number is.
        settings |= {"num_attention_heads": heads, "head_dim": shape.head_size}
        settings["num_key_value_heads"] = heads // shape.group_size
    if channels is not None:
        settings["intermediate_size"] = channels
    with foreign(lambda words: ConfigError(f"{words}.")):
        return type(config).from_dict(settings)


def possible_heads(config: "PretrainedConfig") -> list[int]:
    """Numbers of query heads, fewer than there are, that `config` could have: whole groups of them."""
    shape = Shape.of(config)
    found = []
    for heads in range(shape.group_size, shape.heads, shape.group_size):
        try:
            cut_config(config, range(shape.layers), heads=heads)
        except ConfigError:  # several architectures want the hidden size to be a multiple of it
            continue
        found.append(heads)
    return found
