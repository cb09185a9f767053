"""Floating-point operations of a causal language model, from its configuration alone.

Only matrix products are counted, a multiplication and an addition each: they are all but a per cent or two of the
work, and what :class:`torch.utils.flop_counter.FlopCounterMode` counts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bridgegarden.errors import ModelError
from bridgegarden.preflight.memory import trained_parameters
from bridgegarden.preflight.models import meta_model

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PretrainedConfig, PreTrainedModel

    from bridgegarden.preflight.models import ModelFacts

_EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")
_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}


@dataclass(frozen=True, kw_only=True)
class ForwardFlops:
    r"""What one token costs in a forward, by what the cost depends on.

    .. math:: F(c) = 2 W + \sum_\ell 2 h \, (d_{qk} + d_v) \, \min(c, w_\ell)
    """

    weights: float
    """2 W: twice the weights of the layers' matrices. Grouped key and value heads are narrower matrices; of a mixture
    of experts, those that a token is sent to."""
    attention: float
    """2 h (d_qk + d_v): operations a layer for each key that the token attends to."""
    windows: tuple[int | None, ...]
    """w: how many keys a token attends to at most, for every layer; None where all."""
    head: float
    """2 D V: the vocabulary projection, tied or not. Not part of :meth:`layers`: it is done only where it is needed."""

    def layers(self, context_length: float) -> float:
        """Operations for one token in all layers.

        Args:
            context_length: keys that the token attends to. In a row of T tokens it is T for kernels that compute what
                the causal mask then hides (and for FlopCounterMode), and (T + 1) / 2 on average for those that skip
                it; of n tokens generated after a prompt of P it is P + (n + 1) / 2 on average.
        """
        keys = sum(context_length if window is None else min(context_length, window) for window in self.windows)
        return self.weights + self.attention * keys


@dataclass(frozen=True, kw_only=True)
class StepFlops:
    """What a student's training step costs, forward and backward, by what the cost depends on.

    A product has two more in the backward: the gradients of both its sides. That of a weight that is not trained is
    left out; the two sides of attention's products are activations, whose gradients are needed in any case.
    """

    forward: ForwardFlops
    adapters: float
    """Operations a token in the adapters' forward: twice their weights. 0 where all weights are trained."""
    gradient_checkpointing: bool
    frozen: bool
    """Whether adapters are trained, and neither the weights under them nor the head are."""

    @classmethod
    def of(cls, student: "ModelFacts", *, lora: "LoraConfig | None", gradient_checkpointing: bool) -> "StepFlops":
        """Of a student.

        Args:
            student: the model that is trained.
            lora: its adapters; None where all weights are trained.
            gradient_checkpointing: whether the layers are computed again in the backward.

        Raises:
            ConfigError: the adapters fit no layer.
            ModelError: it has layers whose operations cannot be counted.
        """
        return cls(
            forward=forward_flops(student.config),
            adapters=0.0 if lora is None else 2.0 * trained_parameters(student, lora)[0],
            gradient_checkpointing=gradient_checkpointing,
            frozen=lora is not None,
        )

    def layers(self, context: float) -> float:
        """Operations for one token in all layers.

        Args:
            context: keys that it attends to; see :meth:`ForwardFlops.layers`.
        """
        trained = forwards_a_training_step(gradient_checkpointing=self.gradient_checkpointing)
        weights = forwards_a_training_step(gradient_checkpointing=self.gradient_checkpointing, frozen=self.frozen)
        attention = self.forward.layers(context) - self.forward.weights
        return weights * self.forward.weights + trained * (attention + self.adapters)

    @property
    def head(self) -> float:
        """Operations of the vocabulary projection and its gradients at one position. It is never computed again."""
        return forwards_a_training_step(frozen=self.frozen) * self.forward.head


def forward_flops(config: "PretrainedConfig") -> ForwardFlops:
    """What one token costs in a forward of the model of `config`.

    Raises:
        ModelError: it has layers other than attention and what is between, which this does not count.
    """
    text = config.get_text_config()
    model = meta_model(config)
    windows = _windows(text)
    head: Any = model.get_output_embeddings()
    return ForwardFlops(
        weights=2.0 * sum(_products(model, text)),
        attention=2.0 * text.num_attention_heads * sum(_head_widths(text)),
        windows=windows,
        head=2.0 * head.weight.numel(),
    )


def forwards_a_training_step(*, gradient_checkpointing: bool = False, frozen: bool = False) -> float:
    """What a training step costs, in forwards: the backward is two (the gradient of the input, that of the weight).

    Args:
        gradient_checkpointing: whether the layers are computed once more in the backward; an upper bound, for PyTorch
            leaves out each layer's last product, which no gradient needs. The vocabulary projection is not computed
            again: its gradient is finished in the forward.
        frozen: whether the weights are not trained (adapters are), so that only the input's gradient is computed.
    """
    return 1.0 + (1.0 if frozen else 2.0) + (1.0 if gradient_checkpointing else 0.0)


def _products(model: "PreTrainedModel", text: Any) -> Iterator[float]:
    """Weights of every matrix but the head's, by how often a token is multiplied with each."""
    from torch.nn import Embedding

    head = model.get_output_embeddings()
    experts, share = _experts(text)
    for module in model.modules():
        if module is head or isinstance(module, Embedding):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() < 2 or name.endswith("bias"):
                continue
            is_expert = experts is not None and parameter.dim() == 3 and parameter.shape[0] == experts
            if parameter.dim() > 2 and not is_expert:
                raise _unknown(text, f"{type(module).__name__}.{name} is no matrix")
            yield parameter.numel() * (share if is_expert else 1.0)


def _experts(text: Any) -> tuple[int | None, float]:
    """How many experts a layer has, and the share of them that a token is sent to."""
    count = next((getattr(text, name) for name in _EXPERT_COUNTS if getattr(text, name, None)), None)
    if count is None:
        return None, 1.0
    chosen = getattr(text, "num_experts_per_tok", None)
    if chosen is None:
        raise _unknown(text, "it has experts, and does not say how many a token is sent to")
    return count, chosen / count


def _windows(text: Any) -> tuple[int | None, ...]:
    if getattr(text, "num_attention_heads", None) is None:
        raise _unknown(text, "it has no attention")
    kinds = getattr(text, "layer_types", None)
    sliding, chunk = getattr(text, "sliding_window", None), getattr(text, "attention_chunk_size", None)
    if kinds is None:
        # Without kinds, a window holds for every layer (Mistral), unless switched off (Qwen2).
        return (sliding if getattr(text, "use_sliding_window", True) else None,) * text.num_hidden_layers
    if other := sorted(set(kinds) - _ATTENTION):
        raise _unknown(text, f"it has layers of kind {other[0]!r}")
    limits = {"full_attention": None, "sliding_attention": sliding, "chunked_attention": chunk}
    return tuple(limits[kind] for kind in kinds)


def _head_widths(text: Any) -> tuple[int, int]:
    """Of a query or key, and of a value."""
    if getattr(text, "kv_lora_rank", None):
        return text.qk_nope_head_dim + text.qk_rope_head_dim, text.v_head_dim
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return width, width


def _unknown(text: Any, reason: str) -> ModelError:
    return ModelError(
        f"model type {text.model_type!r}: its operations cannot be counted ({reason}); only attention, matrices and "
        "mixtures of experts can."
    )
