"""``bridgegarden train``, ``prune``, ``plan`` and ``recipes``: commands on a recipe."""

import json
from typing import TYPE_CHECKING, Any

import click

from bridgegarden.cli.options import SET, Group, example
from bridgegarden.terminal import say

if TYPE_CHECKING:
    from bridgegarden.recipe import Recipe


@click.command(
    "train",
    epilog=example(
        "bridgegarden train my.yaml --dry-run", "bridgegarden train my.yaml --set training.learning_rate=2.0e-5"
    ),
)
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
        from bridgegarden.run.recipe_teacher import cache_warnings
        from bridgegarden.run.rehearsal import check_settings

        check_settings(resolved)
        for warning in cache_warnings(resolved):
            say(f"warning: {warning}", err=True)
        say(_resolved_text(resolved).rstrip("\n"))
    elif audit:
        from bridgegarden.run.checked import audit as audit_rows

        say(audit_rows(resolved))
    else:
        from bridgegarden.run.train import train

        summary = train(resolved, stop_in_order=True)
        if summary.is_main:
            say(summary)


def _resolved_text(recipe: "Recipe") -> str:
    """The recipe as YAML, with what its objective amounts to as a comment."""
    from bridgegarden.recipe import build_objective, describe_objective

    return f"# objective: {describe_objective(build_objective(recipe.objective))}\n{recipe.to_yaml()}"


@click.command(
    "prune",
    epilog=example(
        "bridgegarden prune my.yaml --dry-run",
        "bridgegarden prune my.yaml --set 'student={from: teacher, layers: 10}' --output ten-layers",
    ),
)
@click.argument("recipe")
@SET
@click.option("--output", metavar="DIR", help="Folder of the student.  [default: student.folder, or OUTPUT/student]")
@click.option("--dry-run", is_flag=True, help="Measure the teacher, say what would be kept, and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def prune_command(recipe: str, overrides: tuple[str, ...], output: str | None, dry_run: bool, as_json: bool) -> None:
    """Cut the student of RECIPE out of its teacher, and show what each layer of the teacher does.

    RECIPE says what is cut: student.from is teacher, with layers, keep or width beside it (docs/prune.md). `train` and
    `compare` do the same first, so this is for looking, or for a student to be used otherwise. A student that is there
    already is kept.
    """
    import dataclasses

    from bridgegarden.recipe import load_recipe
    from bridgegarden.run.prune import prune

    resolved = load_recipe(recipe, overrides)
    if output is not None:
        student = dataclasses.replace(resolved.student, folder=output)
        resolved = dataclasses.replace(resolved, student=student)
    result = prune(resolved, dry_run=dry_run)
    if as_json:
        click.echo(json.dumps(result.to_dict(), indent=2))
    else:
        say(result)


@click.command("plan", epilog=example("bridgegarden plan qwen2.5-7b-3b --gpus 2 --gpu h100 --sharding fsdp"))
@click.argument("recipe")
@SET
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


@click.group(
    "recipes",
    cls=Group,
    epilog=example("bridgegarden recipes list", "bridgegarden recipes show qwen2.5-7b-3b > my.yaml"),
)
def recipes_group() -> None:
    """List and show the recipes that come with the package."""


@recipes_group.command("list", epilog=example("bridgegarden recipes list"))
def list_command() -> None:
    """List the shipped recipes, one a line: name, tab, what it is."""
    from bridgegarden.recipe import describe_recipe, list_recipes

    for name in list_recipes():
        click.echo(f"{name}\t{describe_recipe(name)}")


@recipes_group.command("show", epilog=example("bridgegarden recipes show qwen2.5-7b-3b > my.yaml"))
@click.argument("name")
def show_command(name: str) -> None:
    """Print the recipe NAME as it is written: a start for your own."""
    from bridgegarden.recipe import read_recipe_text

    click.echo(read_recipe_text(name), nl=False)


@recipes_group.command(
    "from-trl",
    short_help="Print the recipe that does what CONFIG does in TRL.",
    epilog=example("bridgegarden recipes from-trl gkd.yaml > my.yaml"),
)
@click.argument("config")
@click.option(
    "--trainer",
    type=click.Choice(["gkd", "distillation", "sft"]),
    help="Whose configuration CONFIG is.  [default: by its options]",
)
@click.option("--teacher", metavar="MODEL", help="Name or folder of a teacher, if CONFIG names none.")
def from_trl_command(config: str, trainer: Any, teacher: str | None) -> None:
    """Print the recipe that does what CONFIG does in TRL: the YAML that `trl --config` takes.

    Of GKDTrainer, of `trl distillation`, or of `trl sft` with a teacher beside it. What TRL does where CONFIG says
    nothing is written out; every option that has no place in a recipe is named with the reason, on stderr and in a
    comment.
    """
    from bridgegarden.recipe.from_trl import recipe_from_trl

    converted = recipe_from_trl(config, trainer=trainer, teacher=teacher)
    for note in converted.notes:
        say(note, err=True)
    say(converted.to_yaml().rstrip("\n"))
