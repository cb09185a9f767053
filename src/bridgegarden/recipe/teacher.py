"""The teacher's section of a recipe: which kind of teacher it is, and what of it goes together."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from bridgegarden.data import TeacherPrompt
from bridgegarden.errors import ConfigError, check_weights, unknown_name
from bridgegarden.recipe.values import require_positive, require_text
from bridgegarden.teacher.server_connection import ApiName, check_url

DType = Literal["auto", "bfloat16", "float16", "float32"]
DeviceMap = Literal["auto", "balanced", "balanced_low_0", "sequential"]
TeacherKind = Literal[
    "live", "mixed", "mixed_cached", "by_row", "by_row_cached", "cached", "recorded", "answers", "server"
]
"""A model in memory; several that are mixed, in memory or with a cache of the mixture; several of which every row has
one, in memory or with a cache each; a model that has read the rows before, so that its cache is read; one of which that
cache is all there is; a server whose log-probabilities are in a cache, of its answers or of any rows; a server of which
only its answers are known."""


@dataclass(frozen=True, kw_only=True)
class QuantizationSection:
    """How the teacher's weights are rounded as they are loaded; the fields are those of transformers'
    ``BitsAndBytesConfig``, and `quant_type` of its ``TorchAoConfig``. Its embeddings and head stay whole."""

    load_in_4bit: bool = False
    """To four bits."""
    load_in_8bit: bool = False
    """To eight bits; activations, too, but for outliers."""
    bnb_4bit_quant_type: Literal["fp4", "nf4"] = "fp4"
    """Which 16 values four bits stand for: floating point, or the quantiles of a normal distribution."""
    bnb_4bit_compute_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type that four bits are unpacked to and multiplied in."""
    bnb_4bit_use_double_quant: bool = False
    """Round the scales of blocks of four-bit weights, too."""
    llm_int8_threshold: float = 6.0
    """With `load_in_8bit`: activations beyond it are outliers, > 0."""
    quant_type: Literal["int8_weight_only"] | None = None
    """By the package ``torchao``, in place of bitsandbytes: weights of eight bits with a scale for each output,
    activations whole."""

    def __post_init__(self) -> None:
        if self.load_in_4bit + self.load_in_8bit + (self.quant_type is not None) != 1:
            raise ConfigError("teacher.quantization: set one of load_in_4bit, load_in_8bit (true) and quant_type.")
        others = {"load_in_4bit": "bnb_4bit_", "load_in_8bit": "llm_int8_"}
        for f in fields(self):
            bits = next((name for name, own in others.items() if f.name.startswith(own)), None)
            if bits is not None and not getattr(self, bits) and getattr(self, f.name) != f.default:
                raise ConfigError(f"teacher.quantization.{f.name}: goes with {bits}, which is not set; leave it out.")
        if not 0 < self.llm_int8_threshold < math.inf:
            raise ConfigError(f"teacher.quantization.llm_int8_threshold must be > 0, got {self.llm_int8_threshold}.")

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of ``BitsAndBytesConfig`` or ``TorchAoConfig``: those that mean something."""
        if self.quant_type is not None:
            return {"quant_type": self.quant_type}
        means = ("load_in_4bit", "bnb_4bit_") if self.load_in_4bit else ("load_in_8bit", "llm_int8_")
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name.startswith(means)}


@dataclass(frozen=True, kw_only=True)
class TranslationSection:
    """How much has to be known where the teacher has another tokenizer than the student; see docs/tokenizers.md."""

    threshold: float = 0.5
    """Probability that has to be known of a position for soft labels, in [0, 1]; with less it gets the hard label
    alone."""
    tolerance: float = 0.02
    """Largest share of a token's probability that may be missing from it, in [0, 1]. 0 keeps the tokens alone of which
    nothing can be missing."""

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if not 0 <= value <= 1:
                raise ConfigError(f"teacher.translation.{f.name} must be in [0, 1], got {value}.")


@dataclass(frozen=True, kw_only=True)
class MemberSection:
    """One of several teachers."""

    model: str
    """Name on the hub, or a folder; all members have one tokenizer, with `by` the student's."""
    revision: str | None = None
    """Branch, tag or commit on the hub; null is the newest."""
    dtype: DType = "auto"
    """Type of the weights; ``auto`` is the type they were saved in."""
    cache: str | None = None
    """With `by`: folder of its signals, which ``cache build`` fills. Null has ``train`` load it before training, keep
    what it says of its rows in ``OUTPUT/teachers/NAME``, and let it go. A mixture has one, `teacher.cache`."""


