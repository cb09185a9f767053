"""What a study leaves on disk: finished trainings under a key of all that decided them, and the folder around them."""

import hashlib
import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from bridgegarden.run.output import check_writable, write_json, write_text
from bridgegarden.run.record import package_versions
from bridgegarden.terminal import duration

if TYPE_CHECKING:
    from markupsafe import Markup

    from bridgegarden.report.page import Page, Section

RunT = TypeVar("RunT")

DECIDES = ("bridgegarden", "torch", "transformers", "trl", "tokenizers")
"""Packages whose version may change a number."""


def key_of(parts: Mapping[str, Any]) -> str:
    """A hash of everything that decides a run, the same in every process."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def keep(path: Path, key: str, run: Any) -> None:
    """Write a finished run, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"key": key, "run": to_tree(run)})


def kept(path: Path, key: str, kind: type[RunT]) -> RunT | None:
    """The run in `path`, if it was made with everything as `key` has it.

    None if it is missing, damaged, or not ours: it is then made again, and overwritten.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        return from_tree(kind, tree["run"]) if tree["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def deciding_versions() -> Mapping[str, Any]:
    """Python, the platform and the packages that decide the numbers."""
    packages = package_versions()
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        **{name: packages[name] for name in DECIDES if name in packages},
    }


@dataclass(frozen=True)
class StudyFolder:
    """``OUTPUT``. While a study is under way, or if it was interrupted, the file ``INCOMPLETE`` lies in it."""

    path: Path

    command: ClassVar[str]
    """Whose folder it is."""

    @property
    def result(self) -> Path:
        """All numbers, and what they say."""
        return self.path / "result.json"

    @property
    def report(self) -> Path:
        """The page that shows it."""
        return self.path / "report.html"

    @property
    def marker(self) -> Path:
        """Says that the newest run here did not finish, or has not yet."""
        return self.path / "INCOMPLETE"

    def begin(self) -> None:
        """Make the folder and mark it.

        Raises:
            ConfigError: nothing can be written there.
        """
        check_writable(self.path, "output")
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(
            self.marker,
            f"A run of `{self.command}` in this folder is under way or was interrupted. Until it finishes, "
            f"{self.result.name} and what was made from it, if they are here, are those of an earlier run.\n",
        )

    def finish(self, tree: Mapping[str, Any], page: "Page", texts: Mapping[str, str] = MappingProxyType({})) -> None:
        """Write what a finished study leaves, each file whole or not at all, and take the mark away.

        Args:
            tree: all numbers.
            page: the report.
            texts: further files by name.

        Raises:
            DataError: a number on the page is not finite.
        """
        for name, text in texts.items():
            write_text(self.path / name, text)
        write_json(self.result, tree)
        page.write(self.report)
        self.marker.unlink()


class Plain:
    """A dataclass of numbers, texts, tuples, mappings and further such dataclasses: what JSON can say."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return to_tree(self)

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`; what else a file holds is made from these."""
        known = [field.name for field in fields(cast(Any, cls)) if field.init]
        return from_tree(cls, {name: tree[name] for name in known if name in tree})


@dataclass(frozen=True, kw_only=True)
class StudyResult(Plain):
    """How a result was made; what was found is its own."""

    versions: Mapping[str, str]
    """Of Python, the platform and the packages that decide the numbers."""
    commit: str | None = None
    """Git commit that the working directory was at; None outside a repository."""
    command: str
    """What gives the same numbers on the same machine."""
    started: str
    """ISO 8601, UTC."""
    seconds: float
    """Wall time of the whole; what was kept from an earlier run cost nothing here."""

    def made(self, facts: "Mapping[str, str | Markup]", more: "str | Markup" = "") -> "Section":
        """The part of its page that says so, with what else there is to say."""
        from bridgegarden.report.page import made_section

        commit = {"commit": self.commit} if self.commit is not None else {}
        return made_section(
            {**facts, **commit, "took": duration(self.seconds)},
            command=self.command,
            versions=self.versions,
            started=self.started,
            more=more,
        )


def to_tree(value: Any) -> Any:
    """Dataclasses and named tuples as mappings, other tuples as lists."""
    if is_dataclass(value):
        return {field.name: to_tree(getattr(value, field.name)) for field in fields(value) if field.init}
    if isinstance(value, tuple) and type(value) is not tuple:
        return {name: to_tree(item) for name, item in cast(Any, value)._asdict().items()}
    if isinstance(value, Mapping):
        return {name: to_tree(item) for name, item in value.items()}
    return [to_tree(item) for item in value] if isinstance(value, (list, tuple)) else value


def from_tree(kind: Any, tree: Any) -> Any:
    """What `to_tree` made `tree` of, which was of the type `kind`.

    Raises:
        TypeError: a field is missing, or is not one.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return None if tree is None else from_tree(parts[0], tree)
    if origin is tuple:
        kinds = parts[:1] * len(tree) if parts[-1] is Ellipsis else parts
        return tuple(from_tree(one, item) for one, item in zip(kinds, tree, strict=True))
    if origin is Mapping:
        return {name: from_tree(parts[1], item) for name, item in tree.items()}
    if is_dataclass(kind) or (isinstance(kind, type) and issubclass(kind, tuple)):
        hints = get_type_hints(kind)
        return cast(Any, kind)(**{name: from_tree(hints.get(name), item) for name, item in tree.items()})
    return tree
