"""A recipe of a configuration for TRL's distillation trainers, as its command line takes it in YAML.

Every option of the file is in the recipe, or is named with the reason why it is not. What TRL does where the file says
nothing, and a recipe would do otherwise, is written into the recipe.
"""

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from bridgegarden.errors import ConfigError, foreign, quoted
from bridgegarden.recipe.sections import Recipe
from bridgegarden.recipe.training import DEFAULTS, RESERVED
from bridgegarden.recipe.values import REMOVED, SECRET_TEXT, is_secret, read_yaml_file, write_yaml

Trainer = Literal["gkd", "distillation", "sft"]
"""``GKDTrainer``, the ``DistillationTrainer`` of ``trl distillation``, or ``SFTTrainer``, which has no teacher."""

KEPT_DEFAULTS = (
    "num_train_epochs",
    "per_device_train_batch_size",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
)
"""Settings that decide what is learnt, and whose defaults are not TRL's."""
DTYPES = ("auto", "bfloat16", "float16", "float32")
NO_PLACE: Mapping[str, str] = {
    "attn_implementation": "attention is what transformers takes for the model",
    "use_liger_kernel": "the loss is computed here, a chunk at a time",
    "disable_dropout": "the student keeps the dropout of its configuration; the teacher has none",
    "env": "set these in the shell",
    "load_in_4bit": "a student is trained in its own type; teacher.quantization is for the teacher",
    "load_in_8bit": "a student is trained in its own type; teacher.quantization is for the teacher",
    "dataset_streaming": "data sets are read whole",
    "streaming": "data sets are read whole",
    "test_split_size": "keep rows of your own and name them as data.eval",
    "ignore_bias_buffers": "nothing here needs it",
    "teacher_tokenizer_name_or_path": "the teacher's tokenizer is that of its folder",
    "seq_kd": "let the teacher write the answers once: bridgegarden generate RECIPE, then data.train of what it wrote",
    "use_vllm": "the student writes with transformers",
    "log_completions": "what the student writes is not logged",
    **RESERVED,
}
"""Why an option has no place in a recipe."""
ORDER = ("teacher", "student", "data", "objective", "on_policy", "training", "output")
WITHOUT_REASON = "there is nothing like it"


@dataclass
class Converted:
    """What became of a configuration."""

    tree: dict[str, Any]
    """The recipe, as YAML would be read."""
    notes: list[str] = field(default_factory=list)
    """What is not in it, or means something else, one sentence each."""

    def to_yaml(self) -> str:
        """The recipe, with the notes as comments above it."""
        return "".join(f"# {note}\n" for note in self.notes) + write_yaml(self.tree)


def recipe_from_trl(path: str | Path, *, trainer: Trainer | None = None, teacher: str | None = None) -> Converted:
    """The recipe that does what a configuration of TRL does.

    Args:
        path: a YAML file as ``trl sft --config`` takes it.
        trainer: whose configuration it is; None goes by its options.
        teacher: name or folder of a teacher, for a file that names none.

    Raises:
        ConfigError: the file holds options that this trainer of TRL does not have, which are all named; it names no
            teacher, student or rows; or the recipe would be refused, with the place in it.
    """
    options = read_yaml_file(Path(path))
    if not isinstance(options, dict) or not options:
        raise ConfigError(f"{path}: expected options of TRL, such as model_name_or_path: NAME.")
    try:
        converted = convert(dict(options), trainer or _trainer_of(options), teacher)
    except ConfigError as error:
        raise type(error)(f"{path}: {error}") from error
    try:
        Recipe.from_dict(converted.tree)
    except ConfigError as error:
        raise ConfigError(f"{path}: a recipe would refuse what became of it: {error}") from error
    return converted


def convert(options: dict[str, Any], trainer: Trainer, teacher: str | None = None) -> Converted:
    """What becomes of `options`, before anything is checked but their names.

    Raises:
        ConfigError: as :func:`recipe_from_trl`.
    """
    known = _known(trainer)
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ConfigError(f"{_NAMES[trainer]} has no such options: {'; '.join(_with_hint(n, known) for n in unknown)}.")
    left = {name: value for name, value in options.items() if value is not None}
    out = Converted({})
    _models(left, out, trainer, teacher)
    _rows(left, out)
    _objective(left, out, trainer, known)
    _training(left, out, known)
    for name, value in left.items():
        # Variables may be keys.
        shown = ", ".join(map(str, value)) if name == "env" and isinstance(value, dict) else quoted(value)
        shown = REMOVED if is_secret(name) else SECRET_TEXT.sub(REMOVED, shown)
        out.notes.append(f"not taken over: {name}: {shown}: {NO_PLACE.get(name, WITHOUT_REASON)}.")
    out.tree = {name: out.tree[name] for name in ORDER if name in out.tree}
    return out


