"""``bridgegarden compare``."""

from pathlib import Path
from typing import Any

import click

from bridgegarden.cli.evaluate import BatchSize
from bridgegarden.terminal import plain_console


@click.command("compare")
@click.argument("recipe")
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Change a setting of the recipe.")
@click.option(
    "--objectives",
    metavar="NAME[,NAME]",
    default="sft,hard,soft,static,confidence,entropy,curriculum,risk_guided",
    show_default=True,
    help="What is compared; see docs/compare.md for all names.",
)
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Trainings of each objective.")
@click.option(
    "--budget",
    type=click.Choice(["steps", "compute"]),
    default="steps",
    show_default=True,
    help="What is equal: optimiser steps, or estimated FLOPs (on-policy objectives then take fewer steps).",
)
@click.option(
    "--baseline",
    metavar="NAME",
    help="What costs and qualities are held against.  [default: the first on-policy objective, else the first]",
)
@click.option(
    "--tasks",
    metavar="NAME[,NAME]",
    default="offline",
    show_default=True,
    help="What quality is measured on, as in `evaluate`; none measures drift alone.",
)
@click.option("--limit", type=click.IntRange(1), help="At most so many problems of each task.")
@click.option("--answers", type=click.IntRange(0), default=1, show_default=True, help="Drawn answers a problem.")
@click.option("--batch-size", type=BatchSize(), default="auto", show_default=True, help="Sequences at a time in tasks.")
@click.option(
    "--allow-code-execution", is_flag=True, help="Run programs that students write in answer to tasks (confined)."
)
@click.option("--prompts", type=click.IntRange(2), default=64, show_default=True, help="Prompts for exposure bias.")
@click.option("--texts", type=click.IntRange(1), default=4, show_default=True, help="Texts of each, by both models.")
@click.option(
    "--max-new-tokens", type=click.IntRange(1), default=256, show_default=True, help="Of such a text, at most."
)
@click.option("--keep-models/--no-keep-models", default=True, show_default=True, help="Keep students once measured.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes, on CPUs.")
@click.option(
    "--output", metavar="DIR", type=click.Path(path_type=Path), help="Folder for the result.  [default: OUTPUT/compare]"
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON instead of tables.")
def compare_command(recipe: str, overrides: tuple[str, ...], **options: Any) -> None:
    """Train RECIPE with several objectives at equal budget, and hold quality against cost.

    Every objective gets the same rows, steps and, seed by seed, the same first student. The teacher is asked once for
    all objectives on fixed rows; on-policy ones (gkd, on_policy_hybrid, ...) ask it as they go. Interrupted, it goes on
    with the trainings that are missing. Leaves DIR/report.html, tables.md, objectives.csv and result.json.
    """
    from bridgegarden.compare.result import CompareSettings, default_baseline
    from bridgegarden.compare.run import compare
    from bridgegarden.evaluation.lm_eval import EvaluationOptions

    objectives = _names(options["objectives"])
    evaluation = None
    if options["tasks"] != "none":
        evaluation = EvaluationOptions(
            tasks=_names(options["tasks"]),
            limit=options["limit"],
            samples=options["answers"],
            batch_size=options["batch_size"],
            allow_code_execution=options["allow_code_execution"],
        )
    settings = CompareSettings(
        objectives=objectives,
        seeds=tuple(range(options["seeds"])),
        budget=options["budget"],
        baseline=options["baseline"] or default_baseline(objectives),
        evaluation=evaluation,
        prompts=options["prompts"],
        samples=options["texts"],
        max_new_tokens=options["max_new_tokens"],
        keep_models=options["keep_models"],
    )
    result, folder = compare(
        recipe,
        settings,
        command=_typed(),
        overrides=overrides,
        output=options["output"],
        workers=options["workers"],
    )
    if options["as_json"]:
        click.echo(folder.result.read_text(encoding="utf-8"), nl=False)
        return

    from bridgegarden.compare.findings import sentences
    from bridgegarden.compare.tables import terminal_tables

    console = plain_console(highlight=False)
    for table in terminal_tables(result, console.width):
        console.print(table)
    for sentence in sentences(result):
        console.print(f"* {sentence}", markup=False)
    console.print(f"\nThe report is {folder.report}, the numbers are in result.json beside it", soft_wrap=True)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _typed() -> str:
    """The command as it was given, for the record."""
    import shlex
    import sys

    return shlex.join(["bridgegarden", *sys.argv[1:]])
