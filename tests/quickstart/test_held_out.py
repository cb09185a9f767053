"""Measurements against loops written from their definitions."""

import pytest
import torch

from bridgegarden.exact.process import Role, role, trace
from bridgegarden.exact.tasks.arithmetic import END, ArithmeticWorld, make_problems
from bridgegarden.quickstart.held_out import examine, hold_out
from bridgegarden.quickstart.result import STUDENT_SIZE
from bridgegarden.quickstart.student import load_teacher, training_rows
from bridgegarden.study.students import new_llama

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
    train = {problem for seed in range(5) for problem in make_problems(2000, seed, split="train")}
    held = {problem for seed in range(5) for problem in make_problems(1000, seed, split="test")}
    assert not train & held


def test_training_rows_supervise_the_answer_alone():
    rows = training_rows(WORLD, 20, 0)
    assert rows["row"][:] == list(range(20))
    for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True):
        start = labels.index(next(label for label in labels if label != -100))
        assert labels == [-100] * start + ids[start:]
        assert labels[-1] == END
    assert rows["input_ids"][:] == training_rows(WORLD, 20, 0)["input_ids"][:]
