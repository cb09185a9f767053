"""The output folder of a run: what is in it, when it may be written to, and from where a run goes on."""

import errno
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bridgegarden.errors import ConfigError, ModelError, OutputError
from bridgegarden.files import partial, write_json, write_text
from bridgegarden.recipe import Recipe, list_recipes, load_recipe
from bridgegarden.recipe.values import read_yaml, read_yaml_file
from bridgegarden.run.checkpoints import SEAL, Fault, checkpoints_in, fault_of
from bridgegarden.teacher.foreign_values import read_json

KEYS_SHOWN = 6
RECORD_KEYS: Mapping[str, type] = MappingProxyType(
    {
        **dict.fromkeys(("started", "objective", "tokenizers", "python", "platform"), str),
        **dict.fromkeys(("data", "rows", "teacher", "student", "packages"), dict),
        "went_on_from": list,
    }
)
"""What ``run.json`` of every run has, by which a folder of ours is told from another's."""
RESULT_KEYS: Mapping[str, type] = MappingProxyType(
    {
        **dict.fromkeys(("training", "evaluation", "free_running", "cost"), dict),
        "finished": str,
        "steps": int,
        "wall_seconds": float,
        "peak_memory_bytes": int,
    }
)
"""What it has beside that once the run is finished."""
NOT_SUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What file systems without locks answer."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SIGNS = {
    **{os.strerror(number): os.strerror(number) for number in FULL},
    "PytorchStreamWriter failed writing": "PyTorch could write only a part of a file",
    "unexpected pos": "PyTorch could write only a part of a file",
    " requested and ": "NumPy could write only a part of a file",
}
"""What messages of safetensors, PyTorch and NumPy, which carry no error number, are known by, and what they mean."""


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
    def logs(self) -> Path:
        """What trackers write to files, for good: ``tensorboard --logdir`` reads it."""
        return self.path / "logs"

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
        check_writable(self.path, "output")
        self._refuse_what_is_not_ours()
        if self.model.exists() and not self.is_finished:
            raise OutputError(
                f"output: {self.model} is there, but by {self.record.name} the run is not finished, so that no run has "
                "put it there. Move it away to go on, or set another output (--set output=FOLDER)."
            )
        begun = self.model.exists() or self.adapter.exists() or bool(checkpoints_in(self.checkpoints))
        if begun and not self.recipe.exists():
            raise OutputError(
                f"output: {self.path} holds a run but not its {self.recipe.name}, so that nothing tells whether it was "
                "this recipe's. Put that file back to go on, or set another output (--set output=FOLDER)."
            )
        changed = self._changed_keys(recipe)
        if changed and self.model.exists():
            raise OutputError(
                f"output: {self.path} already holds a finished model. It was made with another recipe: {changed}. Set "
                "another output (--set output=FOLDER), or remove that folder."
            )
        if changed and begun:
            raise OutputError(
                f"output: {self.path} holds the run of another recipe: {changed}. Undo these changes to go on with it, "
                "set another output (--set output=FOLDER), or remove that folder."
            )

    @property
    def is_finished(self) -> bool:
        """Whether a run has ended here with a model."""
        record = self.earlier_record()
        return record is not None and record["finished"] is not None and (self.model / "config.json").is_file()

    def earlier_record(self) -> dict[str, Any] | None:
        """The record of the run that was begun here; None where there is no such file, or another's."""
        try:
            record = read_json(self.record)
        except (OSError, ValueError):
            return None
        return record if _is_record(record) else None

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
        folders, files = (self.model, self.adapter, self.checkpoints), (self.metrics, self.recipe, self.record)
        there = [path.name for path in (*folders, *files) if path.exists() or path.is_symlink()]
        there += [path.name for path in map(partial, (self.model, self.adapter)) if path.exists()]
        if there and self.earlier_record() is None:
            raise OutputError(
                f"output: {self.path} holds {', '.join(there)}, and its {self.record.name} is missing, damaged or not "
                "a run's, so that nothing of it is ours to replace. Set another output (--set output=FOLDER)."
            )
        for path, expected in (*((path, "folder") for path in folders), *((path, "file") for path in files)):
            if path.exists() and path.is_dir() != (expected == "folder"):
                raise OutputError(f"output: {path} is no {expected}, as a run needs it; move it away.")


