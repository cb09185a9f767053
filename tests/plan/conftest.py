import json
from collections.abc import Callable
from functools import wraps
from typing import Any

import pytest

from bridgegarden.plan import memory
from tests.tiny import tiny_config, tiny_tokenizer


@pytest.fixture
def recipe_file(tmp_path):
    """A pair without weights, rows of different lengths, and a recipe."""
    for role, family, hidden in (("teacher", "llama", 48), ("student", "qwen2", 32)):
        tiny_config(family, hidden_size=hidden, layers=2).save_pretrained(tmp_path / role)
        tiny_tokenizer().save_pretrained(tmp_path / role)
    rows = [{"prompt": "a" * (1 + n % 5), "completion": "b" * (1 + n)} for n in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "teacher: {model: teacher}\nstudent: {model: student, dtype: float32}\ndata: {train: rows.jsonl}\n"
        "training: {per_device_train_batch_size: 4, num_train_epochs: 2}\n"
        f"output: {tmp_path / 'output'}\n"
    )
    return path


def remembered(walk: Callable[..., Any]) -> Callable[..., Any]:
    """`walk` through a model's step, once for the same model, batch and settings."""
    known: dict[str, Any] = {}

    @wraps(walk)
    def remembering(config, *arguments, **settings):
        key = repr((config.to_json_string(use_diff=False), arguments, sorted(settings.items())))
        if key not in known:
            known[key] = walk(config, *arguments, **settings)
        return known[key]

    return remembering


_WALKS = {name: remembered(getattr(memory, name)) for name in ("student_memory", "teacher_memory")}


@pytest.fixture(autouse=True)
def walks_once(monkeypatch):
    """Plans of the tests are of the same two models: each way to train them is walked through once."""
    for name, walk in _WALKS.items():
        monkeypatch.setattr(memory, name, walk)
