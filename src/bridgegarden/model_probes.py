"""What is assumed of a language model, tried on a few tokens before anything is made of it.

Nothing here asks what an architecture is called. Each probe takes the assumption at its word: that decoder and head, as
:mod:`~bridgegarden.causal_lm` reads them, give the model's own logits, whatever values its parameters have; that no
position sees a later one; that rows packed into one do not see each other; how far its table of positions goes. A probe
costs a few forwards of sixteen tokens without gradient, leaves modes and weights as they were, and ends in one line.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from bridgegarden.causal_lm import (
    architecture,
    decoder_of,
    gathered_by_zero,
    input_device,
    name_of,
    read_hidden,
    stored_parts,
)
from bridgegarden.errors import BridgegardenError, ModelError

ORDER = tuple((7 * index + 3) % 16 for index in range(16))
"""The token ids of a probe: never one after the other, so that what is looked up by position shows."""
EARLIER = 5
"""How many of them stay when the later ones are changed, or make a row of their own."""
MOST_OFFSET = 8
"""Rows at the start of a table of positions that some architectures leave out."""
PROBED_LOGITS = 48.0
"""The size at which logits are compared, where any capping shows."""

Collate = Callable[[list[dict[str, Any]]], Mapping[str, Any]]
"""From rows to a batch."""


def check_causal_lm(model: PreTrainedModel) -> None:
    """Make sure that `model` is a causal language model, and that reading it as decoder and head is reading it right.

    Raises:
        ModelError: it is not, or its head does more, or its logits are not finite.
    """
    if model.config.is_encoder_decoder:
        raise ModelError(
            f"{architecture(model)}: an encoder-decoder, whose encoder reads the whole row, answer included. Take a "
            "decoder-only language model."
        )
    check_head(model)
    check_causal(model)


def check_head(model: PreTrainedModel) -> None:
    """Make sure that decoder and head, as read here, give the model's own logits, now and after training.

    They are compared as they are, and again with other values of whatever belongs to neither the decoder nor the weight
    of the head, and with logits so large that a cap would show: a head with a gain of its own, which is 1 at first, is
    found out.

    Raises:
        ModelError: they do not, and training on them would optimise another model; or they are not finite.
    """
    with probing(model):
        ids = probe_ids(model)
        own, ours = _both_logits(model, ids)
        if not torch.isfinite(own).all():
            raise ModelError(
                f"{name_of(model)}: its logits are not finite in {model.dtype}. "
                "Its weights are damaged, or it needs bfloat16 or float32."
            )
        _compare_logits(model, own, ours, "")
        beside = _beside_decoder_and_weight(model)
        with _other_values(beside), _large_hidden(model, own) as factor:
            own, ours = _both_logits(model, ids, factor)
        named = f" ({', '.join(list(beside)[:4])} would not be trained)" if beside else ""
        _compare_logits(model, own, ours, f", with other values than it has now{named}")


def check_causal(model: PreTrainedModel) -> None:
    """Make sure that no position sees a later one.

    Raises:
        ModelError: one does.
    """
    with probing(model):
        ids = probe_ids(model)
        other = ids.clone()
        other[:, EARLIER:] = (ids[:, EARLIER:] + 1) % _known_ids(model)
        was, now = (_hidden(model, {"input_ids": tokens}) for tokens in (ids, other))
        seen = change(model, was[:, :EARLIER], now[:, :EARLIER])
    if seen > 0:
        raise ModelError(
            f"{architecture(model)}: not causal: hidden states change by {seen:.2g} of their spread when only later "
            "tokens are changed, so it would see the answer it is asked about. Take a causal language model; an "
            "encoder may need is_decoder=True in its config."
        )


def check_packing(model: PreTrainedModel, role: str, collate: Collate) -> None:
    """Make sure that rows which are packed into one row do not see each other.

    Args:
        model: student or teacher.
        role: what to call it.
        collate: makes a packed row of rows with ``input_ids`` and ``labels``. What tells a model where rows begin
            (positions, lengths, numbers) is its matter.

    Raises:
        ModelError: they do, or the architecture cannot read packed rows.
    """
    with probing(model):
        ids = probe_ids(model)
        parts = ids[:, :EARLIER], ids[:, EARLIER:]
        separate = torch.cat([_hidden(model, {"input_ids": part}) for part in parts], 1)
        batch = collate([{"input_ids": part[0].tolist(), "labels": part[0].tolist()} for part in parts])
        inputs = {
            name: value.to(ids.device) if isinstance(value, Tensor) else value
            for name, value in batch.items()
            if name != "labels"
        }
        remedy = f"Leave out training.packing and training.padding_free{_other_attention(model)}."
        packed = _hidden(model, inputs, f"cannot read packed rows. {remedy}")
        seen = change(model, separate[:, EARLIER:], packed[:, EARLIER : ids.shape[1]])
    if seen > 0:
        raise ModelError(
            f"{role} {architecture(model)}: rows that are packed into one see each other: with attention "
            f"{model.config._attn_implementation!r} hidden states change by {seen:.2g} of their spread. {remedy}"
        )


def position_table(model: PreTrainedModel) -> int | None:
    """How many positions `model` can tell apart by looking them up; None where it computes them (rotary, ALiBi)."""
    with probing(model):
        ids = probe_ids(model)
        with _Lookups(model, ids.shape[1]) as lookups:
            _hidden(model, {"input_ids": ids})
    return min(lookups.rooms, default=None)


def _other_attention(model: PreTrainedModel) -> str:
    """What may read packed rows apart where `model` as it was loaded does not."""
    if model.config._attn_implementation == "eager" and model._supports_flash_attn:
        return ", or load it with attn_implementation='flash_attention_2', which keeps rows apart"
    return ""


@contextmanager
def probing(model: PreTrainedModel) -> Iterator[None]:
    """Without gradient and dropout; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), gathered_by_zero(model.parameters()):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _known_ids(model: PreTrainedModel) -> int:
    return model.config.get_text_config().vocab_size


