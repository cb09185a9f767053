"""What can be known of a model before its weights are loaded: configuration, tokenizer, format of its files."""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bridgegarden.errors import ModelError, foreign, quoted
from bridgegarden.preflight.trial import fault_of_tokenizer, fault_of_tokenizer_file

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

OFFLINE_ADVICE = (
    "the hub cannot be reached, and the files are not in the local cache. Check the name and the connection, download "
    "it where there is one (`hf download NAME`), or give a folder"
)
TOKENIZER = "tokenizer.json"
INDEX = "model.safetensors.index.json"
LARGEST = {"vocab_size": 2**24, "hidden_size": 2**20, "num_hidden_layers": 2000}
"""Many times those of any published model: more would only take the machine's memory and time before it failed."""
_REMOTE_CODE = (
    "needs Python code from its own repository, which is never run here. Choose a model whose architecture is part of "
    "transformers, or convert it to one."
)
FIRST_ROWS = 8
"""Rows at the start of a table of positions that some architectures leave out, at most."""


@dataclass(frozen=True, kw_only=True)
class ModelReference:
    """A model by its name on the hub or its folder."""

    role: Literal["teacher", "student", "model"]
    """Also the recipe's section, for messages; ``model`` is none of a recipe's."""
    model: str
    """Name on the hub, or a folder."""
    revision: str | None = None
    """Branch, tag or commit on the hub; None is the newest."""
    dtype: str = "auto"
    """Type of the weights in memory; ``auto`` is the type they were saved in."""
    device_map: "str | Mapping[str, str | int] | None" = None
    """How its weights are spread over devices, as ``from_pretrained`` takes it; None is whole on one."""
    gguf_file: str | None = None
    """The file at its top that holds its weights in llama.cpp's format; None is ``*.safetensors``."""
    quantization: "Mapping[str, Any] | None" = None
    """How its weights are rounded as they are loaded: arguments of ``BitsAndBytesConfig``; None is not."""
    eos_token: str | None = None
    """The end token that the recipe gives its tokenizer; None leaves the tokenizer's own."""
    place: str | None = None
    """Where a recipe names it, for messages; None is the section's ``model``."""
    tokenizer: str | None = None
    """The model whose tokenizer it has; None is its own."""

    @property
    def is_local(self) -> bool:
        """Whether it is a folder on this machine."""
        return Path(os.path.expanduser(self.model)).is_dir()

    @property
    def location(self) -> str:
        """What ``from_pretrained`` takes."""
        return str(Path(os.path.expanduser(self.model))) if self.is_local else self.model

    @property
    def named(self) -> str:
        """It, by where it was named, for messages."""
        place = self.place or ("model" if self.role == "model" else f"{self.role}.model")
        return f"{place} {self.model!r}"

    def error(self, message: str) -> ModelError:
        """An error that begins with where the model was named."""
        return ModelError(f"{self.named}: {message}")


@dataclass(frozen=True, kw_only=True)
class TokenizerFacts:
    """What a model reads and where it ends a turn; all that is known of one that is elsewhere."""

    reference: ModelReference
    tokenizer: "PreTrainedTokenizerBase"
    generation_config: "GenerationConfig | None"
    """None where there is none."""

    @property
    def width(self) -> int | None:
        """Rows of the embedding, padding included; None where that is not known."""
        return None


@dataclass(frozen=True, kw_only=True)
class ModelFacts(TokenizerFacts):
    """A model without its weights."""

    config: "PretrainedConfig"
    commit: str | None
    """The commit on the hub that `reference.revision` is now; None for a folder. Weights are loaded from it too."""

    @property
    def width(self) -> int:
        """Rows of the embedding, padding included."""
        return self.config.get_text_config().vocab_size

    @property
    def dtype(self) -> "torch.dtype":
        """Of the weights in memory."""
        import torch

        if self.reference.dtype != "auto":
            return getattr(torch, self.reference.dtype)
        return (
            getattr(self.config.get_text_config(), "dtype", None)
            or getattr(self.config, "dtype", None)
            or torch.float32
        )

    @property
    def stored_revision(self) -> str | None:
        """What to pass as ``revision``, so that weights and what was checked here belong together."""
        return self.commit or self.reference.revision


