"""The sections of a recipe: what is taught, to whom, with which data and objective, and how it is trained."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

from bridgegarden.data import Source
from bridgegarden.errors import ConfigError, check_temperature, unknown_name
from bridgegarden.recipe.objective import ObjectiveSection, build_objective
from bridgegarden.recipe.student import StudentSection
from bridgegarden.recipe.teacher import TeacherSection
from bridgegarden.recipe.training import (
    MEASURED,
    MEASURED_ON_OWN_TEXTS,
    TrainingSection,
    own_keys,
)
from bridgegarden.recipe.values import coerce, key_of, plain, require_positive, require_text, section_from, write_yaml
from bridgegarden.training.on_policy import OnPolicy, check_on_policy


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
            require_text("data.train", self.train)
        else:
            self._check_sources()
        if self.seed is not None and (self.seed < 0 or not self.weighted):
            needs = f"must be >= 0, got {self.seed}" if self.weighted else "draws rows of sources that have weights"
            raise ConfigError(f"data.seed: {needs}; leave it out, or give the sources of data.train weights.")
        if self.eval is not None:
            require_text("data.eval", self.eval)
        if self.chat_template is not None:
            require_text("data.chat_template", self.chat_template)
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
            require_text(f"{name}.path", source.path)
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
        self.student.check_teacher(self.teacher.kind)
        self._check_free_running()
        self._check_teacher_prompt()
        if self.data.skip_bad_rows and self.teacher.writes_rows:
            raise ConfigError(
                "data.skip_bad_rows: answers of teacher.server are rows of its own; leave skip_bad_rows out. `cache "
                "build --skip-unusable` leaves out those without a signal."
            )
        self._check_best()
        if self.training.quantised is not None and self.student.lora is not None:
            raise ConfigError(
                "training.quantised: what is exported are weights with their adapters merged in, and what is rounded "
                "in training would be those without. Leave out training.quantised or student.lora."
            )
        require_text("output", str(self.output))
        strategy = self.training.arguments.get("eval_strategy", "no")
        if self.data.eval is None and strategy != "no":
            raise ConfigError(f"training.eval_strategy is {strategy!r} but there are no rows for it; set data.eval.")
        arguments = self.training.arguments
        if self.on_policy is not None and self.on_policy.lmbda > 0 and self.teacher.kind == "by_row_cached":
            raise ConfigError(
                "on_policy: a row's own teacher has to judge what the student writes, so that all of them have to be "
                "in memory. Set teacher.together to true, without teacher.of.NAME.cache; or leave out on_policy."
            )
        objective = build_objective(self.objective)
        fault = None if self.teacher.top_k is None else objective.fault_of(kept=self.teacher.top_k)
        if fault is not None:
            raise ConfigError(f"teacher.top_k is {self.teacher.top_k}: {fault}. Keep two or more, or leave it out.")
        check_on_policy(
            self.on_policy,
            cached=not self.teacher.reads_batches,
            data_labels=objective.learns_data_tokens,
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

    @property
    def learns_data_alone(self) -> bool:
        """Whether hard labels of the data are all that is learnt, so that training has nothing to ask the teacher."""
        return build_objective(self.objective).learns_data_alone

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher is loaded or asked for anything: the rows, the student's own texts, or to cut it out."""
        return self.free_running is not None or self.student.from_ is not None or not self.learns_data_alone

    @property
    def student_folder(self) -> Path:
        """Where the student is kept that is cut out of the teacher."""
        return self.output / "student" if self.student.folder is None else Path(self.student.folder).expanduser()

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
        tree["training"] = training.pop("arguments") | training
        return tree

    def to_yaml(self) -> str:
        """:meth:`to_dict` as text, in the form that ``bridgegarden train`` reads."""
        return write_yaml(self.to_dict())


def _training_section(tree: Mapping[str, Any]) -> TrainingSection:
    """Fields of ``SFTConfig``, and beside them our own."""
    hints = get_type_hints(TrainingSection)
    own = {name: coerce(tree[name], hints[name], f"training.{name}") for name in own_keys() if name in tree}
    return TrainingSection(arguments={name: value for name, value in tree.items() if name not in own}, **own)


def _tree(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        items = ((f, getattr(value, f.name)) for f in fields(value))
        # Empty text is that of a model where another key says which.
        return {key_of(f): _tree(item) for f, item in items if item is not None and not item == f.default == ""}
    if isinstance(value, tuple):
        return [_tree(item) for item in value]
    if isinstance(value, Mapping) and any(is_dataclass(item) for item in value.values()):
        return {name: _tree(item) for name, item in value.items()}
    return str(value) if isinstance(value, Path) else plain(value, "")
