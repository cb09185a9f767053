"""``bridgegarden train``."""

from typing import TYPE_CHECKING

import click

from bridgegarden.terminal import say

if TYPE_CHECKING:
    from bridgegarden.recipe import Recipe


@click.command("train")
@click.argument("recipe")
@click.option(
    "--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Change a setting, such as training.max_steps=10."
)
@click.option(
    "--dry-run", is_flag=True, help="Try the settings, print the recipe with every default filled in, and stop."
)
@click.option("--audit", is_flag=True, help="Print some rows with the tokens that are trained on marked, and stop.")
def train_command(recipe: str, overrides: tuple[str, ...], dry_run: bool, audit: bool) -> None:
    """Distil the teacher of RECIPE into its student.

    The model is written to OUTPUT/model, with the recipe, metrics and versions beside it. The same command goes on
    where it was interrupted; after Ctrl-C or SIGTERM the step is finished and saved first. A dry run loads no model and
    needs no network: it tries the settings on a model of a few numbers.

    With `free_running: {every: 100}` in RECIPE the student's loss on texts of its own is measured while it trains, and
    with `select_by: free_running_loss` in that section the checkpoint is kept where it is least. (`select_by:
    exposure_bias` is a signed difference: a bad student can have a low one.)
    """
    if dry_run and audit:
        raise click.UsageError("--dry-run and --audit exclude each other; give one.")
    from bridgegarden.recipe import load_recipe

    resolved = load_recipe(recipe, overrides)
    if dry_run:
        from bridgegarden.run import check_settings

        check_settings(resolved)
        say(_resolved_text(resolved).rstrip("\n"))
    elif audit:
        from bridgegarden.run import audit as audit_rows

        say(audit_rows(resolved))
    else:
        from bridgegarden.run import train

        summary = train(resolved, stop_in_order=True)
        if summary.is_main:
            say(summary)


def _resolved_text(recipe: "Recipe") -> str:
    """The recipe as YAML, with what its objective amounts to as a comment."""
    from bridgegarden.recipe import build_objective, describe_objective

    return f"# objective: {describe_objective(build_objective(recipe.objective))}\n{recipe.to_yaml()}"
