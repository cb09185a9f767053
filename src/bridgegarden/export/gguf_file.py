"""A model as a GGUF file: its numbers as llama.cpp expects them, its tokenizer, and the file, written tensor by tensor.

Names are those of the package ``gguf``. What it does not say is here: llama.cpp's `llama` turns neighbouring numbers of
a head together where transformers turns the two halves, its Gemma adds no one to the weights of a norm, and whatever of
a configuration it would pass over in silence is refused.
"""

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from bridgegarden.errors import ConfigError, ModelError, quoted
from bridgegarden.export.gguf_tokenizer import Place, Vocabulary, vocabulary_of
from bridgegarden.fake_quantisation import stored_type
from bridgegarden.files import partial, sync_folder
from bridgegarden.terminal import listed

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFWriter
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

ROPE_TYPES = ("default", "linear", "llama3", "yarn")

YARN_DEFAULTS = {"attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"}
"""Settings of yarn that are as llama.cpp has them only where a configuration does not give them."""
KINDS: Mapping[str, str] = MappingProxyType(
    {
        "F32": "ALL_F32",
        "F16": "MOSTLY_F16",
        "BF16": "MOSTLY_BF16",
        "Q8_0": "MOSTLY_Q8_0",
        "Q5_1": "MOSTLY_Q5_1",
        "Q5_0": "MOSTLY_Q5_0",
        "Q4_1": "MOSTLY_Q4_1",
        "Q4_0": "MOSTLY_Q4_0",
    }
)
"""Types of weights that the package ``gguf`` can write, most bits first, and what it calls a file of them."""
WIDE = ("token_embd.weight", "output.weight")


@dataclass(frozen=True, kw_only=True)
class Family:
    """How llama.cpp computes one of transformers' model types."""

    name: str
    """Its architecture there."""
    activations: tuple[str, ...]
    """Of the MLP, of which it has one."""
    biases: tuple[str, ...] = ()
    """Projections that may have one."""
    turns_neighbours: bool = False
    """Whether its rotary embedding pairs neighbouring numbers of a head, and not its halves."""
    norm_adds_one: bool = False
    """Whether transformers multiplies by one plus the weight of a norm, and it by the weight."""
    ropes: tuple[str, ...] = ("default", "linear", "yarn")
    """Ways to stretch positions that it knows."""
    window: "Window | None" = None
    """Which layers see a window only, by its own rule."""
    untied: bool = True
    """Whether its head may have a weight of its own."""


class Window(NamedTuple):
    """One full layer in every so many, the last of them."""

    every: int


SILU, GELU_TANH = ("silu", "swish"), ("gelu_pytorch_tanh",)
ATTENTION = ("q_proj", "k_proj", "v_proj")
LLAMA = Family(
    name="llama",
    activations=SILU,
    biases=(*ATTENTION, "o_proj", "gate_proj", "up_proj", "down_proj"),
    turns_neighbours=True,
    ropes=ROPE_TYPES,
)
FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "llama": LLAMA,
        "mistral": LLAMA,
        "qwen2": Family(name="qwen2", activations=SILU, biases=ATTENTION),
        "qwen3": Family(name="qwen3", activations=SILU),
        "gemma2": Family(
            name="gemma2",
            activations=GELU_TANH,
            norm_adds_one=True,
            ropes=("default",),
            window=Window(2),
            untied=False,
        ),
        "gemma3_text": Family(
            name="gemma3",
            activations=GELU_TANH,
            norm_adds_one=True,
            ropes=("default", "linear"),
            window=Window(6),
        ),
    }
)
"""By transformers' ``model_type``."""


def family_of(config: "PretrainedConfig", error: Place) -> Family:
    """How llama.cpp computes the model of `config`.

    Raises:
        ModelError: it would compute something else; names the architecture or the setting.
    """
    kind = config.model_type
    if kind not in FAMILIES:
        raise error(
            f"the architecture {kind!r} cannot be written as GGUF here. Covered: {', '.join(FAMILIES)}. Convert it "
            "with llama.cpp's own converter, or export it to another format (--to onnx, --to hf)."
        )
    family = FAMILIES[kind]
    for fault in _faults(config, family):
        raise error(f"cannot be written as GGUF, since llama.cpp has no place for {fault}. Use --to onnx or --to hf.")
    return family