def _models(left: dict[str, Any], out: Converted, trainer: Trainer, teacher: str | None) -> None:
    student = left.pop("model_name_or_path", None)
    named = left.pop("teacher_model_name_or_path", None) or teacher
    if student is None:
        raise ConfigError("model_name_or_path: names no student.")
    if named is None and trainer == "gkd":
        out.notes.append("no teacher is named: TRL then takes the student as it was, and so does this recipe.")
        named = student
    if named is None:
        raise ConfigError("teacher_model_name_or_path: names no teacher; say which with --teacher MODEL.")
    dtype = str(left.pop("dtype", "auto" if trainer == "sft" else "float32")).removeprefix("torch.")
    out.tree |= {"teacher": {"model": named, "dtype": dtype}, "student": {"model": student, "dtype": dtype}}
    for option, section in (("model_revision", "student"), ("teacher_model_revision", "teacher")):
        value = left.pop(option, None)
        if value not in (None, "main"):
            out.tree[section]["revision"] = value
    _init_kwargs(left, out)
    _lora(left, out)


def _init_kwargs(left: dict[str, Any], out: Converted) -> None:
    given = left.pop("teacher_model_init_kwargs", {})
    if not isinstance(given, dict):
        left["teacher_model_init_kwargs"] = given
        return
    for name, value in given.items():
        key = "dtype" if name == "torch_dtype" else name
        plain = str(value).removeprefix("torch.")
        if key == "dtype" and plain in DTYPES:
            out.tree["teacher"]["dtype"] = plain
        elif key in ("revision", "device_map") and isinstance(value, str):
            out.tree["teacher"][key] = value
        else:
            left[f"teacher_model_init_kwargs.{name}"] = value


def _lora(left: dict[str, Any], out: Converted) -> None:
    # PEFT's fields, with what TRL takes where the file says nothing.
    names = {"lora_r": ("r", 16), "lora_alpha": ("lora_alpha", 32), "lora_dropout": ("lora_dropout", 0.05)}
    if not left.pop("use_peft", False):
        for name in [each for each in (*names, "lora_target_modules") if each in left]:
            out.notes.append(
                f"not taken over: {name}: {quoted(left.pop(name))}: without use_peft TRL does not read it."
            )
        return
    lora = {ours: left.pop(theirs, default) for theirs, (ours, default) in names.items()}
    modules = left.pop("lora_target_modules", None)
    if modules is not None:
        lora["target_modules"] = modules
    else:
        out.notes.append("adapters: PEFT chooses modules by architecture, a recipe takes all linear ones.")
    out.tree["student"]["lora"] = lora


def _rows(left: dict[str, Any], out: Converted) -> None:
    data: dict[str, Any] = {}
    split = left.pop("dataset_train_split", "train")
    name, config = left.pop("dataset_name", None), left.pop("dataset_config", None)
    mixture = left.pop("datasets", None)
    if mixture:
        if not isinstance(mixture, list) or not all(isinstance(each, dict) for each in mixture):
            raise ConfigError(f"datasets: expected a list of mappings with a path each, got {quoted(mixture)}.")
        data["train"] = [_source(each, index, left) for index, each in enumerate(mixture)]
        if name is not None:
            out.notes.append(f"not taken over: dataset_name: {quoted(name)}: TRL reads datasets instead.")
    elif name is not None:
        data["train"] = f"{name}:{config}" if config else name
        if split != "train":
            data["split"] = split
    else:
        raise ConfigError("dataset_name: names no rows (and there are no datasets).")
    test = left.pop("dataset_test_split", None)
    if left.get("eval_strategy", "no") not in ("no", False) and not mixture:
        data |= {"eval": data["train"], "eval_split": test or "test"}
    elif test is not None:
        out.notes.append(f"not taken over: dataset_test_split: {quoted(test)}: TRL does not evaluate here either.")
    text = left.pop("dataset_text_field", None)
    if text is not None:
        out.notes.append(
            f"not taken over: dataset_text_field: {quoted(text)}: set data.text to it if rows are plain text."
        )
    out.tree["data"] = data


def _source(each: Mapping[str, Any], index: int, left: dict[str, Any]) -> dict[str, Any]:
    """One of several sources; what of it has no place goes back into `left`."""
    given = {name: value for name, value in each.items() if value is not None}
    path, config, files = given.pop("path", None), given.pop("name", None), given.pop("data_files", None)
    if path is None:
        raise ConfigError(f"datasets[{index}].path: names no rows.")
    if isinstance(files, str) and config is None:
        path, files = os.path.join(path, files) if os.path.isdir(path) else files, None
    source: dict[str, Any] = {"path": f"{path}:{config}" if config else path}
    if files is not None:
        left[f"datasets[{index}].data_files"] = files
    for theirs, ours in (("split", "split"), ("fraction", "weight")):
        if theirs in given:
            source[ours] = given.pop(theirs)
    left.update({f"datasets[{index}].{name}": value for name, value in given.items()})
    return source


