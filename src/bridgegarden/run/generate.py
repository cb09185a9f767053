"""A recipe to its teacher's answers: what ``bridgegarden generate`` does."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bridgegarden.errors import ConfigError
from bridgegarden.recipe import Recipe
from bridgegarden.run.models import load_model, placed, usable_device
from bridgegarden.run.output import check_writable
from bridgegarden.run.quiet import quiet_libraries
from bridgegarden.run.rows import columns_of, training_rows
from bridgegarden.run.teachers import LiveModel
from bridgegarden.teacher.answers import check_answers_path
from bridgegarden.teacher.generate import (
    Decoding,
    Engine,
    GenerationSummary,
    Progress,
    Questions,
    generate,
)
from bridgegarden.teacher.server import Server, ServerEngine
from bridgegarden.teacher.server_connection import api_key

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """What the command line says beside the recipe."""

    output: Path | None = None
    """Where to; None is beside the recipe's output folder: ``OUTPUT-answers.jsonl``."""
    samples: int = 1
    """Answers to each row."""
    limit: int | None = None
    """At most so many rows, from the start; None is the recipe's ``data.limit``."""
    keep_truncated: bool = False
    """Whether answers that were cut off are rows like any other."""
    batch_size: int = 16
    """Prompts at a time, for a teacher on this machine."""
    server: Server | None = None
    """Where to ask instead of loading the recipe's teacher."""
    api_key_env: str | None = None
    """Name of the variable with the key; None is ``OPENAI_API_KEY``, if it is set."""


def generate_answers(recipe: Recipe, decoding: Decoding, options: GenerateOptions) -> GenerationSummary:
    """Let the teacher of `recipe` answer its training rows.

    Raises:
        ConfigError: a setting is out of range, or the output belongs to other settings.
        DataError: a row has no prompt, or a file cannot be read or written.
        ModelError: the teacher cannot be used, or fails again and again.
    """
    from bridgegarden.terminal import Display, stderr_console

    section = recipe.data
    output = options.output or recipe.output.with_name(f"{recipe.output.name}-answers.jsonl")
    check_answers_path(output)
    check_writable(output.parent, "output")
    with quiet_libraries(interactive=sys.stderr.isatty()):
        if options.limit is not None:
            section = replace(section, limit=options.limit)
        questions = Questions(
            rows=training_rows(section),
            columns=columns_of(section),
            samples=options.samples,
            teacher_prompt=recipe.teacher.prompt,
        )
        console = stderr_console()
        engine = _engine(recipe, options, console)
        with Display(console, "answers") as display:

            def show(progress: Progress) -> None:
                words = f"answers, {progress.failed} failed" if progress.failed else "answers"
                display.update(progress.done, total=progress.total, words=words, line=str(progress))

            return generate(
                questions, engine, output, decoding, keep_truncated=options.keep_truncated, on_progress=show
            )


def server_of(recipe: Recipe, base_url: str | None, model: str | None, **settings: float) -> Server | None:
    """The server that the command line or else the recipe names; None for a teacher on this machine.

    Raises:
        ConfigError: a setting is out of range, or goes with a server and there is none.
    """
    address = base_url or recipe.teacher.server
    if address is None:
        if model is not None:
            raise ConfigError("--model goes with --base-url; for a model on this machine use --set teacher.model=NAME.")
        return None
    name = model or recipe.teacher.model
    if not name:
        raise ConfigError("the model's name on the server is missing; set teacher.model, or give --model.")
    return Server(base_url=address, model=name, **settings)  # pyright: ignore[reportArgumentType]  as options have them


def _engine(recipe: Recipe, options: GenerateOptions, console: "Console") -> Engine:
    if options.server is not None:
        console.print(f"asking {options.server.model} at {options.server.base_url}", markup=False, soft_wrap=True)
        return ServerEngine(
            options.server,
            api_key(options.api_key_env),
            lambda line: console.print(line, markup=False, soft_wrap=True),
        )
    if recipe.teacher.by is not None:
        raise ConfigError(
            "teacher.by: each of several teachers has rows of its own; let one of them write answers (a recipe with "
            "teacher.model), or a server (--base-url)."
        )
    if recipe.teacher.mix is not None:
        raise ConfigError(
            "teacher.mix: a mixture of teachers writes no answers. Let one of them (a recipe with teacher.model), or a "
            "server (--base-url), write them."
        )
    from bridgegarden.preflight import load_facts
    from bridgegarden.teacher.local_generation import LocalEngine

    if recipe.teacher.kind == "recorded":
        raise ConfigError(
            f"teacher.only_cache: {recipe.teacher.model} is not to be had, so that it cannot answer. Leave "
            "only_cache out to let the model answer."
        )
    device = usable_device(recipe.teacher.device, "teacher.device")
    facts = load_facts(LiveModel(recipe).reference)
    console.print(f"loading teacher {facts.reference.model}", markup=False, soft_wrap=True)
    model = placed(load_model(facts), device)
    name = facts.reference.model if facts.commit is None else f"{facts.reference.model}@{facts.commit}"
    return LocalEngine(model, facts.tokenizer, name=name, batch_size=options.batch_size)