def _faults(config: Any, family: Family) -> Iterator[str]:
    """What llama.cpp would compute otherwise."""
    activation = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    if activation not in family.activations:
        yield f"the activation {activation!r} in {family.name} (it has {family.activations[0]})"
    for where, rope in ropes(config).items():
        kind = rope.get("rope_type", "default")
        if kind not in family.ropes:
            yield f"rope_type {kind!r} in {family.name} (it has {', '.join(family.ropes)})"
        if rope.get("partial_rotary_factor", 1.0) != 1.0:
            yield f"partial_rotary_factor {rope['partial_rotary_factor']} in {family.name}"
        if kind == "yarn" and (odd := sorted(rope.keys() & YARN_DEFAULTS)):
            yield f"{', '.join(odd)} of yarn"
        if where == "sliding_attention" and kind != "default":
            yield f"rope_type {kind!r} in layers with a window"
    yield from _window_faults(config, family)
    if family.name in ("gemma2", "gemma3") and config.query_pre_attn_scalar != head_size(config):
        yield (
            f"query_pre_attn_scalar {config.query_pre_attn_scalar}: it divides by the root of head_dim, which is "
            f"{head_size(config)}"
        )
    if family.name == "gemma3" and (config.attn_logit_softcapping or getattr(config, "use_bidirectional_attention", 0)):
        yield "attn_logit_softcapping or use_bidirectional_attention in gemma3"
    if not family.untied and not config.tie_word_embeddings:
        yield f"a head of its own weight in {family.name} (tie_word_embeddings is false)"


def _window_faults(config: Any, family: Family) -> Iterator[str]:
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    if family.window is None:
        if family is not LLAMA and "sliding_attention" in kinds:
            yield f"layers that see a window only in {family.name} (use_sliding_window)"
        return
    every = family.window.every
    own = ["full_attention" if (layer + 1) % every == 0 else "sliding_attention" for layer in range(len(kinds))]
    if list(kinds) != own:
        layer = next(layer for layer, kind in enumerate(kinds) if kind != own[layer])
        yield f"layer_types {quoted(kinds[layer])} of layer {layer}: in {family.name} every {every}th layer is full"


def ropes(config: Any) -> dict[str, dict[str, Any]]:
    """How positions are turned into angles, by kind of layer; under ``full_attention`` alone where all are alike."""
    rope = config.rope_parameters
    if "rope_theta" in rope or "rope_type" in rope:
        return {"full_attention": dict(rope)}
    return {kind: dict(parameters) for kind, parameters in rope.items()}


def head_size(config: Any) -> int:
    """Numbers of one attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def context_length(config: Any) -> int:
    """Positions at which llama.cpp computes what the model does.

    Where every layer of the model sees a window, which llama.cpp's `llama` does not have, no more than that.
    """
    window = getattr(config, "sliding_window", None)
    if FAMILIES[config.model_type].window is None and config.model_type == "mistral" and window:
        return min(window, config.max_position_embeddings)
    return config.max_position_embeddings


def describe(writer: "GGUFWriter", config: Any) -> None:
    """Write what llama.cpp needs to know of the model of `config`, tokenizer and weights aside."""
    from gguf import RopeScalingType

    family, size = FAMILIES[config.model_type], head_size(config)
    writer.add_context_length(context_length(config))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(size)
    by_layer = ropes(config)
    rope = by_layer["full_attention"]
    writer.add_rope_freq_base(rope["rope_theta"])
    kind = rope.get("rope_type", "default")
    if kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if family.window is not None:
        writer.add_sliding_window(config.sliding_window)
    if "sliding_attention" in by_layer:
        writer.add_rope_freq_base_swa(by_layer["sliding_attention"]["rope_theta"])
    if getattr(config, "final_logit_softcapping", None):
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if getattr(config, "attn_logit_softcapping", None):
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)


class Placed(NamedTuple):
    """One tensor of a model, under llama.cpp's name."""

    name: str
    tensor: "Tensor"
    """As transformers holds it; what becomes of it is in `arranged`."""
    arranged: "Callable[[Tensor], Tensor]"
    """Float32 to float32 of the same shape, as llama.cpp expects it."""


