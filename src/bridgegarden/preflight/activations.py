"""What a step takes beside weights: the model's own code, run on tensors that have shapes and no memory.

The operations of the real forward and backward are walked through (fake tensors on a CPU: no arithmetic is done), and
every tensor is counted from where it is made to where it is freed. Two and three layers are enough: what one more adds
is the same for every layer.
"""

import copy
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.nn import ModuleList
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bridgegarden.causal_lm import hidden_states
from bridgegarden.errors import ModelError
from bridgegarden.fake_quantisation import train_rounded, weight_of
from bridgegarden.preflight.models import meta_model

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PretrainedConfig, PreTrainedModel

FEW = 3
"""Layers that are walked through at most."""
_FIELDS = ("forward", "at_loss", "backward_start", "backward_end")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What a process reads at once."""

    rows: int
    length: int
    """Tokens of the longest row; shorter ones are padded to it."""
    supervised: int
    """Positions that have a loss."""


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Bytes beside the weights, at the moments of a student's step."""

    forward: int
    """At most, until the loss begins."""
    at_loss: int
    """Kept for the backward when the loss begins; of float32 weights under autocast their copies, too."""
    backward_start: int
    """At most until the last layer's backward is done: nearly all that was kept, and few gradients."""
    backward_end: int
    """At most from the first layer's backward on: little of what was kept, and all gradients."""


def student_memory(
    config: "PretrainedConfig",
    dtype: torch.dtype,
    batch: Batch,
    *,
    lora: "LoraConfig | None" = None,
    gradient_checkpointing: bool = False,
    autocast: torch.dtype | None = None,
    accumulates: bool = False,
    quantised: str | None = None,
) -> StepMemory:
    """What a training step of the model of `config` takes beside its weights; the loss's own buffers come on top.

    Args:
        config: of the student.
        dtype: of its weights.
        batch: the largest.
        lora: adapters to train in place of all weights.
        gradient_checkpointing: keep only what goes into each layer, and compute the rest again.
        autocast: the type of products under autocast; None is none.
        accumulates: whether gradients of an earlier batch are there already. They are not counted then.
        quantised: the type of file that it is trained for; None is none.

    Raises:
        ModelError: the model's code cannot be walked through.
    """

    def walk(layers: int) -> StepMemory:
        model: Any = cast(Any, meta_model(_shortened(config, layers))).to(dtype).train()
        if gradient_checkpointing:
            checkpoint_layers(model)
        if lora is not None:
            _add_adapters(model, lora, gradient_checkpointing)
        if quantised is not None:
            train_rounded(model, quantised, [model.get_input_embeddings(), model.get_output_embeddings()])
        with _fake(model):
            if accumulates:
                _give_gradients(model)
            return _step(model, batch, autocast)

    return StepMemory(**dict(zip(_FIELDS, _extrapolated(config, walk), strict=True)))


def checkpoint_layers(model: Any) -> None:
    """Keep only what goes into each layer of `model`, and compute the rest again in the backward."""
    # transformers 5.23 renamed it, and warns of the old name.
    new, old = "activation_checkpointing_enable", "gradient_checkpointing_enable"
    getattr(model, new if hasattr(model, new) else old)({"use_reentrant": False})


def teacher_memory(config: "PretrainedConfig", dtype: torch.dtype, batch: Batch) -> tuple[int, int]:
    """Bytes beside the weights that a teacher's forward takes at most, and those that are left for the loss.

    Raises:
        ModelError: the model's code cannot be walked through.
    """

    def walk(layers: int) -> tuple[int, int]:
        model = cast(Any, meta_model(_shortened(config, layers))).to(dtype).eval()
        with _fake(model), torch.no_grad():
            inputs = _inputs(batch)
            with MemoryTracker() as tracker:
                kept = _supervised(hidden_states(model, inputs), batch)
            assert kept is not None
            return tracker.peak, tracker.now

    peak, kept = _extrapolated(config, walk)
    return peak, kept