def probe_ids(model: PreTrainedModel) -> Tensor:
    return torch.tensor([ORDER], device=input_device(model)) % _known_ids(model)


def _hidden(model: PreTrainedModel, inputs: Mapping[str, Any], fault: str = "cannot read sixteen tokens.") -> Tensor:
    with own_errors(model, fault):
        return read_hidden(model, inputs)[0].float()


def _both_logits(model: PreTrainedModel, ids: Tensor, factor: Sequence[float] = ()) -> tuple[Tensor, Tensor]:
    """The model's own logits, and those of decoder and head, ``(T, V)`` float32; see :func:`_large_hidden`."""
    with own_errors(model, "cannot read sixteen tokens."):
        own = model(input_ids=ids, use_cache=False).logits[0].float()
        hidden, head = read_hidden(model, {"input_ids": ids})
    return own.to(hidden.device), head.logits(hidden[0] * (factor[0] if factor else 1.0))


@contextmanager
def own_errors(model: PreTrainedModel, fault: str) -> Iterator[None]:
    """What the model's own code raises where it was not written for this, as one line."""
    try:
        yield
    except (BridgegardenError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of whatever kind: the code is the architecture's
        first = (str(error).strip().splitlines() or [""])[0][:200]
        raise ModelError(f"{architecture(model)}: {fault} ({type(error).__name__}: {first})") from error


def _compare_logits(model: PreTrainedModel, own: Tensor, ours: Tensor, when: str) -> None:
    off = (own - ours).abs().max().item() if own.shape == ours.shape else float("inf")
    # Half-precision models round their logits once more than we do.
    tolerance = 1e-3 if _is_exact(model) else 2e-2
    if not off <= tolerance * max(1.0, own.abs().max().item()):
        raise ModelError(
            f"{architecture(model)}: logits computed from its hidden states and head differ from its own by up to "
            f"{off:.3g}{when}. Its head does more than project, scale and cap; this architecture is not supported."
        )


def _beside_decoder_and_weight(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Parameters that are neither the decoder's nor the weight of the head: its bias, and what we may not know of."""
    known = {id(parameter) for parameter in decoder_of(model).parameters()}
    head: Any = model.get_output_embeddings()
    known.add(id(head.weight))
    floating = ((name, parameter) for name, parameter in model.named_parameters() if parameter.is_floating_point())
    return {name: parameter for name, parameter in floating if id(parameter) not in known}


@contextmanager
def _other_values(parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Each of `parameters` with noise added inside, as training might."""
    generator = torch.Generator().manual_seed(0)
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    try:
        for parameter in parameters.values():
            noise = torch.rand(parameter.shape, generator=generator) - 0.5
            parameter.add_(noise.to(parameter))
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.copy_(before[name])


@contextmanager
def _large_hidden(model: PreTrainedModel, own: Tensor) -> Iterator[list[float]]:
    """The head reads hidden states so much larger inside that logits have :data:`PROBED_LOGITS`; yields that factor.

    The factor is in the list once the head has been called; an architecture that never calls it leaves none.
    """
    size = own.abs().max().item()
    factor = min(max(PROBED_LOGITS / size, 1.0), 1e3) if size > 0 else 1.0
    used: list[float] = []

    def enlarge(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Any, ...]:
        used.append(factor)
        return arguments[0] * factor, *arguments[1:]

    head: Any = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(enlarge)
    try:
        yield used
    finally:
        handle.remove()


def _is_exact(model: PreTrainedModel) -> bool:
    """Whether the same sum in another order comes out the same to four digits."""
    full = model.dtype in (torch.float32, torch.float64) and torch.get_float32_matmul_precision() == "highest"
    return full and getattr(model, "quantization_method", None) is None


def change(model: PreTrainedModel, was: Tensor, now: Tensor) -> float:
    """How far hidden states ``(1, T, D)`` moved, as a share of how far positions are apart; 0 if only rounding did.

    Half precision may send a token to another expert. That happens to few, and a model that sees what it should not
    sees it at every position: there it is the median that counts.
    """
    moved = (now - was).square().mean(-1).sqrt().flatten()
    spread = (was - was.mean(1, keepdim=True)).square().mean().sqrt()
    shares = moved / spread.clamp(min=1e-30)
    share, noise = (shares.max(), 1e-4) if _is_exact(model) else (shares.median(), 5e-2)
    return 0.0 if share <= noise else share.item()


class _Lookups(TorchDispatchMode):
    """Notes every table that is read at consecutive rows, one for each position, and how many positions it has."""

    def __init__(self, model: PreTrainedModel, length: int) -> None:
        super().__init__()
        self.rooms: list[int] = []
        self._length = length
        tensors = (*model.parameters(), *model.buffers())
        self._own = {
            part.untyped_storage().data_ptr()
            for tensor in tensors
            if not isinstance(tensor, DTensor)
            for part in stored_parts(tensor)
        }
        self._stated: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        if function is aten.embedding.default:
            self._note(args[0], 0, args[1].flatten())
        elif function is aten.index.Tensor and isinstance(args[1][0], Tensor):
            self._note(args[0], 0, args[1][0].flatten())
        elif function in (aten.index_select.default, aten.gather.default):
            self._note(args[0], args[1], args[2].movedim(args[1], 0).flatten(1)[:, 0] if args[2].ndim > 1 else args[2])
        return function(*args, **(kwargs or {}))

    def _note(self, table: Tensor, dimension: int, index: Tensor) -> None:
        rows = table.shape[dimension]
        # A copy of a table (made for every row of a batch) is known by its size alone.
        stated = self._stated is not None and 0 <= rows - self._stated <= MOST_OFFSET
        if len(index) != self._length or not (stated or table.untyped_storage().data_ptr() in self._own):
            return
        if index.dtype == torch.long and bool((index.diff() == 1).all()):
            self.rooms.append(rows - int(index[0]))
