"""Every private name of another library is in the table of docs/architecture.md, and is still what it was."""

import ast
import importlib
import inspect
import re
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from transformers import TrainerCallback
from trl.trainer.sft_trainer import SFTTrainer

from bridgegarden.training.trainer import HybridDistillationTrainer

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "bridgegarden"
ROW = re.compile(r"^\| `([\w.]+)` \| (override|call|read|set) \| ((?:`[\w/]+\.py`(?:, )?)+) \| [^|]+ \|$", re.MULTILINE)
TRAINER = "training/trainer.py"
PYTHONS = {"_asdict", "_fields", "_make", "_replace", "_exit"}
"""Private by their looks alone: named tuples' and ``os``'s."""


class Entry(NamedTuple):
    """A row of the table."""

    name: str
    how: str
    files: tuple[str, ...]

    @property
    def last(self) -> str:
        return self.name.rpartition(".")[2]


def table() -> list[Entry]:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = text.partition("## Private names of other libraries")[2]
    entries = [Entry(name, how, tuple(re.findall(r"`([^`]+)`", files))) for name, how, files in ROW.findall(section)]
    assert len(entries) == sum(line.startswith("| `") for line in section.splitlines())
    return entries


TABLE = table()
OVERRIDES = [entry for entry in TABLE if entry.how == "override"]


def owner(entry: Entry) -> Any:
    """The module or class that has the name; the test is skipped where the library is not installed."""
    parts = entry.name.split(".")[:-1]
    if find_spec(parts[0]) is None:
        pytest.skip(f"{parts[0]} is not installed")
    found = importlib.import_module(parts[0])
    for index, part in enumerate(parts[1:], 2):
        if not hasattr(found, part):
            importlib.import_module(".".join(parts[:index]))
        found = getattr(found, part)
    return found


def source_of(where: Any) -> str:
    """Of a module, or of the modules of a class and of those it is made from."""
    if inspect.ismodule(where):
        return inspect.getsource(where)
    return "\n".join(inspect.getsource(sys.modules[cls.__module__]) for cls in where.__mro__ if cls is not object)


@pytest.mark.parametrize("entry", TABLE, ids=lambda entry: entry.name)
def test_the_name_is_still_there(entry):
    where = owner(entry)
    # Some are set when an object is made, and a class does not have them; some are functions in a function.
    there = hasattr(where, entry.last) or re.search(rf"(\.|\bdef ){entry.last}\b", source_of(where))
    assert there, f"{entry.name} has gone"


@pytest.mark.parametrize("entry", OVERRIDES, ids=lambda entry: entry.name)
def test_what_is_overridden_is_still_called(entry):
    calls = re.findall(rf"\b(?:self|trainer)\.{entry.last}\(", source_of(owner(entry)))
    assert calls, f"nothing calls {entry.name} any more: our override does nothing"


def overrides(ours: type, theirs: type) -> list[str]:
    return [name for name, value in vars(ours).items() if inspect.isfunction(value) and hasattr(theirs, name)]


@pytest.mark.parametrize("name", overrides(HybridDistillationTrainer, SFTTrainer))
def test_an_override_takes_what_upstream_is_called_with(name):
    if name == "__init__":
        return  # other arguments on purpose
    missing = refused(getattr(HybridDistillationTrainer, name), getattr(SFTTrainer, name))
    assert not missing, f"{name}: upstream has {missing}, which ours does not take"


def refused(ours: Any, theirs: Any) -> list[str]:
    """Parameters of `theirs` that `ours` would not take by position and by name."""
    own = list(inspect.signature(ours).parameters.values())
    kinds = {parameter.kind for parameter in own}
    names = {parameter.name for parameter in own}
    given = list(inspect.signature(theirs).parameters.values())
    anything = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    missing = [
        parameter.name
        for parameter in given
        if parameter.kind not in anything
        and parameter.name not in names
        and (inspect.Parameter.VAR_KEYWORD not in kinds or inspect.Parameter.VAR_POSITIONAL not in kinds)
        and not (inspect.Parameter.VAR_KEYWORD in kinds and parameter.kind is inspect.Parameter.KEYWORD_ONLY)
    ]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        order = [parameter.name for parameter in given if parameter.name in names]
        missing += (
            [] if order == [parameter.name for parameter in own if parameter.name in order] else ["another order"]
        )
    known = {parameter.name for parameter in given}
    needed = [p.name for p in own if p.default is p.empty and p.kind not in anything and p.name not in known]
    return missing + [f"nothing for {name}" for name in needed]


