"""From a file, or the name of a shipped recipe, with changes from the command line, to a checked :class:`Recipe`."""

import os
from collections.abc import Sequence
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

from bridgegarden.errors import ConfigError, quoted, unknown_name
from bridgegarden.recipe.sections import Recipe
from bridgegarden.recipe.values import read_yaml, read_yaml_file

PATHS = (
    *(("teacher", "model"), ("teacher", "cache"), ("student", "model"), ("student", "folder")),
    *(("data", "train"), ("data", "eval")),
)
"""Settings that may name something beside the recipe's file; so may the ``file`` of a rule in ``objective``."""
SUFFIX = ".yaml"


def load_recipe(source: str | Path, overrides: Sequence[str] = (), *, training: bool = True) -> Recipe:
    """The recipe in a file, or the shipped one of that name.

    A relative path in the file is taken from the file's folder if something is there, else from the working directory
    (or it is a name on the hub). Paths in `overrides`, and `output`, are taken from the working directory. A recipe
    without `output` writes to ``runs/NAME``.

    ``output`` in a file must not climb with ``..``: that would lead elsewhere from each working directory.

    Args:
        source: path of a YAML file, or a name of :func:`~bridgegarden.recipe.load.list_recipes`.
        overrides: changes such as ``training.max_steps=10``; the value is YAML. Later ones win.
        training: whether the settings of that section are read; checking them takes the seconds in which TRL loads.

    Raises:
        ConfigError: there is no such recipe, or something in it is wrong; names the place in it.
    """
    name, tree = _read(source)
    if not isinstance(tree, dict):
        got = "nothing" if tree is None else type(tree).__name__
        raise ConfigError(f"{source}: expected sections (teacher, student, data, ...), got {got}.")
    _refuse_climbing(tree.get("output"), source)
    for override in overrides:
        _apply(override, tree)
    tree.setdefault("output", f"runs/{name}")
    if isinstance(tree["output"], str):
        tree["output"] = os.path.expanduser(tree["output"])
        if _climbs(tree["output"]):
            tree["output"] = os.path.abspath(tree["output"])
    if not training:
        tree.pop("training", None)
    try:
        return Recipe.from_dict(tree)
    except ConfigError as error:
        raise type(error)(f"{source}: {error}") from error


def list_recipes() -> tuple[str, ...]:
    """The names of the shipped recipes, sorted."""
    folder = files("bridgegarden") / "recipes"
    return tuple(sorted(f.name.removesuffix(SUFFIX) for f in folder.iterdir() if f.name.endswith(SUFFIX)))


def read_recipe_text(name: str) -> str:
    """A shipped recipe as it is written, comments included.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in list_recipes():
        raise unknown_name(name, list_recipes(), field="recipes", kind="recipe")
    return (files("bridgegarden") / "recipes" / f"{name}{SUFFIX}").read_text(encoding="utf-8")


def describe_recipe(name: str) -> str:
    """The first line of a shipped recipe's comment.

    Raises:
        ConfigError: there is none of that name, or it does not begin with a comment.
    """
    first = read_recipe_text(name).splitlines()[0]
    if not first.startswith("# "):
        raise ConfigError(f"recipes/{name}{SUFFIX}: expected a comment that says what it is on the first line.")
    return first.removeprefix("# ")


def _climbs(output: str) -> bool:
    return ".." in output.split("/")


def _refuse_climbing(output: Any, source: str | Path) -> None:
    if isinstance(output, str) and _climbs(output):
        raise ConfigError(
            f"{source}: output: {output!r} leads elsewhere from each working directory. Give a path without '..', or "
            "set it on the command line (--set output=FOLDER)."
        )


def _read(source: str | Path) -> tuple[str, Any]:
    """The recipe's name and its tree, with paths beside the file made absolute."""
    path = Path(os.path.expanduser(source))
    if path.is_file():
        tree = read_yaml_file(path)
        _anchor(tree, path.resolve().parent)
        return path.stem, tree
    if str(source) in list_recipes():
        return str(source), read_yaml(read_recipe_text(str(source)), str(source))
    raise _missing(source, path)


def _missing(source: str | Path, path: Path) -> ConfigError:
    if path.is_dir():
        return ConfigError(
            f"{source}: is a folder; expected a recipe's file or a name from `bridgegarden recipes list`."
        )
    beside = [os.fspath(path.parent / f.name) for f in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    close = get_close_matches(str(source), [*list_recipes(), *beside], n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return ConfigError(f"{source}: no such file, and no shipped recipe.{hint} Shipped: {', '.join(list_recipes())}.")


def _anchor(tree: Any, folder: Path) -> None:
    for section, key in PATHS:
        part = tree.get(section) if isinstance(tree, dict) else None
        if isinstance(part, dict) and key in part:
            part[key] = _anchored(part[key], folder)
    if isinstance(tree, dict):
        _anchor_rules(tree.get("objective"), folder)
    teacher = tree.get("teacher") if isinstance(tree, dict) else None
    of = teacher.get("of") if isinstance(teacher, dict) else None
    for member in of.values() if isinstance(of, dict) else ():
        for key in ("model", "cache") if isinstance(member, dict) else ():
            if key in member:
                member[key] = _anchored(member[key], folder)


def _anchor_rules(part: Any, folder: Path) -> None:
    """The file that a rule reads, wherever in `part` the rule stands."""
    for key, value in part.items() if isinstance(part, dict) else ():
        if key == "file" and "rule" in part:
            part[key] = _anchored(value, folder)
        else:
            _anchor_rules(value, folder)


def _anchored(value: Any, folder: Path) -> Any:
    """A path, or the path in each of several sources, made absolute where there is something at it in `folder`."""
    if isinstance(value, list):
        return [_anchored(item, folder) for item in value]
    if isinstance(value, dict) and "path" in value:
        return value | {"path": _anchored(value["path"], folder)}
    if isinstance(value, str) and value:
        beside = folder / os.path.expanduser(value)
        if os.path.exists(beside):  # which a name too long does not stop
            return os.path.normpath(beside)
    return value


def _apply(override: str, tree: dict[str, Any]) -> None:
    """Change one setting of `tree` in place."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set {override}: expected KEY=VALUE, such as training.max_steps=10.")
    value = read_yaml(text, f"--set {path}")
    node: Any = tree
    for depth, key in enumerate(keys[:-1]):
        if node.get(key) is None:
            node[key] = {}
        node = node[key]
        if not isinstance(node, dict):
            place = ".".join(keys[: depth + 1])
            raise ConfigError(f"--set {override}: {place} is {quoted(node)}, not a section; set {place} as a whole.")
    node[keys[-1]] = value
