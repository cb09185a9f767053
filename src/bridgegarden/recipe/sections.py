"""The sections of a recipe: what is taught, to whom, with which data and objective, and how it is trained."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bridgegarden.data import Source, TeacherPrompt
from bridgegarden.errors import ConfigError, check_temperature, check_weights, unknown_name
from bridgegarden.recipe.objective import ObjectiveSection, build_objective
from bridgegarden.recipe.training import (
    MEASURED,
    MEASURED_ON_OWN_TEXTS,
    EarlyStoppingSection,
    LoraSection,
    QuantizationSection,
    TrainingSection,
)
from bridgegarden.recipe.values import plain, require_positive, section_from, write_yaml
from bridgegarden.teacher.server_connection import ApiName, check_url
from bridgegarden.training.on_policy import OnPolicy, check_on_policy

LONGEST_PATH, LONGEST_NAME = 4000, 255
"""Bytes of a path and of a name in it that file systems take."""

DType = Literal["auto", "bfloat16", "float16", "float32"]

DeviceMap = Literal["auto", "balanced", "balanced_low_0", "sequential"]
TeacherKind = Literal["live", "mixed", "mixed_cached", "by_row_cached", "cached", "recorded", "answers", "server"]
"""A model in memory; several that are mixed, in memory or with a cache of the mixture; several with a cache each, of
which every row has one; a model that has read the rows before, so that its cache is read; one of which that cache is
all there is; a server whose log-probabilities are in a cache, of its answers or of any rows; a server of which only its
answers are known."""


@dataclass(frozen=True, kw_only=True)
class MemberSection:
    """One of several teachers."""

    model: str
    """Name on the hub, or a folder; all members and the student have one tokenizer."""
    revision: str | None = None
    """Branch, tag or commit on the hub; null is the newest."""
    dtype: DType = "auto"
    """Type of the weights; ``auto`` is the type they were saved in."""
    cache: str | None = None
    """With `by`, and then needed: folder of its signals. A mixture has one, `teacher.cache`."""


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
    package ``bitsandbytes``."""
    top_k: int | None = None
    """Tokens kept per position, >= 1, with the rest as one tail; null keeps the whole vocabulary."""
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
    only_cache: bool = False
    """Nothing but its `cache` is to be had of it, which was imported or pulled: no file of the model is looked for, and
    `model` is the name in the cache."""
    prompt: TeacherPrompt | None = None
    """What the teacher is told and the student is not (a solution, a rubric, a system message); null has both read the
    row's own prompt. The teacher judges the same tokens of the answer; see docs/teachers.md."""
    mix: Mapping[str, float] | None = None
    """Several teachers at every token: a weight for each name in `of`, positive and summing to 1, as in
    ``{a: 0.7, b: 0.3}``. What is imitated is the mixture of their distributions; see docs/teachers.md."""
    by: str | None = None
    """One teacher for each row: the column whose text is its name in `of`. Each has a cache of its own rows, which
    ``cache build`` fills, one teacher after the other; see docs/teachers.md."""
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
            return "by_row_cached"
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
            return "teacher.by: each of several teachers is asked about the answers of its own rows alone"
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
        return self.kind in ("live", "mixed")

    def __post_init__(self) -> None:
        self._check_several()
        require_positive("teacher.top_k", self.top_k)
        if self.cache is not None:
            _require_text("teacher.cache", self.cache)
        if self.device is not None and self.device_map is not None:
            raise ConfigError(
                "teacher.device: teacher.device_map spreads the teacher over all devices; leave one of them out."
            )
        if self.gguf_file is not None:
            _require_text("teacher.gguf_file", self.gguf_file)
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
        if self.of is None:
            if not self.model:
                raise ConfigError("teacher: key 'model' is missing; it has no default.")
            _require_text("teacher.model", self.model)
            return
        for name in ("model", "revision", "device_map", "gguf_file", "quantization", "server", "only_cache"):
            if getattr(self, name):
                raise ConfigError(f"teacher.{name}: does not go with teacher.{how}; leave one of them out.")
        if self.dtype != "auto":
            raise ConfigError(f"teacher.dtype: does not go with teacher.{how}; each of teacher.of has its own.")
        for name, member in self.of.items():
            _require_text(f"teacher.of.{name}.model", member.model)
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
                "teacher.cache: with teacher.by each teacher has its own; name them as teacher.of.NAME.cache."
            )
        folders: dict[str, str] = {}
        for name, member in of.items():
            if member.cache is None:
                raise ConfigError(
                    f"teacher.of.{name}.cache: is missing, and with teacher.by teachers are not kept in memory beside "
                    "each other. Give each its cache: a folder, which cache build fills."
                )
            _require_text(f"teacher.of.{name}.cache", member.cache)
            other = folders.setdefault(str(Path(member.cache).expanduser()), name)
            if other != name:
                raise ConfigError(
                    f"teacher.of.{name}.cache: is the folder of teacher.of.{other}, too; give each its own."
                )

    def member(self, name: str) -> "TeacherSection":
        """One of those that `by` gives rows to, as a teacher on its own."""
        one = (self.of or {})[name]
        own = {field.name: getattr(one, field.name) for field in fields(one)}
        return replace(self, by=None, of=None, **own)

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
        _require_text("teacher.server", self.server)
        if self.check_against is not None:
            _require_text("teacher.check_against", self.check_against)
        of_weights = ("gguf_file",) if self.check_against is None else ()
        for name in ("revision", "device", "device_map", "quantization", "top_k", "prompt", *of_weights):
            if getattr(self, name) is not None:
                raise ConfigError(f"teacher.{name}: does not go with teacher.server; leave one of them out.")


