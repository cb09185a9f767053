"""Answers of a tiny model behind a server, asked for and used as a person would."""

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from datasets import Dataset

from bridgegarden.cli.main import cli
from bridgegarden.data import Columns, RowRules, load_rows, tokenise
from tests.tiny import tiny_tokenizer

K = 20
"""Log-probabilities that are asked for."""


def run(*arguments: Any) -> Result:
    """``bridgegarden`` with `arguments`."""
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def ask(recipe: Path, *options: Any, top: int = K) -> list[dict[str, Any]]:
    """Let the server write ``answers.jsonl`` beside `recipe`; returns its rows."""
    answers = recipe.with_name("answers.jsonl")
    source = ("--set", f"data.train={recipe.with_name('train.jsonl')}", "--output", answers)
    asked = ("--top-logprobs", top) if top else ()
    result = run("generate", recipe, *source, "--max-new-tokens", 12, *asked, *options)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in answers.read_text().splitlines()]


def plain_rows(recipe: Path) -> Dataset:
    """The answers as rows like any other."""
    columns = Columns(prompt="question", completion="answer")
    rows = load_rows(str(recipe.with_name("answers.jsonl")))
    return tokenise(rows, tiny_tokenizer(), RowRules(columns=columns, max_length=1024))
