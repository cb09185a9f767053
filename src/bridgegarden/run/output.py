"""The output folder of a run: what is in it, when it may be written to, and where a run can be resumed."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridgegarden.errors import ConfigError
from bridgegarden.recipe import Recipe
from bridgegarden.recipe.plain_yaml import read_yaml, read_yaml_file

KEYS_SHOWN = 6


@dataclass(frozen=True)
class OutputFolder:
    """``OUTPUT`` of a recipe.

    ``model`` exists only if training was finished: it is written under another name and renamed at the very end.
    """

    path: Path

    @property
    def model(self) -> Path:
        """The trained model."""
        return self.path / "model"

    @property
    def adapter(self) -> Path:
        """The trained adapters, if the student had any; `model` has them merged in."""
        return self.path / "adapter"

    @property
    def checkpoints(self) -> Path:
        """The trainer's own folder."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """One line of JSON for every log."""
        return self.path / "metrics.jsonl"

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def record(self) -> Path:
        """Versions, data hashes, times."""
        return self.path / "run.json"

    def check(self, recipe: Recipe, *, resume: bool) -> Path | None:
        """Make sure that a run of `recipe` may write here, and find the checkpoint to go on from.

        Returns:
            The newest whole checkpoint if `resume`, else None.

        Raises:
            ConfigError: there is a finished model, another recipe's run, an interrupted run that is not to be resumed,
                or nothing to resume.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"output: {self.path} is a file; expected a folder, or a name that is free.")
        changed = self._changed_keys(recipe)
        if self.model.exists():
            differ = f" It was made with another recipe: {changed}." if changed else ""
            raise ConfigError(
                f"output: {self.path} already holds a finished model.{differ} Set another output "
                f"(--set output=FOLDER), or remove that folder."
            )
        checkpoint = self.last_checkpoint()
        if changed and (resume or self._has_something_to_lose()):
            raise ConfigError(
                f"output: {self.path} holds the run of another recipe: {changed}. Undo these changes to resume it, set "
                "another output (--set output=FOLDER), or remove that folder."
            )
        if not resume:
            if checkpoint is not None:
                raise ConfigError(
                    f"output: {self.path} holds an interrupted run of this recipe ({checkpoint.name}). Add --resume to "
                    "go on from there, or remove that folder to begin again."
                )
            return None
        if checkpoint is None:
            raise ConfigError(
                f"output: {self.path} holds no whole checkpoint to resume from. Run without --resume. Checkpoints are "
                "written every training.save_steps steps (500 by default)."
            )
        return checkpoint

    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint that was written to its end."""
        found = [path for path in self.checkpoints.glob("checkpoint-*") if path.name[11:].isdigit() and _is_whole(path)]
        return max(found, key=lambda path: int(path.name[11:]), default=None)

    def begin(self, recipe: Recipe) -> None:
        """Make the folder and save the recipe in it; remains of an attempt that never saved anything go."""
        self.path.mkdir(parents=True, exist_ok=True)
        for name in (self.model, self.adapter):
            shutil.rmtree(partial(name), ignore_errors=True)
        write_text(self.recipe, recipe.to_yaml())

    def publish(self, finished: Path) -> None:
        """Give a folder or file that was written under :func:`partial` its name, in one step."""
        if finished.is_dir():
            shutil.rmtree(finished)
        os.replace(partial(finished), finished)

    def _changed_keys(self, recipe: Recipe) -> str:
        """Keys in which the recipe that was run here differs from `recipe`; empty if in none."""
        if not self.recipe.is_file():
            return ""
        then, now = _flat(read_yaml_file(self.recipe)), _flat(read_yaml(recipe.to_yaml(), "recipe"))
        keys = sorted(key for key in then.keys() | now.keys() if then.get(key) != now.get(key) and key != "output")
        shown = [f"{key} was {_shown(then, key)}, is {_shown(now, key)}" for key in keys[:KEYS_SHOWN]]
        return "; ".join(shown) + (f"; and {len(keys) - KEYS_SHOWN} more" if len(keys) > KEYS_SHOWN else "")

    def _has_something_to_lose(self) -> bool:
        return self.last_checkpoint() is not None or self.adapter.exists()


def partial(path: Path) -> Path:
    """Where `path` is written before it is whole: beside it, so that it can be renamed."""
    return path.with_name(f".{path.name}.partial")


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    partial(path).write_text(text, encoding="utf-8")
    os.replace(partial(path), path)


def write_json(path: Path, tree: Mapping[str, Any]) -> None:
    """:func:`write_text` of JSON."""
    write_text(path, json.dumps(tree, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def _is_whole(checkpoint: Path) -> bool:
    """Whether the file that the trainer writes last is there and can be read."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def _flat(tree: Any, place: str = "") -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        return {place: tree}
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= _flat(value, f"{place}.{key}" if place else str(key))
    return leaves


def _shown(leaves: Mapping[str, Any], key: str) -> str:
    return repr(leaves[key]) if key in leaves else "not set"
