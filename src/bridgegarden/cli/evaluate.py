"""``bridgegarden evaluate`` and ``judge``: how good answers are."""

import json
from pathlib import Path
from typing import Any

import click

from bridgegarden.cli.options import SET, BatchSize, example, patience_options, taken
from bridgegarden.terminal import plain_console, plain_json, say


@click.command(
    "evaluate",
    short_help="Score a model on tasks: of RECIPE its trained student, or MODEL, or FILE.gguf.",
    epilog=example("bridgegarden evaluate my.yaml --tasks offline --limit 100"),
)
@click.argument("target", metavar="RECIPE|MODEL|FILE.gguf")
@SET
@click.option(
    "--tasks",
    metavar="NAME[,NAME]",
    multiple=True,
    default=["offline"],
    show_default=True,
    help="offline, reasoning, coding, any task of lm-eval, or a file of rows.",
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
    help="Use the chat template. auto: if there is one, for offline tasks and for rows of which training makes turns.",
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
    help="Of the weights. auto: as they were saved; of a GGUF file float32.",
)
@click.option("--device", help="Such as cuda:1 or cpu.  [default: a GPU if there is one]")
@click.option(
    "--tokenizer",
    metavar="MODEL",
    help="Of a GGUF file, the model that it was made of.  [default: that beside it, or made of the file]",
)
@click.option("--output", metavar="DIR", type=click.Path(path_type=Path), help="Folder for the result.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def evaluate_command(target: str, as_json: bool, **options: Any) -> None:
    """Score a model on tasks: of RECIPE its trained student; or MODEL, a folder or a name on the hub; or FILE.gguf, as
    transformers reads it, every weight as the file holds it.

    Writes DIR/results.json, results.md and problems.jsonl (every answer). Answers are kept as they come: after an
    interruption the same command goes on. DIR is OUTPUT/evaluation/TASKS of a recipe,
    else runs/evaluation/MODEL/TASKS. Needs the extra: pip install 'bridgegarden[eval]'. The tasks in offline, and
    humaneval, need no network.
    """
    from bridgegarden.evaluation.lm_eval import EvaluationOptions
    from bridgegarden.run.evaluate import EvaluateTarget, evaluate_target

    where = taken(EvaluateTarget, options, source=target)
    found, files = evaluate_target(where, EvaluationOptions(**options))
    if as_json:
        click.echo(plain_json(json.dumps(found.to_dict(), indent=2, ensure_ascii=False)))
        return
    from bridgegarden.evaluation.results import scores_table

    plain_console(highlight=False).print(scores_table(found.shown()))
    say(files.results)


@click.command(
    "judge",
    epilog=example("bridgegarden judge ours.jsonl theirs.jsonl --base-url http://localhost:8000/v1 --model judge"),
)
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--base-url", metavar="URL", required=True, help="The judge's OpenAI-compatible server.")
@click.option("--model", metavar="NAME", required=True, help="The judge's name there.")
@click.option("--prompt", metavar="COLUMN", help="Column of the question, if it is not called prompt.")
@click.option("--completion", metavar="COLUMN", help="Column of the answer, if it is not called completion.")
@click.option("--limit", type=click.IntRange(1), help="At most so many pairs.")
@click.option(
    "--output",
    metavar="DIR",
    type=click.Path(path_type=Path),
    default=Path("runs/judge"),
    show_default=True,
    help="Result and verdicts.",
)
@click.option("--concurrency", type=click.IntRange(1), default=8, show_default=True, help="Requests at a time.")
@patience_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def judge_command(first: str, second: str, as_json: bool, **options: Any) -> None:
    """Let a model say whose answers are better: those in A or those in B.

    A and B are files of rows with a prompt and an answer, such as bridgegarden generate writes. Every pair is judged
    in both orders. Verdicts are kept in DIR/verdicts.jsonl and not asked for again. Ends with status 1 if some are
    missing.
    """
    from bridgegarden.data import Columns
    from bridgegarden.run.evaluate import JudgeOptions, judge_answers
    from bridgegarden.teacher.server import Server

    server, columns = taken(Server, options), taken(Columns, options)
    result = judge_answers(first, second, server, taken(JudgeOptions, options, columns=columns))
    say(json.dumps(result.to_dict(), indent=2) if as_json else result)
    if result.failed:
        click.get_current_context().exit(1)
