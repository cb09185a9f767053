"""``bridgegarden generate``."""

from pathlib import Path
from typing import Any

import click

from bridgegarden.terminal import say


@click.command("generate")
@click.argument("recipe")
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Change a setting of the recipe.")
@click.option("--base-url", metavar="URL", help="Ask an OpenAI-compatible server, such as http://localhost:8000/v1.")
@click.option("--model", metavar="NAME", help="The model's name there.  [default: teacher.model]")
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="FILE", help="Answers.  [default: OUTPUT-answers.jsonl]"
)
@click.option("--n", "samples", type=click.IntRange(1), default=1, show_default=True, help="Answers to each row.")
@click.option("--temperature", type=click.FloatRange(min=0), help="Sample; 1 is the teacher's own distribution.")
@click.option("--greedy", is_flag=True, help="Always the likeliest token.  [default]")
@click.option("--seed", type=int, default=0, show_default=True, help="Every answer's random stream comes from it.")
@click.option("--max-new-tokens", type=click.IntRange(1), default=1024, show_default=True, help="Longest answer.")
@click.option("--keep-truncated", is_flag=True, help="Keep answers that were cut off there.")
@click.option("--limit", type=click.IntRange(1), help="At most so many rows.  [default: data.limit]")
@click.option(
    "--batch-size", type=click.IntRange(1), default=16, show_default=True, help="Without a server: prompts at a time."
)
@click.option("--concurrency", type=click.IntRange(1), default=8, show_default=True, help="Requests at a time.")
@click.option(
    "--top-logprobs",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Ask for so many a token, and keep them.",
)
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
def generate_command(
    recipe: str,
    overrides: tuple[str, ...],
    base_url: str | None,
    model: str | None,
    greedy: bool,
    **options: Any,
) -> None:
    """Let the teacher of RECIPE answer the prompts of its training data.

    The answers are rows to train on: bridgegarden train RECIPE --set data.train=FILE. The same command goes on where
    it was interrupted, and tries again what failed. Ends with status 1 if something failed.
    """
    if greedy and options["temperature"] is not None:
        raise click.UsageError("--greedy and --temperature exclude each other; give one.")
    from bridgegarden.recipe import load_recipe
    from bridgegarden.run.generate import GenerateOptions, generate_answers, server_of
    from bridgegarden.teacher.generate import Decoding

    def taken(*names: str) -> dict[str, Any]:
        return {name: options.pop(name) for name in names}

    resolved = load_recipe(recipe, overrides)
    of_server = taken("concurrency", "top_logprobs", "timeout", "patience")
    server = server_of(resolved, base_url, model, **of_server)
    if server is None and (of_server["top_logprobs"] or options["api_key_env"]):
        raise click.UsageError("--top-logprobs and --api-key-env go with a server (--base-url, or teacher.server).")
    of_decoding = taken("temperature", "seed", "max_new_tokens")
    decoding = Decoding(**{**of_decoding, "temperature": of_decoding["temperature"] or 0.0})
    summary = generate_answers(resolved, decoding, GenerateOptions(server=server, **options))
    say(summary)
    if summary.progress.failed:
        click.get_current_context().exit(1)
