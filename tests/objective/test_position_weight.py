"""Rules for the weight of a position against their definitions."""

import math
import statistics

import pytest
import torch

from bridgegarden.errors import ConfigError
from bridgegarden.objective.alignment import Places, Position
from bridgegarden.objective.hybrid import HybridObjective, hybrid_loss_from_logits
from bridgegarden.objective.position_weight import EarlyPositions, LatePositions, TargetProbability, TokenImportance
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


GOES_ON = torch.tensor([place < length - 1 for length in LENGTHS for place in range(length)])


def by_hand(unsure, differs, share, lengths=LENGTHS):
    """Which positions of answers of `lengths` are the most important, one by one."""
    cap = sorted(unsure)[-1] if len(unsure) < 2 else statistics.quantiles(unsure, n=50, method="inclusive")[-1]
    unsure = [min(value, cap) for value in unsure]
    scaled = [[(value - min(column)) / (max(column) - min(column)) for value in column] for column in (unsure, differs)]
    score, weights, start = [h + d - h * d for h, d in zip(*scaled, strict=True)], [], 0
    for length in lengths:
        answer = score[start : start + length]
        best = sorted(answer, reverse=True)[: math.ceil(share * length)]
        weights += [1.0 if value in best else 0.0 for value in answer]
        start += length
    return weights


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_the_most_important_share_of_each_answer_counts(share, seed):
    unsure, differs = torch.rand(2, len(GOES_ON), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    got = TokenImportance(share).choose(unsure, differs, Places(GOES_ON))
    assert got.tolist() == by_hand(unsure.tolist(), differs.tolist(), share)


def test_a_position_is_important_by_either_number():
    """Unsure, or sure and of another opinion: the two corners that the paper tells apart."""
    goes_on = torch.tensor([True, True, True, False])
    unsure, differs = torch.tensor([0.0, 2.0, 0.1, 0.5]), torch.tensor([3.0, 0.0, 0.1, 0.4])
    assert TokenImportance(0.5).choose(unsure, differs, Places(goes_on)).tolist() == [1, 1, 0, 0]


def test_where_all_are_the_same_each_answer_keeps_its_first_positions():
    same = torch.full((len(GOES_ON),), 0.7)
    got = TokenImportance(0.5).choose(same, same, Places(GOES_ON))
    assert got.tolist() == [float(place < 0.5 * length) for length in LENGTHS for place in range(length)]


def test_an_infinite_divergence_is_the_most_important_and_what_is_no_number_is_not_hidden():
    unsure, differs = torch.linspace(0, 1, len(GOES_ON)), torch.zeros(len(GOES_ON))
    places, rule = Places(GOES_ON), TokenImportance(0.1)
    unsure[3], differs[12] = 2.0, math.inf
    assert rule.choose(unsure, differs, places)[-10:].tolist() == [0.0] * 6 + [1.0] + [0.0] * 3
    for column in (unsure, differs):
        spoilt = column.clone()
        spoilt[4] = math.nan
        pair = (spoilt, differs) if column is unsure else (unsure, spoilt)
        assert rule.choose(*pair, places).isnan().all()


def test_what_counts_is_the_students_entropy_and_its_divergence_from_the_teacher():
    generator = torch.Generator().manual_seed(0)
    student, teacher = 3 * torch.randn(2, 2, 9, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 5, (2, 9), generator=generator)
    labels[1, :4] = X
    objective = HybridObjective(temperature=2.0, position_weight=TokenImportance(0.3))
    got = hybrid_loss_from_logits(student, teacher, labels, objective)
    unsure, differs = [], []
    for row, column in got.mask.nonzero().tolist():
        q, p = (logits[row, column].softmax(-1).tolist() for logits in (student, teacher))
        unsure.append(-sum(x * math.log(x) for x in q))
        differs.append(sum(x * math.log(x / y) for x, y in zip(q, p, strict=True)))
    assert got.position_weight[got.mask].tolist() == by_hand(unsure, differs, 0.3, lengths=(8, 5))
    assert (got.total[got.position_weight == 0] == 0).all()


def test_nothing_of_the_choice_has_a_gradient():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 2, 9, 7, generator=generator, dtype=torch.float64).unbind(0)
    labels = torch.randint(0, 7, (2, 9), generator=generator)
    student.requires_grad_()

    def gradient(rule):
        loss = hybrid_loss_from_logits(student, teacher, labels, HybridObjective(position_weight=rule))
        return loss.position_weight, torch.autograd.grad(loss.mean(), student)[0]

    weight, found = gradient(TokenImportance(0.3))
    assert 0 < weight.mean() < 1
    assert not weight.requires_grad
    torch.testing.assert_close(found, gradient(lambda signal, student, position, progress: weight)[1])


def test_a_rule_that_needs_what_nobody_gave_says_so():
    with pytest.raises(ConfigError, match="TargetProbability looks at the student, and was not told"):
        ask(TargetProbability(), SIGNAL)
    with pytest.raises(ConfigError, match="TokenImportance looks at a whole batch of positions"):
        ask(TokenImportance(), SIGNAL, position=Position(torch.zeros(len(GOES_ON), dtype=torch.long)))
    with pytest.raises(ConfigError, match="EarlyPositions looks at where in its answer a position stands"):
        ask(EarlyPositions(), SIGNAL)


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: EarlyPositions(0.0), r"position_weight.share must be in \(0, 1\], got 0.0"),
        (lambda: TokenImportance(1.1), r"position_weight.share must be in \(0, 1\], got 1.1"),
        (lambda: LatePositions(minimum=-0.1), r"position_weight.minimum must be in \[0, 1\], got -0.1"),
        (lambda: LatePositions(midpoint=1.1), r"position_weight.midpoint must be in \[0, 1\], got 1.1"),
        (lambda: LatePositions(width=0.0), r"position_weight.width must be > 0, got 0.0"),
    ],
)
def test_values_out_of_range_are_refused_by_name(build, match):
    with pytest.raises(ConfigError, match=match):
        build()
