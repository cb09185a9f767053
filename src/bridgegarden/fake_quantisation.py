"""Weights trained as a GGUF file will hold them: rounded in every forward, whole between two steps.

A file of few bits holds, of every 32 neighbouring numbers of a row, one or two in half precision and a small integer
for each. What that makes of a matrix is a function of it alone, :func:`rounded`, equal bit for bit to what the package
``gguf`` writes and reads back; so a student that computes with it in training (`train_rounded`) computes what the file
will, apart from how the program that runs the file rounds activations. Rounding has no slope, so its gradient is taken
to be one (straight through), and what the optimiser moves are the whole numbers.

Bengio et al., 2013, arXiv:1308.3432, section 2; Jacob et al., 2018, arXiv:1712.05877, section 3.
"""

import types
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from bridgegarden.errors import ModelError

BLOCK = 32
"""Neighbouring numbers of a row that are rounded together."""
CHUNK = {"cpu": 2**16, "cuda": 2**24}
"""Numbers that are rounded at a time, a multiple of :data:`BLOCK`, by kind of device."""
FEW_BITS = ("Q5_1", "Q5_0", "Q4_1", "Q4_0")
"""In files of these the embedding and the head have eight bits, as llama.cpp's own have more there than elsewhere."""
QUANTISED = ("Q8_0", *FEW_BITS)
"""Types of weights that are rounded in blocks, most bits first, by llama.cpp's names."""


def stored_type(kind: str, shape: Sequence[int], *, wide: bool) -> str:
    """What a tensor is written as in a file of `kind`.

    Args:
        kind: one of `QUANTISED`, or a type without blocks (F32, F16, BF16).
        shape: of the tensor.
        wide: whether it is the embedding or the head.
    """
    if len(shape) < 2:
        return "F32"
    own = "Q8_0" if kind in FEW_BITS and wide else kind
    return "F16" if own in QUANTISED and shape[-1] % BLOCK else own


def rounded(weight: Tensor, kind: str) -> Tensor:
    r"""`weight` written as `kind` and read again.

    In each block of :data:`BLOCK` numbers w, with all arithmetic in float32 and d, m kept in half precision once the
    integers q are found:

    .. math::
        \text{Q8\_0:}\ d = \max |w| / 127,\ q = \mathrm{round}(w / d),\ d q \qquad
        \text{Qb\_0:}\ d = w^* / {-2^{b-1}},\ q = \lfloor w / d + 2^{b-1} + 1/2 \rfloor,\ d (q - 2^{b-1}) \qquad
        \text{Qb\_1:}\ m = \min w,\ d = (\max w - m) / (2^b - 1),\ q = \lfloor (w - m) / d + 1/2 \rfloor,\ d q + m

    Args:
        weight: ``(*rows, D)`` of any floating type, D a multiple of :data:`BLOCK` but for F16 and F32.
        kind: one of :data:`QUANTISED`, F16 or F32.

    Returns:
        The same shape and type. w* is the number of largest size, the first of several.
    """
    whole = weight.detach()
    if kind in ("F16", "F32"):
        return whole.to(getattr(torch, {"F16": "half", "F32": "float"}[kind])).to(weight.dtype, copy=True)
    back = torch.empty_like(whole, memory_format=torch.contiguous_format)
    # A part at a time, so that what it takes on the way is small: on a CPU so small that it stays in the cache.
    size = CHUNK["cpu" if weight.device.type == "cpu" else "cuda"]
    for part, place in zip(whole.reshape(-1).split(size), back.view(-1).split(size), strict=True):
        blocks = part.float().view(-1, BLOCK)
        if kind == "Q8_0":
            made = _eight_bits(blocks)
        else:
            bits, with_least = int(kind[1]), kind.endswith("_1")
            made = _from_least(blocks, bits) if with_least else _from_largest(blocks, bits)
        place.copy_(made.view(-1))
    return back


def _eight_bits(blocks: Tensor) -> Tensor:
    scale = _over(blocks.abs().amax(-1, keepdim=True), 127)
    steps = blocks * _inverse(scale)
    # Halves go away from zero.
    size = steps.abs()
    below = size.floor()
    return steps.sign() * (below + (2 * (size - below)).floor()) * _half(scale)


def _from_largest(blocks: Tensor, bits: int) -> Tensor:
    half = 2 ** (bits - 1)
    size = blocks.abs()
    # Of two that differ in sign alone, the first: `argmax` promises none.
    places = torch.arange(BLOCK, device=blocks.device)
    first = torch.where(size == size.amax(-1, keepdim=True), places, BLOCK - 1).amin(-1, keepdim=True)
    scale = _over(blocks.gather(-1, first), -half)
    steps = (blocks * _inverse(scale) + (half + 0.5)).trunc().clamp(0, 2 * half - 1)
    return _half(scale) * (steps - half)


