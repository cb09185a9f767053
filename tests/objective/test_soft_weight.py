"""Rules for the soft weight against their definitions."""

import math

import pytest
import torch

from bridgegarden.errors import ConfigError
from bridgegarden.objective.soft_weight import (
    SOFT_WEIGHTS,
    ConfidenceWeight,
    CurriculumWeight,
    EntropyWeight,
    SoftWeight,
    StaticWeight,
    TrainProgress,
)
from bridgegarden.objective.support import TeacherSignal

V = 12
LOGITS = 3 * torch.randn(9, V, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
P = LOGITS.softmax(-1)
MIDWAY = TrainProgress(step=5, total_steps=100)


def test_static_weight_is_the_number_given():
    assert StaticWeight(0.3)(TeacherSignal.from_logits(LOGITS)).tolist() == [0.3] * 9


def test_confidence_weight_is_one_minus_the_largest_probability():
    got = ConfidenceWeight()(TeacherSignal.from_logits(LOGITS, k=3))
    torch.testing.assert_close(got, 1 - P.max(-1).values)


@pytest.mark.parametrize("kind", ["shannon", "power"])
def test_entropy_of_mass_on_padding_does_not_lift_the_weight_above_one(kind):
    signal = TeacherSignal.from_logits(torch.zeros(1, 16), vocab_size=4, exponents=(0.1,))
    assert signal.entropy.item() > math.log(4)
    assert EntropyWeight(kind=kind)(signal).item() == 1.0


def test_confidence_weight_of_a_nearly_sure_teacher_keeps_its_digits():
    logits = torch.tensor([[0.0, -12.0]])
    assert ConfidenceWeight()(TeacherSignal.from_logits(logits)).item() == pytest.approx(math.exp(-12), rel=0.05)


@pytest.mark.parametrize("k", [None, 3])
def test_entropy_weight_is_shannon_entropy_over_its_maximum(k):
    expected = [-sum(p * math.log(p) for p in row) / math.log(V) for row in P.tolist()]
    got = EntropyWeight()(TeacherSignal.from_logits(LOGITS, k=k))
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("k", [None, 3])
def test_power_entropy_weight_is_the_released_formula(k):
    expected = [(sum(p**0.1 for p in row) - 1) / (V**0.9 - 1) for row in P.tolist()]
    signal = TeacherSignal.from_logits(LOGITS, k=k, exponents=(0.1,))
    got = EntropyWeight(kind="power", gamma=0.1)(signal)
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["shannon", "power"])
def test_entropy_weight_is_one_for_the_uniform_and_zero_for_the_sure_teacher(kind):
    sure = torch.full((V,), -math.inf)
    sure[3] = 0.0
    weight = EntropyWeight(kind=kind)(TeacherSignal.from_logits(torch.stack([torch.zeros(V), sure])))
    torch.testing.assert_close(weight, torch.tensor([1.0, 0.0]))


def test_entropy_is_divided_by_the_real_vocabulary_and_not_by_the_padded_width():
    padded = torch.cat([torch.zeros(1, 4), torch.full((1, 60), -math.inf)], -1)
    assert EntropyWeight()(TeacherSignal.from_logits(padded, vocab_size=4)).item() == pytest.approx(1.0)


@pytest.mark.parametrize(("step", "expected"), [(0, 0.0), (10, 0.4), (20, 0.8), (90, 0.8)])
def test_curriculum_grows_linearly_to_its_maximum(step, expected):
    rule = CurriculumWeight(maximum=0.8, warmup_ratio=0.2)
    got = rule(TeacherSignal.from_logits(LOGITS), TrainProgress(step=step, total_steps=100))
    assert got.tolist() == pytest.approx([expected] * 9)


def test_curriculum_without_warmup_starts_at_its_maximum():
    rule = CurriculumWeight(maximum=0.8, warmup_ratio=0.0)
    assert rule(TeacherSignal.from_logits(LOGITS), TrainProgress(0, 100))[0].item() == pytest.approx(0.8)


def test_curriculum_without_progress_says_what_it_needs():
    with pytest.raises(ConfigError, match="progress=TrainProgress"):
        CurriculumWeight()(TeacherSignal.from_logits(LOGITS))


@pytest.mark.parametrize("name", SOFT_WEIGHTS)
def test_every_rule_stays_within_zero_and_one_without_gradient(name):
    rule = SOFT_WEIGHTS[name]()
    weight = rule(TeacherSignal.from_logits(LOGITS), MIDWAY)
    assert isinstance(rule, SoftWeight)
    assert ((weight >= 0) & (weight <= 1)).all()
    assert not weight.requires_grad


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: StaticWeight(1.5), r"soft_weight.value must be in \[0, 1\], got 1.5"),
        (lambda: EntropyWeight(gamma=1.0), r"gamma must be in \(0, 1\), got 1.0"),
        (lambda: CurriculumWeight(maximum=-0.1), r"maximum must be in \[0, 1\], got -0.1"),
        (lambda: CurriculumWeight(warmup_ratio=2.0), r"warmup_ratio must be in \[0, 1\], got 2.0"),
    ],
)
def test_values_out_of_range_are_refused_by_name(build, match):
    with pytest.raises(ConfigError, match=match):
        build()


def test_an_unknown_entropy_is_refused_where_types_are_not_checked():
    rule = EntropyWeight()
    object.__setattr__(rule, "kind", "renyi")
    with pytest.raises(ConfigError, match="kind must be 'shannon' or 'power', got 'renyi'"):
        rule.__post_init__()