def load_facts(reference: ModelReference, *, weights: bool = True) -> ModelFacts:
    """Configuration, generation settings and tokenizer of a model, checked for what would stop us later.

    Args:
        reference: which model.
        weights: whether its weights must be there, too.

    Raises:
        ModelError: it does not exist, cannot be reached, is no causal language model, needs code from its repository,
            or has no safetensors weights.
    """
    _check_location(reference)
    config = load_config(reference)
    commit = getattr(config, "_commit_hash", None)
    _check_architecture(reference, config)
    _check_values(reference, config)
    if weights:
        _check_weight_files(reference, commit)
    return ModelFacts(
        reference=reference,
        config=config,
        generation_config=_generation_config(reference, commit),
        tokenizer=load_tokenizer(reference, commit),
        commit=commit,
    )


def load_tokenizer_facts(reference: ModelReference) -> TokenizerFacts:
    """The tokenizer of a model that is elsewhere, and its generation settings where they lie beside it.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    if reference.is_local and not (Path(reference.location) / TOKENIZER).is_file():
        raise reference.error(f"the folder holds no {TOKENIZER}. Give a folder that does, or a name on the hub.")
    _check_location(reference, config=False)
    return TokenizerFacts(
        reference=reference,
        tokenizer=_tokenizer(reference, None),
        generation_config=_generation_config(reference, None),
    )


def check_positions(facts: ModelFacts | None, max_length: int | None, *, asked: bool = False) -> None:
    """Make sure that rows of `max_length` tokens fit the table in which a model looks up positions, if it has one.

    Args:
        facts: the model; None for one of which nothing is known.
        max_length: of training; None leaves rows as they are, and their lengths to the trainer.
        asked: whether it is the longest row as a teacher reads it, behind its own prompt.

    Raises:
        ModelError: they do not.
    """

    stated = None if facts is None else getattr(facts.config.get_text_config(), "max_position_embeddings", None)
    if facts is None or max_length is None or stated is None or max_length <= stated:
        return
    if position_table(facts.config) is None:
        return
    if asked:
        raise facts.reference.error(
            f"looks positions up in a table of {stated}, but with teacher.prompt a row has {max_length} tokens. "
            "Shorten that prompt, leave long rows out, or lower training.max_length, which cuts the answers."
        )
    raise facts.reference.error(
        f"looks positions up in a table of {stated}, but rows may have {max_length} tokens (training.max_length). "
        f"Set training.max_length to {stated} at most."
    )


def meta_model(config: "PretrainedConfig") -> "PreTrainedModel":
    """The causal language model of `config`; no memory is taken, and its parameters have shapes and no values.

    Raises:
        ModelError: the architecture has no such setting, or its sizes do not fit each other.
    """
    import torch
    from transformers import AutoModelForCausalLM

    def refusal(words: str) -> ModelError:
        return ModelError(f"model {config.name_or_path!r}: config.json: no model can be built of it ({words}).")

    with foreign(refusal), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def parameter_count(model: "PreTrainedModel") -> int:
    """Parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


_tables: dict[str, bool] = {}
"""Whether the model of a configuration looks positions up, which takes building it."""


def position_table(config: "PretrainedConfig") -> int | None:
    """How many positions the model of `config` looks up in a table; None where it computes them (rotary, ALiBi).

    From shapes alone: an embedding beside that of the tokens, with a row for every position (and a few to spare).
    """
    from torch import nn

    stated = getattr(config.get_text_config(), "max_position_embeddings", None)
    if stated is None:
        return None
    told = repr((type(config), {**config.to_dict(), "_name_or_path": None}))
    if told not in _tables:
        model = meta_model(config)
        words = model.get_input_embeddings()
        tables = (module for module in model.modules() if isinstance(module, nn.Embedding) and module is not words)
        _tables[told] = any(0 <= table.num_embeddings - stated <= FIRST_ROWS for table in tables)
    return stated if _tables[told] else None


def load_config(reference: ModelReference) -> "PretrainedConfig":
    """The configuration of a model.

    Raises:
        ModelError: as in :func:`load_facts`.
    """
    from transformers import AutoConfig

    with _explained(reference, reference.gguf_file or "config.json"):
        return AutoConfig.from_pretrained(
            reference.location, revision=reference.revision, trust_remote_code=False, **_of_gguf(reference)
        )


def _of_gguf(reference: ModelReference) -> dict[str, str]:
    """The argument of ``from_pretrained`` for a model whose weights are in a GGUF file.

    Raises:
        ModelError: what reads it is not installed.
    """
    if reference.gguf_file is None:
        return {}
    if find_spec("gguf") is None:
        raise reference.error(f"{reference.gguf_file} is read with the package gguf. Install it: pip install gguf")
    return {"gguf_file": reference.gguf_file}


