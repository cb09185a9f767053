"""A recipe or a model to its scores: what ``bridgegarden evaluate`` does."""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from bridgegarden.errors import ConfigError
from bridgegarden.evaluation.lm_eval import EvaluationOptions, evaluate_model, prepare_tasks
from bridgegarden.evaluation.results import Evaluation
from bridgegarden.preflight import ModelReference, load_facts
from bridgegarden.recipe import list_recipes, load_recipe
from bridgegarden.run.commit import git_commit
from bridgegarden.run.models import load_model, usable_device
from bridgegarden.run.output import OutputFolder, check_writable, write_json, write_or_rescue, write_text
from bridgegarden.run.quiet import quiet_libraries
from bridgegarden.run.record import now, package_versions


@dataclass(frozen=True, kw_only=True)
class EvaluateTarget:
    """What is evaluated, and where."""

    source: str
    """A recipe's file or shipped name, whose trained student is meant; or a model's folder or name on the hub."""
    overrides: tuple[str, ...] = ()
    """Changes to the recipe."""
    output: Path | None = None
    """Folder for the result; None is ``OUTPUT/evaluation/TASKS`` of a recipe, else ``runs/evaluation/NAME/TASKS``."""
    dtype: str = "auto"
    """Type of the weights; ``auto`` is the type they were saved in."""
    device: str | None = None
    """Such as ``cuda:1``; None is a GPU if there is one."""


class EvaluationFiles(NamedTuple):
    """Where the result is."""

    folder: Path

    @property
    def results(self) -> Path:
        """Scores and settings."""
        return self.folder / "results.json"

    @property
    def page(self) -> Path:
        """The same to read."""
        return self.folder / "results.md"

    @property
    def problems(self) -> Path:
        """Scores and answers, a line for each task and problem."""
        return self.folder / "problems.jsonl"


def evaluate_target(target: EvaluateTarget, options: EvaluationOptions) -> tuple[Evaluation, EvaluationFiles]:
    """Evaluate a model and write what was found.

    Raises:
        ConfigError: no such recipe, it is not trained yet, or a setting or task cannot be used; or the result could
            only be written elsewhere.
        DataError: a data set cannot be had.
        ModelError: the model cannot be loaded, or does not fit a task.
    """
    from bridgegarden.terminal import stderr_console

    model_name, folder = _locate(target)
    files = EvaluationFiles((target.output or folder / _label(options.tasks)).expanduser())
    check_writable(files.folder, "output")
    device = usable_device(target.device, "--device")
    console = stderr_console()
    with quiet_libraries(interactive=sys.stderr.isatty()):
        facts = load_facts(ModelReference(role="model", model=model_name, dtype=target.dtype))
        prepared = prepare_tasks(options)
        console.print(f"loading model {model_name}", markup=False, soft_wrap=True)
        model = load_model(facts)
        model.to(device)  # pyright: ignore[reportArgumentType]
        found = evaluate_model(model, facts.tokenizer, options, name=model_name, prepared=prepared)
    settings = {**found.settings, "commit": facts.commit, "packages": package_versions(), "git_commit": git_commit()}
    found = replace(found, settings={**settings, "date": now()})
    write_or_rescue(files.folder, lambda folder: _write(EvaluationFiles(folder), found))
    return found, files


def _locate(target: EvaluateTarget) -> tuple[str, Path]:
    """The model's folder or name, and the folder for results."""
    path = Path(target.source).expanduser()
    named_as_file = path.suffix.lower() in (".yaml", ".yml")
    if path.is_dir() or not (path.is_file() or named_as_file or target.source in list_recipes()):
        if target.overrides:
            raise ConfigError(f"--set changes a recipe, and {target.source} is a model.")
        name = re.sub(r"[^\w.-]+", "-", str(path.resolve().name if path.is_dir() else path)).strip("-")
        return target.source, Path("runs/evaluation") / name
    output = OutputFolder(load_recipe(target.source, target.overrides).output)
    if not output.model.is_dir():
        raise ConfigError(
            f"{target.source}: {output.model} does not exist, so this recipe has no trained model yet. Train it "
            f"(bridgegarden train {target.source}), or give a model to evaluate that."
        )
    return str(output.model), output.path / "evaluation"


def _label(tasks: Sequence[str]) -> str:
    """A folder's name for what is run: another choice of tasks does not overwrite it."""
    return re.sub(r"[^\w.-]+", "-", "+".join(tasks))[:80].strip("-")


def _write(files: EvaluationFiles, found: Evaluation) -> None:
    write_json(files.results, found.to_dict())
    write_text(files.page, found.to_markdown())
    write_text(files.problems, found.problem_lines())
