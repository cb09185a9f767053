"""Write ``docs/cli.md`` from the help texts of the command line: ``make docs``."""

from collections.abc import Iterator
from pathlib import Path

import click

from bridgegarden.cli.main import cli

PAGE = Path(__file__).with_name("cli.md")


def reference() -> str:
    """The page: every command's help, in the order of ``bridgegarden --help``."""
    parts = ["# Command line", "", "Written by `make docs` from `--help`."]
    for context in contexts("bridgegarden", cli):
        parts += ["", f"## {context.command_path}", "", "```text", context.get_help().rstrip(), "```"]
    return "\n".join(parts) + "\n"


def contexts(name: str, command: click.Command, parent: click.Context | None = None) -> Iterator[click.Context]:
    """A context for `command` and for every command below it."""
    # A fixed width: the page must not depend on the terminal that wrote it.
    width = {"terminal_width": 100, "max_content_width": 100}
    context = click.Context(command, parent=parent, info_name=name, **width, **command.context_settings)
    yield context
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            child = command.get_command(context, below)
            assert child is not None
            yield from contexts(below, child, context)


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