def load_tokenizer(reference: ModelReference, commit: str | None = None) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model.

    Raises:
        ModelError: it has none, or one that cannot be read, or it or its chat template knows no bounds.
    """
    if reference.tokenizer is not None:
        other = replace(reference, model=reference.tokenizer, tokenizer=None, gguf_file=None, revision=None)
        return load_tokenizer(other)
    _check_location(reference)
    return _tokenizer(reference, commit)


def _tokenizer(reference: ModelReference, commit: str | None) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    file = _tokenizer_file(reference, commit)
    if file is not None and (fault := fault_of_tokenizer_file(file)) is not None:
        raise reference.error(f"its {TOKENIZER} cannot be used: {fault}. Take it anew from where the model was.")
    # Of a GGUF file, whose own tokenizer is made anew from its lists, only where there is no other.
    own = _of_gguf(reference) if file is None else {}
    with _explained(reference, "its tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(
            reference.location, revision=commit or reference.revision, trust_remote_code=False, **own
        )
    # Some versions of transformers make one up where the files are missing.
    if tokenizer.get_vocab().keys() <= set(tokenizer.all_special_tokens):
        raise reference.error("its tokenizer cannot be read: it has only special tokens. Are its files complete?")
    if reference.eos_token is not None:
        if reference.eos_token not in tokenizer.get_vocab():
            raise reference.error(
                f"its tokenizer has no token {reference.eos_token!r}, which training.eos_token names; give one that it "
                f"has, such as {tokenizer.eos_token!r}, or leave it out."
            )
        tokenizer.eos_token = reference.eos_token
    if (fault := fault_of_tokenizer(tokenizer, file)) is not None:
        raise reference.error(fault)
    return tokenizer


def _tokenizer_file(reference: ModelReference, commit: str | None) -> Path | None:
    """The file that the tokenizer is read from, of a kind that has one."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    if reference.is_local:
        path = Path(reference.location) / TOKENIZER
        return path if path.is_file() else None
    with _explained(reference, "its tokenizer"):
        try:
            return Path(hf_hub_download(reference.model, TOKENIZER, revision=commit or reference.revision))
        except EntryNotFoundError:
            return None


def _generation_config(reference: ModelReference, commit: str | None) -> "GenerationConfig | None":
    from transformers import GenerationConfig

    with foreign(lambda words: reference.error(f"generation_config.json cannot be read ({words}).")), _quiet_retries():
        try:
            return GenerationConfig.from_pretrained(reference.location, revision=commit or reference.revision or "main")
        except OSError:  # the file is optional
            return None


def _check_location(reference: ModelReference, *, config: bool = True) -> None:
    path = Path(os.path.expanduser(reference.model))
    if path.is_file():
        holds = "config.json and safetensors" if config else TOKENIZER
        raise reference.error(f"is a file; expected a folder with {holds}, or a name on the hub.")
    looks_like_a_path = path.is_absolute() or reference.model.startswith(("./", "../", "~")) or len(path.parts) > 2
    if looks_like_a_path and not path.is_dir():
        of = "a model" if config else f"a tokenizer ({TOKENIZER})"
        raise reference.error(f"no such folder. Give the folder of {of}, or a name on the hub (owner/name).")
    if path.is_dir() and reference.gguf_file is not None:
        _check_gguf(reference, {file.name for file in path.iterdir()})
    elif config and path.is_dir() and not (path / "config.json").is_file():
        raise reference.error(f"the folder {path} holds no config.json, so it is not a saved model.")


def _check_architecture(reference: ModelReference, config: "PretrainedConfig") -> None:
    from transformers import AutoModelForCausalLM

    if type(config) in AutoModelForCausalLM._model_mapping:
        return
    if "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        raise reference.error(_REMOTE_CODE)
    raise reference.error(f"model type {config.model_type!r} is not a causal language model that transformers knows.")


def _check_values(reference: ModelReference, config: "PretrainedConfig") -> None:
    """What is read off the configuration later, and what would fetch code."""
    import torch

    if "/" in str(getattr(config, "_attn_implementation", None)):
        # The name of a repository of kernels, which transformers would download and run.
        raise reference.error(_REMOTE_CODE)
    text = config.get_text_config()
    for name, most in LARGEST.items():
        value = getattr(text, name, 1)
        if type(value) is not int or not 0 < value <= most:
            raise reference.error(f"config.json: {name} is {quoted(value)}; expected a whole number from 1 to {most}.")
    for dtype in (getattr(text, "dtype", None), getattr(config, "dtype", None)):
        if dtype is not None and not isinstance(dtype, torch.dtype):
            raise reference.error(f"config.json: dtype is {dtype!r}, which PyTorch does not have.")
        if dtype is not None and not (dtype.is_floating_point and dtype.itemsize > 1):
            raise reference.error(
                f"config.json: dtype is {str(dtype).removeprefix('torch.')}, in which PyTorch cannot compute a model; "
                "expected bfloat16, float16 or float32."
            )