def tensors_of(model: "PreTrainedModel", error: Place) -> list[Placed]:
    """Every tensor of a model, in the order in which they are written.

    Raises:
        ModelError: one has no name in llama.cpp.
    """
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    config: Any = model.config
    family = FAMILIES[config.model_type]
    arch = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == family.name)
    assert isinstance(arch, MODEL_ARCH)
    names = get_tensor_name_map(arch, config.num_hidden_layers)
    placed, unnamed = [], []
    factors = _rope_factors(model)
    if factors is not None:
        placed.append(Placed("rope_freqs.weight", factors, _as_it_is))
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        projection = key.rsplit(".", 2)[-2]
        if name is None or (key.endswith(".bias") and projection not in family.biases):
            unnamed.append(key)
            continue
        placed.append(Placed(name, tensor, _arrangement(key, config, family)))
    if unnamed:
        shown = listed(unnamed[:3]) + (", ..." if len(unnamed) > 3 else "")
        raise error(
            f"cannot be written as GGUF, since llama.cpp's {family.name} has no place for {shown}. Use --to onnx or "
            "--to hf."
        )
    return placed


def _arrangement(key: str, config: Any, family: Family) -> "Callable[[Tensor], Tensor]":
    kind = key.rsplit(".", 2)[-2]
    if family.turns_neighbours and kind in ("q_proj", "k_proj"):
        heads = config.num_attention_heads if kind == "q_proj" else config.num_key_value_heads
        return lambda tensor: _neighbours(tensor, heads)
    if family.norm_adds_one and kind.endswith("norm"):
        return lambda tensor: tensor + 1
    return _as_it_is


def _as_it_is(tensor: "Tensor") -> "Tensor":
    return tensor


