"""``bridgegarden evaluate``, ``judge``, ``bench``, ``chat`` and ``export``: what is done with a finished model."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from bridgegarden.cli.options import SET, BatchSize, example, patience_options, taken
from bridgegarden.errors import ConfigError
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


@click.command(
    "chat", epilog=example("bridgegarden chat runs/my/model", "bridgegarden chat my.yaml --against ORG/TEACHER --open")
)
@click.argument("model", metavar="RECIPE|MODEL")
@click.option(
    "--against", metavar="TEACHER", help="A model of the same tokenizer that reads along: a folder or a name."
)
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Where to listen.  [default: any that is free]")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "bfloat16", "float16", "float32"]),
    help="Of all weights.  [default: as they were saved]",
)
@click.option("--device", help="Such as cuda:1 or cpu.  [default: a GPU if there is one]")
@click.option("--open", "open_page", is_flag=True, help="Show the page in the browser.")
def chat_command(port: int, open_page: bool, **options: Any) -> None:
    """Talk to a model on a page in the browser, which colours every token by how likely it was.

    Of RECIPE the trained student is meant; or give MODEL, a folder or a name on the hub. With --against the page shows
    where the model parts from that teacher, and what either would have said there. The page is for this machine alone,
    at the address that is printed, and asks no other host for anything. Ctrl-C ends it.
    """
    from bridgegarden.chat.server import ChatServer
    from bridgegarden.chat.session import ChatRequest, load_chat

    with ChatServer(load_chat(taken(ChatRequest, options)), port) as server:
        say(server.address)
        say("Ctrl-C ends it.", err=True)
        if open_page:
            click.launch(server.address)
        try:
            server.run()
        except KeyboardInterrupt:
            say("\nended.", err=True)


@click.command(
    "export",
    short_help="Write a trained model for other programs: llama.cpp, Ollama, onnxruntime.",
    epilog=example("bridgegarden export my.yaml --to gguf --quantise Q8_0,Q4_0"),
)
@click.argument("source", metavar="RECIPE|MODEL")
@SET
@click.option(
    "--to",
    type=click.Choice(["gguf", "onnx", "hf"]),
    required=True,
    help="gguf: a file for llama.cpp and Ollama. onnx: a folder for onnxruntime. hf: one for transformers.",
)
@click.option(
    "--quantise",
    metavar="KIND[,KIND]",
    help="gguf: F32, F16, BF16, Q8_0, Q5_1, Q5_0, Q4_1, Q4_0; onnx: F32, int8; hf: F32, F16, BF16.  [default: the type "
    "that the model was trained for (gguf), else that of its weights; onnx: F32]",
)
@click.option("--output", metavar="DIR", type=click.Path(path_type=Path), help="Folder for the files.")
@click.option("--without-past", is_flag=True, help="onnx: a graph of whole texts, without keys and values.")
@click.option("--overwrite", is_flag=True, help="Replace files of the same names.")
def export_command(quantise: str | None, **options: Any) -> None:
    """Write a trained model for other programs: of RECIPE its student, or MODEL, a folder or a name on the hub.

    Writes DIR/NAME-KIND.gguf for each KIND, with a Modelfile for Ollama and a card beside it; or a folder,
    DIR/NAME-onnx-KIND or DIR/NAME-hf-KIND. What the other program would compute or read otherwise is refused. DIR is
    OUTPUT/export of a recipe, else runs/export/MODEL. Needs the extra: pip install 'bridgegarden[export]'.
    """
    from bridgegarden.run.export import ExportTarget, export_model

    kinds = tuple(dict.fromkeys(kind.strip() for kind in (quantise or "").split(",") if kind.strip()))
    if quantise is not None and not kinds:
        raise ConfigError(
            f"--quantise: {quantise!r} names nothing; expected types of weights separated by commas, such as Q8_0,Q4_0."
        )
    result = export_model(taken(ExportTarget, options, quantise=kinds))
    for note in result.notes:
        say(f"note: {note}", err=True)
    for file in result.files:
        say(f"{file.path}  {file.size / 1e6:,.1f} MB")
    for path in result.beside:
        say(path)
