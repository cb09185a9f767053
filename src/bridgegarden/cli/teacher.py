"""``bridgegarden generate`` and ``bridgegarden cache``: what a teacher says, kept."""

import json
from pathlib import Path
from typing import Any, Literal

import click

from bridgegarden.cli.options import SET, Group, example, patience_options, taken
from bridgegarden.errors import stopped_by_sigterm
from bridgegarden.terminal import say

BITS: dict[str, Literal[8, 16]] = {"8": 8, "16": 16}
"""As `bridgegarden.teacher.cache.spec.Bits` has them, which is imported only when asked for."""


@click.command(
    "generate",
    epilog=example(
        "bridgegarden generate my.yaml --base-url http://localhost:8000/v1 --output answers.jsonl",
        "bridgegarden train my.yaml --set data.train=answers.jsonl",
    ),
)
@click.argument("recipe")
@SET
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
@patience_options
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
    options["temperature"] = options["temperature"] or 0.0
    from bridgegarden.recipe import load_recipe
    from bridgegarden.run.generate import GenerateOptions, generate_answers, server_of
    from bridgegarden.teacher.generate import Decoding

    resolved = load_recipe(recipe, overrides)
    of_server = {name: options.pop(name) for name in ("concurrency", "top_logprobs", "timeout", "patience")}
    server = server_of(resolved, base_url, model, **of_server)
    if server is None and (of_server["top_logprobs"] or options["api_key_env"]):
        raise click.UsageError("--top-logprobs and --api-key-env go with a server (--base-url, or teacher.server).")
    decoding = taken(Decoding, options)
    summary = generate_answers(resolved, decoding, GenerateOptions(server=server, **options))
    say(summary)
    if summary.progress.failed:
        click.get_current_context().exit(1)


class Part(click.ParamType):
    """``i/n``."""

    name = "I/N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        index, _, count = str(value).partition("/")
        if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
            self.fail(f"{value!r}; expected such as 1/4: the first of four parts.", param, ctx)
        return int(index), int(count)


@click.group("cache", cls=Group, epilog=example("bridgegarden cache build my.yaml", "bridgegarden cache info my.yaml"))
def cache_group() -> None:
    """Keep what a teacher says on disk, and train from there without it.

    The folder is the recipe's teacher.cache. `train` reads it if the recipe names one.
    """


@cache_group.command(
    "build",
    short_help="Run the teacher of RECIPE over its rows and keep what it says.",
    epilog=example(
        "bridgegarden cache build my.yaml --top-k 32",
        "bridgegarden cache build my.yaml --set teacher.server=http://localhost:8080",
    ),
)
@click.argument("recipe")
@SET
@click.option("--top-k", type=click.IntRange(1), help="Tokens kept a position.  [default: teacher.top_k, or 64]")
@click.option("--mass", type=click.FloatRange(0, 1, min_open=True, max_open=True), help="Stop at this probability.")
@click.option("--samples", type=click.IntRange(1), help="Keep draws instead: only for the forward KL.")
@click.option("--bits", type=click.Choice(list(BITS)), help="Of a log-probability.  [default: 8]")
@click.option("--limit", type=click.IntRange(1), help="At most so many training rows.  [default: data.limit]")
@click.option("--shard", "part", type=Part(), default="1/1", help="Build a part, to be merged.  [default: all]")
@click.option("--batch-tokens", type=click.IntRange(1), default=4096, show_default=True, help="A teacher's batch.")
@click.option(
    "--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True, help="What runs the teacher."
)
@click.option("--actors", type=click.IntRange(1), help="Teachers in Ray.  [default: one a GPU, else one a machine]")
@click.option("--replace", is_flag=True, help="Remove the cache that is there first.")
@click.option("--skip-unusable", is_flag=True, help="With a server: leave out rows that give no signal.")
@click.option("--raw-logprobs", is_flag=True, help="A server's log-probabilities are at temperature 1, always.")
@click.option(
    "--concurrency", type=click.IntRange(1), default=8, show_default=True, help="With a server: requests at a time."
)
@patience_options
def build_command(recipe: str, overrides: tuple[str, ...], bits: str | None, **options: Any) -> None:
    """Run the teacher of RECIPE over its rows and keep its distribution at every supervised token.

    A teacher on a server (teacher.server) scores the rows: vLLM, SGLang, llama.cpp, or TRL's vllm-serve. Rows that
    `generate --top-logprobs` wrote are not asked about: what they hold is kept.

    Rows that the folder holds already are not asked again: a killed build goes on where it was, and new rows are added.
    Without options, as much is kept of them as of those.
    """
    with stopped_by_sigterm():
        from bridgegarden.recipe import load_recipe
        from bridgegarden.run.cache import CacheOptions, build_recipe_cache

        wanted = CacheOptions(bits=None if bits is None else BITS[bits], **options)
        say(build_recipe_cache(load_recipe(recipe, overrides), wanted))


@cache_group.command("check", epilog=example("bridgegarden cache check my.yaml"))
@click.argument("source", metavar="RECIPE|DIR")
@SET
def check_command(source: str, overrides: tuple[str, ...]) -> None:
    """Compare every byte of a cache with what was written.

    Of a RECIPE, also check that its teacher, tokenizer, rows and objective fit the cache.
    """
    from bridgegarden.run.cache import check_recipe_cache

    say(check_recipe_cache(source, overrides))