def _check_weight_files(reference: ModelReference, commit: str | None) -> None:
    names = _file_names(reference, commit)
    if reference.gguf_file is not None:
        _check_gguf(reference, names)
        return
    if reference.is_local and INDEX in names:
        _check_index(reference, Path(reference.location) / INDEX, names)
    if any(name.endswith(".safetensors") and not name.startswith("adapter_") for name in names):
        return
    if "adapter_config.json" in names:
        raise reference.error("is an adapter, not a whole model. Merge it into its base model and save that.")
    if any(name.endswith((".bin", ".pt", ".pth", ".ckpt")) for name in names):
        raise reference.error(
            "its weights are pickle files, which can run code when they are opened; expected *.safetensors. Convert it "
            "where you trust it: AutoModelForCausalLM.from_pretrained(NAME).save_pretrained(FOLDER)."
        )
    if any(name.endswith(".onnx") for name in names):
        raise reference.error(
            "its weights are in an ONNX graph, which onnxruntime runs and transformers does not; take the model that "
            "it was made of (bridgegarden bench MODEL FOLDER --rows FILE scores both, each by its own program)."
        )
    if any(name.endswith(".gguf") for name in names):
        raise reference.error(
            "its weights are GGUF files; of a teacher name the one to read (teacher.gguf_file=NAME.gguf), or take the "
            "model as it was before it was converted."
        )
    raise reference.error(f"holds no weights (*.safetensors); found {', '.join(sorted(names)[:8]) or 'no file'}.")


def _check_gguf(reference: ModelReference, names: set[str]) -> None:
    if reference.gguf_file not in names:
        there = sorted(name for name in names if name.endswith(".gguf"))
        raise reference.error(
            f"holds no {reference.gguf_file} ({reference.role}.gguf_file); its GGUF files: "
            f"{', '.join(there) or 'none'}."
        )


def _check_index(reference: ModelReference, path: Path, names: set[str]) -> None:
    """The files that hold the weights, as the folder says: each of them in it."""
    with foreign(lambda words: reference.error(f"{INDEX} cannot be read ({words}).")):
        files = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
    if missing := sorted(map(str, files - names)):
        raise reference.error(
            f"{INDEX} names {quoted(missing[0])}, which the folder does not hold. Are its files complete?"
        )


def _file_names(reference: ModelReference, commit: str | None) -> set[str]:
    """Files at the top of the model's folder or repository (of the local cache, where the hub cannot be reached)."""
    from huggingface_hub import list_repo_files, snapshot_download

    if reference.is_local:
        return {path.name for path in Path(reference.location).iterdir()}
    revision = commit or reference.revision
    try:
        with _quiet_retries():
            return {name for name in list_repo_files(reference.model, revision=revision) if "/" not in name}
    except OSError:
        with _explained(reference, "its weights"):
            folder = snapshot_download(reference.model, revision=revision, local_files_only=True)
        return {path.name for path in Path(folder).iterdir()}


@contextmanager
def _explained(reference: ModelReference, what: str) -> Iterator[None]:
    """What transformers and the hub's client raise, as one line that says what to do."""
    with foreign(lambda words: reference.error(f"{what} cannot be read ({words}).")), _quiet_retries():
        try:
            yield
        except Exception as error:
            reason = _known_reason(reference, error)
            if reason is None:
                raise
            raise reference.error(reason) from error


def _known_reason(reference: ModelReference, error: Exception) -> str | None:
    """Of what happens to everybody, what it means and what to do."""
    from huggingface_hub import errors as hub

    causes = list(_causes(error))

    def caused_by(*kinds: Any) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if any("custom code" in str(cause) or "trust_remote_code" in str(cause) for cause in causes):
        return _REMOTE_CODE
    if caused_by(hub.GatedRepoError):
        return "access is restricted. Accept its licence on its page of the hub, then run `hf auth login`."
    if caused_by(hub.RevisionNotFoundError):
        return f"the hub has no revision {reference.revision!r} of it."
    if caused_by(hub.RepositoryNotFoundError):
        return "neither a folder here nor a model on the hub that you may see. Check the name, or `hf auth login`."
    if not reference.is_local and caused_by(hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled, ConnectionError):
        return f"{OFFLINE_ADVICE}."
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@contextmanager
def _quiet_retries() -> Iterator[None]:
    """Without the hub client's line per attempt; what comes of them is said once, in our words."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
