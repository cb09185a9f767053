"""``bridgegarden plan``."""

import json
from typing import Any

import click


@click.command("plan")
@click.argument("recipe")
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Change a setting of the recipe.")
@click.option("--gpus", type=click.IntRange(1), help="How many.  [default: what this machine has]")
@click.option("--gpu", metavar="NAME", help="a100, b200, h100, h200, l4, l40s or rtx4090.  [default: h100 with --gpus]")
@click.option("--memory", metavar="SIZE", help="Of each, such as 80GiB.  [default: the GPU's]")
@click.option(
    "--sharding",
    type=click.Choice(["ddp", "fsdp", "zero3"]),
    default="ddp",
    show_default=True,
    help="Whether processes share the student.",
)
@click.option("--flops", type=click.FloatRange(0, min_open=True), help="Operations a second.  [default: the GPU's]")
@click.option(
    "--utilisation",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.4,
    show_default=True,
    help="Share of them that is reached: an assumption.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan_command(recipe: str, overrides: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Say what training RECIPE takes before it is run: memory, operations, hours, disk.

    Reads configurations, tokenizers and rows; no weights. If it does not fit, says which settings would make it fit,
    and how much each saves. How the numbers are made, and how far off they were: docs/plan.md.
    """
    from bridgegarden.plan import machine_of, plan_recipe
    from bridgegarden.recipe import load_recipe

    machine = machine_of(**options)
    plan = plan_recipe(load_recipe(recipe, overrides), machine, recipe)
    if as_json:
        click.echo(json.dumps(plan.to_dict(), indent=2))
        return
    import shutil

    from bridgegarden.plan.table import plan_text

    click.echo(plan_text(plan, width=min(shutil.get_terminal_size((100, 24)).columns, 120)))
