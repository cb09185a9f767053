"""Write ``docs/recipe.md`` from the code that reads recipes: ``make docs``."""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from bridgegarden.objective.divergences import DIVERGENCES
from bridgegarden.objective.hybrid import HybridObjective
from bridgegarden.objective.methods import PRESETS
from bridgegarden.objective.position_weight import POSITION_WEIGHTS
from bridgegarden.objective.soft_weight import SOFT_WEIGHTS
from bridgegarden.recipe import Recipe, describe_objective
from bridgegarden.recipe.training import DEFAULTS, RESERVED, TrainingSection, own_keys
from bridgegarden.recipe.values import key_of

PAGE = Path(__file__).with_name("recipe.md")

Section = tuple[str, type]
"""The path of a section's keys (``student.lora``), and the dataclass that reads it."""


def reference() -> str:
    """The page: every key of a recipe, section by section."""
    parts = [
        "# Keys of a recipe",
        "Written by `make docs` from the code that reads them. `teacher`, `student`, `data` and `output` are needed, "
        "the rest is optional, and a key that is not here is refused. `bridgegarden recipes show NAME` prints a whole "
        "recipe, `bridgegarden train RECIPE --dry-run` yours with every default.",
    ]
    for path, section in sections("", Recipe):
        parts += [f"## {path or 'The whole'}", _words(inspect.getdoc(section) or ""), table(path, section)]
        if path == "objective":
            parts += [_objectives()]
        if path == "training":
            parts[-1] = _training()
    return "\n\n".join(parts) + "\n"


def sections(path: str, section: type) -> Iterator[Section]:
    """`section` and those within it."""
    yield path, section
    for name, kind in get_type_hints(section).items():
        for part in (kind, *_parts(kind)):
            if is_dataclass(part) and isinstance(part, type):
                yield from sections(f"{path}.{name}".lstrip("."), part)
            for item in _items(part):
                yield from sections(f"{path}.{name}[]".lstrip("."), item)
            for item in _named(part):
                yield from sections(f"{path}.{name}.NAME".lstrip("."), item)


def table(path: str, section: type) -> str:
    """The keys of a section with type, default and meaning."""
    hints, told = get_type_hints(section), docstrings(section)
    rows = [
        f"| `{f'{path}.{key_of(field)}'.lstrip('.')}` | {_type(hints[field.name])} | {_default(field)} | "
        f"{_words(told[field.name])} |"
        for field in fields(section)
    ]
    return "\n".join(["| key | value | default | meaning |", "|---|---|---|---|", *rows])


def docstrings(section: type) -> dict[str, str]:
    """What stands below each field of a dataclass."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    assert isinstance(node, ast.ClassDef)
    found = {}
    for field, text in zip(node.body, node.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            assert isinstance(text.value, ast.Constant)
            found[field.target.id] = inspect.cleandoc(str(text.value.value))
    return found


def _objectives() -> str:
    presets = [f"| `{name}` | {_words(describe_objective(HybridObjective.preset(name)))} |" for name in PRESETS]
    divergences = [
        f"| `{name}` | {_options(function)} | {_words(_first(inspect.getdoc(function)))} |"
        for name, function in DIVERGENCES.items()
    ]
    rules, weights = (
        [
            f"| `{name}` | {_options(rule)} | {_words(_first(inspect.getdoc(rule)))} |"
            for name, rule in known.items()
            if known is SOFT_WEIGHTS or name not in SOFT_WEIGHTS
        ]
        for known in (SOFT_WEIGHTS, POSITION_WEIGHTS)
    )
    return "\n\n".join(
        [
            "\n".join(["| `objective.preset` | stands for |", "|---|---|", *presets]),
            "\n".join(["| `objective.divergence` | `divergence_options` | |", "|---|---|---|", *divergences]),
            "\n".join(["| rule of `objective.soft_weight` | fields | |", "|---|---|---|", *rules]),
            "\n".join(["| further rule of `objective.position_weight` | fields | |", "|---|---|---|", *weights]),
        ]
    )


def _training() -> str:
    hints, told = get_type_hints(TrainingSection), docstrings(TrainingSection)
    own = [
        f"| `training.{field.name}` | {_type(hints[field.name])} | {_default(field)} | {_words(told[field.name])} |"
        for field in fields(TrainingSection)
        if field.name in own_keys()
    ]
    defaults = [f"| `training.{name}` | `{_plain(value)}` |" for name, value in DEFAULTS.items()]
    reserved = [f"| `training.{name}` | {reason} |" for name, reason in RESERVED.items()]
    return "\n\n".join(
        [
            "\n".join(["| key of ours | value | default | meaning |", "|---|---|---|---|", *own]),
            "\n".join(["| default of ours | |", "|---|---|", *defaults]),
            "\n".join(["| cannot be set | since |", "|---|---|", *reserved]),
        ]
    )


def _options(function: Any) -> str:
    options = [
        f"`{name}`: {parameter.default if parameter.default is not parameter.empty else 'needed'}"
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in ("teacher_logp", "student_logp")
    ]
    return ", ".join(options)


def _parts(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else ()


def _named(kind: Any) -> list[type]:
    """The sections in a mapping of names to them."""
    items = get_args(kind)[1:] if get_origin(kind) is Mapping else ()
    return [item for item in items if is_dataclass(item) and isinstance(item, type)]


def _items(kind: Any) -> list[type]:
    """The sections in a list."""
    items = get_args(kind)[:1] if get_origin(kind) is tuple else ()
    return [part for item in items for part in (item, *_parts(item)) if is_dataclass(part) and isinstance(part, type)]


def _type(kind: Any) -> str:
    """A type as a reader of YAML calls it."""
    if _parts(kind):
        return " or ".join(dict.fromkeys(_type(part) for part in _parts(kind) if part is not NoneType))
    if get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kind))
    if get_origin(kind) in (tuple, list):
        return "list"
    names = {str: "text", Path: "path", int: "whole number", float: "number", bool: "true or false"}
    return names.get(kind, "mapping")


def _default(field: Field) -> str:
    if field.default == "":
        return "none"
    if field.default is not MISSING:
        return f"`{_plain(field.default)}`"
    return "needed" if field.default_factory is MISSING else "`{}`"


def _plain(value: Any) -> str:
    """A value as YAML has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _first(text: str | None) -> str:
    return (text or "").split("\n\n")[0]


def _words(text: str) -> str:
    """A docstring as one line of Markdown."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`")
    # Within a table a bar has to be escaped; formulas may have done it already.
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(text.split()))


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
