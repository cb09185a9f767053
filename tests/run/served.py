"""Answers of a tiny model behind a server, asked for and used as a person would."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from click.testing import CliRunner, Result
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel

from bridgegarden.cli.main import cli
from bridgegarden.data import Columns, RowRules, load_rows, tokenise
from bridgegarden.objective.support import TeacherSignal
from bridgegarden.teacher.cache.record import Signals
from bridgegarden.teacher.cache.shard import Document
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


def as_live(ours: Signals, document: Document, model: PreTrainedModel) -> tuple[TeacherSignal, Tensor]:
    """Hold what is kept of `document` against what `model` itself says of it, within the encoding of 16 bits.

    Returns:
        The model's signal, and the tokens that are learnt.
    """
    with torch.no_grad():
        logits = model(torch.tensor(document.ids)[None].long()).logits[0]
    supervised = np.flatnonzero(document.labels[1:] != -100)
    live = TeacherSignal.from_logits(logits[supervised], K)
    assert live.ids is not None
    assert live.log_tail is not None
    labels = torch.tensor(document.labels[1:][supervised]).long()
    order = live.ids.argsort(1)
    np.testing.assert_array_equal(ours.ids, live.ids.gather(1, order).numpy())
    np.testing.assert_allclose(ours.logp, live.logp.gather(1, order).numpy(), atol=1e-4)
    np.testing.assert_allclose(ours.log_tail, live.log_tail.numpy(), atol=1e-5)
    np.testing.assert_array_equal(ours.argmax, live.argmax.numpy())
    np.testing.assert_allclose(ours.max_logp, live.max_logp.numpy(), atol=1e-5)
    label_logp = logits[supervised].log_softmax(-1).gather(1, labels[:, None])[:, 0]
    np.testing.assert_allclose(ours.label_logp, label_logp.numpy(), atol=1e-5)
    return live, labels


def plain_rows(recipe: Path) -> Dataset:
    """The answers as rows like any other."""
    columns = Columns(prompt="question", completion="answer")
    rows = load_rows(str(recipe.with_name("answers.jsonl")))
    return tokenise(rows, tiny_tokenizer(), RowRules(columns=columns, max_length=1024))