@cache_group.command(
    "info",
    short_help="Show what a cache holds: captured mass, bytes, entropies, Bridges.",
    epilog=example("bridgegarden cache info my.yaml --html cache.html"),
)
@click.argument("source", metavar="RECIPE|DIR")
@SET
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a page with charts, too.")
@click.option(
    "--student",
    metavar="MODEL",
    help="Of a RECIPE, also say how much MODEL, which has another tokenizer, can be taught from the cache.",
)
def info_command(
    source: str, overrides: tuple[str, ...], as_json: bool, html: Path | None, student: str | None
) -> None:
    """Show what a cache holds: captured mass, bytes, entropies, how many positions are Bridge-like.

    Of a RECIPE, also say what its objective loses by what is not kept.
    """
    from bridgegarden.run.cache import find_cache, shares_for
    from bridgegarden.run.cache_report import write_cache_report
    from bridgegarden.teacher.cache.info import cache_info

    folder, warnings = find_cache(source, overrides)
    known = None if student is None else shares_for(source, overrides, student)
    info = cache_info(folder) if html is None else write_cache_report(folder, html)
    if as_json:
        say(json.dumps(info.to_dict() | ({} if known is None else {"student": known.to_dict()}), indent=2))
    else:
        say(info if known is None else f"{info}\n{known}")
    for warning in warnings:
        say(f"warning: {warning}", err=True)


@cache_group.command("export", epilog=example("bridgegarden cache export my.yaml teacher.parquet"))
@click.argument("source", metavar="RECIPE|DIR")
@click.argument("output", metavar="FILE.parquet", type=click.Path(path_type=Path))
@SET
def export_command(source: str, output: Path, overrides: tuple[str, ...]) -> None:
    """Write a cache as plain Parquet, which pandas and DuckDB read.

    A row is a document: for every supervised position the kept tokens and their log-probabilities, likeliest first, and
    the log of the tail's mass, the entropy and the label's log-probability, in nats. Of a RECIPE, token ids and labels,
    too, which a cache does not hold.
    """
    from bridgegarden.run.cache import export_recipe_cache

    say(export_recipe_cache(source, output, overrides))


@cache_group.command("import", epilog=example("bridgegarden cache import my.yaml teacher.parquet"))
@click.argument("recipe")
@click.argument("path", metavar="FILE|DIR", type=click.Path(path_type=Path))
@SET
@click.option(
    "--format",
    "kind",
    type=click.Choice(["auto", "export", "axolotl", "distillkit"]),
    default="auto",
    show_default=True,
    help="What wrote it; auto goes by its columns.",
)
@click.option("--column", metavar="NAME", help="Axolotl's logprobs_field.  [default: the names it has there]")
@click.option("--shift", type=int, default=0, show_default=True, help="Tokens to add to the place of each list.")
@click.option("--top-k", type=click.IntRange(1), help="Tokens kept a position.  [default: all that are listed]")
@click.option("--bits", type=click.Choice(list(BITS)), default="8", show_default=True, help="Of a log-probability.")
@click.option("--replace", is_flag=True, help="Remove the cache that is there first.")
@click.option("--skip-unusable", is_flag=True, help="Leave out rows that give no signal.")
def import_command(recipe: str, path: Path, overrides: tuple[str, ...], bits: str, **options: Any) -> None:
    """Make the cache of RECIPE of what was said about its rows elsewhere.

    FILE is what `cache export` wrote, or holds the likeliest tokens of every token as Axolotl's KD plugin reads them
    (JSON Lines or Parquet); DIR is what DistillKit's sample_logits_vllm wrote. Rows are found by their token ids, every
    number is checked, and where the lists stand is held against the labels. Train with teacher.only_cache: true.
    """
    from bridgegarden.recipe import load_recipe
    from bridgegarden.run.cache_import import ImportOptions, import_recipe_cache

    say(import_recipe_cache(load_recipe(recipe, overrides), path, ImportOptions(bits=BITS[bits], **options)))


@cache_group.command("push", epilog=example("bridgegarden cache push my.yaml my-name/my-cache --public"))
@click.argument("source", metavar="RECIPE|DIR")
@click.argument("repo", metavar="REPO")
@SET
@click.option("--private/--public", default=True, show_default=True, help="Who sees a new repository on the hub.")
def push_command(source: str, repo: str, overrides: tuple[str, ...], private: bool) -> None:
    """Share a cache: put it into the data set REPO on the hub, with a card.

    REPO is OWNER/NAME, or a folder (its path, or file://PATH). Every byte is checked first. A repository that holds
    another cache, or rows that this one lacks, is not written over.
    """
    from bridgegarden.run.cache import find_cache
    from bridgegarden.run.cache_share import push_cache

    folder, _ = find_cache(source, overrides)
    say(push_cache(folder, repo, private=private))


@cache_group.command(
    "pull",
    epilog=example(
        "bridgegarden cache pull my-name/my-cache runs/cache",
        "bridgegarden train my.yaml --set teacher.cache=runs/cache",
    ),
)
@click.argument("repo", metavar="REPO")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
def pull_command(repo: str, folder: Path) -> None:
    """Bring the cache in REPO to DIR, which is there only once every byte has been checked.

    Interrupted, the same command goes on. Train from it with teacher.only_cache: true, or with the teacher.
    """
    from bridgegarden.run.cache_share import pull_cache

    say(pull_cache(repo, folder))


@cache_group.command(
    "merge",
    epilog=example(
        "bridgegarden cache build my.yaml --shard 1/2 --set teacher.cache=part-1",
        "bridgegarden cache build my.yaml --shard 2/2 --set teacher.cache=part-2",
        "bridgegarden cache merge runs/cache part-1 part-2",
    ),
)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("parts", metavar="PART...", nargs=-1, required=True, type=click.Path(path_type=Path))
def merge_command(folder: Path, parts: tuple[Path, ...]) -> None:
    """Copy the caches PART... into DIR, checking every byte."""
    from bridgegarden.teacher.cache.writer import merge_caches

    say(merge_caches(folder, parts))
