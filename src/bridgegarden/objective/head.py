"""The last layer of a language model: from hidden states to logits, and back."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LanguageModelHead:
    r"""Logits as a function of hidden states: :math:`z = cap \tanh(scale (W h + b) / cap)`, without cap if None."""

    weight: Float[Tensor, "V D"]
    """Vocabulary projection (tied to the embedding or not)."""
    bias: Float[Tensor, "V"] | None = None
    """Added before scaling."""
    softcap: float | None = None
    """Final logit soft-capping (Gemma 2)."""
    scale: float = 1.0
    """Factor on the logits (Cohere), or one over the divisor (Granite)."""

    @property
    def vocab_size(self) -> int:
        """Number of rows of the projection, padding included."""
        return self.weight.shape[0]

    def logits(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        """Logits in float32 or better, multiplied out in the dtype of the weight or the one autocast asks for."""
        dtype = compute_dtype(hidden, self.weight)
        with torch.autocast(hidden.device.type, enabled=False):
            logits = torch.nn.functional.linear(hidden.to(dtype), self.weight.to(dtype))
            logits = logits.to(torch.promote_types(dtype, torch.float32))
            if self.bias is not None:
                logits = logits + self.bias
            if self.scale != 1.0:
                logits = logits * self.scale
            return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def pull_back(self, logits: Float[Tensor, "N V"], gradient: Float[Tensor, "N V"]) -> Float[Tensor, "N V"]:
        """Turn the gradient for `logits` into that for ``W h + b``, in place where it can."""
        if self.softcap is not None:
            gradient = gradient.mul_(1 - (logits / self.softcap).square())
        return gradient if self.scale == 1.0 else gradient.mul_(self.scale)


def compute_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """The dtype in which `hidden` and `weight` are multiplied: autocast's where it is on, else the common one."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device) and hidden.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return torch.promote_types(hidden.dtype, weight.dtype)
