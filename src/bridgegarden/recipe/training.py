"""The recipe's ``training`` section and TRL's ``SFTConfig``: which fields, which defaults, which are not the user's."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from bridgegarden.errors import ConfigError, MissingPackageError, foreign, quoted, unknown_name
from bridgegarden.objective.loss_route import LossKernel
from bridgegarden.recipe.values import coerce, require_positive

if TYPE_CHECKING:
    from peft import LoraConfig
    from trl.trainer.sft_config import SFTConfig

DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        # The teacher's distribution says more per row than a label does.
        "num_train_epochs": 1.0,
        "per_device_train_batch_size": 8,
        # Half of TRL's rate for supervised fine-tuning: the student starts near the teacher.
        "learning_rate": 1e-5,
        "lr_scheduler_type": "cosine",
        # Below one, transformers takes it as a share of all steps.
        "warmup_steps": 0.03,
        "max_length": 1024,
        "logging_steps": 10.0,
        # TRL turns it on; without [N, V] logits in memory it mostly costs time.
        "gradient_checkpointing": False,
        # Every parameter takes part in every loss; looking for others costs a pass over the graph under DDP.
        "ddp_find_unused_parameters": False,
        # Nothing leaves the machine unless the recipe names a tracker.
        "report_to": "none",
    }
)
"""Where ours differ from TRL's, or are stated because a run depends on them."""

_BY_DATA = "rows are tokenised, and what is supervised decided, by the data section"
_BY_OBJECTIVE = "the objective section decides the loss"
_BY_MODELS = "the teacher and student sections say how models are loaded"
RESERVED: Mapping[str, str] = MappingProxyType(
    {
        "output_dir": "set output instead",
        "resume_from_checkpoint": "the same command goes on from the newest checkpoint in the output folder",
        "hub_token": "a recipe is saved beside the model and must hold no secret; run `hf auth login` instead",
        "trust_remote_code": "code from the hub is never run",
        "model_init_kwargs": _BY_MODELS,
        "assistant_only_loss": _BY_DATA,
        "completion_only_loss": _BY_DATA,
        "chat_template_path": _BY_DATA,
        "dataset_kwargs": _BY_DATA,
        "dataset_text_field": "set data.text instead",
        "dataset_num_proc": "rows are prepared by one process",
        "label_smoothing_factor": _BY_OBJECTIVE,
        "loss_type": _BY_OBJECTIVE,
        "activation_checkpointing": "set gradient_checkpointing, which is the same",
        "activation_checkpointing_kwargs": "set gradient_checkpointing_kwargs, which is the same",
        "parallelism_config": "start the run with `accelerate launch`, whose configuration says it",
        "do_train": "training is what the command does",
        "do_eval": "set data.eval instead",
        "do_predict": "there is nothing to predict",
        "hub_strategy": "the finished model is published, and nothing before it",
        "hub_always_push": "the finished model is published, and nothing before it",
    }
)
"""Fields of ``SFTConfig`` that a recipe must not set, with the reason."""


MEASURED = (
    *("loss", "soft_loss", "hard_loss", "risk_loss", "soft_weight", "teacher_entropy", "student_entropy", "entropy"),
    *("teacher_label_loss", "student_label_loss"),
    *("acceptance", "acceptance_least"),
    *("mean_token_accuracy", "captured_mass", "risk_share", "supervised_tokens", "num_tokens"),
)
"""What an evaluation measures, by the names that ``metric_for_best_model`` takes with or without ``eval_``."""
MEASURED_ON_OWN_TEXTS = ("free_running_loss", "exposure_bias", "teacher_forced_loss")
"""What it measures besides where the recipe has a section ``free_running``."""