def _objective(left: dict[str, Any], out: Converted, trainer: Trainer, known: Mapping[str, Any]) -> None:
    if trainer == "sft":
        out.tree["objective"] = {"preset": "hard", "hard_target": "data"}
        out.notes.append(
            "the objective is SFT's own, the data's tokens alone; objective.preset has what a teacher adds."
        )
        return
    beta, temperature = (_number(left, name, known[name]) for name in ("beta", "temperature"))
    # The two ends have names of their own, and are computed as such.
    ends: dict[float, dict[str, Any]] = {0: {"divergence": "forward_kl"}, 1: {"divergence": "reverse_kl"}}
    between = {"divergence": "jensen_shannon", "divergence_options": {"beta": beta}}
    out.tree["objective"] = {**ends.get(beta, between), "soft_weight": 1.0}
    longest = left.pop("max_new_tokens" if trainer == "gkd" else "max_completion_length", None)
    longest = longest or (128 if trainer == "gkd" else 512)
    share = _number(left, "lmbda", known["lmbda"]) if trainer == "gkd" else 1.0
    if share:
        out.tree["on_policy"] = {"lmbda": share, "temperature": temperature, "max_new_tokens": longest}
    if trainer == "distillation" and temperature != 1:
        out.tree["objective"]["temperature"] = temperature
        out.notes.append(
            f"temperature: {temperature}: of sampling and of the loss, as in TRL; here the loss and its gradient are "
            f"multiplied by its square, {temperature**2:g}."
        )


def _number(left: dict[str, Any], name: str, default: float) -> float:
    value = left.pop(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{name}: expected a number, got {quoted(value)}.")
    return value


def _with_hint(name: object, known: Mapping[str, Any]) -> str:
    close = get_close_matches(str(name), list(known), n=1)
    return f"{name} (did you mean {close[0]}?)" if close else str(name)


def _training(left: dict[str, Any], out: Converted, known: Mapping[str, Any]) -> None:
    out.tree["output"] = str(left.pop("output_dir", None) or "trl_output")
    fit = _names_of("sft")
    training = {name: left.pop(name) for name in list(left) if name in fit and name not in NO_PLACE}
    for name in KEPT_DEFAULTS:
        default = known[name]
        if name not in training and default is not MISSING and default != DEFAULTS[name]:
            training[name] = getattr(default, "value", default)
    out.tree["training"] = training


def _trainer_of(options: Mapping[str, Any]) -> Trainer:
    """Whose configuration it is, by options that only one has."""
    if {"lmbda", "seq_kd", "max_new_tokens"} & set(options):
        return "gkd"
    if "max_completion_length" in options:
        return "distillation"
    if "teacher_model_name_or_path" not in options and "beta" not in options:
        return "sft"
    raise ConfigError(
        "GKDConfig and DistillationConfig both take these options, and mean different things where they are left out "
        "(lmbda, beta, temperature); say which with --trainer gkd or --trainer distillation."
    )


_NAMES: Mapping[Trainer, str] = {"gkd": "GKDConfig", "distillation": "DistillationConfig", "sft": "SFTConfig"}


def _known(trainer: Trainer) -> dict[str, Any]:
    """Every option of a configuration of `trainer`, with its default (``MISSING`` where there is none)."""
    from trl.scripts.utils import DatasetMixtureConfig, ScriptArguments
    from trl.trainer.model_config import ModelConfig

    found: dict[str, Any] = {"env": MISSING}
    for kind in (ScriptArguments, DatasetMixtureConfig, ModelConfig, _class_of(trainer)):
        found |= {each.name: each.default for each in fields(kind) if each.init}
    return found


def _names_of(trainer: Trainer) -> set[str]:
    return {each.name for each in fields(_class_of(trainer)) if each.init}


def _class_of(trainer: Trainer) -> Any:
    loaders: Mapping[Trainer, Callable[[], Any]] = {"gkd": _gkd, "distillation": _distillation, "sft": _sft}
    with foreign(ConfigError):
        try:
            kind = loaders[trainer]()
        except ImportError as error:
            from importlib.metadata import version

            raise ConfigError(f"TRL {version('trl')}, which is installed, has no {_NAMES[trainer]}.") from error
    assert is_dataclass(kind)
    return kind


def _gkd() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that what is experimental is unstable
        from trl.experimental.gkd.gkd_config import GKDConfig

    return GKDConfig


def _distillation() -> Any:
    from trl.trainer.distillation_config import DistillationConfig

    return DistillationConfig


def _sft() -> Any:
    from trl.trainer.sft_config import SFTConfig

    return SFTConfig
