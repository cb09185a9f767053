"""``bridgegarden generate``."""

from pathlib import Path

import click


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
@click.option("--retries", type=click.IntRange(0), default=5, show_default=True, help="Attempts after a failed one.")
@click.option("--api-key-env", metavar="NAME", help="Variable that holds the key.  [default: OPENAI_API_KEY, if set]")
def generate_command(
    recipe: str,
    overrides: tuple[str, ...],
    base_url: str | None,
    model: str | None,
    output: Path | None,
    samples: int,
    temperature: float | None,
    greedy: bool,
    seed: int,
    max_new_tokens: int,
    keep_truncated: bool,
    limit: int | None,
    batch_size: int,
    concurrency: int,
    top_logprobs: int,
    timeout: float,
    retries: int,
    api_key_env: str | None,
) -> None:
    """Let the teacher of RECIPE answer the prompts of its training data.

    The answers are rows to train on: bridgegarden train RECIPE --set data.train=FILE. The same command goes on where
    it was interrupted, and tries again what failed. Ends with status 1 if something failed.
    """
    if greedy and temperature is not None:
        raise click.UsageError("--greedy and --temperature exclude each other; give one.")
    from bridgegarden.recipe import load_recipe
    from bridgegarden.run.generate import GenerateOptions, generate_answers, server_of
    from bridgegarden.teacher.generate import Decoding

    resolved = load_recipe(recipe, overrides)
    server = server_of(
        resolved,
        base_url,
        model,
        concurrency=concurrency,
        top_logprobs=top_logprobs,
        timeout=timeout,
        retries=retries,
    )
    if server is None and (top_logprobs or api_key_env):
        raise click.UsageError("--top-logprobs and --api-key-env go with a server (--base-url, or teacher.server).")
    options = GenerateOptions(
        output=output,
        samples=samples,
        limit=limit,
        keep_truncated=keep_truncated,
        batch_size=batch_size,
        server=server,
        api_key_env=api_key_env,
    )
    decoding = Decoding(temperature=temperature or 0.0, seed=seed, max_new_tokens=max_new_tokens)
    summary = generate_answers(resolved, decoding, options)
    click.echo(summary)
    if summary.progress.failed:
        click.get_current_context().exit(1)