def named_model(source: str, overrides: Sequence[str], purpose: str) -> tuple[str, Path]:
    """The model that RECIPE|MODEL stands for: of a recipe what it trained.

    Args:
        source: a recipe's file or shipped name; or a model's folder, its name on the hub, or a GGUF file.
        overrides: changes to the recipe.
        purpose: what is done with it, by which the folder for results is called.

    Returns:
        The model's folder or name, and the folder for results: ``OUTPUT/PURPOSE`` of a recipe, else
        ``runs/PURPOSE/NAME``.

    Raises:
        ConfigError: no such recipe, it is not trained yet, or a model is to be changed as a recipe is.
    """
    recipe = named_recipe(source, overrides)
    if recipe is None:
        path = Path(source).expanduser()
        is_one = path.is_dir() or path.suffix.lower() == ".gguf"
        name = re.sub(r"[^\w.-]+", "-", str(path.resolve().name if is_one else path)).strip("-")
        return source, Path("runs") / purpose / name
    output = OutputFolder(recipe.output)
    if not output.model.is_dir():
        raise ConfigError(
            f"{source}: {output.model} does not exist, so this recipe has no trained model yet. Train it "
            f"(bridgegarden train {source}), or give a model itself."
        )
    return str(output.model), output.path / purpose


def named_recipe(source: str, overrides: Sequence[str]) -> Recipe | None:
    """The recipe that RECIPE|MODEL stands for; None where it is a model.

    Raises:
        ConfigError: no such recipe, or a model is to be changed as a recipe is.
    """
    path = Path(source).expanduser()
    suffix = path.suffix.lower()
    named_as_file = suffix in (".yaml", ".yml")
    if path.is_dir() or suffix == ".gguf" or not (path.is_file() or named_as_file or source in list_recipes()):
        if overrides:
            raise ConfigError(f"--set changes a recipe, and {source} is a model.")
        return None
    return load_recipe(source, overrides)


def _is_record(tree: Any) -> bool:
    """By the keys that a run has written since the first version, and what goes on from them."""
    if not isinstance(tree, dict) or not RECORD_KEYS.items() <= {k: type(v) for k, v in tree.items()}.items():
        return False
    if tree.get("finished") is None:
        return "finished" in tree
    if not RESULT_KEYS.items() <= {name: type(value) for name, value in tree.items()}.items():
        return False
    numbers = [tree[name].values() for name in ("training", "evaluation", "free_running", "cost")]
    speed = tree.get("tokens_per_second")
    return all(type(n) in (int, float) for n in chain(*numbers)) and (speed is None or type(speed) in (int, float))


