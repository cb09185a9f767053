"""The ``bridgegarden`` command and how it ends; and ``bridgegarden env``, for when that was badly.

0 when done, 2 for what the user can mend, 130 after Ctrl-C, 143 after SIGTERM where the command stops in order, 1 after
a bug of ours.
"""

import errno
import io
import json
import logging
import os
import sys
import traceback
from importlib import import_module
from typing import Any

import click

from bridgegarden.cli.options import Group, example
from bridgegarden.errors import BridgegardenError, Stopped, in_words
from bridgegarden.terminal import PlainLines, one_line, plain_json, say

COMMANDS = {
    "quickstart": "bridgegarden.cli.study:quickstart_command",
    "cache": "bridgegarden.cli.teacher:cache_group",
    "train": "bridgegarden.cli.train:train_command",
    "prune": "bridgegarden.cli.train:prune_command",
    "plan": "bridgegarden.cli.train:plan_command",
    "generate": "bridgegarden.cli.teacher:generate_command",
    "diagnose": "bridgegarden.cli.diagnose:diagnose_command",
    "evaluate": "bridgegarden.cli.student:evaluate_command",
    "export": "bridgegarden.cli.student:export_command",
    "bench": "bridgegarden.cli.student:bench_command",
    "chat": "bridgegarden.cli.student:chat_command",
    "judge": "bridgegarden.cli.student:judge_command",
    "compare": "bridgegarden.cli.study:compare_command",
    "lab": "bridgegarden.cli.study:lab_group",
    "recipes": "bridgegarden.cli.train:recipes_group",
    "env": "bridgegarden.cli.main:env_command",
}
"""Every command and where it lives, in the order ``--help`` shows them."""

MACHINE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
)
"""What the system answers where a disk, a permission or a limit is in the way. A file that is missing is not among
them: whoever looks for it says what it was to be."""

NO_MEMORY, REFUSED = "BG500", "BG501"
"""Codes of docs/errors.md for what the machine does not give. Those of our own errors are in `bridgegarden.errors`."""

STDOUT = "stdout"
BUG = "This is a bug of bridgegarden; please report it with the lines above and what `bridgegarden env RECIPE` says."


class UserError(click.ClickException):
    """One line on stderr for what the user can mend, and where the documentation has more."""

    exit_code = 2

    def __init__(self, message: str, code: str | None = None) -> None:
        """
        Args:
            message: what is wrong, and what to do.
            code: of a section of docs/errors.md.
        """
        super().__init__(one_line(message) + (f" [docs/errors.md#{code.lower()}]" if code else ""))


class Interrupted(UserError):
    """One line on stderr after Ctrl-C or SIGTERM."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.exit_code = status  # pyright: ignore[reportAttributeAccessIssue]  click reads it off the exception


class LazyGroup(Group):
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
            raise UserError(str(error), error.code) from error
        except Stopped as stop:
            raise Interrupted(str(stop), stop.status) from None
        except KeyboardInterrupt:
            raise Interrupted("interrupted.", 130) from None
        except OSError as error:
            if error.errno not in MACHINE and _works_somewhere():
                raise
            raise UserError(_refused_by_the_machine(error), REFUSED) from error
        except MemoryError as error:
            raise UserError(f"out of memory ({in_words(error)}). {SMALLER}", NO_MEMORY) from error
        except RuntimeError as error:
            if type(error).__name__ != "OutOfMemoryError":  # of torch, which is not imported for this
                raise
            raise UserError(f"out of memory: {in_words(error)}. {SMALLER}", NO_MEMORY) from error


SMALLER = (
    "Take less at a time (training.per_device_train_batch_size, training.max_length), or let `bridgegarden plan` say "
    "what fits."
)


def _works_somewhere() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def _refused_by_the_machine(error: OSError) -> str:
    if not _works_somewhere():
        return "the working directory is gone; change to one that is there, and run the same command again."
    if error.filename == STDOUT:
        return f"{STDOUT}: {error.strerror}, so that not all was printed. What was written to files is there."
    return f"{in_words(error)}. Make room or give permission there, or name another place."


class StandardOutput(io.FileIO):
    """Where results go; an error of writing there says so."""

    def write(self, data: Any) -> int | None:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno != errno.EPIPE:  # whose reader has seen enough
                error.filename = STDOUT
                # What is left must not be tried again when the process ends.
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            raise


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=example(
        "bridgegarden quickstart",
        "bridgegarden recipes show qwen2.5-7b-3b > my.yaml",
        "bridgegarden plan my.yaml",
        "bridgegarden cache build my.yaml",
        "bridgegarden train my.yaml",
    ),
)
@click.version_option(package_name="bridgegarden")
def cli() -> None:
    """Distil a large language model into a small one with hybrid hard and soft labels.

    RECIPE is a YAML file, or a name from `bridgegarden recipes list`.
    """


def main() -> None:
    """Run the command line and exit with its status."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What the encoding of a terminal or pipe lacks must not end a run that has finished.
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(StandardOutput(sys.stdout.fileno(), "w", closefd=False)),
            encoding=sys.stdout.encoding,
            errors="replace",
            line_buffering=sys.stdout.line_buffering,
        )
    warnings = logging.StreamHandler()
    warnings.setFormatter(PlainLines())
    logging.getLogger("bridgegarden").addHandler(warnings)
    try:
        sys.exit(cli(prog_name="bridgegarden"))
    except Exception:
        traceback.print_exc()
        print(BUG, file=sys.stderr)
        sys.exit(1)


@click.command(
    "env",
    short_help="Print what a report of a fault needs: versions, devices, RECIPE without secrets.",
    epilog=example("bridgegarden env my.yaml > report.txt"),
)
@click.argument("recipe", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def env_command(recipe: str | None, as_json: bool) -> None:
    """Print versions, devices and threads for a report, and with RECIPE what it says without its secrets.

    Removed from RECIPE are values of keys called after tokens, keys and passwords, access tokens, what an address
    holds beside the host and path, and the name of the home folder. Look before you publish it all the same.
    """
    from bridgegarden.run.environment import environment, environment_text, recipe_without_secrets

    if as_json:
        shown = {"recipe": recipe_without_secrets(recipe)} if recipe is not None else {}
        click.echo(plain_json(json.dumps(environment() | shown, indent=2)))
    else:
        say(environment_text(recipe))
