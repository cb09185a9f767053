"""Students learn from the disk what they would learn from the teacher."""

import pytest
import torch

from bridgegarden.exact.tasks.arithmetic import ArithmeticWorld
from bridgegarden.quickstart.result import QuickstartSettings
from bridgegarden.quickstart.student import (
    keep_signals,
    load_teacher,
    load_tokenizer,
    signals_spec,
    tokens_asked,
    train_student,
    training_rows,
)
from bridgegarden.study.arms import OBJECTIVES
from bridgegarden.teacher.cache.manifest import MANIFEST
from bridgegarden.teacher.cache.reader import TeacherCache

TINY = QuickstartSettings(steps=3, batch=4, train_problems=12)


@pytest.fixture(scope="module")
def teacher():
    return load_teacher()


@pytest.fixture(scope="module")
def rows():
    return training_rows(ArithmeticWorld(), TINY.train_problems, 0)


@pytest.fixture(scope="module")
def kept(tmp_path_factory, rows, teacher):
    folder = tmp_path_factory.mktemp("signals") / "seed0"
    return folder, keep_signals(folder, rows, teacher, load_tokenizer())


def train(name, rows, teacher, steps):
    settings = QuickstartSettings(steps=steps, batch=TINY.batch, train_problems=TINY.train_problems)
    return train_student(OBJECTIVES[name], 0, settings, rows, teacher, lambda step: None)


def assert_alike(name, rows, teacher, kept, steps, tolerance):
    live, cached = (train(name, rows, source, steps) for source in (teacher, TeacherCache(kept[0])))
    assert cached.final_loss == pytest.approx(live.final_loss, rel=tolerance)
    assert cached.tokens == live.tokens


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_starts_with_the_loss_of_the_live_teacher(name, rows, teacher, kept):
    assert_alike(name, rows, teacher, kept, steps=1, tolerance=1e-6)


@pytest.mark.parametrize("name", ["soft", "risk_guided"])
def test_later_steps_go_where_the_live_teacher_leads(name, rows, teacher, kept):
    assert_alike(name, rows, teacher, kept, steps=TINY.steps, tolerance=1e-4)


def test_the_teacher_is_asked_at_every_token_of_an_answer_once(rows, teacher, kept):
    folder, built = kept
    answers = sum(sum(label >= 0 for label in row["labels"]) for row in rows)
    assert built.positions == tokens_asked(rows) == answers
    again = keep_signals(folder, rows, teacher, load_tokenizer())
    assert (again.positions, again.kept) == (0, len(rows))


def test_the_whole_vocabulary_is_kept_and_nothing_lies_outside_it(teacher):
    spec = signals_spec(teacher, load_tokenizer())
    assert spec.is_dense
    assert not spec.has_tail


def test_what_is_kept_is_the_teachers_distribution(rows, teacher, kept):
    key = TeacherCache(kept[0])
    row = rows[0]
    batch = key.collate([row])
    with torch.no_grad():
        logp = teacher(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
    where = torch.tensor(row["labels"])[1:] >= 0
    exact = logp[:-1][where]
    torch.testing.assert_close(batch["logp"].exp(), exact.exp(), atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(batch["entropy"], -(exact.exp() * exact).sum(-1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("damage", ["", "{}", "other"])
def test_a_cache_that_is_not_ours_is_built_anew(tmp_path, rows, teacher, damage):
    folder = tmp_path / "seed0"
    keep_signals(folder, rows, teacher, load_tokenizer())
    manifest = folder / MANIFEST
    text = manifest.read_text()
    manifest.write_text(text.replace('"bits": 16', '"bits": 8') if damage == "other" else damage)
    built = keep_signals(folder, rows, teacher, load_tokenizer())
    assert built.positions == tokens_asked(rows)
    assert manifest.read_text() == text
