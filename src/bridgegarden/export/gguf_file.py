"""A GGUF file: a model's description, its tokenizer and its weights, written tensor by tensor."""

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from bridgegarden.errors import ConfigError, ModelError
from bridgegarden.export.gguf_model import Placed, context_length, describe, family_of, tensors_of
from bridgegarden.export.gguf_tokenizer import Vocabulary, vocabulary_of
from bridgegarden.fake_quantisation import stored_type
from bridgegarden.files import partial, sync_folder

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGMLQuantizationType
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
