"""Tiny pairs and recipes on disk."""

import json

import pytest
import yaml

from tests.teacher.served_model import ServedModel, sharp_teacher
from tests.teacher.servers import serving
from tests.tiny import Family, save_tiny, tiny_model, tiny_tokenizer

ROWS = [{"question": f"{a} + {b} =", "answer": str(a + b)} for a in range(6) for b in range(6)]


@pytest.fixture
def write_recipe(tmp_path):
    """Write a teacher, a student, rows and a recipe that takes a second; returns the recipe's path."""

    def write(family: Family = "llama", teacher_vocab=264, student_vocab=264, student_tokenizer=None, **changes):
        save_tiny(tmp_path / "teacher", tiny_model(family, teacher_vocab, hidden_size=48, seed=1))
        tokenizer = student_tokenizer or tiny_tokenizer()
        save_tiny(tmp_path / "student", tiny_model(family, student_vocab, seed=2), tokenizer)
        for name, rows in (("train", ROWS[:30]), ("eval", ROWS[30:])):
            (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        tree = {
            "teacher": {"model": str(tmp_path / "teacher")},
            "student": {"model": str(tmp_path / "student")},
            "data": {"train": str(tmp_path / "train.jsonl"), "prompt": "question", "completion": "answer"},
            "objective": {"preset": "static", "hard_target": "data"},
            "training": {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 5e-3, "logging_steps": 2},
            "output": str(tmp_path / "out"),
        }
        for section, values in changes.items():
            tree[section] = tree.get(section, {}) | values
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
        return tmp_path / "recipe.yaml"

    return write


@pytest.fixture
def model_server(monkeypatch):
    """A server on which a tiny model answers."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving() as running:
        running.answer = ServedModel(sharp_teacher())
        yield running


@pytest.fixture
def served_recipe(write_recipe, tmp_path, model_server):
    """A recipe whose teacher is on a server, and whose data are the answers that it is still to give."""
    path = write_recipe(teacher_vocab=259, training={"max_steps": 6, "logging_steps": 1, "learning_rate": 1e-2})
    save_tiny(tmp_path / "teacher", model_server.answer.model)
    tree = yaml.safe_load(path.read_text())
    tree["teacher"] = {"server": model_server.url, "model": "big", "cache": str(tmp_path / "cache")}
    tree["data"]["train"] = str(tmp_path / "answers.jsonl")
    path.write_text(yaml.safe_dump(tree))
    return path
