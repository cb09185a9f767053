"""The ``bridgegarden`` command and how it ends.

0 when done, 2 for what the user can mend, 130 after Ctrl-C, 143 after SIGTERM where the command stops in order.
"""

import logging
import sys
from importlib import import_module
from typing import Any

import click

from bridgegarden.errors import BridgegardenError, Stopped
from bridgegarden.terminal import PlainLines, one_line

COMMANDS = {
    "quickstart": "bridgegarden.cli.quickstart:quickstart_command",
    "cache": "bridgegarden.cli.cache:cache_group",
    "train": "bridgegarden.cli.train:train_command",
    "plan": "bridgegarden.cli.plan:plan_command",
    "generate": "bridgegarden.cli.generate:generate_command",
    "diagnose": "bridgegarden.cli.diagnose:diagnose_command",
    "evaluate": "bridgegarden.cli.evaluate:evaluate_command",
    "judge": "bridgegarden.cli.judge:judge_command",
    "compare": "bridgegarden.cli.compare:compare_command",
    "lab": "bridgegarden.cli.lab:lab_group",
    "recipes": "bridgegarden.cli.recipes:recipes_group",
}
"""Every command and where it lives, in the order ``--help`` shows them."""


class UserError(click.ClickException):
    """One line on stderr for what the user can mend."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class Interrupted(UserError):
    """One line on stderr after Ctrl-C or SIGTERM."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.exit_code = status  # pyright: ignore[reportAttributeAccessIssue]  click reads it off the exception


class LazyGroup(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        return getattr(import_module(module), attribute)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BridgegardenError as error:
            raise UserError(str(error)) from error
        except Stopped as stop:
            raise Interrupted(str(stop), stop.status) from None
        except KeyboardInterrupt:
            raise Interrupted("interrupted.", 130) from None


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="bridgegarden")
def cli() -> None:
    """Distil a large language model into a small one with hybrid hard and soft labels.

    RECIPE is a YAML file, or a name from `bridgegarden recipes list`.
    """


def main() -> None:
    """Run the command line and exit with its status."""
    warnings = logging.StreamHandler()
    warnings.setFormatter(PlainLines())
    logging.getLogger("bridgegarden").addHandler(warnings)
    sys.exit(cli(prog_name="bridgegarden"))
