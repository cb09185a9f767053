"""YAML text to plain values, and plain values to typed ones."""

import math
import os
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from bridgegarden.errors import ConfigError, quoted, unknown_name

T = TypeVar("T")

LONGEST_PATH, LONGEST_NAME = 4000, 255
"""Bytes of a path and of a name in it that file systems take."""
LARGEST = 2**63 - 1
"""Whole numbers beyond this, of either sign, do not fit where they go."""
MAX_BYTES = 256 * 1024
"""Largest recipe, in bytes. The shipped ones are under 3 KiB."""
MAX_DEPTH = 20
"""Deepest nesting."""
REMOVED = "(removed)"
"""What is shown in place of a secret."""
SECRET_TEXT = re.compile(
    r"\b(?:hf_|sk-|ghp_|gho_|github_pat_|glpat-|xox[abp]-|AKIA|(?:Bearer|Basic)\s+)[A-Za-z0-9_\-.=+/]{8,}"
)
"""Keys of the kinds that hubs and servers give out, whatever they are called."""
_SECRET_KEY = re.compile(
    r"(^|_)(tokens?|key|apikey|password|passwd|secrets?|credentials?|auth|authorization)$", re.IGNORECASE
)
_NO_SECRET = re.compile(r"^(pad|eos|bos|unk|mask|image|video|audio)_token$", re.IGNORECASE)


def is_secret(key: str) -> bool:
    """Whether a key is called after a token, key, password or secret: ``hub_token``, ``X-Api-Key``, ``accessToken``."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|-", "_", key)
    return _SECRET_KEY.search(words) is not None and _NO_SECRET.match(words) is None


class _Resolver:
    """Which unquoted words are numbers: those of YAML 1.1 and ``1e-5``, but no dates (a revision may look like one)."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        first: [(tag, pattern) for tag, pattern in rules if tag != "tag:yaml.org,2002:timestamp"]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for _first in "+-0123456789":
        yaml_implicit_resolvers[_first] = [
            *yaml_implicit_resolvers.get(_first, []),
            ("tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")),
        ]


class _Loader(_Resolver, yaml.SafeLoader):
    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise _problem("anchors and aliases are not accepted; write the value out", event)
        if getattr(event, "tag", None) is not None:
            raise _problem(f"tags ({event.tag}) are not accepted; write a plain value", event)
        if self.depth >= MAX_DEPTH:
            raise _problem(f"nested more than {MAX_DEPTH} levels deep", event)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.tag != "tag:yaml.org,2002:str":
                raise _problem("a key must be text; put it in quotes", key_node)
            if key_node.value in seen:
                raise _problem(f"key {key_node.value!r} occurs twice; keep one", key_node)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)