def _neighbours(tensor: "Tensor", heads: int) -> "Tensor":
    """Rows of a projection so that those which transformers turns together (i and i + half) lie side by side."""
    parts = tensor.view(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return parts.transpose(1, 2).reshape(tensor.shape)


def _rope_factors(model: "PreTrainedModel") -> "Tensor | None":
    """By how much each frequency is slowed down where that differs from one to the next, ``(head_size / 2,)``."""
    config: Any = model.config
    rope = ropes(config)["full_attention"]
    if rope.get("rope_type") != "llama3":
        return None
    import torch

    size = head_size(config)
    plain = rope["rope_theta"] ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
    decoder: Any = model.get_decoder()
    slowed = decoder.rotary_emb.inv_freq.double()
    return (plain / slowed.cpu()).float()


@dataclass(frozen=True, kw_only=True)
class GgufExport:
    """A model that llama.cpp can have, checked before anything is written."""

    name: str
    """Of the model."""
    model: "PreTrainedModel"
    vocabulary: Vocabulary
    tensors: Sequence[Placed]
    notes: tuple[str, ...]
    """What a user should know."""

    def types(self, kind: str) -> "dict[str, GGMLQuantizationType]":
        """By the name of a tensor, what it is written as in a file of `kind`."""
        from gguf import GGMLQuantizationType

        return {
            placed.name: GGMLQuantizationType[stored_type(kind, placed.tensor.shape, wide=placed.name in WIDE)]
            for placed in self.tensors
        }

    def write(self, path: Path, kind: str, on_tensor: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Write `path`, whole or not at all.

        Args:
            path: of the file; what is there is replaced.
            kind: one of `KINDS`.
            on_tensor: told how many bytes are written, of how many.

        Raises:
            ModelError: a weight is not finite.
            OSError: it cannot be written.
        """
        from gguf import GGUFWriter, LlamaFileType

        unfinished = partial(path)
        unfinished.unlink(missing_ok=True)
        config = self.model.config
        writer = GGUFWriter(unfinished, family_of(config, ModelError).name)
        try:
            writer.add_type("model")
            writer.add_name(self.name)
            writer.add_file_type(LlamaFileType[KINDS[kind]])
            writer.add_quantization_version(2)
            describe(writer, config)
            self.vocabulary.write(writer)
            self._write_tensors(writer, self.types(kind), on_tensor)
            claimed = writer.fout[0].tell() if writer.fout else 0
            writer.close()
            if unfinished.stat().st_size != claimed:  # NumPy does not hear what the system says of its last bytes
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            unfinished.replace(path)
            sync_folder(path.parent)
        finally:
            with suppress(OSError):  # what is left to write finds no room either
                writer.close()
            unfinished.unlink(missing_ok=True)

    def _write_tensors(self, writer: Any, types: Mapping[str, Any], on_tensor: Callable[[int, int], None]) -> None:
        import numpy as np
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        plain = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}
        sizes = []
        for placed in self.tensors:
            kind = types[placed.name]
            block, of_bytes = GGML_QUANT_SIZES[kind]
            shape = tuple(placed.tensor.shape)
            size = placed.tensor.numel() // block * of_bytes
            stored = shape if kind in plain else (*shape[:-1], shape[-1] // block * of_bytes)
            writer.add_tensor_info(placed.name, stored, np.dtype(plain.get(kind, np.uint8)), size, kind)
            sizes.append(size)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        done, total = 0, sum(sizes)
        for placed, size in zip(self.tensors, sizes, strict=True):
            writer.write_tensor_data(_numbers(placed, types[placed.name]))
            done += size
            on_tensor(done, total)


def _numbers(placed: Placed, kind: Any) -> "np.ndarray":
    import torch
    from gguf import GGMLQuantizationType, quants

    whole = placed.tensor.detach().to("cpu", torch.float32)
    if not whole.isfinite().all():
        raise ModelError(f"{placed.name}: holds a number that is not finite. Did its training diverge?")
    if kind == GGMLQuantizationType.F16 and whole.abs().max() > torch.finfo(torch.float16).max:
        raise ModelError(f"{placed.name}: holds {whole.abs().max():g}, which is more than F16 has. Use BF16 or F32.")
    return quants.quantize(placed.arranged(whole).contiguous().numpy(), kind)


def check_kind(kind: str, place: str = "--quantise") -> None:
    """Refuse a type of weights, named at `place`, that the package ``gguf`` cannot write.

    Raises:
        ConfigError: it is none of `KINDS`.
    """
    if kind not in KINDS:
        raise ConfigError(
            f"{place}: {kind!r} is no type of weights that can be written to GGUF here; it has {', '.join(KINDS)}. "
            "Others are made of an F32 or BF16 file by llama.cpp's own llama-quantize."
        )


def gguf_export(
    name: str, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", ends: Sequence[int]
) -> GgufExport:
    """A model and its tokenizer as llama.cpp has them; nothing is written.

    Args:
        name: of the model, which readers show.
        model: on the CPU or elsewhere.
        tokenizer: its own.
        ends: ids at which generation stops.

    Raises:
        ModelError: llama.cpp would compute or read something else.
    """

    def error(message: str) -> ModelError:
        return ModelError(f"model {name!r}: {message}")

    config: Any = model.config
    family_of(config, error)
    vocabulary = vocabulary_of(tokenizer, config.vocab_size, ends, error)
    notes = list(vocabulary.notes)
    if (usable := context_length(config)) < config.max_position_embeddings:
        notes.append(
            f"llama.cpp's llama sees all that came before, and this model {usable} tokens of it: the file is for texts "
            f"of at most {usable} tokens"
        )
    return GgufExport(
        name=name, model=model, vocabulary=vocabulary, tensors=tensors_of(model, error), notes=tuple(notes)
    )
