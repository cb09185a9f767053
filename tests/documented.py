"""The code blocks of the documentation, and what of them can be tried without what they are about.

A block is of one of three classes:

* *runs*: marked ``<!-- runs -->`` in the line before it. Run in CI, on the packaged teacher and a tiny student, one
  block of a page after the other.
* *dry run*: a whole recipe, or ``bridgegarden train RECIPE`` in a shell block. Loaded and tried as ``--dry-run`` does.
* *checked*: everything else in Bash, Python and YAML. Commands and options exist, keys of recipes are known, names can
  be imported and take the arguments they are given, files and extras are there.

What is in Bash or Python on a page of ``docs`` and not marked so says why: ``<!-- runs in tests/FILE.py -->`` where
that test types the same with what it needs, or ``<!-- not run: REASON -->``.
"""

import ast
import importlib
import inspect
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import click
import yaml

import bridgegarden
from bridgegarden.cli.main import cli
from bridgegarden.recipe import Recipe, load_recipe

ROOT = Path(__file__).parents[1]
MARK = re.compile(r"runs|runs in tests/[\w/]+\.py|not run: [^\n]+")
BLOCK = re.compile(
    r"(?:^ *<!-- ((?:not )?run[^\n]*) -->\n+)?^( *)```(\w+)[^\n]*\n(.*?)^\2```\s*?$", flags=re.DOTALL | re.MULTILINE
)
INLINE = re.compile(r"(?<!`)`(bridgegarden [a-z][^`]*)`(?!`)")
SHELL, PYTHON, YAML = ("bash", "sh", "shell"), ("python",), ("yaml", "yml")
SECTIONS = {field.name for field in fields(Recipe)}
WHOLE = {"teacher", "student", "data"}
PAIR: dict[str, Any] = {"teacher": {"model": "T"}, "student": {"model": "S"}, "data": {"train": "rows.jsonl"}}
"""What a part of a recipe is completed with."""


@dataclass(frozen=True)
class Block:
    """One block."""

    page: str
    line: int
    language: str
    text: str
    mark: str
    """What the line before it says of running it; nothing where there is none."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def marked(self) -> bool:
        """Whether it is run as it stands."""
        return self.mark == "runs"

    @property
    def kind(self) -> str:
        """Its class."""
        if self.marked:
            return "runs"
        if self.language in YAML and set(self.tree if isinstance(self.tree, dict) else ()) >= WHOLE:
            return "dry run"
        if self.language in SHELL and any(words[:2] == ["bridgegarden", "train"] for words in self.commands):
            return "dry run"
        return "checked"

    @property
    def tree(self) -> Any:
        """Of YAML."""
        return yaml.safe_load(self.text)

    @property
    def commands(self) -> list[list[str]]:
        """Of a shell block, each as its words."""
        return commands(self.text)


def pages() -> list[Path]:
    """Every page that is written for users."""
    top = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    return [*top, *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]


@cache
def blocks() -> tuple[Block, ...]:
    """Every block in a language that is looked at."""
    return tuple(block for page in pages() for block in blocks_of(page))


def blocks_of(page: Path) -> list[Block]:
    """Of one page."""
    text, found = page.read_text(encoding="utf-8"), []
    for match in BLOCK.finditer(text):
        line = text[: match.start(3)].count("\n") + 1
        if match[3] in (*SHELL, *PYTHON, *YAML):
            name = page.relative_to(ROOT).as_posix() if page.is_relative_to(ROOT) else page.name
            code = inspect.cleandoc(match[4]) if match[2] else match[4]
            found.append(Block(name, line, match[3], code, match[1] or ""))
    return found


def inline_commands() -> Iterator[tuple[str, list[str]]]:
    """Commands in running text: where, and their words. One that is cut short with dots is none."""
    for page in pages():
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        for said in INLINE.findall(text):
            if "..." not in said and "…" not in said:
                yield f"{page.name}: {said}", shlex.split(" ".join(said.split()))


def commands(text: str) -> list[list[str]]:
    """The commands of a shell block, without assignments before them."""
    found: list[list[str]] = []
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("|&;"):
                while words and re.match(r"[A-Za-z_]\w*=", words[0]):
                    words = words[1:]
                written = next((index for index, each in enumerate(words) if set(each) <= set("<>")), len(words))
                found += [words[:written]] if words else []
                words = []
            else:
                words.append(word)
    return found


def written(text: str) -> list[tuple[list[str], str | None]]:
    """The commands of a shell block, each with the file that its output goes to."""
    found: list[tuple[list[str], str | None]] = []
    for line in text.replace("\\\n", " ").splitlines():
        target = re.search(r"(?<!\S)> (\S+)", line.split(" #")[0])
        found += [(words, target[1] if target else None) for words in commands(line)]
    return found


def check_shell(text: str) -> None:
    """
    Raises:
        AssertionError, click.UsageError, ConfigError: a command, an option, a file or a key is not there.
    """
    for words in commands(text):
        if "bridgegarden" in words and (words[0] == "bridgegarden" or words[words.index("bridgegarden") - 1] == "-m"):
            check_command(words[words.index("bridgegarden") + 1 :])
            words = words[: words.index("bridgegarden")]
        check_program(words)


def check_command(words: list[str]) -> None:
    """What comes after ``bridgegarden``: every command, option, choice and key of a recipe in it."""
    command: click.Command = cli
    context = click.Context(cli, info_name="bridgegarden", **cli.context_settings)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        below = command.get_command(context, words[0])
        assert below is not None, f"no command {words[0]!r} below {context.command_path!r}"
        command, words = below, words[1:]
        context = click.Context(command, info_name=below.name, parent=context)
    if isinstance(command, click.Group) or not words:
        return  # named, not called
    try:
        context = command.make_context(command.name, list(words), parent=context.parent)
    except click.exceptions.Exit:  # --help, --version
        return
    except click.BadParameter as error:
        # A file of the reader's is not here.
        if not (error.param is not None and isinstance(error.param.type, click.Path) and "not exist" in error.message):
            raise
        return
    for change in context.params.get("overrides") or ():
        check_recipe(next(map(own_recipe, words), {}), change)


def own_recipe(word: str) -> dict[str, Any]:
    """The recipe of this repository that a command is given; nothing if it is one of the reader's."""
    path = ROOT / word
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.suffix == ".yaml" and path.is_file() else {}