@dataclass(frozen=True, kw_only=True)
class TeacherSection:
    """The model that is imitated, or several: mixed, or each for its own rows."""

    model: str = ""
    """Name on the hub, or a folder; needed unless `of` names several."""
    revision: str | None = None
    """Branch, tag or commit on the hub; null is the newest."""
    dtype: DType = "auto"
    """Type of the weights; ``auto`` is the type they were saved in."""
    device: str | None = None
    """Where it runs, such as ``cuda:1`` or ``cpu``; null is beside the student."""
    device_map: DeviceMap | None = None
    """Spreads a teacher that is larger than one GPU over all of them, and over the CPU where they do not suffice:
    accelerate's ``auto``, ``balanced``, ``balanced_low_0`` (little on the first, where the student is) or
    ``sequential``. Null is whole on one device."""
    gguf_file: str | None = None
    """A file of `model`, or of `check_against`, in llama.cpp's format, such as ``model-Q4_K_M.gguf``, whose weights are
    unpacked to `dtype`; null is ``*.safetensors``. Needs the package ``gguf``."""
    quantization: QuantizationSection | None = None
    """Rounds its weights to a few bits as they are loaded, as in ``{load_in_4bit: true}``; null is not. Needs the
    package ``bitsandbytes``, or ``torchao``."""
    top_k: int | None = None
    """Tokens kept per position, >= 1, with the rest as one tail; null keeps the whole vocabulary, or 64 in memory where
    the teacher has another tokenizer than the student."""
    cache: str | None = None
    """Folder of the teacher's signals: ``cache build`` writes it, ``train`` reads it and loads no teacher."""
    server: str | None = None
    """OpenAI-compatible server on which the teacher is called `model`: ``generate`` asks it. With a `cache`, which
    ``cache build`` makes of the log-probabilities in its answers, or by letting it score rows that are there already,
    ``train`` needs nothing more of it."""
    api: ApiName | None = None
    """Kind of `server` that scores rows for ``cache build``; null finds it out by asking."""
    check_against: str | None = None
    """The weights that `server` should have, by name on the hub or folder: ``cache build`` runs them here, in `dtype`,
    on the texts of its self-test, and refuses a server that says something else. Null is where they are not here."""
    tokenizer: str | None = None
    """Where the tokenizer is of a teacher on a `server`, or with `only_cache`: a folder with ``tokenizer.json``, or a
    model on the hub, of which nothing else is loaded. Needed where it is not the student's: the rows are then scored in
    its tokens and chat template, and what is said is translated (docs/tokenizers.md). Null is the student's."""
    only_cache: bool = False
    """Nothing but its `cache` is to be had of it, which was imported or pulled: no file of the model is looked for, and
    `model` is the name in the cache."""
    prompt: TeacherPrompt | None = None
    """What the teacher is told and the student is not (a solution, a rubric, a system message); null has both read the
    row's own prompt. The teacher judges the same tokens of the answer; see docs/teachers.md."""
    translation: TranslationSection | None = None
    """What is translated where the teacher has another tokenizer than the student; null takes the defaults."""
    mix: Mapping[str, float] | None = None
    """Several teachers at every token: a weight for each name in `of`, positive and summing to 1, as in
    ``{a: 0.7, b: 0.3}``. What is imitated is the mixture of their distributions; see docs/teachers.md."""
    by: str | None = None
    """One teacher for each row: the column whose text is its name in `of`. Each is asked about its own rows, one
    teacher after the other, and its signals are kept in a cache of its own; see docs/teachers.md."""
    together: bool = False
    """With `by`: all of them stay in memory beside the student, and each reads its own rows of every batch, also what
    the student writes (`on_policy`). Nothing is kept."""
    of: Mapping[str, MemberSection] | None = None
    """The teachers that `mix` weighs, or that `by` gives rows to, by name."""

    @property
    def name(self) -> str:
        """What a reader calls it: the model's name, or each of a mixture with its weight."""
        if self.by is not None:
            return ", ".join(f"{member.model} ({name})" for name, member in (self.of or {}).items())
        if self.mix is None or self.of is None:
            return self.model
        return " + ".join(f"{weight:g} x {self.of[member].model}" for member, weight in self.mix.items())

    @property
    def kind(self) -> TeacherKind:
        """What it is, and so what can be asked of it."""
        if self.only_cache:
            return "recorded"
        if self.by is not None:
            return "by_row" if self.together else "by_row_cached"
        if self.mix is not None:
            return "mixed" if self.cache is None else "mixed_cached"
        if self.server is None:
            return "live" if self.cache is None else "cached"
        return "server" if self.cache is None else "answers"

    @property
    def judges_any_text(self) -> bool:
        """Whether its weights are on this machine, so that it can be asked about what a student writes."""
        return self.kind in ("live", "cached")

    @property
    def is_silent(self) -> str:
        """Of one that cannot be asked so, why: the beginning of a message."""
        if self.kind == "recorded":
            return "teacher.only_cache: a cache holds what a teacher said about its rows, not its distribution"
        if self.by is not None:
            return "teacher.by: each of several teachers judges rows of its own, and none gives its distribution"
        if self.mix is not None:
            return "teacher.mix: a mixture is asked about the rows' answers alone, and does not give its distribution"
        return "teacher.server: a server does not give its distribution"

    @property
    def writes_rows(self) -> bool:
        """Whether the rows are answers that it wrote, on a server."""
        return self.kind in ("answers", "server")

    @property
    def is_cached(self) -> bool:
        """Whether what it says of the rows is read from disk."""
        return self.kind in ("cached", "mixed_cached", "by_row_cached", "recorded", "answers")

    @property
    def is_elsewhere(self) -> bool:
        """Whether it takes no memory, or not all of it, of the device on which the student is trained."""
        return self.device is not None or self.device_map is not None

    @property
    def reads_batches(self) -> bool:
        """Whether its weights run beside the student at every step."""
        return self.kind in ("live", "mixed", "by_row")

    def __post_init__(self) -> None:
        self._check_several()
        require_positive("teacher.top_k", self.top_k)
        if self.cache is not None:
            require_text("teacher.cache", self.cache)
        if self.device is not None and self.device_map is not None:
            raise ConfigError(
                "teacher.device: teacher.device_map spreads the teacher over all devices; leave one of them out."
            )
        if self.gguf_file is not None:
            require_text("teacher.gguf_file", self.gguf_file)
            if not self.gguf_file.endswith(".gguf") or Path(self.gguf_file).name != self.gguf_file:
                raise ConfigError(
                    f"teacher.gguf_file: got {self.gguf_file!r}; expected the name of a *.gguf file in the folder or "
                    "repository teacher.model, at its top."
                )
            if self.quantization is not None:
                raise ConfigError(
                    "teacher.quantization: rounds whole weights, and those of teacher.gguf_file are rounded; leave one "
                    "of them out."
                )
        self._check_only_cache()
        self._check_server()
        if self.tokenizer is not None:
            require_text("teacher.tokenizer", self.tokenizer)
            if self.server is None and not self.only_cache:
                raise ConfigError(
                    "teacher.tokenizer: names the tokenizer of a teacher whose model is not here, and teacher.model is "
                    "here with its own; leave it out."
                )

    def _check_several(self) -> None:
        if self.mix is not None and self.by is not None:
            raise ConfigError(
                "teacher.by: gives every row one teacher, and teacher.mix has all of them at every token; leave one "
                "of them out."
            )
        how = "mix" if self.by is None else "by"
        if (getattr(self, how) is None) != (self.of is None):
            given, missing = ("of", "mix or teacher.by") if self.of is not None else (how, "of")
            raise ConfigError(f"teacher.{given}: goes with teacher.{missing}, which is missing; give both or neither.")
        if self.together and self.by is None:
            raise ConfigError("teacher.together: goes with teacher.by, which is missing; leave it out.")
        if self.of is None:
            if not self.model:
                raise ConfigError("teacher: key 'model' is missing; it has no default.")
            require_text("teacher.model", self.model)
            return
        for name in ("model", "revision", "device_map", "gguf_file", "quantization", "server", "only_cache"):
            if getattr(self, name):
                raise ConfigError(f"teacher.{name}: does not go with teacher.{how}; leave one of them out.")
        if self.dtype != "auto":
            raise ConfigError(f"teacher.dtype: does not go with teacher.{how}; each of teacher.of has its own.")
        for name, member in self.of.items():
            require_text(f"teacher.of.{name}.model", member.model)
        if self.by is None:
            self._check_mix(self.mix or {}, self.of)
        else:
            self._check_by(self.by, self.of)

    def _check_mix(self, mix: Mapping[str, float], of: Mapping[str, MemberSection]) -> None:
        for name in mix:
            if name not in of:
                raise unknown_name(name, of, field="teacher.mix")
        for name, member in of.items():
            if name not in mix:
                raise ConfigError(f"teacher.of.{name}: has no weight in teacher.mix; give it one, or leave it out.")
            if member.cache is not None:
                raise ConfigError(f"teacher.of.{name}.cache: a mixture has one cache; name it as teacher.cache.")
        check_weights(mix, "teacher.mix")

    def _check_by(self, by: str, of: Mapping[str, MemberSection]) -> None:
        if not by.strip():
            raise ConfigError("teacher.by is empty; give the name of a column.")
        if not of:
            raise ConfigError("teacher.of: names no teacher; give each one that the column teacher.by names.")
        if self.cache is not None:
            raise ConfigError(
                "teacher.cache: with teacher.by each teacher has its own; name them as teacher.of.NAME.cache, or leave "
                "them out."
            )
        folders: dict[str, str] = {}
        for name, member in of.items():
            if member.cache is None:
                continue
            if self.together:
                raise ConfigError(
                    f"teacher.of.{name}.cache: with teacher.together nothing is kept of what teachers say; leave one "
                    "of the two out."
                )
            require_text(f"teacher.of.{name}.cache", member.cache)
            other = folders.setdefault(str(Path(member.cache).expanduser()), name)
            if other != name:
                raise ConfigError(
                    f"teacher.of.{name}.cache: is the folder of teacher.of.{other}, too; give each its own."
                )

    def member(self, name: str) -> "TeacherSection":
        """One of those that `by` gives rows to, as a teacher on its own."""
        one = (self.of or {})[name]
        own = {field.name: getattr(one, field.name) for field in fields(one)}
        return replace(self, by=None, of=None, together=False, **own)

    def _check_only_cache(self) -> None:
        if not self.only_cache:
            return
        if self.cache is None:
            raise ConfigError(
                "teacher.only_cache: there is no teacher.cache; name its folder, or leave only_cache out."
            )
        for name in ("server", "revision", "device", "device_map", "gguf_file", "quantization", "top_k"):
            if getattr(self, name) is not None:
                raise ConfigError(f"teacher.{name}: does not go with teacher.only_cache; leave one of them out.")

    def _check_server(self) -> None:
        if self.server is None:
            if self.api is not None:
                raise ConfigError("teacher.api: says of which kind teacher.server is, and there is none.")
            if self.check_against is not None:
                raise ConfigError(
                    "teacher.check_against: names the weights that teacher.server should have, and there is no server; "
                    "leave it out."
                )
            return
        check_url(self.server, "teacher.server")  # first: the other shows what it refuses
        require_text("teacher.server", self.server)
        if self.check_against is not None:
            require_text("teacher.check_against", self.check_against)
        of_weights = ("gguf_file",) if self.check_against is None else ()
        for name in ("revision", "device", "device_map", "quantization", "top_k", "prompt", *of_weights):
            if getattr(self, name) is not None:
                raise ConfigError(f"teacher.{name}: does not go with teacher.server; leave one of them out.")
