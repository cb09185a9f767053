"""Whether the teacher knows the data better than the student, before the student has learnt anything."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bridgegarden.diagnostics.label_losses import LEAST_GAP, LabelLosses, RowLoss
from bridgegarden.objective.alignment import SupervisedPositions
from bridgegarden.objective.hybrid import HybridObjective
from bridgegarden.statistics import Estimate
from bridgegarden.training.callbacks import TeacherCheck
from bridgegarden.training.measured import row_losses
from bridgegarden.training.on_policy import OnPolicy
from tests.tiny import tiny_model
from tests.training.conftest import token_rows


def told(trainer) -> list[LabelLosses]:
    found: list[LabelLosses] = []
    trainer.add_callback(TeacherCheck(trainer, found.append))
    trainer.train()
    return found


def plain_losses(model, rows) -> tuple[list[float], list[int]]:
    """Cross-entropy of each row summed over its supervised tokens, from whole logits in float64; and their number."""
    losses, counts = [], []
    for row in rows:
        labels = torch.tensor(row["labels"])[1:]
        with torch.no_grad():
            logp = model(torch.tensor(row["input_ids"])[None]).logits[0, :-1].double().log_softmax(-1)
        losses.append(-logp[labels != -100].gather(1, labels[labels != -100][:, None]).sum().item())
        counts.append(int((labels != -100).sum()))
    return losses, counts


@pytest.mark.parametrize(
    "options",
    [{"per_device_train_batch_size": 12}, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3}],
)
@pytest.mark.parametrize("packing", [False, True])
def test_losses_at_the_start_are_those_of_whole_logits_row_by_row(make_trainer, options, packing):
    rows = token_rows(12)
    student, teacher = tiny_model("llama", 264, seed=2), tiny_model("llama", 270, hidden_size=48, seed=1)
    (ours, tokens), (theirs, _) = plain_losses(student, rows), plain_losses(teacher, rows)
    more = {"packing": True, "per_device_train_batch_size": 12, "max_length": 24} if packing else {}
    [found] = told(make_trainer(student=student, teacher=teacher, train=rows, **(options | more)))
    assert (found.rows, found.tokens) == (12, sum(tokens))
    assert found.teacher == pytest.approx(sum(theirs) / sum(tokens), rel=1e-5)
    assert found.student == pytest.approx(sum(ours) / sum(tokens), rel=1e-5)
    expected = Estimate.ratio([a - b for a, b in zip(theirs, ours, strict=True)], tokens)
    assert found.difference.mean == pytest.approx(expected.mean, abs=1e-5)
    assert found.difference.stderr == pytest.approx(expected.stderr, rel=1e-3)


def test_without_numbers_of_rows_every_sequence_is_a_row_of_no_name():
    labels = torch.tensor([[-100, 5, 6, 7], [-100, 8, -100, 9]])
    positions = SupervisedPositions.from_labels(labels)
    teacher, student = torch.tensor([-1.0, -2.0, -3.0, -4.0, math.nan]), torch.tensor([-5.0, -6.0, -7.0, -8.0, -9.0])
    fused = SimpleNamespace(teacher_label_logp=teacher, student_label_logp=student)
    assert row_losses(fused, positions, None) == [RowLoss(-1, 6.0, 18.0, 3), RowLoss(-1, 4.0, 8.0, 1)]
    numbers = torch.tensor([[4, 4, 4, 4], [2, 2, 2, 2]])
    assert row_losses(fused, positions, numbers) == [RowLoss(2, 4.0, 8.0, 1), RowLoss(4, 6.0, 18.0, 3)]


def test_the_log_has_both_losses_over_the_tokens_of_the_step(make_trainer):
    rows, student = token_rows(4), tiny_model("llama", 264, seed=2)
    teacher = tiny_model("llama", 270, hidden_size=48, seed=1)
    (ours, tokens), (theirs, _) = plain_losses(student, rows), plain_losses(teacher, rows)
    trainer = make_trainer(student=student, teacher=teacher, train=rows, evaluate=rows, max_steps=1)
    metrics = trainer.evaluate()
    trainer.train()
    for logged in (trainer.state.log_history[0], {k.removeprefix("eval_"): v for k, v in metrics.items()}):
        assert logged["teacher_label_loss"] == pytest.approx(sum(theirs) / sum(tokens), rel=1e-5)
        assert logged["student_label_loss"] == pytest.approx(sum(ours) / sum(tokens), rel=1e-5)


def sharp(model):
    with torch.no_grad():
        model.lm_head.weight *= 40
    return model


def test_a_worse_teacher_is_told_and_a_better_or_equal_one_is_not(make_trainer):
    def models():
        return tiny_model("llama", 264, seed=2), sharp(tiny_model("llama", 264, seed=2))

    flat, wrong = models()
    [found] = told(make_trainer(student=flat, teacher=wrong, per_device_train_batch_size=16))
    assert found.teacher_is_worse
    flat, wrong = models()
    [found] = told(make_trainer(student=wrong, teacher=flat, per_device_train_batch_size=16))
    assert not found.teacher_is_worse
    [found] = told(make_trainer(student=models()[0], teacher=flat, per_device_train_batch_size=16))
    assert not found.teacher_is_worse
    assert abs(found.difference.mean) < 1e-5


def test_what_is_not_learnt_of_a_teacher_is_not_judged(make_trainer):
    alone = HybridObjective.preset("hard", hard_target="data")
    assert told(make_trainer(alone)) == []
    written = make_trainer(HybridObjective.preset("soft"), on_policy=OnPolicy(lmbda=1.0, max_new_tokens=4), trainer={})
    assert told(written) == []


def made_up(teacher: np.ndarray, student: np.ndarray, tokens: np.ndarray) -> LabelLosses:
    rows = zip(teacher, student, tokens, strict=True)
    found = LabelLosses.over([RowLoss(i, float(a), float(b), int(n)) for i, (a, b, n) in enumerate(rows)])
    assert found is not None
    return found


@pytest.mark.parametrize("rows", [8, 16, 64])
def test_equal_models_whose_rows_differ_are_hardly_ever_told_apart(rows):
    """Differences of a row as skewed as losses are, with mean zero."""
    draw = np.random.default_rng(rows)
    alarms = 0
    for _ in range(2000):
        tokens = draw.integers(5, 200, rows)
        noise = (draw.exponential(1.0, rows) - 1) * draw.choice([-1, 1]) * 0.5
        student = 2 + draw.exponential(1.0, rows)
        alarms += made_up((student + noise) * tokens, student * tokens, tokens).teacher_is_worse
    assert alarms <= (30 if rows == 8 else 10)


def test_a_gap_as_small_as_rounding_is_not_told_however_sure():
    tokens = np.full(1000, 50)
    student = np.random.default_rng(0).exponential(1.0, 1000)
    slightly = made_up((student + 0.6 * LEAST_GAP) * tokens, student * tokens, tokens)
    assert slightly.interval.low > 0
    assert not slightly.teacher_is_worse
    assert made_up((student + 2 * LEAST_GAP) * tokens, student * tokens, tokens).teacher_is_worse


def test_few_rows_and_infinite_losses_give_no_verdict():
    tokens = np.full(8, 10)
    student = np.linspace(1, 2, 8)
    assert made_up(10 * (student + 1 + 0.1 * student), 10 * student, tokens).teacher_is_worse
    few = made_up(10 * (student + 1 + 0.1 * student)[:7], 10 * student[:7], tokens[:7])
    assert not few.teacher_is_worse
    endless = made_up(np.where(student > 1.5, math.inf, 10.0), 10 * student, tokens)
    assert endless.difference is None
    assert not endless.teacher_is_worse
    assert LabelLosses.over([]) is None


def test_the_parts_of_a_row_are_one_and_rows_without_numbers_are_not():
    parts = [RowLoss(3, 1.0, 2.0, 1), RowLoss(4, 5.0, 4.0, 2), RowLoss(3, 2.0, 2.0, 3)]
    whole = LabelLosses.over(parts)
    assert whole.rows == 2
    assert whole.teacher == pytest.approx(8 / 6)
    expected = Estimate.ratio([-1.0, 1.0], [4, 2])
    assert whole.difference == pytest.approx(expected)
    assert LabelLosses.over([loss._replace(row=-1) for loss in parts]).rows == 3


def test_the_warning_has_both_figures_and_what_to_do():
    tokens = np.full(10, 20)
    student = np.linspace(1, 2, 10)
    words = made_up(20 * (student + 0.5 + 0.01 * student), 20 * student, tokens).warning
    for part in ("2.015 nats a token against 1.500", "10 rows", "generate", "objective.preset=hard"):
        assert part in words
