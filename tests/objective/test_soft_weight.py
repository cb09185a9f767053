"""Rules for the soft weight against their definitions."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from bridgegarden.errors import ConfigError
from bridgegarden.objective.alignment import Position
from bridgegarden.objective.head import select_support
from bridgegarden.objective.hybrid import HybridObjective, dense_student_support, hybrid_loss_from_logits
from bridgegarden.objective.methods import MixedDivergence
from bridgegarden.objective.soft_weight import (
    SOFT_WEIGHTS,
    ConfidenceWeight,
    CurriculumWeight,
    EntropyWeight,
    HighEntropy,
    LabelCorrection,
    SoftWeight,
    StaticWeight,
    TrainProgress,
    ask,
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
    got = rule(TeacherSignal.from_logits(LOGITS), progress=TrainProgress(step=step, total_steps=100))
    assert got.tolist() == pytest.approx([expected] * 9)


def test_curriculum_without_warmup_starts_at_its_maximum():
    rule = CurriculumWeight(maximum=0.8, warmup_ratio=0.0)
    assert rule(TeacherSignal.from_logits(LOGITS), progress=TrainProgress(0, 100))[0].item() == pytest.approx(0.8)


def test_curriculum_without_progress_says_what_it_needs():
    with pytest.raises(ConfigError, match="progress=TrainProgress"):
        CurriculumWeight()(TeacherSignal.from_logits(LOGITS))


def test_high_entropy_is_one_above_the_threshold_and_zero_below():
    entropies = [-sum(p * math.log(p) for p in row) for row in P.tolist()]
    assert min(entropies) < 0.8 < max(entropies)
    assert HighEntropy()(TeacherSignal.from_logits(LOGITS, k=3)).tolist() == [float(h > 0.8) for h in entropies]


def corrected(p: list[float], label: int, tau: float) -> list[float]:
    """A teacher's distribution, corrected towards the label as in minifinetuning."""
    best = p.index(max(p))
    if best == label:
        mixin = (min(p[label] + tau, 1.0) - p[label]) / (1 - p[label])
    else:
        mixin = (p[best] - p[label] + tau) / (1 + p[best] - p[label])
    return [(1 - mixin) * a + mixin * (token == label) for token, a in enumerate(p)]


@pytest.mark.parametrize("tau", [0.0, 0.2, 0.7, 1.0])
@pytest.mark.parametrize("k", [None, 3])
def test_label_correction_trains_on_the_corrected_teacher_up_to_a_constant(tau, k):
    """Cross-entropy against the corrected distribution, by its gradient; with labels that are kept and that are not."""
    labels = torch.tensor([0, 3, 5, 7, 11, *P.argmax(-1)[5:].tolist()])
    student = torch.randn(9, V, generator=torch.Generator().manual_seed(5), dtype=torch.float64, requires_grad=True)
    signal = TeacherSignal.from_logits(LOGITS, k=k).with_labels(LOGITS, labels)
    objective = HybridObjective.preset("label_corrected", soft_weight=LabelCorrection(tau))
    dense = dense_student_support(student, V, labels)
    view = dense if signal.ids is None else select_support(student, signal.ids, labels, 1.0)
    loss = objective(signal, view, labels)
    targets = [corrected(row, label, tau) for row, label in zip(P.tolist(), labels.tolist(), strict=True)]
    for target, label, row in zip(targets, labels.tolist(), P.tolist(), strict=True):
        others = [a for token, a in enumerate(target) if token != label]
        right = row.index(max(row)) == label
        assert right or target[label] == pytest.approx(max(others) + tau)
    expected = student.softmax(-1) - torch.tensor(targets, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(loss.total.sum(), student)
    if k is None:
        torch.testing.assert_close(gradient, expected.detach())
    else:
        # The tail is one cell: within it the student keeps its own proportions, but for the label's.
        torch.testing.assert_close(gradient.gather(1, signal.ids)[5:], expected.detach().gather(1, signal.ids)[5:])
    for weight, row, label in zip(loss.soft_weight.tolist(), P.tolist(), labels.tolist(), strict=True):
        mixed = corrected(row, label, tau)
        assert weight == pytest.approx((1 - mixed[label]) / (1 - row[label]), abs=1e-12)


def test_label_correction_says_what_it_lacks_where_the_teacher_does_not_know_the_label():
    token = Position(torch.zeros(9, dtype=torch.long))
    with pytest.raises(ConfigError, match=r"log-probability of the token in the data.*with_labels\(\)"):
        LabelCorrection()(TeacherSignal.from_logits(LOGITS, k=2), None, token)
    partly = replace(TeacherSignal.from_logits(LOGITS, k=2), label_logp=torch.full((9,), math.nan).double())
    kept = (partly.ids == 0).any(-1)
    assert LabelCorrection()(partly, None, token).isnan().tolist() == (~kept).tolist()


# A probe has a file and needs the student: tests/objective/test_kappa_probe.py.
@pytest.mark.parametrize("name", sorted(set(SOFT_WEIGHTS) - {"kappa_probe"}))
def test_every_rule_stays_within_zero_and_one_without_gradient(name):
    rule = SOFT_WEIGHTS[name]()
    position = Position(torch.arange(9))
    weight = rule(TeacherSignal.from_logits(LOGITS), position=position, progress=MIDWAY)
    assert isinstance(rule, SoftWeight)
    assert ((weight >= 0) & (weight <= 1)).all()
    assert not weight.requires_grad


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: StaticWeight(1.5), r"soft_weight.value must be in \[0, 1\], got 1.5"),
        (lambda: EntropyWeight(gamma=1.0), r"gamma must be in \(0, 1\), got 1.0"),
        (lambda: HighEntropy(-0.1), r"soft_weight.threshold must be >= 0, got -0.1"),
        (lambda: LabelCorrection(1.1), r"soft_weight.threshold must be in \[0, 1\], got 1.1"),
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


