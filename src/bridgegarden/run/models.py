"""Weights: how a recipe's models are loaded, one way everywhere, where they are put, and what a cache says of them.

Weights are safetensors, or a GGUF file, only, and no code comes from the hub.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridgegarden.errors import ConfigError, MissingPackageError, ModelError, foreign
from bridgegarden.export.gguf_tokenizer import Written
from bridgegarden.preflight import (
    ModelFacts,
    ModelReference,
    load_facts,
    load_tokenizer,
    quantisation,
    quantiser_settings,
)
from bridgegarden.recipe import Recipe
from bridgegarden.run.quiet import no_gguf_bar

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from bridgegarden.teacher.mixture import Mixture

SHOWN = 4


def quantised_warning(teacher: ModelFacts) -> tuple[str, ...]:
    """What it means that the weights of a teacher were rounded to a few bits; nothing where they were not."""
    how = quantisation(teacher)
    if how is None:
        return ()
    return (
        f"the teacher is quantised ({how}). Soft labels are commonly made in full precision: rounding that hardly "
        "changes the likeliest token changes the probabilities of the others. Compare its own loss on the rows "
        "(bridgegarden cache info) with that of the whole model, where that can be run.",
    )


def model_identity(teacher: ModelFacts) -> dict[str, Any]:
    """What a cache says of a model whose signals it holds."""
    from bridgegarden.teacher.cache.spec import gguf_fingerprint, weights_fingerprint

    reference = teacher.reference
    folder, gguf = Path(reference.location), reference.gguf_file
    local = (lambda: weights_fingerprint(folder)) if gguf is None else lambda: gguf_fingerprint(folder / gguf)
    return {
        "teacher": reference.model,
        "revision": None if reference.is_local else teacher.stored_revision,
        "weights": local() if reference.is_local else None,
        "dtype": str(teacher.dtype).removeprefix("torch."),
    }


def load_teacher(teacher: ModelFacts, device: str | None) -> "PreTrainedModel":
    """A teacher on `device`; None is a GPU if this process may use one."""
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return placed(load_model(teacher), device)


def load_mixture(teachers: Sequence[ModelFacts], weights: Sequence[float], device: str | None) -> "Mixture":
    """All of `teachers` on `device`, with their weights."""
    from bridgegarden.teacher.mixture import Mixture

    return Mixture(tuple(load_teacher(teacher, device) for teacher in teachers), tuple(weights))


def load_model(facts: ModelFacts, *, spread: bool = False) -> "PreTrainedModel":
    """The weights of a model that passed preflight, on the CPU; or where its device map has them.

    Args:
        facts: what preflight found.
        spread: leave out what this process does not hold where FSDP or ZeRO-3 is on, as the trainer wants the student.

    Raises:
        ModelError: its files cannot be read, or lack weights (which would be random).
    """
    from transformers import AutoModelForCausalLM, GgufConfig

    from bridgegarden.causal_lm import whole_in_every_process

    gguf = facts.reference.gguf_file
    # Dense: left in their blocks, weights are multiplied by kernels that are downloaded and run.
    stored = {} if gguf is None else {"gguf_file": gguf, "quantization_config": GgufConfig(dequantize=True)}
    if facts.reference.quantization is not None:
        stored = {"quantization_config": quantiser_settings(facts.reference.quantization)}

    def refusal(words: str) -> ModelError:
        return facts.reference.error(f"its weights cannot be loaded ({words}). Are its files complete?")

    with (
        foreign(refusal),
        nullcontext() if spread else whole_in_every_process(),
        nullcontext() if gguf is None else no_gguf_bar(),
    ):
        model, info = AutoModelForCausalLM.from_pretrained(
            facts.reference.location,
            revision=facts.stored_revision,
            dtype=facts.dtype,
            use_safetensors=True,
            device_map=facts.reference.device_map,
            **stored,
            trust_remote_code=False,
            output_loading_info=True,
        )  # pyright: ignore[reportGeneralTypeIssues]  a pair, with loading info
    missing = sorted(info["missing_keys"])
    if missing:
        shown = ", ".join(missing[:SHOWN]) + (", ..." if len(missing) > SHOWN else "")
        raise facts.reference.error(
            f"its files lack {len(missing)} weights ({shown}), which would be random. Are its files complete, and of "
            f"the architecture that its config.json names ({facts.config.model_type})?"
        )
    return model


def gguf_facts(path: Path, *, dtype: str = "auto", tokenizer: str | None = None) -> ModelFacts:
    """A GGUF file as a model that transformers reads: each weight is what the file holds of it.

    Its tokenizer is taken from `tokenizer`; else from beside the file, from the ``OUTPUT/model`` of a file in
    ``OUTPUT/export``, or made by transformers of the file: the first that gives the ids that llama.cpp would.

    Args:
        path: the file.
        dtype: of the weights in memory; ``auto`` is float32, since in fewer bits they would be rounded once more.
        tokenizer: a folder, or a name on the hub.

    Raises:
        MissingPackageError: what reads it is not installed.
        ModelError: it cannot be read, or no tokenizer is its own.
    """
    from transformers import GenerationConfig

    if not path.is_file():
        raise ModelError(f"model {str(path)!r}: no such file.")
    if find_spec("gguf") is None:
        raise MissingPackageError(
            f"model {str(path)!r}: is read with gguf, which is not installed. Install the extra: "
            "pip install 'bridgegarden[export]'"
        )
    written = Written.of(path)
    reference = ModelReference(
        role="model",
        model=str(path.parent),
        dtype="float32" if dtype == "auto" else dtype,
        gguf_file=path.name,
        place=f"file {path.name} in",
        tokenizer=tokenizer,
    )
    if tokenizer is None:
        reference = _with_tokenizer(reference, written)
    elif fault := written.fault_of(load_tokenizer(reference)):
        raise ModelError(f"--tokenizer {tokenizer!r}: is not that of {path.name}: {fault}.")
    facts = load_facts(reference)
    facts.tokenizer.chat_template = written.chat_template  # pyright: ignore[reportAttributeAccessIssue]
    stops = GenerationConfig(eos_token_id=written.ends) if written.ends else None
    return replace(facts, generation_config=stops)


def _with_tokenizer(reference: ModelReference, written: Written) -> ModelReference:
    """The file with the first tokenizer near it that is its own."""
    folder = Path(reference.model)
    trained = folder.absolute().parent / "model"
    near = [str(trained)] if folder.absolute().name == "export" and (trained / "tokenizer.json").is_file() else []
    why = ""
    for tokenizer in (None, *near):
        candidate = replace(reference, tokenizer=tokenizer)
        try:
            fault = written.fault_of(load_tokenizer(candidate))
        except ModelError as error:
            fault = str(error)
        if fault is None:
            return candidate
        why = why or fault
    raise reference.error(
        f"the tokenizer that transformers makes of it is not llama.cpp's ({why.rstrip('.')}). Name the model that it "
        "was made of, for its tokenizer: --tokenizer FOLDER"
    )


def placed(model: "PreTrainedModel", device: "torch.device | str") -> "PreTrainedModel":
    """`model` on `device`; or where it is, if it was loaded with a device map."""
    from bridgegarden.causal_lm import is_split

    return model if is_split(model) else model.to(device)  # pyright: ignore[reportArgumentType]  wrapped by transformers


def check_processes(recipe: Recipe, processes: int) -> None:
    """Make sure that each of so many processes can have the teacher that the recipe describes.

    Raises:
        ConfigError: it is spread over all GPUs, which the others use, too; or it is asked before training, by one.
    """
    if processes == 1 or not recipe.needs_teacher:
        return
    if recipe.teacher.device_map is not None:
        raise ConfigError(
            f"teacher.device_map: spreads the teacher over all GPUs, which each of the {processes} processes of this "
            "run would do with a teacher of its own. Build its cache in one process (bridgegarden cache build RECIPE "
            "--set teacher.cache=FOLDER) and train from that without device_map, or train in one process."
        )
    for name, member in (recipe.teacher.of or {}).items():
        if recipe.teacher.kind == "by_row_cached" and member.cache is None:
            raise ConfigError(
                f"teacher.of.{name}.cache: is missing. Teachers are asked one after the other, in one process, and "
                f"this run has {processes}. Name folders, fill them (bridgegarden cache build RECIPE), and train from "
                "them; or have all teachers in the memory of each process (teacher.together: true)."
            )


def usable_device(name: str | None, place: str) -> str:
    """The device `name`, on which a number was put and read back; a GPU, or else the CPU, where it is None.

    Args:
        name: as PyTorch writes it, such as ``cuda:1``.
        place: what names it, such as ``teacher.device``.

    Raises:
        ConfigError: there is no such device here, or nothing can be computed on it.
    """
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]

    def refusal(words: str) -> ConfigError:
        return ConfigError(f"{place}: {name!r} is no device of this machine ({words}). It has: {', '.join(there)}.")

    with foreign(refusal):
        torch.zeros(1, device=name).tolist()
    return name
