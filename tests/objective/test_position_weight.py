"""Rules for the weight of a position against their definitions."""

import math

import pytest
import torch

from bridgegarden.errors import ConfigError
from bridgegarden.objective.alignment import Places, Position
from bridgegarden.objective.hybrid import HybridObjective, hybrid_loss_from_logits
from bridgegarden.objective.position_weight import EarlyPositions, LatePositions, TargetProbability
from bridgegarden.objective.soft_weight import ConfidenceWeight, SoftWeight, StaticWeight, ask
from bridgegarden.objective.support import TeacherSignal

X = -100
LENGTHS = (1, 2, 3, 10)
SIGNAL = TeacherSignal.from_logits(torch.zeros(sum(LENGTHS), 4, dtype=torch.float64))


def weights(rule: SoftWeight) -> list[list[float]]:
    """Of answers of `LENGTHS` positions, one after the other."""
    goes_on = torch.tensor([place < length - 1 for length in LENGTHS for place in range(length)])
    position = Position(torch.zeros(len(goes_on), dtype=torch.long), Places(goes_on))
    return [part.tolist() for part in ask(rule, SIGNAL, position=position).split(LENGTHS)]


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 1.0])
def test_early_positions_are_the_first_share_of_each_answer_and_one_at_least(share):
    expected = [[1.0 if place < share * length else 0.0 for place in range(length)] for length in LENGTHS]
    assert weights(EarlyPositions(share)) == expected
    assert all(answer[0] == 1.0 for answer in expected)


@pytest.mark.parametrize(("low", "midpoint", "width"), [(0.25, 0.3, 0.1), (0.0, 0.5, 1.0)])
def test_late_positions_follow_the_released_sigmoid(low, midpoint, width):
    got = weights(LatePositions(low, midpoint, width))
    for length, answer in zip(LENGTHS, got, strict=True):
        for place, weight in enumerate(answer, start=1):
            # The release counts from 1 and takes half a position off.
            share = (place - 0.5) / length
            assert weight == pytest.approx(low + (1 - low) / (1 + math.exp(-(share - midpoint) / width)))


def test_hard_labels_of_the_data_times_the_target_probability_have_the_gradient_of_minus_the_probability():
    """The identity that dynamic fine-tuning rests on: the factor is held fast."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 2, 6, 9, generator=generator, dtype=torch.float64).unbind(0)
    student.requires_grad_()
    labels = torch.randint(0, 9, (2, 6), generator=generator)
    labels[0, :3] = X
    fields = {"soft_weight": StaticWeight(0.0), "hard_target": "data", "position_weight": TargetProbability()}
    objective = HybridObjective(**fields)
    loss = hybrid_loss_from_logits(student, teacher, labels, objective)
    q = student.softmax(-1)[:, :-1].gather(-1, labels[:, 1:].clamp(min=0).unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(loss.total, torch.where(loss.mask, -q * q.log(), 0.0))
    (gradient,) = torch.autograd.grad(loss.total.sum(), student)
    (expected,) = torch.autograd.grad(torch.where(loss.mask, -q, 0.0).sum(), student)
    torch.testing.assert_close(gradient, expected)
    assert objective.learns_data_alone
    assert not HybridObjective(**(fields | {"position_weight": ConfidenceWeight()})).learns_data_alone


def test_a_rule_that_needs_what_nobody_gave_says_so():
    with pytest.raises(ConfigError, match="TargetProbability looks at the student, and was not told"):
        ask(TargetProbability(), SIGNAL)
    with pytest.raises(ConfigError, match="EarlyPositions looks at where in its answer a position stands"):
        ask(EarlyPositions(), SIGNAL)


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: EarlyPositions(0.0), r"position_weight.share must be in \(0, 1\], got 0.0"),
        (lambda: LatePositions(minimum=-0.1), r"position_weight.minimum must be in \[0, 1\], got -0.1"),
        (lambda: LatePositions(midpoint=1.1), r"position_weight.midpoint must be in \[0, 1\], got 1.1"),
        (lambda: LatePositions(width=0.0), r"position_weight.width must be > 0, got 0.0"),
    ],
)
def test_values_out_of_range_are_refused_by_name(build, match):
    with pytest.raises(ConfigError, match=match):
        build()
