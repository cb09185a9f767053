"""The risk term from its formula."""

import math

import pytest
import torch

from bridgegarden.objective.hybrid import HybridObjective, hybrid_loss_from_logits
from bridgegarden.objective.risk import risk_penalty, value_gap
from bridgegarden.objective.soft_weight import StaticWeight

X = -100


def test_gap_and_penalty_follow_the_formula():
    gap = value_gap(torch.tensor([3.0]), torch.tensor([1.0]))
    assert gap.item() == 2.0
    assert risk_penalty(gap, alpha=0.1).item() == pytest.approx(0.1)


def test_risk_looks_at_the_next_position_of_the_same_sequence_only():
    student = torch.randn(1, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[X, X, 1, 2, 3]])
    teacher = torch.zeros(1, 5, 4, dtype=torch.float64)
    teacher[0, [1, 2, 3], [1, 2, 0]] = 5.0  # argmax is the data token at positions 1 and 2, not at 3
    objective = HybridObjective(soft_weight=StaticWeight(0.0), risk_alpha=0.4)
    loss = hybrid_loss_from_logits(student, teacher, labels, objective)
    assert loss.has_risk.tolist() == [[False, True, True, False]]
    for t, token in ((1, 1), (2, 2)):
        gap = math.log(sum(math.exp(f) for f in student[0, t + 1].tolist())) - student[0, t, token].item()
        assert loss.risk[0, t].item() == pytest.approx(0.1 * gap**2)


def test_risk_with_data_targets_exists_wherever_the_successor_is_supervised():
    logits = torch.randn(1, 5, 4)
    labels = torch.tensor([[X, 0, 1, X, 3]])
    objective = HybridObjective(hard_target="data", risk_alpha=0.1)
    assert hybrid_loss_from_logits(logits, logits, labels, objective).has_risk.tolist() == [[True, False, False, False]]


def test_a_constant_added_to_one_position_changes_the_risk_term_and_nothing_else():
    generator = torch.Generator().manual_seed(2)
    student = torch.randn(1, 4, 6, generator=generator)
    teacher = torch.randn(1, 4, 6, generator=generator)
    labels = torch.tensor([[X, 1, 2, 3]])
    shift = torch.tensor([0.0, 3.0, 0.0, 0.0]).reshape(1, 4, 1)
    objective = HybridObjective(hard_target="data", risk_alpha=0.1)
    before = hybrid_loss_from_logits(student, teacher, labels, objective)
    after = hybrid_loss_from_logits(student + shift, teacher, labels, objective)
    torch.testing.assert_close(after.soft, before.soft)
    torch.testing.assert_close(after.hard, before.hard)
    assert not torch.allclose(after.risk, before.risk)
