"""Trainings of the lab, and what decides when they stop."""

from functools import lru_cache

import pytest
import torch

from bridgegarden.exact.tasks import WORLDS
from bridgegarden.lab.result import LabSettings
from bridgegarden.lab.student import train_student
from bridgegarden.lab.worlds import draw_data
from bridgegarden.objective.alignment import SupervisedPositions
from bridgegarden.objective.hybrid import hybrid_loss_from_logits
from bridgegarden.objective.soft_weight import TrainProgress
from bridgegarden.study.arms import ALL_OBJECTIVES, LlamaSize
from bridgegarden.training.trainer import HybridDistillationTrainer

SIZE = LlamaSize(hidden=16, layers=1, heads=2, feed_forward=32)
SETTINGS = LabSettings(worlds=("control",), steps=20, batch=8, evaluate_every=2, patience=3, validation_problems=6)


@lru_cache
def data():
    return draw_data(WORLDS["control"](), 0, train=24, validation=6, test=1)


def train(name="soft", *, seed=0, size=SIZE, **changes):
    settings = LabSettings(
        **{**SETTINGS.to_dict(), "worlds": ("control",), "objectives": ("soft",), "seeds": (0,), **changes}
    )
    steps = []
    trained = train_student(ALL_OBJECTIVES[name].build(), size, seed, settings, data(), steps.append)
    assert steps == list(range(1, trained.steps + 1))
    return trained


def own_loss(model, name, step, total):
    """The objective on the validation rows, from whole logits and the exact process, row by row."""
    rows, objective = data().validation, ALL_OBJECTIVES[name].build()
    losses = []
    for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True):
        ids, labels = torch.tensor([ids]), torch.tensor([labels])
        positions = SupervisedPositions.from_labels(labels)
        signal = data().teacher.at(positions, {"input_ids": ids}, vocab_size=data().teacher.width, exponents=())
        exact = torch.zeros(*ids.shape, data().teacher.width)
        exact[positions.row, positions.column] = signal.logp
        with torch.no_grad():
            logits = model(input_ids=ids).logits
        found = hybrid_loss_from_logits(logits, exact, labels, objective, TrainProgress(step, total))
        losses.append(found.total[found.mask])
    return torch.cat(losses).mean().item()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hard_data", "soft", "confidence", "risk_guided", "curriculum"])
def test_the_student_kept_has_the_lowest_validation_loss_of_its_own_objective(name):
    trained = train(name)
    lowest = min(loss for step, loss in trained.validation if name != "curriculum" or step >= 4)
    assert dict(trained.validation)[trained.kept_step] == lowest
    assert own_loss(trained.model, name, trained.kept_step, 20) == pytest.approx(lowest, rel=1e-4)


def test_training_ends_when_the_loss_has_not_fallen_for_as_long_as_patience_says():
    """At this rate it soon diverges."""
    trained = train("soft", learning_rate=2.0)
    assert trained.steps < 20
    after = [step for step, _ in trained.validation if step > trained.kept_step]
    assert len(after) == 3


def test_a_curriculum_is_not_judged_before_its_weight_has_settled():
    """Hard labels alone, at its beginning, have lower losses than what it is to become."""
    trained = train("curriculum")
    assert trained.kept_step >= 4
    assert [step for step, _ in trained.validation][:2] == [2, 4]


def test_objectives_of_a_seed_begin_with_the_same_student_and_see_the_same_rows(monkeypatch):
    seen = {}
    original = HybridDistillationTrainer.compute_loss

    def compute_loss(self, model, inputs, *args, **kwargs):
        if model.training:
            weights = sum(parameter.double().sum().item() for parameter in model.parameters())
            seen.setdefault(self.objective.soft_weight, []).append((weights, inputs["input_ids"].tolist()))
        return original(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(HybridDistillationTrainer, "compute_loss", compute_loss)
    for name in ("hard", "soft"):
        train(name, steps=4)
    hard, soft = seen.values()
    assert hard[0] == soft[0]
    assert [rows for _, rows in hard] == [rows for _, rows in soft]
    assert hard[-1][0] != soft[-1][0]


def test_the_same_arguments_give_the_same_student_and_another_seed_another():
    weights = [list(train(seed=seed, steps=2).model.state_dict().values()) for seed in (0, 0, 1)]
    assert all(torch.equal(a, b) for a, b in zip(weights[0], weights[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights[0], weights[2], strict=True))
