"""What several commands have: options, and how they become what the library takes."""

import shlex
import sys
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")

SET = click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Change a setting of the recipe.")


class BatchSize(click.ParamType):
    """A number, or ``auto``."""

    name = "N|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if value == "auto":
            return value
        if not str(value).isdecimal() or int(value) < 1:
            self.fail(f"{value!r}; expected a number of sequences, or auto.", param, ctx)
        return int(value)


class Group(click.Group):
    """A group of commands that lists the whole summary of each, over several lines where it needs them."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        below = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        with formatter.section("Commands"):
            formatter.write_dl([(name, one.get_short_help_str(limit=1000)) for name, one in below if one is not None])


def example(*commands: str) -> str:
    """What the help of a command ends with: `commands` as they are typed, none broken over lines."""
    return "\b\nFor example:\n" + "\n".join(f"  {command}" for command in commands)


def patience_options(command: Callable[..., None]) -> Callable[..., None]:
    """How long a server is waited for, and with which key it is asked: options of every command that asks one."""
    for option in (
        click.option(
            "--api-key-env", metavar="NAME", help="Variable that holds the key.  [default: OPENAI_API_KEY, if set]"
        ),
        click.option(
            "--patience",
            type=click.FloatRange(min=0),
            default=300.0,
            show_default=True,
            help="Seconds a failing request is tried again for.",
        ),
        click.option(
            "--timeout",
            type=click.FloatRange(min=0, min_open=True),
            default=600.0,
            show_default=True,
            help="Seconds an attempt may take.",
        ),
    ):
        command = option(command)
    return command


def taken(kind: type[T], options: dict[str, Any], **more: Any) -> T:
    """A `kind`, a dataclass, of those of `options` that are its fields, which are taken out of them, and of `more`."""
    names = [field.name for field in fields(kind) if field.name in options]
    return kind(**{name: options.pop(name) for name in names}, **more)


def typed() -> str:
    """The command as it was given, for the record."""
    return shlex.join(["bridgegarden", *sys.argv[1:]])
