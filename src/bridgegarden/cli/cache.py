"""``bridgegarden cache``."""

import json
from pathlib import Path
from typing import Any

import click

from bridgegarden.terminal import say

SET = click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Change a setting of the recipe.")


class Part(click.ParamType):
    """``i/n``."""

    name = "I/N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        index, _, count = str(value).partition("/")
        if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
            self.fail(f"{value!r}; expected such as 1/4: the first of four parts.", param, ctx)
        return int(index), int(count)


@click.group("cache")
def cache_group() -> None:
    """Keep what a teacher says on disk, and train from there without it.

    The folder is the recipe's teacher.cache. `train` reads it if the recipe names one.
    """


@cache_group.command("build")
@click.argument("recipe")
@SET
@click.option("--top-k", type=click.IntRange(1), help="Tokens kept a position.  [default: teacher.top_k, or 64]")
@click.option("--mass", type=click.FloatRange(0, 1, min_open=True, max_open=True), help="Stop at this probability.")
@click.option("--samples", type=click.IntRange(1), help="Keep draws instead: only for the forward KL.")
@click.option("--bits", type=click.Choice(["8", "16"]), help="Of a log-probability.  [default: 8]")
@click.option("--limit", type=click.IntRange(1), help="At most so many training rows.  [default: data.limit]")
@click.option("--shard", "part", type=Part(), default="1/1", help="Build a part, to be merged.  [default: all]")
@click.option("--batch-tokens", type=click.IntRange(1), default=4096, show_default=True, help="A teacher's batch.")
@click.option(
    "--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True, help="What runs the teacher."
)
@click.option("--actors", type=click.IntRange(1), help="Teachers in Ray.  [default: one a GPU, else one a machine]")
@click.option("--replace", is_flag=True, help="Remove the cache that is there first.")
@click.option("--skip-unusable", is_flag=True, help="Of a server's answers, leave out those that give no signal.")
@click.option("--raw-logprobs", is_flag=True, help="A server's log-probabilities are at temperature 1, always.")
def build_command(recipe: str, overrides: tuple[str, ...], bits: str | None, **options: Any) -> None:
    """Run the teacher of RECIPE over its rows and keep its distribution at every supervised token.

    A teacher on a server (teacher.server) does not run: its rows are answers that `generate --top-logprobs` wrote, and
    what they hold is kept.

    Rows that the folder holds already are not asked again: a killed build goes on where it was, and new rows are added.
    Without options, as much is kept of them as of those.
    """
    from bridgegarden.recipe import load_recipe
    from bridgegarden.run.cache import CacheOptions, build_recipe_cache

    say(
        build_recipe_cache(
            load_recipe(recipe, overrides), CacheOptions(bits=None if bits is None else int(bits), **options)
        )
    )


@cache_group.command("check")
@click.argument("source", metavar="RECIPE|DIR")
@SET
def check_command(source: str, overrides: tuple[str, ...]) -> None:
    """Compare every byte of a cache with what was written.

    Of a RECIPE, also check that its teacher, tokenizer, rows and objective fit the cache.
    """
    from bridgegarden.run.cache import check_recipe_cache

    say(check_recipe_cache(source, overrides))


@cache_group.command("info")
@click.argument("source", metavar="RECIPE|DIR")
@SET
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a page with charts, too.")
def info_command(source: str, overrides: tuple[str, ...], as_json: bool, html: Path | None) -> None:
    """Show what a cache holds: captured mass, bytes, entropies, how many positions are Bridge-like."""
    from bridgegarden.run.cache import find_cache
    from bridgegarden.run.cache_report import write_cache_report
    from bridgegarden.teacher.cache.info import cache_info

    folder = find_cache(source, overrides)
    info = cache_info(folder) if html is None else write_cache_report(folder, html)
    say(json.dumps(info.to_dict(), indent=2) if as_json else info)


@cache_group.command("merge")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("parts", metavar="PART...", nargs=-1, required=True, type=click.Path(path_type=Path))
def merge_command(folder: Path, parts: tuple[Path, ...]) -> None:
    """Copy the caches PART... into DIR, checking every byte."""
    from bridgegarden.teacher.cache.writer import merge_caches

    say(merge_caches(folder, parts))