def _from_least(blocks: Tensor, bits: int) -> Tensor:
    least, most = blocks.amin(-1, keepdim=True), 2**bits - 1
    scale = _over(blocks.amax(-1, keepdim=True) - least, most)
    steps = ((blocks - least) * _inverse(scale) + 0.5).trunc().clamp(0, most)
    return _half(scale) * steps + _half(least)


def _over(numbers: Tensor, divisor: float) -> Tensor:
    # On a GPU, division by a Python number is a multiplication with its inverse, which rounds otherwise.
    return numbers / torch.full((), divisor, dtype=numbers.dtype, device=numbers.device)


def _inverse(scale: Tensor) -> Tensor:
    """Zero where all numbers of the block are alike."""
    return torch.where(scale == 0, 0.0, 1 / torch.where(scale == 0, 1.0, scale))


def _half(numbers: Tensor) -> Tensor:
    return numbers.half().float()


@torch.library.custom_op("bridgegarden::rounded", mutates_args=())
def _as_one_operation(weight: Tensor, kind: str) -> Tensor:
    # A compiler that looked inside would put products and sums together, and a number close to a half would be rounded
    # to another integer than the file has.
    return rounded(weight, kind)


_as_one_operation.register_fake(lambda weight, kind: torch.empty_like(weight))
_as_one_operation.register_autograd(lambda ctx, gradient: (gradient, None))


class _StraightThrough(torch.autograd.Function):
    """:func:`rounded`, whose gradient is that of doing nothing."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, kind: str) -> Tensor:
        return rounded(weight, kind)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], None


class Rounding:
    """How one parameter is rounded. Without gradients, what was made once is kept while the parameter stays as it is,
    so that a text is not paid for token by token."""

    def __init__(self, kind: str) -> None:
        """
        Args:
            kind: what it is written as.
        """
        self.kind = kind
        self._kept: tuple[int, int, Tensor] | None = None

    def __call__(self, weight: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return _as_one_operation(weight, self.kind)
        if torch.is_grad_enabled():
            self._kept = None
            return cast(Tensor, _StraightThrough.apply(weight, self.kind))
        # Whatever changes the numbers in place counts up; whatever puts others in their place has another address.
        version = weight._version, weight.data_ptr()
        if self._kept is None or self._kept[:2] != version:
            self._kept = (*version, rounded(weight, self.kind))
        return self._kept[2]


def train_rounded(model: nn.Module, kind: str, wide: Sequence[nn.Module]) -> None:
    """Let every matrix of `model` be what a file of `kind` holds of it, whenever it is computed with.

    Parameters, their names and what is saved stay as they are. :func:`weight_of` gives the rounded weight to whoever
    reads it without calling its module.

    Args:
        model: a causal language model; nothing is left of an earlier call.
        kind: one of `QUANTISED`.
        wide: its embedding and its head.

    Raises:
        ModelError: a parameter is neither a vector nor the weight of a linear layer or an embedding, or no matrix has
            rows that can be cut into blocks.
    """
    train_whole(model)
    known: dict[int, Rounding] = {}
    embedding_or_head = {id(module.weight) for module in wide}
    left = {id(parameter): name for name, parameter in model.named_parameters() if parameter.dim() > 1}
    for module in model.modules():
        if not isinstance(module, nn.Linear | nn.Embedding):
            continue
        weight = module.weight
        left.pop(id(weight), None)
        if id(weight) not in known:
            known[id(weight)] = Rounding(stored_type(kind, weight.shape, wide=id(weight) in embedding_or_head))
        module.__dict__["rounding"] = known[id(weight)]
        module.forward = types.MethodType(_forward, module)
    if left:
        raise ModelError(
            f"training.quantised: {next(iter(left.values()))} of {type(model).__name__} is neither of a linear layer "
            "nor of an embedding, so it cannot be trained as a file of few bits holds it. Leave training.quantised out."
        )
    if not any(rounding.kind in QUANTISED for rounding in known.values()):
        raise ModelError(
            f"training.quantised: no matrix of {type(model).__name__} has rows of a multiple of {BLOCK} numbers, so a "
            f"file of {kind} holds all of them in F16, and there is nothing to train for. Leave training.quantised out."
        )


def train_whole(model: nn.Module) -> None:
    """Undo :func:`train_rounded`."""
    for module in model.modules():
        if module.__dict__.pop("rounding", None) is not None:
            module.__dict__.pop("forward", None)


def weight_of(module: Any) -> Tensor:
    """The weight that `module` computes with."""
    rounding = getattr(module, "rounding", None)
    return module.weight if rounding is None else rounding(module.weight)


def _forward(self: Any, *args: Any, **kwargs: Any) -> Tensor:
    # Found before the parameter of that name, which nn.Module keeps elsewhere.
    self.__dict__["weight"] = weight_of(self)
    try:
        return type(self).forward(self, *args, **kwargs)
    finally:
        del self.__dict__["weight"]