RANGES: Mapping[str, tuple[int, int | None]] = MappingProxyType(
    {
        "seed": (0, 2**32 - 1),
        "data_seed": (0, 2**32 - 1),
        "dataloader_num_workers": (0, 256),
        "per_device_train_batch_size": (1, None),
        "per_device_eval_batch_size": (1, None),
        "gradient_accumulation_steps": (1, None),
        "eval_accumulation_steps": (1, None),
        # A token to read and one to learn.
        "max_length": (2, None),
        "pad_to_multiple_of": (1, None),
    }
)
"""Whole numbers that ``SFTConfig`` takes and that fail, or take the machine down, only later; None is no limit."""
NOTHING = object()
BY_EPOCHS = -1
"""The number of steps with which transformers trains for epochs."""


LARGEST_RANK = 65_536


@dataclass(frozen=True, kw_only=True)
class LoraSection:
    """Low-rank adapters on the student; the fields are those of ``peft.LoraConfig``."""

    r: int = 16
    """Rank, >= 1."""
    lora_alpha: float = 32.0
    """Scale of the update, > 0; it is divided by the rank."""
    lora_dropout: float = 0.0
    """Dropout on the adapters' input, in [0, 1)."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Which modules get adapters: ``all-linear``, a pattern, or names."""

    def __post_init__(self) -> None:
        require_positive("student.lora.r", self.r)
        if self.r > LARGEST_RANK:
            raise ConfigError(f"student.lora.r must be <= {LARGEST_RANK}, got {self.r}; no layer has so many columns.")
        if not self.lora_alpha > 0:
            raise ConfigError(f"student.lora.lora_alpha must be > 0, got {self.lora_alpha}.")
        if not 0 <= self.lora_dropout < 1:
            raise ConfigError(f"student.lora.lora_dropout must be in [0, 1), got {self.lora_dropout}.")
        if not self.target_modules:
            raise ConfigError("student.lora.target_modules is empty; name modules, or leave it out for all-linear.")


@dataclass(frozen=True, kw_only=True)
class EarlyStoppingSection:
    """Training ends when evaluations stop getting better, and the best checkpoint is kept: by
    ``training.metric_for_best_model`` (the evaluation loss), or by ``free_running.select_by``."""

    patience: int = 3
    """Evaluations in a row without a gain after which training ends, >= 1."""
    threshold: float = 0.0
    """A gain is better than the best so far by more than this, >= 0."""

    def __post_init__(self) -> None:
        require_positive("training.early_stopping.patience", self.patience)
        if not 0 <= self.threshold < math.inf:
            raise ConfigError(f"training.early_stopping.threshold must be >= 0, got {self.threshold}.")


SAME = {"int8": "Q8_0", "int4": "Q4_0"}
"""Other names of types of weights."""


