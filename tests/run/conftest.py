"""Tiny pairs and recipes on disk."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from bridgegarden.recipe import Recipe, load_recipe
from bridgegarden.run import rehearsal
from tests.plan.conftest import walks_once  # noqa: F401
from tests.run.killed import ended, in_child
from tests.teacher.served_model import ServedModel, sharp_teacher
from tests.teacher.servers import serving
from tests.tiny import Family, save_tiny, tiny_model, tiny_tokenizer

ROWS = [{"question": f"{a} + {b} =", "answer": str(a + b)} for a in range(6) for b in range(6)]


_REHEARSED: set[str] = set()
"""Arguments of trainings that a rehearsal had nothing against."""
_try_out = rehearsal._try_out


@pytest.fixture
def rehearse_once(monkeypatch):
    """Arguments that were rehearsed in this process are not again."""

    def try_out(recipe, arguments):
        folders = dict.fromkeys(("output_dir", "logging_dir", "run_name"))
        told = repr((sorted({**arguments.to_dict(), **folders}.items()), recipe.data.eval is None))
        if told not in _REHEARSED:
            _try_out(recipe, arguments)
            _REHEARSED.add(told)

    monkeypatch.setattr(rehearsal, "_try_out", try_out)


@pytest.fixture(autouse=True)
def rehearsed_once(rehearse_once):
    """Everywhere but in ``test_rehearsal.py``."""


@pytest.fixture
def write_recipe(tmp_path):
    """Write a teacher, a student, rows and a recipe that takes a second; returns the recipe's path."""
    return recipe_writer(tmp_path)


def recipe_writer(folder: Path) -> Callable[..., Path]:
    """What :func:`write_recipe` gives, for any folder."""

    def write(family: Family = "llama", teacher_vocab=264, student_vocab=264, student_tokenizer=None, **changes):
        save_tiny(folder / "teacher", tiny_model(family, teacher_vocab, hidden_size=48, seed=1))
        tokenizer = student_tokenizer or tiny_tokenizer()
        save_tiny(folder / "student", tiny_model(family, student_vocab, seed=2), tokenizer)
        for name, rows in (("train", ROWS[:30]), ("eval", ROWS[30:])):
            (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        tree = {
            "teacher": {"model": str(folder / "teacher")},
            "student": {"model": str(folder / "student")},
            "data": {"train": str(folder / "train.jsonl"), "prompt": "question", "completion": "answer"},
            "objective": {"preset": "static", "hard_target": "data"},
            "training": {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 5e-3, "logging_steps": 2},
            "output": str(folder / "out"),
        }
        for section, values in changes.items():
            tree[section] = tree.get(section, {}) | values
        (folder / "recipe.yaml").write_text(yaml.safe_dump(tree))
        return folder / "recipe.yaml"

    return write


@pytest.fixture(scope="session")
def stateful(tmp_path_factory) -> Recipe:
    """Everything that has a state: dropout, a curriculum, accumulation, three epochs, evaluations, a cosine schedule.

    Neither logs nor checkpoints come at the same steps; an epoch has four steps, of which the last is saved.
    """
    folder = tmp_path_factory.mktemp("stateful")
    path = recipe_writer(folder)(
        data={"eval": str(folder / "eval.jsonl"), "limit": 16},
        objective={"preset": "curriculum"},
        training={
            "max_steps": 10,
            "save_steps": 2,
            "logging_steps": 3,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
        },
    )
    config = folder / "student" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"attention_dropout": 0.2}))
    return load_recipe(path)


@pytest.fixture(scope="session")
def whole(stateful) -> Recipe:
    """The run that nobody interrupts."""
    from bridgegarden.run.train import train

    assert ended(in_child(lambda: train(stateful))) == 0
    return stateful


@pytest.fixture
def recipe(stateful, tmp_path) -> Recipe:
    """To be interrupted."""
    return dataclasses.replace(stateful, output=tmp_path / "out")


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