class _Dumper(_Resolver, yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # Only between double quotes does PyYAML escape what a reader takes for a line break or drops.
    style = '"' if any(c in text for c in "\x85\u2028\u2029\ufeff") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def read_yaml(text: str, source: str) -> Any:
    """The plain value that `text` holds.

    Args:
        text: one YAML document.
        source: where it came from, for messages.

    Raises:
        ConfigError: not YAML, more than one document, or something that plain settings never need: a tag, an alias,
            a repeated key, a key that is not text.
    """
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise ConfigError(f"{source}{place}: {error.problem or error.context}.") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{source}: not readable as YAML: {' '.join(str(error).split())}.") from error


def read_yaml_file(path: Path) -> Any:
    """The plain value in a file.

    Raises:
        ConfigError: as :func:`read_yaml`; also when the file cannot be read, is too large, or is not UTF-8 text.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from error
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_BYTES // 1024} KiB; is this a recipe?")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8 text; is this a recipe?") from error
    return read_yaml(text, os.fspath(path))


def write_yaml(value: Any) -> str:
    """`value` as YAML that :func:`read_yaml` reads back equal."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _problem(message: str, where: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=message, problem_mark=where.start_mark)


def section_from(cls: type[T], tree: Any, place: str) -> T:
    """An instance of the dataclass `cls` from a mapping.

    Args:
        cls: a dataclass; the types of its fields decide what is accepted.
        tree: what the recipe says, a mapping of plain values.
        place: the section's path in the recipe, for messages; empty for the recipe itself.

    Raises:
        ConfigError: not a mapping, an unknown or missing key, or a value of the wrong type.
    """
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{place or 'recipe'}: expected a mapping (key: value), got {_shown(tree)}.")
    hints = get_type_hints(cls)
    known = {key_of(f): f for f in fields(cls)}  # pyright: ignore[reportArgumentType]  callers give dataclasses
    for key in tree:
        if key not in known:
            raise unknown_name(key, known, field=place or "recipe", kind="key")
    for name, field in known.items():
        if field.default is MISSING and field.default_factory is MISSING and name not in tree:
            raise ConfigError(f"{place or 'recipe'}: key {name!r} is missing; it has no default.")
    values = {known[key].name: (key, value) for key, value in tree.items()}
    return cls(**{name: coerce(value, hints[name], _join(place, key)) for name, (key, value) in values.items()})


def key_of(field: "Field[Any]") -> str:
    """What a recipe calls a field: its name; one that Python keeps to itself (``from``) ends with an underscore."""
    return field.name.removesuffix("_")


def coerce(value: Any, annotation: Any, place: str) -> Any:
    """`value` as the type `annotation` says: exact types, and ``1`` as 1.0, ``1e3`` as 1000, ``"1.0e-5"`` as 1e-5.

    Raises:
        ConfigError: it does not fit; names `place`.
    """
    members = _members(annotation)
    if value is None and type(None) in members:
        return None
    wanted = [member for member in members if member is not type(None)]
    enums = [member for member in wanted if isinstance(member, type) and issubclass(member, Enum)]
    if enums and isinstance(value, str):
        return _enum_value(value, enums[0], place)
    if len(wanted) == 1:
        return _as_one(value, wanted[0], place, _expected(members))
    for member in wanted:
        if _is_container_of(member, value):  # its own message says more than that no member fits
            return _as_one(value, member, place, _expected(members))
    # The member whose type the value already has comes first, so that "1e3" stays text where text is accepted.
    wanted.sort(key=lambda member: (get_origin(member) or member) is not type(value))
    for member in wanted:
        try:
            return _as_one(value, member, place, "")
        except ConfigError:
            continue
    raise _mismatch(value, _expected(members), place)


def _is_container_of(annotation: Any, value: Any) -> bool:
    """Whether `annotation` is the section or the list that a mapping or a list must be meant for."""
    origin = get_origin(annotation) or annotation
    if isinstance(value, Mapping):
        return is_dataclass(origin)
    return isinstance(value, (list, tuple)) and origin in (list, Sequence, tuple)


def plain(value: Any, place: str) -> Any:
    """A copy of `value` if it is made of text, finite numbers, booleans, nulls, lists and mappings with text keys.

    Raises:
        ConfigError: it holds something else; names its place.
    """
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ConfigError(f"{place}: a key must be text, got {_shown(key)}.")
        return {key: plain(item, _join(place, key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{place}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise _mismatch(value, "a finite number", place)
    if value is None or isinstance(value, (bool, float)):
        return value
    if (isinstance(value, str) and _text(value) is not None) or (isinstance(value, int) and abs(value) <= LARGEST):
        return value
    raise _mismatch(value, "text, a number, true, false, null, a list or a mapping", place)


def _as_one(value: Any, annotation: Any, place: str, expected: str) -> Any:
    """`value` as one type that is not a union."""
    origin = get_origin(annotation) or annotation
    if origin is Literal:
        if not any(type(value) is type(choice) and value == choice for choice in get_args(annotation)):
            raise unknown_name(value, map(str, get_args(annotation)), field=place, kind="value")
        return value
    if origin is Any:
        return plain(value, place)
    if is_dataclass(origin) and isinstance(origin, type):
        return value if isinstance(value, origin) else section_from(origin, value, place)
    if origin in (dict, Mapping) and isinstance(value, Mapping):
        kind = (*get_args(annotation), Any, Any)[1]
        plain(dict.fromkeys(value), place)  # its keys are text
        return (
            plain(value, place)
            if kind is Any
            else {key: coerce(item, kind, _join(place, key)) for key, item in value.items()}
        )
    if origin in (list, Sequence, tuple) and isinstance(value, (list, tuple)):
        return _items(value, annotation, origin, place)
    converter = _CONVERTERS.get(origin)
    converted = converter(value) if converter else None
    if converted is None:
        raise _mismatch(value, expected, place)
    return converted


def _items(value: Sequence[Any], annotation: Any, origin: Any, place: str) -> Any:
    (item, *_) = get_args(annotation) or (Any,)
    items = [coerce(entry, item, f"{place}[{i}]") for i, entry in enumerate(value)]
    return tuple(items) if origin is tuple else items


def _enum_value(value: str, enum: type[Enum], place: str) -> str:
    names = [str(member.value) for member in enum]
    if value not in names:
        raise unknown_name(value, names, field=place, kind="value")
    return value


def _integer(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and abs(value) <= LARGEST else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _text(value: Any) -> str | None:
    """Text that can be written to a file and name one: no null character, no half of a surrogate pair."""
    return value if isinstance(value, str) and not any(c == "\0" or "\ud800" <= c <= "\udfff" for c in value) else None


_CONVERTERS: dict[Any, Any] = {
    bool: lambda value: value if isinstance(value, bool) else None,
    int: _integer,
    float: _number,
    str: _text,
    Path: lambda value: Path(value) if isinstance(value, (str, Path)) and (_text(str(value)) or "").strip() else None,
}


def _members(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _expected(members: tuple[Any, ...]) -> str:
    names = {
        bool: "true or false",
        int: "a whole number",
        float: "a finite number",
        str: "text",
        Path: "a path",
        dict: "a mapping",
        Mapping: "a mapping",
        list: "a list",
        tuple: "a list",
        type(None): "null",
    }
    origins = [get_origin(member) or member for member in members]
    accepted = [names[origin] for origin in origins if origin in names]
    return " or ".join(dict.fromkeys(accepted)) or "nothing: this cannot be set in a recipe"


def _mismatch(value: Any, expected: str, place: str) -> ConfigError:
    hint = ""
    if "text" in expected and isinstance(value, bool):
        hint = " YAML reads yes, no, on and off as true and false: put the word in quotes."
    elif isinstance(value, int) and abs(value) > LARGEST:
        hint = " It is too large."
    elif isinstance(value, str) and _text(value) is None:
        hint = " It holds a character that no text has (a null, or half of a surrogate pair)."
    elif "text" in expected and isinstance(value, (int, float)):
        hint = f' Put it in quotes: "{_shown(value)}".'
    return ConfigError(f"{place}: expected {expected}, got {_shown(value)}.{hint}")


def _shown(value: Any) -> str:
    """`value` in YAML's words."""
    if value is None:
        return "nothing"
    return str(value).lower() if isinstance(value, bool) else quoted(value)


def _join(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key


def require_positive(place: str, value: int | None) -> None:
    """Refuse a count below 1; None is no limit.

    Raises:
        ConfigError: names `place`.
    """
    if value is not None and value < 1:
        raise ConfigError(f"{place} must be >= 1, got {value}.")


def require_text(place: str, value: str) -> None:
    """Refuse a name or path that is empty or longer than any can be.

    Raises:
        ConfigError: it is; begins with `place`.
    """
    if not value.strip():
        raise ConfigError(f"{place} is empty; give a name or a path.")
    if len(value.encode()) > LONGEST_PATH or max(len(part.encode()) for part in value.split("/")) > LONGEST_NAME:
        raise ConfigError(f"{place} is longer than any name or path: {value[:60]!r}...")