class OldRule:
    """A rule as they were before they saw the student."""

    def __call__(self, signal, progress=None):
        return torch.full_like(signal.entropy, 0.1 * progress.step)


def test_a_rule_of_two_arguments_is_asked_as_it_was_before_rules_saw_the_student():
    signal = TeacherSignal.from_logits(LOGITS)
    for rule in (OldRule(), lambda signal, progress: OldRule()(signal, progress), partial(OldRule.__call__, OldRule())):
        assert ask(rule, signal, progress=MIDWAY).tolist() == pytest.approx([0.5] * 9)
        student, teacher, labels = LOGITS.flip(0).unsqueeze(0), LOGITS.unsqueeze(0), torch.arange(9).unsqueeze(0)
        loss = hybrid_loss_from_logits(student, teacher, labels, HybridObjective(soft_weight=rule), MIDWAY)
        assert loss.soft_weight.unique().tolist() == pytest.approx([0.5])


@pytest.mark.parametrize("field", ["soft_weight", "position_weight"])
@pytest.mark.parametrize("rule", [lambda signal, student, progress: 0, lambda signal: 0])
def test_a_rule_that_can_be_called_neither_way_is_refused_with_both(field, rule):
    with pytest.raises(ConfigError, match=r"\(signal, student, position, progress\), or with \(signal, progress\)"):
        HybridObjective(**{field: rule})


@pytest.mark.parametrize("field", ["soft_weight", "position_weight"])
def test_a_number_in_the_place_of_a_rule_is_refused_with_the_rule_that_it_meant(field):
    # Where types are checked it does not get so far.
    objective = HybridObjective()
    object.__setattr__(objective, field, 0.3)
    with pytest.raises(ConfigError, match=rf"objective.{field} must be a rule, such as StaticWeight\(0.5\), got 0.3"):
        objective.__post_init__()


class Agreement:
    """How likely the student finds the teacher's likeliest token: differentiable, if anybody let it be."""

    def __call__(self, signal, student=None, position=None, progress=None):
        return student.target_logp().exp()


class AgreementByDefinition(Agreement):
    """The same, of which the gradient is part."""

    def __call__(self, signal, student=None, position=None, progress=None):
        with torch.enable_grad():
            return super().__call__(signal, student)


@pytest.mark.parametrize("field", ["soft_weight", "position_weight", "divergence"])
def test_no_gradient_flows_through_a_rule_unless_the_rule_says_so(field):
    """Against the same numbers as a constant rule: equal gradients without, another gradient with."""
    generator = torch.Generator().manual_seed(3)
    student = torch.randn(1, 10, V, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher, labels = torch.randn(1, 10, V, generator=generator, dtype=torch.float64), torch.arange(10).unsqueeze(0)

    def gradient(rule):
        inside = MixedDivergence(rule=rule) if field == "divergence" else rule
        objective = HybridObjective(**{field: inside})
        (found,) = torch.autograd.grad(hybrid_loss_from_logits(student, teacher, labels, objective).mean(), student)
        return found

    logp = student.detach().log_softmax(-1)[:, :-1]
    numbers = logp.gather(-1, teacher[:, :-1].argmax(-1, keepdim=True)).squeeze(-1).exp()
    constant = gradient(lambda signal, student, position, progress: numbers)
    torch.testing.assert_close(gradient(Agreement()), constant, rtol=1e-12, atol=1e-14)
    assert (gradient(AgreementByDefinition()) - constant).abs().max() > 1e-4


def test_a_rule_sees_the_student_the_token_and_the_place_in_the_answer():
    student, teacher = LOGITS.flip(0).reshape(1, 9, V), LOGITS.reshape(1, 9, V)
    labels = torch.tensor([[0, 1, 2, -100, -100, 5, 6, 7, 8]])
    seen = {}

    def rule(signal, student, position, progress):
        seen.update(logp=student.target_logp(), token=position.token, index=position.index, length=position.length)
        return torch.zeros_like(signal.entropy)

    objective = HybridObjective(soft_weight=rule, hard_target="data")
    hybrid_loss_from_logits(student, teacher, labels, objective)
    mask = labels[0, 1:] != -100
    assert seen["token"][0, mask].tolist() == [1, 2, 5, 6, 7, 8]
    assert seen["index"][0, mask].tolist() == [0, 1, 0, 1, 2, 3]
    assert seen["length"][0, mask].tolist() == [2, 2, 4, 4, 4, 4]
    expected = student.log_softmax(-1)[0, :-1][mask].gather(-1, labels[0, 1:][mask].unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(seen["logp"][0, mask], expected)


def test_a_rule_about_places_says_what_it_lacks_where_nobody_told_it():
    with pytest.raises(ConfigError, match=r"position=Position\(token, Places\(has_successor\)\)"):
        _ = Position(torch.zeros(3, dtype=torch.long)).index