class MemoryTracker(TorchDispatchMode):
    """Bytes of all storages that were made inside of it and are alive: now, and at most since the last mark.

    What was there before does not count, nor what a kernel takes for itself while it runs. Fake tensors count as real
    ones do, and take no memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._alive: dict[int, int] = {}

    def mark(self) -> int:
        """The peak since the mark before; the next one begins here."""
        peak, self.peak = self.peak, self.now
        return peak

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        known = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(out):
            if storage._cdata not in self._alive and storage._cdata not in known:
                self._count(storage)
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        self._alive[storage._cdata] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, storage._cdata)

    def _gone(self, key: int) -> None:
        self.now -= self._alive.pop(key)


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _extrapolated(config: "PretrainedConfig", walk: Callable[[int], Any]) -> list[int]:
    """What `walk` would find for all layers, from few: all of it grows by the same amount a layer."""
    count = config.get_text_config().num_hidden_layers
    values = [walk(layers) for layers in ((count,) if count <= FEW else (FEW - 1, FEW))]
    found = [astuple(value) if isinstance(value, StepMemory) else tuple(value) for value in values]
    last = found[-1]
    if count <= FEW:
        return list(last)
    return [after + (count - FEW) * (after - before) for before, after in zip(found[0], last, strict=True)]


@contextmanager
def _fake(model: "PreTrainedModel") -> Iterator[None]:
    """Code inside runs on fake tensors, and so does `model`, which was made on the meta device."""
    try:
        with FakeTensorMode():
            _give_fake_tensors(model)
            yield
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise ModelError(
            f"model type {model.config.get_text_config().model_type!r}: what a step takes depends on the data "
            f"({str(error).splitlines()[0]}), so it cannot be planned."
        ) from error


def _give_fake_tensors(model: "PreTrainedModel") -> None:
    """Put a fake tensor on the CPU in the place of every parameter and buffer; tied ones stay tied."""
    made: dict[int, Any] = {}

    def fake(tensor: Tensor) -> Any:
        if id(tensor) not in made:
            empty = torch.empty(tensor.shape, dtype=tensor.dtype)
            is_parameter = isinstance(tensor, torch.nn.Parameter)
            made[id(tensor)] = torch.nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
        return made[id(tensor)]

    for module in model.modules():
        for held in (module._parameters, module._buffers):
            held.update({name: fake(tensor) for name, tensor in held.items() if tensor is not None})


def _give_gradients(model: "PreTrainedModel") -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)


def _add_adapters(model: Any, lora: "LoraConfig", gradient_checkpointing: bool) -> None:
    """Adapters of `lora` in `model`, in float32 as the trainer's, and everything else frozen."""
    from peft import get_peft_model

    get_peft_model(model, lora, low_cpu_mem_usage=True)
    if gradient_checkpointing:
        model.enable_input_require_grads()


def _shortened(config: "PretrainedConfig", layers: int) -> "PretrainedConfig":
    shorter = copy.deepcopy(config)
    text = shorter.get_text_config()
    whole = text.num_hidden_layers
    for name, value in list(vars(text).items()):
        if isinstance(value, (list, tuple)) and len(value) == whole:
            setattr(text, name, value[:layers])
    text.num_hidden_layers = layers
    return shorter


def _step(model: "PreTrainedModel", batch: Batch, autocast: torch.dtype | None) -> StepMemory:
    inputs = _inputs(batch)
    windows: dict[str, int] = {}
    with MemoryTracker() as tracker:
        _watch_layers(model, tracker, windows)
        with nullcontext() if autocast is None else torch.autocast("cpu", autocast):
            hidden = _supervised(hidden_states(model, inputs), batch)
            head = weight_of(model.get_output_embeddings())
            windows["at_loss"], windows["forward"] = tracker.now, tracker.mark()
            loss = _Loss.apply(hidden, head)
        tracker.mark()
        loss.backward()
        windows["backward_end"] = tracker.mark()
    # A single layer's backward is the first and the last at once.
    windows.setdefault("backward_start", windows["backward_end"])
    return StepMemory(**windows)


def _inputs(batch: Batch) -> dict[str, Tensor]:
    shape = batch.rows, batch.length
    # With a mask, as where rows are padded: without one, grouped key and value heads need not be copied.
    return {name: torch.ones(shape, dtype=torch.long) for name in ("input_ids", "attention_mask")}


def _supervised(hidden: Tensor, batch: Batch) -> Tensor:
    """As :meth:`SupervisedPositions.of` does, at so many positions as are supervised."""
    rows, columns = (torch.zeros(batch.supervised, dtype=torch.long) for _ in range(2))
    return hidden[rows, columns]


def _watch_layers(model: "PreTrainedModel", tracker: "MemoryTracker", windows: dict[str, int]) -> None:
    """Note the peak where the last layer's backward ends, and begin anew where the first one's begins."""
    count = model.config.get_text_config().num_hidden_layers
    stacks = [module for module in model.modules() if isinstance(module, ModuleList) and len(module) == count]
    if count < 2 or not stacks:
        return
    layers = stacks[0]

    def on_input(note: Callable[[], None]) -> Callable[..., None]:
        watched: list[bool] = []

        def hook(_: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            if not watched:  # not again where checkpointing computes the layer anew
                watched.append(True)
                given = arguments[0] if arguments else keywords["hidden_states"]
                given.register_hook(lambda gradient: note())

        return hook

    def last_is_done() -> None:
        windows["backward_start"] = tracker.mark()

    def first_begins() -> None:
        tracker.mark()

    layers[-1].register_forward_pre_hook(on_input(last_is_done), with_kwargs=True)
    if count > 2:
        layers[1].register_forward_pre_hook(on_input(first_begins), with_kwargs=True)


class _Loss(torch.autograd.Function):
    """What the fused loss leaves behind: the gradients of hidden states and head, made in the forward."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        wanted = ctx.needs_input_grad
        ctx.types = hidden.dtype, weight.dtype
        ctx.gradients = (
            torch.zeros_like(hidden) if wanted[0] else None,
            torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32)) if wanted[1] else None,
        )
        return hidden.new_zeros((), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        gradients, ctx.gradients = ctx.gradients, None
        return tuple(
            None if gradient is None else gradient.to(dtype)
            for gradient, dtype in zip(gradients, ctx.types, strict=True)
        )
