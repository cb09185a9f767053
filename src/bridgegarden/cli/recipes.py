"""``bridgegarden recipes``."""

import click


@click.group("recipes")
def recipes_group() -> None:
    """List and show the recipes that come with the package."""


@recipes_group.command("list")
def list_command() -> None:
    """List the shipped recipes, one a line: name, tab, what it is."""
    from bridgegarden.recipe import describe_recipe, list_recipes

    for name in list_recipes():
        click.echo(f"{name}\t{describe_recipe(name)}")


@recipes_group.command("show")
@click.argument("name")
def show_command(name: str) -> None:
    """Print the recipe NAME as it is written: a start for your own.

    For example: bridgegarden recipes show qwen2.5-7b-3b > my.yaml
    """
    from bridgegarden.recipe import read_recipe_text

    click.echo(read_recipe_text(name), nl=False)