def check_program(words: list[str]) -> None:
    """Of other programs, whatever of this repository they are given."""
    match words:
        case ["python" | "python3", script, *options] if script.endswith(".py"):
            assert (ROOT / script).is_file(), f"no file {script}"
            text = (ROOT / script).read_text(encoding="utf-8")
            for option in (word.partition("=")[0] for word in options if word.startswith("--")):
                assert re.search(rf"{option}\b|\b{option[2:].replace('-', '_')}\b", text), f"{script} has no {option}"
        case ["make", *targets]:
            rules = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert set(targets) <= set(rules), f"make has no {set(targets) - set(rules)}"
        case ["pip", "install", *what]:
            project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
            for extras in re.findall(r"(?:bridgegarden|^\.|\s\.)\[([\w,]+)\]", " ".join(what)):
                assert set(extras.split(",")) <= set(project["optional-dependencies"]), f"no extra {extras}"
        case ["pytest" | "accelerate" | "bash", *rest]:
            for word in (one.partition("::")[0] for one in rest):
                if word.startswith(("tests/", "examples/", "benchmarks/")):
                    assert (ROOT / word).exists(), f"no file {word}"


def check_recipe(tree: dict[str, Any], *changes: str) -> Recipe:
    """The recipe that a part of one becomes, with changes as after ``--set``.

    Raises:
        ConfigError: a key or a value is refused.
    """
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "documented.yaml"
        path.write_text(yaml.safe_dump(PAIR | tree), encoding="utf-8")
        return load_recipe(path, changes)


def check_yaml(tree: Any) -> None:
    """A recipe or a part of one has keys and values that are taken; other YAML is left alone."""
    if isinstance(tree, dict) and tree and set(tree) <= SECTIONS:
        check_recipe(tree)


def check_python(text: str) -> None:
    """It is Python, what it imports from here is there, and what it calls of ours takes these arguments."""
    tree = ast.parse(text)
    known: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "bridgegarden":
            module = importlib.import_module(str(node.module))
            for name in node.names:
                assert hasattr(module, name.name), f"{node.module} has no {name.name}"
                known[name.asname or name.name] = getattr(module, name.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            called = known.get(node.func.id) or ours(node.func.id)
            if callable(called):
                check_arguments(node, called)


def check_arguments(node: ast.Call, called: Any) -> None:
    """The names and the number of a call's arguments."""
    parameters = inspect.signature(called).parameters
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        return
    given = {keyword.arg for keyword in node.keywords if keyword.arg is not None}
    assert given <= set(parameters), f"{called.__name__} takes no {given - set(parameters)}"
    positional = [one for one in parameters.values() if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    many = any(one.kind is one.VAR_POSITIONAL for one in parameters.values())
    assert many or len(node.args) <= len(positional), f"{called.__name__} takes {len(positional)} arguments"


@cache
def ours(name: str) -> Any:
    """What is called so in this package, if one thing is."""
    if name in bridgegarden.__all__:
        return getattr(bridgegarden, name)
    source, found = ROOT / "src", []
    for path in (source / "bridgegarden").rglob("*.py"):
        if re.search(rf"^(?:class|def) {re.escape(name)}\b", path.read_text(encoding="utf-8"), flags=re.MULTILINE):
            found.append(".".join(path.relative_to(source).with_suffix("").parts).removesuffix(".__init__"))
    return getattr(importlib.import_module(found[0]), name) if len(found) == 1 else None
