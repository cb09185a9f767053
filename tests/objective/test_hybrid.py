"""The objective against a brute-force version: Python floats, one token at a time, from the formulas alone."""

import math
from functools import partial

import pytest
import torch

from bridgegarden.errors import ConfigError
from bridgegarden.objective.divergences import DIVERGENCES, alpha_beta, forward_kl, jensen_shannon, reverse_kl
from bridgegarden.objective.hybrid import (
    RISK_WEIGHTS,
    HybridObjective,
    hybrid_loss_from_logits,
    risk_penalty,
    value_gap,
)
from bridgegarden.objective.methods import PRESETS
from bridgegarden.objective.soft_weight import (
    ConfidenceWeight,
    CurriculumWeight,
    EntropyWeight,
    StaticWeight,
    TrainProgress,
)
from bridgegarden.objective.support import StudentSupport, TeacherSignal

X = -100
PROGRESS = TrainProgress(step=3, total_steps=40)


def batch(rows: int = 3, length: int = 6, width: int = 7, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    student = 2 * torch.randn(rows, length, width, generator=generator, dtype=torch.float64)
    teacher = 3 * torch.randn(rows, length, width, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, width, (rows, length), generator=generator)
    labels[0, :2] = X
    labels[-1, length // 2] = X
    return student, teacher, labels


def softmax(logits: list[float], temperature: float = 1.0) -> list[float]:
    top = max(logits)
    weights = [math.exp((z - top) / temperature) for z in logits]
    return [w / sum(weights) for w in weights]


def sharpened(probabilities: list[float], exponent: float) -> list[float]:
    powers = [p**exponent for p in probabilities]
    return [power / sum(powers) for power in powers]


def brute_force(student, teacher, labels, rule, target, temperature, alpha, sharpening=1.0, own=False) -> list[float]:
    """Total loss with the forward KL at every supervised position, in reading order."""
    totals = []
    for row in range(labels.shape[0]):
        sequence = labels[row].tolist()
        for t in range(len(sequence) - 1):
            token = sequence[t + 1]
            if token == X:
                continue
            f, g = student[row, t].tolist(), teacher[row, t].tolist()
            p, q = softmax(g), softmax(f)
            pt, qt = sharpened(softmax(g, temperature), sharpening), softmax(f, temperature)
            soft = temperature**2 * sum(a * math.log(a / b) for a, b in zip(pt, qt, strict=True))
            aim = token if target == "data" else p.index(max(p))
            hard, risk = -math.log(q[aim]), 0.0
            goes_on = t + 2 < len(sequence) and sequence[t + 2] != X
            if alpha and goes_on and aim == token:
                following = math.log(sum(math.exp(z) for z in student[row, t + 1].tolist()))
                risk = alpha / 4 * (following - f[aim]) ** 2
            weight = rule(p)
            totals.append(weight * soft + (1 - weight) * hard + (1 if own else 1 - weight) * risk)
    return totals


RULES = {
    "static": (StaticWeight(0.3), lambda p: 0.3),
    "confidence": (ConfidenceWeight(), lambda p: 1 - max(p)),
    "entropy": (EntropyWeight(), lambda p: -sum(a * math.log(a) for a in p) / math.log(len(p))),
    "power": (EntropyWeight(kind="power"), lambda p: (sum(a**0.1 for a in p) - 1) / (len(p) ** 0.9 - 1)),
    "curriculum": (CurriculumWeight(0.9, 0.5), lambda p: 0.9 * 3 / 20),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("target", ["data", "teacher_argmax"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("alpha", [0.0, 0.1])
def test_total_is_the_formula_position_by_position(name, target, temperature, alpha):
    student, teacher, labels = batch()
    rule, by_hand = RULES[name]
    objective = HybridObjective(soft_weight=rule, hard_target=target, temperature=temperature, risk_alpha=alpha)
    loss = hybrid_loss_from_logits(student, teacher, labels, objective, PROGRESS)
    expected = brute_force(student, teacher, labels, by_hand, target, temperature, alpha)
    torch.testing.assert_close(loss.total[loss.mask], torch.tensor(expected, dtype=torch.float64))
    assert loss.mask.tolist() == (labels[:, 1:] != X).tolist()
    assert (loss.total[~loss.mask] == 0).all()


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("target", ["data", "teacher_argmax"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("sharpening", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("owner", RISK_WEIGHTS)
def test_total_has_the_sharpened_target_and_the_risk_term_whose_weight_was_asked_for(
    weight, target, temperature, sharpening, owner
):
    student, teacher, labels = batch()
    objective = HybridObjective(
        soft_weight=StaticWeight(weight),
        hard_target=target,
        temperature=temperature,
        sharpening=sharpening,
        risk_alpha=0.4,
        risk_weight=owner,
    )
    loss = hybrid_loss_from_logits(student, teacher, labels, objective)
    arguments = (lambda p: weight, target, temperature, 0.4, sharpening, owner == "own")
    expected = brute_force(student, teacher, labels, *arguments)
    torch.testing.assert_close(loss.total[loss.mask], torch.tensor(expected, dtype=torch.float64))


def test_the_rule_reads_the_teacher_as_it_is_however_sharp_the_target():
    student, teacher, labels = batch()
    for rule in (ConfidenceWeight(), EntropyWeight(), EntropyWeight(kind="power")):
        plain, sharp = (
            hybrid_loss_from_logits(student, teacher, labels, HybridObjective(soft_weight=rule, sharpening=g))
            for g in (1.0, 4.0)
        )
        torch.testing.assert_close(sharp.soft_weight, plain.soft_weight)
        torch.testing.assert_close(sharp.hard, plain.hard)
        assert not torch.allclose(sharp.soft, plain.soft)


def test_an_ever_sharper_target_becomes_the_hard_label_of_the_teachers_argmax():
    student, teacher, labels = batch()
    sharp = hybrid_loss_from_logits(student, teacher, labels, HybridObjective.preset("sharpened", sharpening=500.0))
    hard = hybrid_loss_from_logits(student, teacher, labels, HybridObjective.preset("hard"))
    torch.testing.assert_close(sharp.total, hard.total, rtol=1e-9, atol=1e-9)


def test_soft_labels_with_a_risk_term_of_its_own_have_the_gradient_of_both():
    """At soft weight 1 the paper's risk term has none: neither value nor gradient."""
    student, teacher, labels = batch()
    student.requires_grad_()

    def gradient(**fields):
        loss = hybrid_loss_from_logits(student, teacher, labels, HybridObjective(hard_target="data", **fields))
        return loss, torch.autograd.grad(loss.mean(), student)[0]

    _, soft = gradient(soft_weight=StaticWeight(1.0))
    _, papers = gradient(soft_weight=StaticWeight(1.0), risk_alpha=0.4)
    own, both = gradient(soft_weight=StaticWeight(1.0), risk_alpha=0.4, risk_weight="own")
    _, hard = gradient(soft_weight=StaticWeight(0.0))
    _, hard_with_risk = gradient(soft_weight=StaticWeight(0.0), risk_alpha=0.4)
    assert own.has_risk.any()
    torch.testing.assert_close(papers, soft, rtol=0, atol=0)
    torch.testing.assert_close(both - soft, hard_with_risk - hard)
    assert HybridObjective.preset("soft_risk", hard_target="data").learns_data_tokens
    assert not HybridObjective.preset("soft", hard_target="data", risk_alpha=0.4).learns_data_tokens


@pytest.mark.parametrize("place", range(5))
def test_planted_token_is_learned_at_the_position_before_it_and_nowhere_else(place):
    """Off by one anywhere, and the gradient appears at another position."""
    student = torch.zeros(1, 6, 9, requires_grad=True)
    teacher = torch.zeros(1, 6, 9)
    teacher[0, place, 4] = 20.0
    labels = torch.full((1, 6), X)
    labels[0, place + 1] = 4
    for preset in ("hard", "soft"):
        loss = hybrid_loss_from_logits(student, teacher, labels, HybridObjective.preset(preset))
        (gradient,) = torch.autograd.grad(loss.mean(), student)
        assert gradient.abs().sum(-1).nonzero().tolist() == [[0, place]]
        assert gradient[0, place, 4] < 0
        assert (gradient[0, place, :4] > 0).all()


HELD_FAST = ("head_tail_kl", "token_wise_kl", "lk_hybrid", "dft")
"""Whose gradient is by definition not that of the value; test_divergences.py and test_position_weight.py have it."""


@pytest.mark.parametrize("preset", [preset for preset in PRESETS if preset not in HELD_FAST])
def test_gradient_passes_gradcheck_for_every_preset(preset):
    student, teacher, labels = batch(rows=2, length=4, width=4)
    objective = HybridObjective.preset(preset)
    assert torch.autograd.gradcheck(
        lambda z: hybrid_loss_from_logits(z, teacher, labels, objective, PROGRESS).mean(), student.requires_grad_()
    )


def test_weight_zero_is_plain_cross_entropy_and_weight_one_is_plain_distillation():
    student, teacher, labels = batch()
    data = hybrid_loss_from_logits(student, teacher, labels, HybridObjective.preset("hard", hard_target="data"))
    flat = torch.nn.functional.cross_entropy(student[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=X)
    torch.testing.assert_close(data.mean(), flat)
    soft = hybrid_loss_from_logits(student, teacher, labels, HybridObjective.preset("soft"))
    expected = forward_kl(teacher[:, :-1].log_softmax(-1), student[:, :-1].log_softmax(-1))[soft.mask].mean()
    torch.testing.assert_close(soft.mean(), expected)


def test_forward_kl_hybrid_is_cross_entropy_against_one_mixed_target_up_to_a_constant():
    student, teacher, labels = batch()
    student.requires_grad_()
    loss = hybrid_loss_from_logits(student, teacher, labels, HybridObjective(soft_weight=StaticWeight(0.3)))
    (gradient,) = torch.autograd.grad(loss.mean(), student)
    p = teacher.softmax(-1)
    mixed = 0.3 * p + 0.7 * torch.nn.functional.one_hot(p.argmax(-1), 7)
    expected = torch.zeros_like(student)
    expected[:, :-1] = (student.softmax(-1) - mixed)[:, :-1] * loss.mask.unsqueeze(-1) / loss.mask.sum()
    torch.testing.assert_close(gradient, expected.detach())


@pytest.mark.parametrize(("target", "equal"), [("data", True), ("teacher_argmax", False)])
def test_hard_labels_drawn_from_the_teacher_have_the_soft_gradient_on_average(target, equal):
    """Summed over every token that could be drawn, with its probability: nothing is sampled."""
    student, teacher, _ = batch(rows=1, length=2)
    student.requires_grad_()
    hard, soft = (HybridObjective(soft_weight=StaticWeight(w), hard_target=target) for w in (0.0, 1.0))
    p = teacher[0, 0].softmax(-1)
    losses = torch.zeros((), dtype=torch.float64)
    for token in range(7):
        labels = torch.tensor([[X, token]])
        losses = losses + p[token] * hybrid_loss_from_logits(student, teacher, labels, hard).mean()
    (on_average,) = torch.autograd.grad(losses, student)
    (of_soft,) = torch.autograd.grad(
        hybrid_loss_from_logits(student, teacher, torch.tensor([[X, 0]]), soft).mean(), student
    )
    assert torch.allclose(on_average, of_soft, atol=1e-12) is equal


@pytest.mark.parametrize(
    "divergence", [forward_kl, reverse_kl, jensen_shannon, partial(alpha_beta, alpha=0.2, beta=0.7)]
)
def test_temperature_squared_multiplies_value_and_gradient(divergence):
    student, teacher, labels = batch()
    student.requires_grad_()
    objective = HybridObjective(divergence=divergence, soft_weight=StaticWeight(1.0), temperature=3.0)
    loss = hybrid_loss_from_logits(student, teacher, labels, objective)
    by_hand = divergence((teacher[:, :-1] / 3).log_softmax(-1), (student[:, :-1] / 3).log_softmax(-1))
    expected = 9 * by_hand[loss.mask].mean()
    torch.testing.assert_close(loss.mean(), expected)
    torch.testing.assert_close(*(torch.autograd.grad(x, student)[0] for x in (loss.mean(), expected)))


def test_micro_batches_of_different_lengths_give_the_gradient_of_the_joined_batch():
    """Hard and soft terms alike, which is where the released study's weights went wrong."""
    student, teacher, labels = batch(rows=8, length=9)
    for row, length in enumerate((9, 4, 6, 9, 3, 8, 5, 7)):
        labels[row, length:] = X
    weight = torch.randn(7, 7, dtype=torch.float64, requires_grad=True)
    for objective in (HybridObjective.preset("static", risk_alpha=0.1), HybridObjective.preset("soft")):
        whole = hybrid_loss_from_logits(student @ weight, teacher, labels, objective).mean()
        (expected,) = torch.autograd.grad(whole, weight)
        count = (labels[:, 1:] != X).sum()
        parts = [
            hybrid_loss_from_logits(student[rows] @ weight, teacher[rows], labels[rows], objective).mean(count)
            for rows in (slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 8))
        ]
        torch.testing.assert_close(torch.autograd.grad(torch.stack(parts).sum(), weight)[0], expected)


def test_the_mean_over_one_supervised_position_is_its_loss():
    student, teacher, labels = batch(rows=1)
    labels[0, :-1] = X
    loss = hybrid_loss_from_logits(student, teacher, labels, HybridObjective.preset("static"))
    assert loss.mask.sum() == 1
    torch.testing.assert_close(loss.mean(), loss.total.sum())


def test_batch_order_and_padding_change_nothing():
    student, teacher, labels = batch()
    objective = HybridObjective.preset("risk_guided")
    loss = hybrid_loss_from_logits(student, teacher, labels, objective)
    order = torch.tensor([2, 0, 1])
    swapped = hybrid_loss_from_logits(student[order], teacher[order], labels[order], objective)
    torch.testing.assert_close(swapped.total, loss.total[order])
    padded = hybrid_loss_from_logits(
        torch.cat([student, torch.full_like(student[:, :2], 7.0)], 1),
        torch.cat([teacher, torch.full_like(teacher[:, :2], -3.0)], 1),
        torch.cat([labels, torch.full_like(labels[:, :2], X)], 1),
        objective,
    )
    torch.testing.assert_close(padded.total[:, :-2], loss.total)
    torch.testing.assert_close(padded.mean(), loss.mean())


@pytest.mark.parametrize("name", [name for name, fields in PRESETS.items() if "risk_alpha" not in fields])
def test_a_constant_added_to_the_logits_changes_nothing_without_the_risk_term(name):
    student, teacher, labels = batch()
    objective = HybridObjective.preset(name)
    before = hybrid_loss_from_logits(student, teacher, labels, objective, PROGRESS)
    after = hybrid_loss_from_logits(student + 5.0, teacher - 4.0, labels, objective, PROGRESS)
    torch.testing.assert_close(after.total, before.total)


@pytest.mark.parametrize("preset", PRESETS)
def test_fully_masked_batch_gives_zero_and_a_finite_gradient(preset):
    student, teacher, labels = batch()
    student.requires_grad_()
    labels[:] = X
    loss = hybrid_loss_from_logits(student, teacher, labels, HybridObjective.preset(preset), PROGRESS).mean()
    assert loss.item() == 0.0
    assert (torch.autograd.grad(loss, student)[0] == 0).all()


def test_fully_masked_row_adds_nothing():
    student, teacher, labels = batch()
    labels[1] = X
    objective = HybridObjective.preset("static")
    both = hybrid_loss_from_logits(student, teacher, labels, objective)
    kept = [0, 2]
    without = hybrid_loss_from_logits(student[kept], teacher[kept], labels[kept], objective)
    torch.testing.assert_close(both.mean(), without.mean())


FROM_THE_STUDENTS_SIDE = {
    *("reverse_kl", "adaptive_kl", "head_tail_kl", "token_wise_kl", "entropy_gated", "early_positions"),
    "token_importance",
}
"""Infinite where the teacher has no mass and the student has some."""


@pytest.mark.parametrize("preset", PRESETS)
def test_impossible_teacher_tokens_keep_loss_and_gradient_finite(preset):
    student, teacher, labels = batch()
    student.requires_grad_()
    teacher[..., 2:] = -math.inf
    labels = labels.clamp(max=1)
    loss = hybrid_loss_from_logits(student, teacher, labels, HybridObjective.preset(preset), PROGRESS).mean()
    if preset in FROM_THE_STUDENTS_SIDE:
        assert loss == math.inf
        return
    assert torch.isfinite(loss)
    assert torch.isfinite(torch.autograd.grad(loss, student)[0]).all()


INFINITE_WITHOUT_TEACHER_MASS = {
    "reverse_kl": reverse_kl,
    "jensen_shannon": partial(jensen_shannon, beta=1.0),
    "adaptive_kl": DIVERGENCES["adaptive_kl"],
    "alpha_beta": partial(alpha_beta, alpha=-0.5, beta=1.0),
}
"""Divergences that are infinite where the teacher has no mass and the student has some."""

HARD_WHERE_SURE = {
    "hard": (StaticWeight(0.0), None),
    "confidence": (ConfidenceWeight(), None),
    "entropy": (EntropyWeight(), None),
    "power": (EntropyWeight(kind="power"), None),
    "curriculum": (CurriculumWeight(), TrainProgress(step=0, total_steps=10)),
}
"""Rules that give a soft weight of exactly zero where the teacher is sure (or everywhere)."""


def sure_teacher(positions: int, width: int = 5) -> torch.Tensor:
    """A teacher that allows one token a position, and no other at all."""
    logits = torch.full((1, positions, width), -math.inf, dtype=torch.float64)
    logits[0, torch.arange(positions), torch.arange(positions) % width] = 0.0
    return logits


@pytest.mark.parametrize("divergence", INFINITE_WITHOUT_TEACHER_MASS)
@pytest.mark.parametrize("rule", HARD_WHERE_SURE)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("alpha", [0.0, 0.1])
def test_an_infinite_soft_loss_of_weight_zero_leaves_the_gradient_of_the_hard_loss(
    divergence, rule, temperature, alpha
):
    student, _, labels = batch(rows=1, length=6, width=5)
    labels[0, 2:] = torch.tensor([1, 2, 4, 4])
    student.requires_grad_()
    weight, progress = HARD_WHERE_SURE[rule]
    options = {"soft_weight": weight, "temperature": temperature, "risk_alpha": alpha}
    objective = HybridObjective(divergence=INFINITE_WITHOUT_TEACHER_MASS[divergence], **options)
    loss = hybrid_loss_from_logits(student, sure_teacher(6), labels, objective, progress)
    assert (loss.soft_weight == 0).all()
    assert torch.isinf(loss.soft[loss.mask]).all()
    (gradient,) = torch.autograd.grad(loss.total.sum(), student)
    by_hand = torch.tensor(0.0, dtype=torch.float64)
    for t in range(1, 5):
        logp, token = student[0, t].log_softmax(-1), t % 5
        goes_on = t < 4 and labels[0, t + 1] == token
        gap = student[0, t + 1].logsumexp(-1) - student[0, t, token] if goes_on else torch.tensor(0.0)
        by_hand = by_hand - logp[token] + alpha / 4 * gap**2
    torch.testing.assert_close(loss.total.sum(), by_hand)
    torch.testing.assert_close(gradient, torch.autograd.grad(by_hand, student)[0])


@pytest.mark.parametrize("weight", [StaticWeight(1.0), CurriculumWeight(warmup_ratio=0.0)])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("alpha", [0.0, 0.1])
def test_an_infinite_hard_loss_of_weight_zero_leaves_the_gradient_of_the_soft_loss(weight, temperature, alpha):
    """Both models forbid the token in the data, so that only its cross-entropy, and its risk, are infinite."""
    student, teacher, _ = batch(rows=1, length=6, width=5)
    labels = torch.full((1, 6), 3)
    student[..., 3] = teacher[..., 3] = -math.inf
    student.requires_grad_()
    objective = HybridObjective(soft_weight=weight, hard_target="data", temperature=temperature, risk_alpha=alpha)
    loss = hybrid_loss_from_logits(student, teacher, labels, objective, PROGRESS)
    assert torch.isinf(loss.hard[loss.mask]).all()
    torch.testing.assert_close(loss.total, loss.soft)
    (gradient,) = torch.autograd.grad(loss.total.sum(), student)
    p, q = ((logits[:, :-1] / temperature).softmax(-1) for logits in (teacher, student))
    torch.testing.assert_close(gradient[:, :-1], temperature * (q - p).detach())
    assert (gradient[:, -1] == 0).all()


def test_an_infinite_loss_where_nothing_is_supervised_gives_no_gradient():
    student, teacher, labels = batch(rows=1, length=6, width=5)
    teacher[0, 2, 1:] = -math.inf
    labels[0, 3] = X
    student.requires_grad_()
    objective = HybridObjective(divergence=reverse_kl)
    loss = hybrid_loss_from_logits(student, teacher, labels, objective)
    (gradient,) = torch.autograd.grad(loss.total.sum(), student)
    assert torch.isfinite(gradient).all()
    assert (gradient[0, 2] == 0).all()
    assert (gradient[0, 3] != 0).all()


@pytest.mark.parametrize("rule", ["confidence", "entropy", "power"])
def test_a_weight_that_is_no_number_is_seen_in_the_total(rule):
    student, teacher, labels = batch()
    teacher[1, 2, 3] = math.nan
    loss = hybrid_loss_from_logits(student, teacher, labels, HybridObjective(soft_weight=RULES[rule][0]))
    assert loss.total.isnan().nonzero().tolist() == [[1, 2]]


def test_batch_of_one_keeps_its_dimensions():
    student, teacher, labels = batch(rows=1, length=2)
    labels[:] = 3
    assert hybrid_loss_from_logits(student, teacher, labels, HybridObjective()).total.shape == (1, 1)


def test_bfloat16_logits_are_reduced_in_float32():
    student, teacher, labels = batch(width=300)
    labels[0, 4] = 17
    objective = HybridObjective.preset("static", hard_target="data", risk_alpha=0.1)
    low = hybrid_loss_from_logits(student.bfloat16(), teacher.bfloat16(), labels, objective)
    high = hybrid_loss_from_logits(student.bfloat16().double(), teacher.bfloat16().double(), labels, objective)
    assert low.total.dtype == torch.float32
    torch.testing.assert_close(low.total.double(), high.total, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("student_width", "teacher_width"), [(7, 10), (10, 7), (12, 10)])
@pytest.mark.parametrize("divergence", [forward_kl, reverse_kl, jensen_shannon])
def test_padded_vocabularies_of_either_model_give_finite_losses_and_gradients(student_width, teacher_width, divergence):
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(2, 4, student_width, generator=generator, requires_grad=True)
    teacher = torch.randn(2, 4, teacher_width, generator=generator)
    labels = torch.randint(0, 7, (2, 4), generator=generator)
    objective = HybridObjective(divergence=divergence)
    loss = hybrid_loss_from_logits(student, teacher, labels, objective, vocab_size=7)
    (gradient,) = torch.autograd.grad(loss.mean(), student)
    assert torch.isfinite(loss.total).all()
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("divergence", [forward_kl, reverse_kl, jensen_shannon])
def test_mass_that_the_student_puts_on_ids_the_teacher_lacks_is_penalised(divergence):
    """Raising a padding logit of the student must raise the loss: renormalising it away would not."""
    teacher = torch.zeros(1, 2, 4)
    student = torch.zeros(1, 2, 6)
    labels = torch.tensor([[X, 1]])
    objective = HybridObjective(divergence=divergence, soft_weight=StaticWeight(1.0))
    low = hybrid_loss_from_logits(student, teacher, labels, objective).mean()
    student[..., 5] = 3.0
    assert hybrid_loss_from_logits(student, teacher, labels, objective).mean() > low + 0.05


@pytest.mark.parametrize(("student_width", "teacher_width"), [(7, 9), (9, 7)])
def test_a_side_that_lacks_ids_is_taken_to_put_one_ten_billionth_there(student_width, teacher_width):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        torch.randn(1, 2, width, generator=generator, dtype=torch.float64) for width in (student_width, teacher_width)
    )
    labels = torch.tensor([[X, 3]])
    q, p = (
        [*side[0, 0].softmax(-1)[:7].tolist(), side[0, 0].softmax(-1)[7:].sum().item() or 1e-10]
        for side in (student, teacher)
    )
    for divergence, (one, other) in ((forward_kl, (p, q)), (reverse_kl, (q, p))):
        objective = HybridObjective(divergence=divergence, soft_weight=StaticWeight(1.0))
        wanted = sum(a * math.log(a / b) for a, b in zip(one, other, strict=True))
        got = hybrid_loss_from_logits(student, teacher, labels, objective).total.item()
        assert got == pytest.approx(wanted, rel=1e-12)


def test_padding_without_mass_on_both_sides_changes_nothing():
    student, teacher, labels = batch()
    objective = HybridObjective.preset("static")
    plain = hybrid_loss_from_logits(student, teacher, labels, objective)
    pad = torch.full_like(student[..., :3], -1e4)
    padded = hybrid_loss_from_logits(
        torch.cat([student, pad], -1), torch.cat([teacher, pad], -1), labels, objective, vocab_size=7
    )
    torch.testing.assert_close(padded.total, plain.total)


def test_presets_are_the_papers_methods():
    assert HybridObjective.preset("hard").soft_weight == StaticWeight(0.0)
    assert HybridObjective.preset("soft").soft_weight == StaticWeight(1.0)
    assert HybridObjective.preset("confidence").soft_weight == ConfidenceWeight()
    assert HybridObjective.preset("entropy").soft_weight == EntropyWeight()
    assert HybridObjective.preset("curriculum").soft_weight == CurriculumWeight()
    assert HybridObjective.preset("risk_guided").risk_alpha == 0.1
    changed = HybridObjective.preset("risk_guided", soft_weight=EntropyWeight(), temperature=2.0)
    assert (changed.risk_alpha, changed.soft_weight, changed.temperature) == (0.1, EntropyWeight(), 2.0)


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: HybridObjective.preset("hrad"), "Did you mean 'hard'"),
        (lambda: HybridObjective(hard_target="argmax"), "must be 'teacher_argmax' or 'data', got 'argmax'"),
        (lambda: HybridObjective(temperature=0.0), r"temperature must be in \[0.001, 1000.0\], got 0.0"),
        (lambda: HybridObjective(risk_alpha=-1.0), "risk_alpha must be >= 0, got -1.0"),
        (lambda: HybridObjective(risk_weight="soft"), "risk_weight must be 'hard' or 'own', got 'soft'"),
        (lambda: HybridObjective(sharpening=0.0), "sharpening must be a number > 0, got 0.0"),
        (lambda: HybridObjective(sharpening=math.inf), "sharpening must be a number > 0, got inf"),
        (lambda: HybridObjective(sharpening=math.nan), "sharpening must be a number > 0, got nan"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(build, match):
    with pytest.raises(ConfigError, match=match):
        build()


def test_a_sampled_signal_is_refused_for_anything_but_the_plain_forward_kl():
    signal = TeacherSignal.from_samples(torch.zeros(2, 5), 3, generator=torch.Generator().manual_seed(0))
    student = StudentSupport(torch.zeros(2, 3), None, torch.zeros(2), torch.ones(2))
    data = torch.zeros(2, dtype=torch.long)
    for objective in (HybridObjective(divergence=reverse_kl), HybridObjective(temperature=2.0)):
        with pytest.raises(ConfigError, match="sampled teacher signal gives an unbiased forward KL"):
            objective(signal, student, data)


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
