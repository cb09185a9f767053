"""A model as an ONNX graph, for onnxruntime: from tokens and what is kept of those before to logits."""

import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridgegarden.errors import ConfigError, ModelError, foreign

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn
    from transformers import PreTrainedModel

KINDS = ("F32", "int8")
"""Types of weights: as they are, or the matrices in eight bits, and what they are multiplied by rounded as it comes."""
MODEL = "model.onnx"
CLOSE = 1e-3
"""By how much of their own spread logits of onnxruntime may differ from those of PyTorch, both in float32."""
LARGE = 1_500_000_000
"""Bytes from which weights are kept in a file of their own: a graph has room for two gigabytes."""


def check_onnx_kind(kind: str) -> None:
    """Refuse a type of weights that is not written to ONNX.

    Raises:
        ConfigError: it is none of `KINDS`.
    """
    if kind not in KINDS:
        raise ConfigError(f"--quantise: {kind!r} is no type of weights for --to onnx; it has {', '.join(KINDS)}.")


def write_onnx(model: "PreTrainedModel", folder: Path, kind: str, *, past: bool) -> None:
    """Write ``model.onnx`` to `folder`, checked against `model` by running both.

    Args:
        model: in float32, on the CPU.
        folder: which is there.
        kind: one of `KINDS`.
        past: whether the graph takes keys and values of the tokens before, and gives them back.

    Raises:
        ModelError: the model cannot be written so, or onnxruntime computes something else.
    """
    model = model.float().eval()
    path = folder / MODEL
    name = model.config.model_type

    def refusal(words: str) -> ModelError:
        without = " Without keys and values it may be possible: --without-past." if past else ""
        return ModelError(f"the architecture {name!r} cannot be written as ONNX here ({words}).{without}")

    with foreign(refusal), _quiet():
        _traced(model, past).save(path, external_data=4 * model.num_parameters() > LARGE)
    off = _difference(model, path, past)
    if not off < CLOSE:
        raise ModelError(
            f"the architecture {name!r} cannot be written as ONNX here: the logits of onnxruntime are {off:.2g} of "
            "their spread away from those of PyTorch."
        )
    if kind == "int8":
        _round(path)


def _traced(model: "PreTrainedModel", past: bool) -> Any:
    """The graph, with batch and lengths open."""
    import torch

    layers, (heads, size) = model.config.num_hidden_layers, _kept_shape(model)
    open_ = torch.export.Dim.DYNAMIC
    ids = torch.arange(1, 15).view(2, 7) % model.config.vocab_size
    sizes: tuple[Any, ...] = ({0: open_, 1: open_}, {0: open_, 1: open_})
    names = past_names(layers) if past else []
    inputs: tuple[Any, ...] = (ids, torch.ones(2, 7 + 5 * past, dtype=torch.long))
    if past:
        inputs = (*inputs, [torch.zeros(2, heads, 5, size) for _ in names])
        sizes = (*sizes, [{0: open_, 2: open_} for _ in names])
    with torch.no_grad():
        program = torch.onnx.export(
            _graph(model, past).eval(),
            inputs,
            dynamo=True,
            dynamic_shapes=sizes,
            input_names=["input_ids", "attention_mask", *names],
            output_names=["logits", *(f"new_{name}" for name in names)],
            verbose=False,
        )
    assert program is not None
    return program


def past_names(layers: int) -> list[str]:
    """What a graph calls the keys and values of the tokens before, layer by layer."""
    return [f"past.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]


def _kept_shape(model: "PreTrainedModel") -> tuple[int, int]:
    """Heads and numbers of each that are kept of a token, as the model keeps them."""
    import torch

    with torch.no_grad():
        kept: Any = model(torch.zeros(1, 1, dtype=torch.long), use_cache=True).past_key_values
    keys = kept.layers[0].keys
    return keys.shape[1], keys.shape[3]


def _graph(model: "PreTrainedModel", past: bool) -> "nn.Module":
    import torch
    from transformers import DynamicCache

    class Graph(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any, kept: Any = None) -> Any:
            if kept is None:
                return self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
            cache: Any = DynamicCache(list(zip(kept[::2], kept[1::2], strict=True)))
            made = self.model(input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True)
            layers = made.past_key_values.layers
            return made.logits, *(part for layer in layers for part in (layer.keys, layer.values))

    return Graph()


def session_of(path: Path, threads: int | None = None) -> Any:
    """A session of onnxruntime with the graph at `path`, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run_session(
    session: Any, ids: "np.ndarray", mask: "np.ndarray", kept: "dict[str, np.ndarray] | None" = None
) -> "tuple[np.ndarray, dict[str, np.ndarray]]":
    """Logits ``(B, T, V)`` of `ids` ``(B, T)``, and what to hand on with the tokens that follow.

    Args:
        session: of a graph with or without keys and values.
        ids: token ids.
        mask: ``(B, past + T)``, one where there is a token.
        kept: of the tokens before; None where there are none.
    """
    import numpy as np

    wanted = [node for node in session.get_inputs() if node.name.startswith("past.")]
    if kept is None:
        kept = {node.name: np.zeros((len(ids), node.shape[1], 0, node.shape[3]), np.float32) for node in wanted}
    logits, *new = session.run(None, {"input_ids": ids, "attention_mask": mask} | kept)
    return logits, dict(zip((node.name for node in wanted), new, strict=True))


def _difference(model: "PreTrainedModel", path: Path, past: bool) -> float:
    """How far logits of the graph are from the model's, in units of their spread: padded, one token, two calls."""
    import torch

    session, generator, worst = session_of(path), torch.Generator().manual_seed(0), 0.0
    for batch, length, more in ((1, 1, 1), (3, 21, 4)):
        ids = torch.randint(0, model.config.vocab_size, (batch, length + more), generator=generator)
        mask = torch.ones_like(ids)
        mask[0, : length // 3] = 0
        with torch.no_grad():
            wanted = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        if past:
            first, kept = run_session(session, ids[:, :length].numpy(), mask[:, :length].numpy())
            second, _ = run_session(session, ids[:, length:].numpy(), mask.numpy(), kept)
            got = torch.cat([torch.from_numpy(first), torch.from_numpy(second)], 1)
        else:
            got = torch.from_numpy(run_session(session, ids.numpy(), mask.numpy())[0])
        worst = max(worst, _part(got, wanted, mask.bool()))
    return worst


def _part(got: "Tensor", wanted: "Tensor", mask: "Tensor") -> float:
    return float((got - wanted)[mask].abs().max() / wanted[mask].std())


def _round(path: Path) -> None:
    """The matrices of the graph at `path` to eight bits, one scale for each column."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    rounded = path.with_name("rounded.onnx")
    large = path.with_name(f"{path.name}.data")
    with _quiet():
        quantize_dynamic(
            path, rounded, per_channel=True, weight_type=QuantType.QInt8, use_external_data_format=large.exists()
        )
    for leftover in (path, large):
        leftover.unlink(missing_ok=True)
    if large.with_name(f"{rounded.name}.data").exists():
        # The graph names the file beside it, which therefore keeps its name.
        shutil.move(rounded, path)
        return
    rounded.rename(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter tells programmers of itself."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
