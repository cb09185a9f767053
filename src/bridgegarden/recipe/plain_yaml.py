"""Reading YAML written by anybody: plain values only, each key once, bounded in size and depth."""

import os
import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from bridgegarden.errors import ConfigError

MAX_BYTES = 256 * 1024
"""Largest recipe, in bytes. The shipped ones are under 3 KiB."""
MAX_DEPTH = 20
"""Deepest nesting."""


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