@dataclass(frozen=True, kw_only=True)
class QuantisedSection:
    """The student is trained as a GGUF file of few bits holds it: its weights are rounded in every forward, and the
    gradient goes to the whole ones, which are saved (docs/export.md). The teacher stays as it is."""

    kind: Literal["int8", "int4", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"]
    """The type of the file that is exported (docs/export.md). ``int8`` is Q8_0, ``int4`` is Q4_0; all of them round 32
    neighbouring weights together."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", SAME.get(self.kind, self.kind))


@dataclass(frozen=True, kw_only=True)
class TrainingSection:
    """Any field of ``trl.SFTConfig``; what is left out has a default suited to distillation."""

    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Names and values; :data:`bridgegarden.recipe.training.DEFAULTS` fill the gaps."""
    early_stopping: EarlyStoppingSection | None = None
    """When training ends before its last step; null is never. ``{}`` takes the defaults."""
    loss_kernel: LossKernel = "auto"
    """What reads and writes the logits in the loss: ``torch``, or on a CUDA GPU, for a teacher of which the likeliest
    tokens or draws are kept, the kernels of ``triton``. ``auto`` is whichever docs/benchmarks.md has shown to be the
    faster: ``torch`` so far."""
    quantised: QuantisedSection | None = None
    """The file that the student is trained for; null trains it as it is."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "arguments", checked_arguments(self.arguments))


def own_keys() -> tuple[str, ...]:
    """Keys of the section that are ours, and not fields of ``SFTConfig``."""
    return tuple(f.name for f in fields(TrainingSection) if f.name != "arguments")


def checked_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """`arguments` with the types that ``SFTConfig`` declares, over :data:`DEFAULTS`.

    Raises:
        ConfigError: an unknown or reserved field, or a value of the wrong type.
    """
    if not arguments:
        return dict(DEFAULTS)  # without the seconds that TRL takes to load
    known = _sft_fields()
    for name in arguments:
        if name in RESERVED:
            raise ConfigError(f"training.{name} cannot be set: {RESERVED[name]}.")
        if name not in known:
            settable = [*(field for field in known if field not in RESERVED), *own_keys()]
            raise unknown_name(name, settable, field="training", kind="key")
    given = {name: coerce(value, known[name], f"training.{name}") for name, value in arguments.items()}
    for name, (least, most) in RANGES.items():
        value = given.get(name)
        if isinstance(value, int) and (value < least or (most is not None and value > most)):
            expected = f"at least {least}" if most is None else f"in [{least}, {most}]"
            raise ConfigError(f"training.{name} must be {expected}, got {value}.")
    for name, known_values in _choices().items():
        if given.get(name) is not None and given[name] not in known_values:
            raise unknown_name(given[name], known_values, field=f"training.{name}", kind="value")
    _check_that_something_is_trained({**DEFAULTS, **given})
    return {**DEFAULTS, **given}


def _check_that_something_is_trained(arguments: Mapping[str, Any]) -> None:
    """No steps at all would publish the student as it was."""
    steps, epochs = arguments.get("max_steps"), arguments["num_train_epochs"]
    if steps is not None and steps != BY_EPOCHS and steps < 1:
        raise ConfigError(
            f"training.max_steps must be at least 1, got {steps}; leave it out to train for training.num_train_epochs."
        )
    if steps in (None, BY_EPOCHS) and not epochs > 0:
        raise ConfigError(f"training.num_train_epochs must be above 0, got {epochs:g}.")


def build_sft_config(
    section: "TrainingSection", output_dir: Path, *, evaluate: bool = False, select_by: str | None = None
) -> "SFTConfig":
    """TRL's configuration for this machine.

    Unless the recipe says otherwise: bfloat16 autocast exactly where a CUDA device has it, and, when there are rows to
    evaluate on, an evaluation after each epoch.

    Args:
        section: the recipe's training section.
        output_dir: where the trainer writes its checkpoints.
        evaluate: whether there are evaluation rows.
        select_by: keep the checkpoint that is best by this, a name in
            :data:`bridgegarden.training.callbacks.SELECT_BY`; checkpoints are then saved at evaluations,
            unless the recipe says when. So they are for ``early_stopping``, which keeps the best one, too.

    Raises:
        ConfigError: TRL refuses the combination.
    """

    def built(section: "TrainingSection") -> "SFTConfig":
        return _sft_config(section, output_dir, evaluate=evaluate, select_by=select_by)

    try:
        return built(section)
    except Refused as refused:
        raise blamed(section, str(refused), built) from refused


def _sft_config(section: "TrainingSection", output_dir: Path, *, evaluate: bool, select_by: str | None) -> "SFTConfig":
    """As :func:`build_sft_config`, but raises :class:`Refused`, in the library's words, and looks for no culprit."""
    import torch
    from trl.trainer.sft_config import SFTConfig

    arguments = dict(section.arguments)
    if arguments.get("bf16") is None:
        on_gpu = torch.cuda.is_available() and not arguments.get("use_cpu", False)
        arguments["bf16"] = on_gpu and not arguments.get("fp16", False) and torch.cuda.is_bf16_supported()
    if evaluate:
        arguments.setdefault("eval_strategy", "epoch")
    if select_by is not None:
        from bridgegarden.training.callbacks import selection_arguments

        arguments = _selecting(arguments, selection_arguments(select_by))
    elif section.early_stopping is not None:
        best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss"}
        arguments = _selecting(arguments, {name: arguments.get(name, value) for name, value in best.items()})
    for name in ("activation_checkpointing", "activation_checkpointing_kwargs"):
        # Newer versions of transformers warn of the old names.
        old = name.replace("activation", "gradient")
        if name in _sft_fields() and old in arguments:
            arguments[name] = arguments.pop(old)
    with foreign(Refused):
        return SFTConfig(output_dir=str(output_dir), **arguments)


class Refused(ConfigError):
    """Settings that a library refuses, in its words."""


def blamed(section: "TrainingSection", words: str, tried: Callable[["TrainingSection"], object]) -> ConfigError:
    """The error for settings that a library refuses: names those without any one of which it would not.

    Args:
        section: with which it does.
        words: the library's.
        tried: raises a :class:`ConfigError` where it refuses a section.
    """
    given = {key: value for key, value in section.arguments.items() if DEFAULTS.get(key, NOTHING) != value}
    guilty: list[str] = []
    for key in given:
        kept = {name: value for name, value in section.arguments.items() if name != key}
        try:
            tried(replace(section, arguments=kept))
        except ConfigError:
            continue
        guilty.append(key)
    if not guilty:
        return _first_refused_alone(section, given, tried) or ConfigError(
            f"training: these settings cannot be trained with: {words}."
        )
    place = " and ".join(f"training.{key}" for key in guilty)
    values = " and ".join(quoted(given[key]) for key in guilty)
    return ConfigError(f"{place}: {values} cannot be trained with: {words}. Change it, or leave it out.")


def _selecting(arguments: Mapping[str, Any], selection: Mapping[str, Any]) -> dict[str, Any]:
    """`arguments` with which the best checkpoint is kept by `selection`: one for every evaluation."""
    # What transformers takes itself where nothing is said.
    saved = {"save_strategy": arguments["eval_strategy"]}
    if saved["save_strategy"] == "steps":
        saved["save_steps"] = arguments.get("eval_steps") or arguments["logging_steps"]
    return {**saved, **arguments, **selection}


def build_lora_config(section: "LoraSection") -> "LoraConfig":
    """PEFT's configuration of a student's adapters.

    Raises:
        ConfigError: PEFT is not installed.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise MissingPackageError(
            "student.lora needs PEFT; install it with: pip install 'bridgegarden[peft]'"
        ) from error
    modules = section.target_modules
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=section.r,
        lora_alpha=section.lora_alpha,  # pyright: ignore[reportArgumentType]  PEFT divides by r, whatever it is
        lora_dropout=section.lora_dropout,
        target_modules=modules if isinstance(modules, str) else list(modules),
    )


def _first_refused_alone(
    section: "TrainingSection", given: Mapping[str, Any], tried: Callable[["TrainingSection"], object]
) -> ConfigError | None:
    """Of several settings that are refused, each for reasons of its own, the error of the first."""
    for key, value in given.items() if len(given) > 1 else ():
        alone = replace(section, arguments={key: value})
        try:
            tried(alone)
        except Refused as refused:
            return blamed(alone, str(refused), tried)
        except ConfigError as error:
            return error
    return None


@cache
def _sft_fields() -> dict[str, Any]:
    """Names and types of the fields of ``SFTConfig``."""
    from trl.trainer.sft_config import SFTConfig

    hints = get_type_hints(SFTConfig)
    return {f.name: hints[f.name] for f in fields(SFTConfig) if f.init}


@cache
def _choices() -> dict[str, tuple[str, ...]]:
    """The texts that fields of ``SFTConfig`` may hold, where it says which."""
    from trl.trainer.sft_config import SFTConfig

    return {f.name: tuple(f.metadata["choices"]) for f in fields(SFTConfig) if "choices" in f.metadata}
