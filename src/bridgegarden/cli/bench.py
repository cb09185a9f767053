"""``bridgegarden bench``: size, speed and loss of models where they run."""

import json
from dataclasses import asdict
from typing import Any

import click

from bridgegarden.cli.options import example, taken
from bridgegarden.terminal import plain_console, plain_json


@click.command("bench", epilog=example("bridgegarden bench runs/qwen/model runs/qwen/export/qwen-Q8_0.gguf"))
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@click.option("--prompt", type=click.IntRange(1), default=64, show_default=True, help="Tokens to read at once.")
@click.option("--decode", type=click.IntRange(1), default=32, show_default=True, help="Tokens to write one by one.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Times each is measured.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Processor threads of each.")
@click.option("--rows", metavar="FILE", help="Rows on whose answers each model is scored, too, by its own program.")
@click.option("--limit", type=click.IntRange(1), default=32, show_default=True, help="At most so many rows.")
@click.option("--markdown", is_flag=True, help="Print the table as Markdown.")
@click.option("--json", "as_json", is_flag=True, help="Print every round as JSON.")
def bench_command(models: tuple[str, ...], markdown: bool, as_json: bool, **options: Any) -> None:
    """Measure size, memory and speed of MODELs on this machine's processor, side by side, and their loss on --rows.

    A MODEL is a folder for transformers or onnxruntime, or a GGUF file, which llama.cpp runs (pip install xllamacpp).
    Each has a process of its own; they are measured in turn. Nothing else should run beside it.
    """
    from bridgegarden.export.bench import BenchOptions, bench, bench_table, loss_table

    chosen = taken(BenchOptions, options)
    found = bench(models, chosen)
    if as_json:
        click.echo(plain_json(json.dumps([asdict(one) for one in found], indent=2, ensure_ascii=False)))
        return
    tables = [table for table in (bench_table(found, chosen), loss_table(found)) if table is not None]
    if markdown:
        click.echo("\n\n".join(f"{table.markdown()}\n\n{table.note}" for table in tables))
        return
    for table in tables:
        plain_console(highlight=False).print(table)
