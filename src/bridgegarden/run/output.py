"""The output folder of a run: what is in it, when it may be written to, and from where a run goes on."""

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
from bridgegarden.run.checkpoints import Fault, checkpoints_in, fault_of

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

    @property
    def lock(self) -> Path:
        """What a run holds while it works here."""
        return self.checkpoints / ".lock"

    def check(self, recipe: Recipe) -> None:
        """Make sure that a run of `recipe` may begin here, or go on.

        Raises:
            ConfigError: there is another recipe's model or interrupted run, or something that no run has left.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"output: {self.path} is a file; expected a folder, or a name that is free.")
        self._refuse_what_is_not_ours()
        changed = self._changed_keys(recipe)
        if changed and self.model.exists():
            raise ConfigError(
                f"output: {self.path} already holds a finished model. It was made with another recipe: {changed}. Set "
                "another output (--set output=FOLDER), or remove that folder."
            )
        if changed and (checkpoints_in(self.checkpoints) or self.adapter.exists()):
            raise ConfigError(
                f"output: {self.path} holds the run of another recipe: {changed}. Undo these changes to go on with it, "
                "set another output (--set output=FOLDER), or remove that folder."
            )

    def usable_checkpoint(self) -> tuple[Path | None, tuple[Fault, ...]]:
        """The newest checkpoint that a run can go on from, if there is one, and what is wrong with newer ones."""
        faults: list[Fault] = []
        for checkpoint in checkpoints_in(self.checkpoints):
            fault = fault_of(checkpoint)
            if fault is None:
                return checkpoint, tuple(faults)
            faults.append(fault)
        return None, tuple(faults)

    def begin(self, recipe: Recipe, record: Mapping[str, Any]) -> None:
        """Make the folder and save recipe and record; remains of an attempt that never saved anything go."""
        self.path.mkdir(parents=True, exist_ok=True)
        # First, since it is what tells a folder of ours.
        write_json(self.record, record)
        self.checkpoints.mkdir(exist_ok=True)
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

    def _refuse_what_is_not_ours(self) -> None:
        """A run replaces and removes files under the names it uses: only where a run has put them."""
        if _is_record(self.record):
            return
        names = (self.model, self.adapter, self.checkpoints, self.metrics, self.recipe)
        there = [path.name for path in names if path.exists() or path.is_symlink()]
        if there:
            raise ConfigError(
                f"output: {self.path} holds {', '.join(there)} but not the {self.record.name} of a run, so "
                "that nothing of it is ours to replace. Set another output (--set output=FOLDER)."
            )


def _is_record(path: Path) -> bool:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and {"started", "objective", "data", "packages"} <= record.keys()


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


def _flat(tree: Any, place: str = "") -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        return {place: tree}
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= _flat(value, f"{place}.{key}" if place else str(key))
    return leaves


def _shown(leaves: Mapping[str, Any], key: str) -> str:
    return repr(leaves[key]) if key in leaves else "not set"