def write_or_rescue(folder: Path, write: Callable[[Path], None]) -> None:
    """Have `write` put the results of long work into `folder`; where that fails, into a temporary one.

    Raises:
        ConfigError: it did fail; says where the results are.
        OSError: nothing can be written in the temporary folder, either.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write(folder)
    except OSError as error:
        rescued = Path(tempfile.mkdtemp(prefix="bridgegarden-"))
        write(rescued)
        raise OutputError(
            f"output: {folder} cannot be written to ({error.strerror or error}). What was found is kept in {rescued}; "
            "move it to where there is room."
        ) from error


def check_writable(folder: Path, place: str) -> None:
    """Make sure that files can be written to `folder`, by trying, and leave nothing behind.

    Permissions do not tell: a file system may be read-only, or take no files at all.

    Args:
        folder: where something is to be written; it need not be there.
        place: what names it, such as ``output`` or ``--output``.

    Raises:
        ConfigError: says which folder is in the way, and why.
    """
    there = folder
    try:
        there = folder = Path(os.path.abspath(folder))
        while not (there.exists() or there.is_symlink()):
            there = there.parent
        if there.is_symlink() and not there.exists():
            raise OutputError(f"{place}: {there} is a link that leads nowhere; give another folder, or remove it.")
        if not there.is_dir():
            raise OutputError(f"{place}: {there} is a file; expected a folder, or a name that is free.")
        tempfile.TemporaryDirectory(prefix=".bridgegarden-", dir=there).cleanup()
    except OSError as error:
        beneath = "" if there == folder else f" for {folder.relative_to(there)}"
        raise OutputError(
            f"{place}: nothing can be written to {there}{beneath} ({error.strerror}). Give another folder"
            f"{' (--set output=FOLDER)' if place == 'output' else ''}, or make that one writable."
        ) from error


def _flat(tree: Any, place: str = "") -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        return {place: tree}
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= _flat(value, f"{place}.{key}" if place else str(key))
    return leaves


def _shown(leaves: Mapping[str, Any], key: str) -> str:
    return repr(leaves[key]) if key in leaves else "not set"


class RunLock:
    """Held by the process that writes to a folder; the system itself releases what a killed one held.

    A record lock belongs to the process and not to what it forks: the workers of its data loader, which live on for
    some seconds after it was killed, do not keep the next attempt out.
    """

    def __init__(self, path: Path) -> None:
        """
        Args:
            path: the file that is locked; made when its folder is there.
        """
        self.path = path
        self._file: int | None = None

    def acquire(self) -> None:
        """Hold the folder, if it exists; a second time does nothing.

        Raises:
            ConfigError: another run holds it.
        """
        if self._file is not None or not self.path.parent.is_dir():
            return
        try:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise OutputError(f"output: {self.path} cannot be written ({error.strerror}).") from error
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(file)
            if error.errno in NOT_SUPPORTED:
                return
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise OutputError(
                f"output: another run is at work in {self.path.parent.parent}; wait for it, or set another output "
                "(--set output=FOLDER)."
            ) from None
        self._file = file

    def release(self) -> None:
        """Let others in."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


@contextmanager
def full_disk_is_one_line(folder: OutputFolder, *, is_main: bool) -> Iterator[None]:
    """Whatever the libraries raise when nothing more can be written under `folder` becomes a :class:`ConfigError`.

    The checkpoint or model that was being written is removed; earlier checkpoints stay.
    """

    def refusal(reason: str) -> ConfigError:
        if is_main:
            _remove_unfinished(folder)
        checkpoint, _ = folder.usable_checkpoint()
        onwards = "begins anew" if checkpoint is None else f"goes on from {checkpoint.name}"
        return OutputError(
            f"output: nothing more can be written to {folder.path} ({reason}). Make room on its disk (training."
            f"save_total_limit says how many checkpoints are kept), and run the same command again: it {onwards}."
        )

    with full_disk(refusal):
        yield


@contextmanager
def full_disk(refusal: Callable[[str], ConfigError]) -> Iterator[None]:
    """Whatever libraries raise when nothing more can be written, or make of that, becomes ``refusal(reason)``."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError, ModelError) as error:
        reason = _reason(error)
        if reason is None:
            raise
        raise refusal(reason) from error


def _remove_unfinished(folder: OutputFolder) -> None:
    for checkpoint in checkpoints_in(folder.checkpoints)[:1]:
        if not (checkpoint / SEAL).exists():
            shutil.rmtree(checkpoint, ignore_errors=True)
    for name in (folder.model, folder.adapter):
        shutil.rmtree(partial(name), ignore_errors=True)


def _reason(error: BaseException | None) -> str | None:
    """Why nothing can be written; None where that is not what `error` says."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return os.strerror(error.errno)
        for sign, meaning in SIGNS.items():
            if sign in str(error):
                return meaning
        error = error.__cause__ or error.__context__
    return None