def test_a_refused_argument_would_be_seen():
    def theirs(self, dataset, *, seed=0, **more): ...
    def same(self, dataset, seed=0): ...
    def loose(self, dataset, *args, **kwargs): ...
    def without(self, dataset): ...
    def more(self, dataset, seed, extra): ...

    assert refused(same, theirs) == []
    assert refused(loose, theirs) == []
    assert refused(without, theirs) == ["seed"]
    assert refused(more, theirs) == ["nothing for extra"]


def events() -> dict[str, list[str]]:
    """What our callbacks answer to, by class."""
    found = {}
    for tree in trees().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "TrainerCallback" for base in node.bases):
                names = [part.name for part in node.body if isinstance(part, ast.FunctionDef)]
                found[node.name] = [name for name in names if name.startswith("on_")]
    return found


@pytest.mark.slow
def test_callbacks_answer_to_events_that_there_are():
    assert len(events()) > 5
    unknown = [
        f"{cls}.{name}" for cls, names in events().items() for name in names if not hasattr(TrainerCallback, name)
    ]
    assert not unknown, f"no trainer calls {', '.join(unknown)}"


@cache
def trees() -> dict[str, ast.Module]:
    return {str(path.relative_to(SOURCE)): ast.parse(path.read_text(encoding="utf-8")) for path in SOURCE.rglob("*.py")}


def foreign_names() -> dict[str, set[str]]:
    """Private names that are read, set or imported, and that nothing of ours defines; by file."""
    listed, ours = {entry.last for entry in TABLE}, set(PYTHONS)
    found: dict[str, set[str]] = {}
    for file, tree in trees().items():
        seen = found.setdefault(file, set())
        for node in ast.walk(tree):
            match node:
                case (
                    ast.FunctionDef(name=name)
                    | ast.AsyncFunctionDef(name=name)
                    | ast.ClassDef(name=name)
                    | ast.Name(id=name, ctx=ast.Store())
                ):
                    ours.add(name)
                case ast.Attribute(attr=name, value=ast.Name(id="self" | "cls"), ctx=context):
                    if isinstance(context, ast.Store):
                        ours.add(name)
                    # Elsewhere an object's own.
                    if file == TRAINER or name not in listed:
                        seen.add(name)
                case ast.Attribute(attr=name):
                    seen.add(name)
                case ast.ImportFrom(module=str(module), names=names) if not module.startswith("bridgegarden"):
                    hidden = any(part.startswith("_") for part in module.split(".")) and module != "__future__"
                    seen.update(alias.name for alias in names if hidden or alias.name in listed)
    ours -= listed
    return {
        file: {name for name in seen - ours if name in listed or (name.startswith("_") and not name.startswith("__"))}
        for file, seen in found.items()
    }


@pytest.mark.parametrize("entry", TABLE, ids=lambda entry: entry.name)
def test_the_name_is_used_where_the_table_says(entry):
    for file in entry.files:
        assert re.search(rf"\b{entry.last}\b", (SOURCE / file).read_text(encoding="utf-8")), f"{file}: {entry.name}"


def test_no_private_name_is_used_that_the_table_lacks():
    listed = {(file, entry.last) for entry in TABLE for file in entry.files}
    used = {(file, name) for file, names in foreign_names().items() for name in names}
    made = {name for name in vars(HybridDistillationTrainer) if name.startswith("_") and hasattr(SFTTrainer, name)}
    used |= {(TRAINER, name) for name in made if not name.startswith("__")}
    lacking = sorted(f"{file}: {name}" for file, name in used - listed)
    assert not lacking, f"not in the table of docs/architecture.md: {', '.join(lacking)}"
