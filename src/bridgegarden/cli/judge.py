"""``bridgegarden judge``."""

import json
from pathlib import Path

import click

from bridgegarden.terminal import say


@click.command("judge")
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
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=600.0,
    show_default=True,
    help="Seconds an attempt may take.",
)
@click.option(
    "--patience",
    type=click.FloatRange(min=0),
    default=300.0,
    show_default=True,
    help="Seconds a failing request is tried again for.",
)
@click.option("--api-key-env", metavar="NAME", help="Variable that holds the key.  [default: OPENAI_API_KEY, if set]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def judge_command(
    first: str,
    second: str,
    base_url: str,
    model: str,
    prompt: str | None,
    completion: str | None,
    limit: int | None,
    output: Path,
    concurrency: int,
    timeout: float,
    patience: float,
    api_key_env: str | None,
    as_json: bool,
) -> None:
    """Let a model say whose answers are better: those in A or those in B.

    A and B are files of rows with a prompt and an answer, such as bridgegarden generate writes. Every pair is judged
    in both orders. Verdicts are kept in DIR/verdicts.jsonl and not asked for again. Ends with status 1 if some are
    missing.
    """
    from bridgegarden.data import Columns
    from bridgegarden.run.judge import JudgeOptions, judge_answers
    from bridgegarden.teacher.server import Server

    server = Server(base_url=base_url, model=model, concurrency=concurrency, timeout=timeout, patience=patience)
    columns = Columns(prompt=prompt, completion=completion)
    options = JudgeOptions(output=output, columns=columns, limit=limit, api_key_env=api_key_env)
    result = judge_answers(first, second, server, options)
    say(json.dumps(result.to_dict(), indent=2) if as_json else result)
    if result.failed:
        click.get_current_context().exit(1)
