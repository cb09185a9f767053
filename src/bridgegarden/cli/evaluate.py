"""``bridgegarden evaluate``."""

import json
from pathlib import Path
from typing import Any

import click

from bridgegarden.terminal import plain_console, plain_json, say


class BatchSize(click.ParamType):
    """A number, or ``auto``."""

    name = "N|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if value == "auto":
            return value
        if not str(value).isdecimal() or int(value) < 1:
            self.fail(f"{value!r}; expected a number of sequences, or auto.", param, ctx)
        return int(value)


@click.command("evaluate")
@click.argument("target", metavar="RECIPE|MODEL")
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Change a setting of the recipe.")
@click.option(
    "--tasks",
    metavar="NAME[,NAME]",
    multiple=True,
    default=["offline"],
    show_default=True,
    help="offline, reasoning, coding, or any task of lm-eval.",
)
@click.option("--limit", type=click.IntRange(1), help="At most so many problems of each task.")
@click.option(
    "--samples",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="Offline and coding tasks: so many drawn answers a problem, beside the greedy one.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Of drawn answers; 1 is the model's own distribution.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of drawn answers.")
@click.option("--batch-size", type=BatchSize(), default="auto", show_default=True, help="Sequences at a time.")
@click.option(
    "--chat",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Use the chat template. auto: for the offline tasks, if there is one.",
)
@click.option(
    "--allow-code-execution",
    is_flag=True,
    help="Run programs that the model writes. Each gets a process that can open no file or socket and start nothing.",
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "bfloat16", "float16", "float32"]),
    default="auto",
    show_default=True,
    help="Of the weights.",
)
@click.option("--device", help="Such as cuda:1 or cpu.  [default: a GPU if there is one]")
@click.option("--output", metavar="DIR", type=click.Path(path_type=Path), help="Folder for the result.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def evaluate_command(
    target: str,
    overrides: tuple[str, ...],
    tasks: tuple[str, ...],
    output: Path | None,
    dtype: str,
    device: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Score a model on tasks: of RECIPE its trained student, or MODEL, a folder or a name on the hub.

    Writes DIR/results.json, results.md and problems.jsonl (every answer). Answers are kept as they come: after an
    interruption the same command goes on. DIR is OUTPUT/evaluation/TASKS of a recipe,
    else runs/evaluation/MODEL/TASKS. Needs the extra: pip install 'bridgegarden[eval]'. The tasks in offline, and
    humaneval, need no network.
    """
    from bridgegarden.evaluation.lm_eval import EvaluationOptions
    from bridgegarden.run.evaluate import EvaluateTarget, evaluate_target

    found, files = evaluate_target(
        EvaluateTarget(source=target, overrides=overrides, output=output, dtype=dtype, device=device),
        EvaluationOptions(tasks=tasks, **options),
    )
    if as_json:
        click.echo(plain_json(json.dumps(found.to_dict(), indent=2, ensure_ascii=False)))
        return
    from rich.table import Table

    from bridgegarden.evaluation.results import NOTE, cells

    table = Table("task", "answers", "metric", "score", "problems", caption=NOTE)
    for score in found.shown():
        table.add_row(*cells(score))
    plain_console(highlight=False).print(table)
    say(files.results)