@dataclass(frozen=True, kw_only=True)
class StudentSection:
    """The model that is trained."""

    model: str
    """Name on the hub, or a folder."""
    revision: str | None = None
    """Branch, tag or commit on the hub; null is the newest."""
    dtype: DType = "auto"
    """Type of the weights; ``auto`` is the type they were saved in."""
    lora: LoraSection | None = None
    """Train adapters only; null trains every weight. ``{}`` takes the defaults. Needs the extra ``peft``."""

    def __post_init__(self) -> None:
        _require_text("student.model", self.model)


@dataclass(frozen=True, kw_only=True)
class DataSection:
    """The rows that both models read."""

    train: str | tuple[str | Source, ...]
    """A JSONL or Parquet file, a folder, or a name on the hub (``name`` or ``name:config``); or a list of them, each
    with a weight and a split where it needs one. Without weights they are read one behind the other. With weights each
    gives its share: rows drawn without repetition, until one source is used up, and spread evenly over the mix."""
    seed: int | None = None
    """Decides which rows of sources with weights are drawn, >= 0; null is 0."""
    split: str = "train"
    """Split of `train`, where it has splits."""
    eval: str | None = None
    """Rows for the evaluation loss, as `train`; null is none."""
    eval_split: str = "test"
    """Split of `eval`, where it has splits."""
    prompt: str | None = None
    """Column with the prompt, if it is not called ``prompt``; it becomes a user's turn. Needs `completion`."""
    completion: str | None = None
    """Column with the answer that is trained on; it becomes the assistant's turn. Needs `prompt`."""
    messages: str | None = None
    """Column with a conversation (a list of role and content), if it is not called ``messages``."""
    text: str | None = None
    """Column with text that has no prompt and is learnt wholly, if it is not called ``text``."""
    chat_template: str | None = None
    """File with the chat template (Jinja) that writes the rows and is saved with the student; null is the student's, or
    else the teacher's."""
    limit: int | None = None
    """At most so many training rows, from the start, >= 1; null is all."""
    eval_limit: int | None = None
    """At most so many evaluation rows, from the start, >= 1; null is all."""
    skip_bad_rows: bool = False
    """Leave out rows that cannot be trained on, with their count and the first of them named; otherwise the first one
    stops. ``generate`` and ``diagnose`` skip what is no JSON, and still stop at a row without a prompt."""

    def __post_init__(self) -> None:
        if isinstance(self.train, str):
            _require_text("data.train", self.train)
        else:
            self._check_sources()
        if self.seed is not None and (self.seed < 0 or not self.weighted):
            needs = f"must be >= 0, got {self.seed}" if self.weighted else "draws rows of sources that have weights"
            raise ConfigError(f"data.seed: {needs}; leave it out, or give the sources of data.train weights.")
        if self.eval is not None:
            _require_text("data.eval", self.eval)
        if self.chat_template is not None:
            _require_text("data.chat_template", self.chat_template)
        require_positive("data.limit", self.limit)
        require_positive("data.eval_limit", self.eval_limit)
        if (self.prompt is None) != (self.completion is None):
            given, missing = ("prompt", "completion") if self.completion is None else ("completion", "prompt")
            raise ConfigError(f"data: {given!r} names a column but {missing!r} does not; name both or neither.")
        if sum(name is not None for name in (self.messages, self.prompt, self.text)) > 1:
            raise ConfigError("data: of 'messages', 'prompt' and 'text' more than one is given; a row is one of them.")

    @property
    def sources(self) -> tuple[Source, ...]:
        """Where training rows come from, each with its split."""
        given = (self.train,) if isinstance(self.train, str) else self.train
        sources = [Source(path=source) if isinstance(source, str) else source for source in given]
        return tuple(replace(source, split=source.split or self.split) for source in sources)

    @property
    def eval_sources(self) -> tuple[Source, ...]:
        """Where evaluation rows come from; empty where there are none."""
        return () if self.eval is None else (Source(path=self.eval, split=self.eval_split),)

    @property
    def weighted(self) -> bool:
        """Whether training rows are drawn by weight."""
        return any(source.weight is not None for source in self.sources)

    def _check_sources(self) -> None:
        if not self.train:
            raise ConfigError("data.train is an empty list; give at least one file, folder or name.")
        for number, source in enumerate(self.sources):
            name = f"data.train[{number}]"
            _require_text(f"{name}.path", source.path)
            if source.weight is None and self.weighted:
                raise ConfigError(f"{name}.weight is missing, and other sources have one; give each source one.")
            if source.weight is not None and not 0 < source.weight < math.inf:
                raise ConfigError(f"{name}.weight must be > 0, got {source.weight}.")


