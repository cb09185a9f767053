"""``bridgegarden env``: what a report of a fault needs to say."""

import json

import click

from bridgegarden.cli.options import example
from bridgegarden.terminal import plain_json, say


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
