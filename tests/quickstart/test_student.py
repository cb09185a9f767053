"""Measurements against loops written from their definitions."""

import pytest
import torch

from bridgegarden.exact.process import Role, role, trace
from bridgegarden.exact.tasks.arithmetic import ArithmeticWorld
from bridgegarden.exact.world import END
from bridgegarden.quickstart.result import STUDENT_SIZE, QuickstartSettings
from bridgegarden.quickstart.student import (
    examine,
    hold_out,
    keep_signals,
    load_teacher,
    load_tokenizer,
    signals_spec,
    tokens_asked,
    train_student,
    training_rows,
)
from bridgegarden.study.arms import OBJECTIVES
from bridgegarden.study.students import new_llama
from bridgegarden.teacher.cache.manifest import MANIFEST
from bridgegarden.teacher.cache.reader import TeacherCache
from bridgegarden.teacher.cache.shard import documents_in

WORLD = ArithmeticWorld()


@pytest.fixture(scope="module")
def held_out():
    return hold_out(WORLD, load_teacher(), 12, 3)


@pytest.fixture(scope="module")
def student():
    return new_llama(WORLD, STUDENT_SIZE, 0).eval()


@pytest.fixture(scope="module")
def examined(student, held_out):
    return examine(student, held_out)


def log_probs(model, prompt, answer):
    """One sequence at a time, nothing padded."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0]
    return logits[len(prompt) - 1 : -1].double().log_softmax(-1)


def kl_of(held_out, student, prompt, answer):
    p, q = log_probs(held_out.teacher, prompt, answer), log_probs(student, prompt, answer)
    return (p.exp() * (p - q)).sum(-1)


def test_the_loss_on_the_teacher_s_answers_is_the_kl_summed_over_each(held_out, student, examined):
    for index, (prompt, answer) in enumerate(zip(held_out.prompts, held_out.answers, strict=True)):
        expected = kl_of(held_out, student, prompt, answer).sum().item()
        assert examined.teacher_loss[index].item() == pytest.approx(expected, rel=1e-4)


def test_kl_and_entropy_are_taken_where_the_process_has_the_role(held_out, student, examined):
    for index, (problem, prompt, answer) in enumerate(
        zip(held_out.problems, held_out.prompts, held_out.answers, strict=True)
    ):
        process = WORLD.process(problem)
        roles = [role(process, state) for state in trace(process, answer)]
        kl = kl_of(held_out, student, prompt, answer)
        for kind, found in ((Role.BRIDGE, examined.kl_bridge), (Role.GARDEN, examined.kl_garden)):
            values = [kl[i].item() for i, this in enumerate(roles) if this == kind]
            assert found[index].item() == pytest.approx(sum(values) / len(values), rel=1e-4)
        q = log_probs(student, prompt, answer)
        entropies = -(q.exp() * q).sum(-1)
        gardens = sum(entropies[i].item() for i, this in enumerate(roles) if this == Role.GARDEN)
        assert examined.garden_entropy[index].item() == pytest.approx(gardens, rel=1e-4)


def test_the_teacher_measured_against_itself_has_no_loss_and_all_variety(held_out):
    measured = examine(held_out.teacher, held_out).measured()
    assert measured.diversity == (1.0, 0.0, 12)
    for quantity in ("kl_bridge", "kl_garden", "teacher_loss", "student_loss", "exposure_bias"):
        assert getattr(measured, quantity).mean == pytest.approx(0.0, abs=1e-4)
    assert measured.accuracy_greedy.mean == 1.0


def test_exposure_bias_is_the_difference_of_the_losses(examined):
    measured = examined.measured()
    assert measured.exposure_bias.mean == pytest.approx(measured.student_loss.mean - measured.teacher_loss.mean)


def test_an_untrained_student_is_measured_too(examined):
    measured = examined.measured()
    assert measured.accuracy_sampled.mean == 0.0
    assert measured.kl_garden.mean > 1.0


def test_answers_end_once(held_out):
    assert all(answer[-1] == END and END not in answer[:-1] for answer in held_out.answers)


def test_the_same_seed_gives_the_same_problems_and_answers(held_out):
    again = hold_out(WORLD, held_out.teacher, 12, 3)
    assert (again.problems, again.prompts, again.answers) == (held_out.problems, held_out.prompts, held_out.answers)
    assert hold_out(WORLD, held_out.teacher, 12, 4).problems != held_out.problems


def test_no_held_out_problem_is_trained_on():
    train = {problem for seed in range(5) for problem in ArithmeticWorld().problems(2000, seed, split="train")}
    held = {problem for seed in range(5) for problem in ArithmeticWorld().problems(1000, seed, split="test")}
    assert not train & held


def test_training_rows_supervise_the_answer_alone():
    rows = training_rows(WORLD, 20, 0)
    assert rows["row"][:] == list(range(20))
    for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True):
        start = labels.index(next(label for label in labels if label != -100))
        assert labels == [-100] * start + ids[start:]
        assert labels[-1] == END
    assert rows["input_ids"][:] == training_rows(WORLD, 20, 0)["input_ids"][:]


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
    batch = key.said(documents_in(row))
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