@dataclass(frozen=True, kw_only=True)
class FreeRunningSection:
    """What the student loses on its own texts while it is trained, on prompts of `data.eval`; measured at every
    evaluation."""

    every: int | None = None
    """Also after every so many optimiser steps, >= 1; null is at evaluations alone."""
    select_by: Literal["free_running_loss", "exposure_bias"] | None = None
    """Keep the checkpoint whose value is least, in place of the last one. ``free_running_loss``, the whole loss on the
    student's own texts, is the safe one; ``exposure_bias`` is a signed difference, which a bad student can have low."""
    prompts: int = 16
    """Prompts, from the first rows of `data.eval`, >= 2."""
    samples: int = 1
    """Texts a prompt and model, >= 1."""
    max_new_tokens: int = 64
    """Most tokens of a text, >= 1."""
    temperature: float = 1.0
    """Of the texts, >= 0."""

    def __post_init__(self) -> None:
        require_positive("free_running.every", self.every)
        for name, least in (("prompts", 2), ("samples", 1), ("max_new_tokens", 1)):
            if not getattr(self, name) >= least:
                raise ConfigError(f"free_running.{name} must be >= {least}, got {getattr(self, name)}.")
        check_temperature(self.temperature, "free_running.temperature")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole distillation run."""

    teacher: TeacherSection
    """The model that is imitated."""
    student: StudentSection
    """The model that is trained."""
    data: DataSection
    """The rows that both models read."""
    objective: ObjectiveSection = field(default_factory=ObjectiveSection)
    """What is minimised."""
    on_policy: OnPolicy | None = None
    """Lets the student answer a share of the batches itself; null trains on the answers of the data."""
    training: TrainingSection = field(default_factory=TrainingSection)
    """How."""
    free_running: FreeRunningSection | None = None
    """Whether the student's loss on its own texts is watched meanwhile; null is not. ``{}`` takes the defaults."""
    output: Path
    """Folder for the model and its records."""

    def __post_init__(self) -> None:
        self._check_free_running()
        self._check_teacher_prompt()
        if self.data.skip_bad_rows and self.teacher.writes_rows:
            raise ConfigError(
                "data.skip_bad_rows: answers of teacher.server are rows of its own; leave skip_bad_rows out. `cache "
                "build --skip-unusable` leaves out those without a signal."
            )
        self._check_best()
        _require_text("output", str(self.output))
        strategy = self.training.arguments.get("eval_strategy", "no")
        if self.data.eval is None and strategy != "no":
            raise ConfigError(f"training.eval_strategy is {strategy!r} but there are no rows for it; set data.eval.")
        arguments = self.training.arguments
        check_on_policy(
            self.on_policy,
            cached=not self.teacher.reads_batches,
            data_labels=build_objective(self.objective).learns_data_tokens,
            packed=bool(arguments.get("packing") or arguments.get("padding_free")),
        )

    def _check_free_running(self) -> None:
        watched = self.free_running
        if watched is None:
            return
        if self.data.eval is None:
            raise ConfigError("free_running: its prompts are those of the evaluation rows; set data.eval.")
        if not self.teacher.judges_any_text:
            raise ConfigError(
                f"free_running: measures at what the student writes. {self.teacher.is_silent} there. Leave "
                "free_running out, and diagnose saved models with `bridgegarden diagnose --teacher FOLDER`."
            )
        arguments = self.training.arguments
        if watched.select_by is not None:
            for name in ("load_best_model_at_end", "metric_for_best_model", "greater_is_better"):
                if name in arguments:
                    raise ConfigError(f"training.{name}: free_running.select_by decides it; leave one of them out.")
        if arguments.get("eval_strategy") == "no" and (watched.every is None or watched.select_by is not None):
            raise ConfigError(
                "training.eval_strategy is 'no', but free_running measures"
                f"{'' if watched.select_by is None else ', and selects,'} at evaluations. Leave it out, or set it to "
                "'steps' or 'epoch'."
            )

    def _check_teacher_prompt(self) -> None:
        if self.teacher.prompt is None:
            return
        if self.training.arguments.get("packing"):
            raise ConfigError(
                "teacher.prompt: a packed row holds several prompts, and the teacher's are others. Set "
                "training.packing to false."
            )
        if self.on_policy is not None and self.on_policy.lmbda > 0:
            raise ConfigError(
                "on_policy: with teacher.prompt the teacher judges the answers of the data, behind a prompt of its "
                "own; leave one of the two out."
            )
        if self.free_running is not None:
            raise ConfigError(
                "free_running: compares what teacher and student write after one prompt, and teacher.prompt gives the "
                "teacher another one; leave one of the two out."
            )
        if self.data.text is not None:
            raise ConfigError("teacher.prompt: data.text is text with no prompt; leave one of the two out.")

    def _check_best(self) -> None:
        metric = self.training.arguments.get("metric_for_best_model")
        if metric is not None:
            known = [*MEASURED, *(MEASURED_ON_OWN_TEXTS if self.free_running is not None else ())]
            if metric.removeprefix("eval_") not in known:
                raise unknown_name(metric, known, field="training.metric_for_best_model")
        if self.training.early_stopping is None:
            return
        if self.data.eval is None:
            raise ConfigError("training.early_stopping: it looks at evaluations; set data.eval.")
        if self.training.arguments.get("eval_strategy") == "no":
            raise ConfigError(
                "training.early_stopping: it looks at evaluations, and training.eval_strategy is 'no'. Leave that out, "
                "or set it to 'steps' or 'epoch'."
            )

    @classmethod
    def from_dict(cls, tree: Any) -> "Recipe":
        """The recipe that a tree of plain values describes.

        Raises:
            ConfigError: names the path of what does not fit.
        """
        if isinstance(tree, Mapping):
            # An optional section whose lines are all commented out reads as null.
            tree = {key: part for key, part in tree.items() if part is not None or key not in ("objective", "training")}
            if isinstance(tree.get("training"), Mapping):
                tree["training"] = _training_section(tree["training"])
        return section_from(cls, tree, "")

    def to_dict(self) -> dict[str, Any]:
        """The tree of plain values; :meth:`from_dict` gives the recipe back. Settings that are null are left out."""
        tree: dict[str, Any] = {}
        for f in fields(self):
            if getattr(self, f.name) is not None:
                tree[f.name] = _tree(getattr(self, f.name))
        training = tree["training"]
        stopping = {name: part for name, part in training.items() if name == "early_stopping"}
        tree["training"] = training["arguments"] | stopping
        return tree

    def to_yaml(self) -> str:
        """:meth:`to_dict` as text, in the form that ``bridgegarden train`` reads."""
        return write_yaml(self.to_dict())


def _training_section(tree: Mapping[str, Any]) -> TrainingSection:
    """Fields of ``SFTConfig``, and beside them our own."""
    arguments = {name: value for name, value in tree.items() if name != "early_stopping"}
    stopping = tree.get("early_stopping")
    return TrainingSection(
        arguments=arguments,
        early_stopping=None
        if stopping is None
        else section_from(EarlyStoppingSection, stopping, "training.early_stopping"),
    )


def _tree(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        items = ((f.name, getattr(value, f.name)) for f in fields(value))
        return {name: _tree(item) for name, item in items if item is not None}
    if isinstance(value, tuple):
        return [_tree(item) for item in value]
    if isinstance(value, Mapping) and any(is_dataclass(item) for item in value.values()):
        return {name: _tree(item) for name, item in value.items()}
    return str(value) if isinstance(value, Path) else plain(value, "")


def _require_text(place: str, value: str) -> None:
    if not value.strip():
        raise ConfigError(f"{place} is empty; give a name or a path.")
    if len(value.encode()) > LONGEST_PATH or max(len(part.encode()) for part in value.split("/")) > LONGEST_NAME:
        raise ConfigError(f"{place} is longer than any name or path: {value[:60]!r}...")
