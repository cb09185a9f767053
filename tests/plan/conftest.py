import json

import pytest

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
