"""The fast path against the slow one: for every objective, value, terms and gradients."""

import gc
import math
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import pytest
import torch

from bridgegarden.objective import fused as fused_module
from bridgegarden.objective.alignment import Places, Position, SupervisedPositions
from bridgegarden.objective.divergences import DIVERGENCES, alpha_beta, entropy, forward_kl
from bridgegarden.objective.fused import ProjectedTeacher, fused_hybrid_loss
from bridgegarden.objective.head import LanguageModelHead, selected_logits
from bridgegarden.objective.hybrid import RANKED_BY, HybridObjective, hybrid_loss_from_logits
from bridgegarden.objective.methods import PRESETS, MixedDivergence
from bridgegarden.objective.position_weight import TokenImportance
from bridgegarden.objective.soft_weight import (
    ConfidenceWeight,
    CurriculumWeight,
    EntropyWeight,
    StaticWeight,
    TrainProgress,
)
from bridgegarden.objective.support import StudentSupport, TeacherSignal, shared_cells
from tests.waiting import WaitsForTheDevice

X = -100
B, T, D = 3, 8, 4
PROGRESS = TrainProgress(step=3, total_steps=20)
ALL_DIVERGENCES = {
    **{name: function for name, function in DIVERGENCES.items() if name != "alpha_beta"},
    "alpha_beta": partial(alpha_beta, alpha=0.2, beta=0.7),
}
RULES = (
    StaticWeight(0.3),
    ConfidenceWeight(),
    EntropyWeight(),
    EntropyWeight(kind="power"),
    CurriculumWeight(0.8, 0.5),
)


class Pair:
    """A student and a teacher as hidden states and heads, with labels."""

    def __init__(self, student_width: int = 13, teacher_width: int = 13, softcap: float | None = None) -> None:
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.hidden = random(B, T, D).requires_grad_()
        self.weight = random(student_width, D).requires_grad_()
        self.bias = random(student_width).requires_grad_()
        self.head = LanguageModelHead(weight=self.weight, bias=self.bias, softcap=softcap, scale=0.8)
        self.teacher_hidden = 2 * random(B, T, D)
        self.teacher_head = LanguageModelHead(weight=random(teacher_width, D))
        self.vocab_size = min(student_width, teacher_width, 12)
        self.labels = torch.randint(0, self.vocab_size, (B, T), generator=generator)
        self.labels[0, :3] = X
        self.labels[1, 5] = X
        self.positions = SupervisedPositions.from_labels(self.labels)
        self.inputs = (self.hidden, self.weight, self.bias)

    def slow(self, objective: HybridObjective):
        logits = self.head.logits(self.hidden.flatten(0, 1)).unflatten(0, (B, T))
        teacher = self.teacher_head.logits(self.teacher_hidden.flatten(0, 1)).unflatten(0, (B, T))
        return hybrid_loss_from_logits(logits, teacher, self.labels, objective, PROGRESS, self.vocab_size)

    def fast(self, objective: HybridObjective, *, teacher=None, top_k: int | None = None, chunk: int = 3, **options):
        positions = self.positions
        source = teacher or ProjectedTeacher(
            positions.of(self.teacher_hidden),
            self.teacher_head,
            top_k,
            self.vocab_size,
            objective.exponents,
            labels=positions.target,
        )
        options = {"num_items": len(positions), "progress": PROGRESS, "chunk_tokens": chunk, **options}
        return fused_hybrid_loss(
            positions.of(self.hidden),
            self.head,
            source,
            positions.target,
            positions.has_successor,
            objective,
            **options,
        )

    def whole_vocabulary_as_sparse(self, objective: HybridObjective) -> TeacherSignal:
        """Every real token kept by id, in a scrambled order: must agree with the dense signal."""
        logits = self.teacher_head.logits(self.positions.of(self.teacher_hidden))
        dense = TeacherSignal.from_logits(logits, vocab_size=self.vocab_size, exponents=objective.exponents)
        generator = torch.Generator().manual_seed(1)
        ids = torch.stack([torch.randperm(self.vocab_size, generator=generator) for _ in range(len(logits))])
        return TeacherSignal(
            ids=ids,
            logp=dense.logp.gather(1, ids),
            log_tail=dense.log_tail,
            entropy=dense.entropy,
            argmax=dense.argmax,
            max_logp=dense.max_logp,
            vocab_size=dense.vocab_size,
            tail_powers=dense.tail_powers,
        )


def assert_same(pair: Pair, fast, slow) -> None:
    torch.testing.assert_close(fast.loss, slow.mean())
    for name in ("total", "soft", "hard", "risk", "soft_weight", "position_weight", "has_risk"):
        torch.testing.assert_close(getattr(fast.terms, name), getattr(slow, name)[slow.mask])
    for ours, theirs in zip(
        torch.autograd.grad(fast.loss, pair.inputs), torch.autograd.grad(slow.mean(), pair.inputs), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("top_k", [None, 5])
@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_what_both_lose_on_the_data_is_that_of_their_logits(top_k, chunk):
    pair = Pair(student_width=13, teacher_width=14)
    positions = SupervisedPositions.from_labels(pair.labels)
    source = ProjectedTeacher(
        positions.of(pair.teacher_hidden), pair.teacher_head, top_k, pair.vocab_size, labels=positions.target
    )
    fast = pair.fast(HybridObjective(risk_alpha=0.1), teacher=source, chunk_tokens=chunk)
    for logp, head, hidden in (
        (fast.teacher_label_logp, pair.teacher_head, pair.teacher_hidden),
        (fast.student_label_logp, pair.head, pair.hidden),
    ):
        expected = head.logits(positions.of(hidden)).detach().log_softmax(-1)
        torch.testing.assert_close(logp, expected.gather(1, positions.target[:, None])[:, 0], check_dtype=False)
    silent = replace(source, labels=None)
    assert pair.fast(HybridObjective(), teacher=silent).teacher_label_logp.isnan().all()


@pytest.mark.parametrize("divergence", ALL_DIVERGENCES)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{type(rule).__name__}-{getattr(rule, 'kind', '')}")
@pytest.mark.parametrize("target", ["data", "teacher_argmax"])
def test_fast_path_equals_slow_path_for_every_objective(divergence, rule, target):
    pair = Pair(student_width=13, teacher_width=14)
    for temperature in (1.0, 2.0):
        objective = HybridObjective(
            divergence=ALL_DIVERGENCES[divergence],
            soft_weight=rule,
            hard_target=target,
            temperature=temperature,
            risk_alpha=0.1,
        )
        assert_same(pair, pair.fast(objective), pair.slow(objective))
        sparse = pair.fast(objective, teacher=pair.whole_vocabulary_as_sparse(objective))
        assert_same(pair, sparse, pair.slow(objective))


@dataclass(frozen=True)
class BothSides:
    """A rule that reads everything there is: both models, the token in the data, the place in the answer, progress."""

    lowest: float = 0.0
    """Weights below it are zero."""

    def __call__(self, signal, student, position, progress):
        teacher, other = shared_cells(signal, student)
        disagreement = 0.5 * (teacher.exp() - other.exp()).abs().sum(-1)
        known = (student.target_logp().exp() + (position.token % 3 == 0) + disagreement + entropy(other) / 4) / 4
        weight = known * (position.index + 1) / position.length * (1 - progress.step / progress.total_steps)
        return torch.where(weight < self.lowest, 0.0, weight).clamp(0, 1)


@pytest.mark.parametrize("chunk", [1, 2, 5, 100])
@pytest.mark.parametrize("how", ["mix", "add"])
@pytest.mark.parametrize(("student_width", "teacher_width"), [(12, 14), (15, 12), (15, 14)])
def test_fast_path_equals_slow_path_where_rules_see_both_sides(chunk, how, student_width, teacher_width):
    pair = Pair(student_width, teacher_width)
    for owner, temperature in (("hard", 1.0), ("own", 2.0)):
        objective = HybridObjective(
            divergence=MixedDivergence(rule=BothSides(0.2), how=how),
            soft_weight=BothSides(),
            position_weight=BothSides(0.15),
            hard_target="data",
            temperature=temperature,
            risk_alpha=0.1,
            risk_weight=owner,
        )
        slow = pair.slow(objective)
        assert 0 < (slow.position_weight[slow.mask] == 0).sum() < slow.mask.sum()
        assert_same(pair, pair.fast(objective, chunk=chunk), slow)
        if student_width > pair.vocab_size:
            sparse = pair.fast(objective, teacher=pair.whole_vocabulary_as_sparse(objective), chunk=chunk)
            assert_same(pair, sparse, pair.slow(objective))


@pytest.mark.parametrize("kind", ["dense", "top-k"])
def test_a_position_without_weight_gives_no_gradient_be_its_loss_infinite(kind):
    """The reverse KL of a teacher that allows one token is infinite everywhere, and the data's hard label nowhere."""
    pair = Pair()
    options = {"teacher": sure_signal(pair, kind)}
    for name in ("soft_weight", "position_weight"):
        fields = {"divergence": DIVERGENCES["reverse_kl"], name: StaticWeight(0.0)}
        loss = pair.fast(HybridObjective(**fields), **options)
        assert torch.isinf(loss.terms.soft).all()
        assert all(torch.isfinite(part).all() for part in torch.autograd.grad(loss.loss, pair.inputs))
    assert loss.loss.item() == 0.0
    mixed = MixedDivergence(first=DIVERGENCES["reverse_kl"], second=forward_kl, rule=StaticWeight(1.0))
    forward, finite = (pair.fast(HybridObjective(divergence=one), **options) for one in (mixed, forward_kl))
    for ours, theirs in zip(
        torch.autograd.grad(forward.loss, pair.inputs), torch.autograd.grad(finite.loss, pair.inputs), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_weight_that_is_no_number_is_seen_in_the_loss():
    pair = Pair()
    for name in ("soft_weight", "position_weight"):
        objective = HybridObjective(**{name: lambda signal, student, position, progress: signal.entropy * math.nan})
        assert pair.fast(objective).loss.isnan()


@pytest.mark.parametrize("owner", ["hard", "own"])
@pytest.mark.parametrize(("temperature", "sharpening"), [(1.0, 2.0), (2.0, 2.0), (2.0, 0.7)])
@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_fast_path_equals_slow_path_with_a_sharpened_target_and_either_weight_of_the_risk_term(
    owner, temperature, sharpening, weight
):
    pair = Pair(student_width=13, teacher_width=14)
    objective = HybridObjective(
        soft_weight=StaticWeight(weight),
        hard_target="data",
        temperature=temperature,
        sharpening=sharpening,
        risk_alpha=0.1,
        risk_weight=owner,
    )
    assert_same(pair, pair.fast(objective), pair.slow(objective))
    sparse = pair.fast(objective, teacher=pair.whole_vocabulary_as_sparse(objective))
    assert_same(pair, sparse, pair.slow(objective))


@pytest.mark.parametrize("divergence", ALL_DIVERGENCES)
def test_a_student_in_float64_learns_from_signals_in_float32(divergence):
    """As a cache and an exact process give them."""
    pair = Pair(student_width=13, teacher_width=13)
    objective = HybridObjective(divergence=ALL_DIVERGENCES[divergence])
    signal = pair.whole_vocabulary_as_sparse(objective)
    rounded = replace(
        signal,
        **{name: getattr(signal, name).float() for name in ("logp", "log_tail", "entropy", "max_logp")},
    )
    torch.testing.assert_close(
        pair.fast(objective, teacher=rounded).loss, pair.slow(objective).mean(), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("chunk", [1, 2, 5, 100])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize(("student_width", "teacher_width"), [(12, 12), (12, 15), (15, 12), (15, 14)])
def test_chunks_caps_and_padded_vocabularies_change_nothing(chunk, softcap, student_width, teacher_width):
    """With the risk term, so that a chunk's last position looks into the next chunk."""
    pair = Pair(student_width, teacher_width, softcap)
    objective = HybridObjective.preset("risk_guided", hard_target="data")
    assert_same(pair, pair.fast(objective, chunk=chunk), pair.slow(objective))


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("share", [0.2, 0.6, 1.0])
def test_positions_are_ranked_in_the_whole_batch_however_it_is_walked(chunk, share):
    """And with soft labels that are none of what they are ranked by."""
    pair = Pair()
    objective = HybridObjective(temperature=2.0, risk_alpha=0.1, position_weight=TokenImportance(share))
    fast, slow = pair.fast(objective, chunk=chunk), pair.slow(objective)
    assert_same(pair, fast, slow)
    lengths = Places(pair.positions.has_successor).length
    whole = sum(math.ceil(share * length) / length for length in lengths.tolist())
    assert fast.terms.position_weight.sum().item() == pytest.approx(whole)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("chunk", [2, 100])
def test_top_k_agrees_with_the_route_over_selected_logits(preset, chunk):
    """Two independent routes: gradients finished in the forward, and ordinary autograd over ``selected_logits``."""
    pair = Pair()
    objective = HybridObjective.preset(preset, temperature=2.0)
    positions = pair.positions
    logits = pair.teacher_head.logits(positions.of(pair.teacher_hidden))
    signal = TeacherSignal.from_logits(logits, k=4, vocab_size=pair.vocab_size, exponents=objective.exponents)
    signal = signal.with_labels(logits, positions.target)
    fast = pair.fast(objective, top_k=4, chunk=chunk)
    assert signal.ids is not None
    target = objective.hard_ids(signal, positions.target)
    hidden = positions.of(pair.hidden)
    head = {"bias": pair.bias, "scale": 0.8}
    chosen = selected_logits(hidden, pair.weight, signal.ids, **head)
    at_target = selected_logits(hidden, pair.weight, target.unsqueeze(1), **head)
    tempered = selected_logits(hidden, pair.weight, signal.ids, bias=pair.bias, scale=0.4)
    student = StudentSupport(
        chosen.logits, chosen.log_rest, at_target.logits[:, 0], chosen.log_normaliser, tempered.log_rest
    )
    following = torch.cat([chosen.log_normaliser[1:], chosen.log_normaliser[-1:]])
    chosen, places = None, Places(positions.has_successor)
    if objective.ranks is not None:
        unsure = entropy(pair.head.logits(hidden).log_softmax(-1))
        chosen = objective.ranks.choose(unsure, RANKED_BY(signal, student, positions.target).soft, places)
    place = Position(positions.target, places, chosen=chosen)
    terms = objective(signal, student, positions.target, following, positions.has_successor, PROGRESS, place)
    torch.testing.assert_close(fast.loss, terms.mean())
    for ours, theirs in zip(
        torch.autograd.grad(fast.loss, pair.inputs), torch.autograd.grad(terms.mean(), pair.inputs), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("divergence", [name for name in ALL_DIVERGENCES if name not in ("adaptive_kl", "alpha_beta")])
def test_a_top_k_support_never_exceeds_the_dense_divergence_and_grows_towards_it(divergence):
    pair = Pair()
    objective = HybridObjective(divergence=ALL_DIVERGENCES[divergence], soft_weight=StaticWeight(1.0))
    soft = [pair.fast(objective, top_k=k).terms.soft for k in (1, 3, 6, 11, None)]
    for fewer, more in pairwise(soft):
        assert (fewer <= more + 1e-10).all()
    assert (soft[-1] - soft[0]).max() > 1e-3


def sure_signal(pair: Pair, kind: str) -> TeacherSignal:
    """A teacher that allows one token a position, and gives every other and the tail no mass at all."""
    logits = torch.full((len(pair.positions), pair.vocab_size), -math.inf, dtype=torch.float64)
    logits[torch.arange(len(logits)), torch.arange(len(logits)) % pair.vocab_size] = 1.0
    return TeacherSignal.from_logits(logits, {"dense": None, "top-k": 3}[kind], exponents=(0.5, 0.1))


@pytest.mark.parametrize("kind", ["dense", "top-k"])
@pytest.mark.parametrize("divergence", ["reverse_kl", "adaptive_kl"])
@pytest.mark.parametrize("rule", [StaticWeight(0.0), *RULES[1:4], CurriculumWeight(warmup_ratio=1.0)])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_an_infinite_soft_loss_of_weight_zero_leaves_the_gradient_of_the_hard_loss(kind, divergence, rule, temperature):
    pair = Pair()
    fields = {"soft_weight": rule, "temperature": temperature, "risk_alpha": 0.1}
    infinite = HybridObjective(divergence=ALL_DIVERGENCES[divergence], **fields)
    finite = HybridObjective(**(fields | {"soft_weight": StaticWeight(0.0)}))
    options = {"teacher": sure_signal(pair, kind), "progress": TrainProgress(0, 10)}
    loss, hard = pair.fast(infinite, **options), pair.fast(finite, **options)
    assert torch.isinf(loss.terms.soft).all()
    torch.testing.assert_close(loss.loss, hard.loss)
    for ours, theirs in zip(
        torch.autograd.grad(loss.loss, pair.inputs), torch.autograd.grad(hard.loss, pair.inputs), strict=True
    ):
        assert torch.isfinite(ours).all()
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", [None, 4])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_an_infinite_hard_loss_of_weight_zero_leaves_the_gradient_of_the_soft_loss(kind, temperature):
    pair = Pair()
    pair.labels[pair.labels != X] = 5
    pair.positions = SupervisedPositions.from_labels(pair.labels)
    forbidden = torch.zeros(13, dtype=torch.float64)
    forbidden[5] = -math.inf
    pair.bias = (pair.bias.detach() + forbidden).requires_grad_()
    pair.head = LanguageModelHead(weight=pair.weight, bias=pair.bias, scale=0.8)
    pair.teacher_head = LanguageModelHead(weight=pair.teacher_head.weight, bias=forbidden)
    fields = {"soft_weight": StaticWeight(1.0), "temperature": temperature}
    infinite, plain = HybridObjective(hard_target="data", risk_alpha=0.1, **fields), HybridObjective(**fields)
    loss, soft = pair.fast(infinite, top_k=kind), pair.fast(plain, top_k=kind)
    assert torch.isinf(loss.terms.hard).all()
    torch.testing.assert_close(loss.loss, soft.loss)
    for ours, theirs in zip(
        torch.autograd.grad(loss.loss, (pair.hidden, pair.weight)),
        torch.autograd.grad(soft.loss, (pair.hidden, pair.weight)),
        strict=True,
    ):
        assert torch.isfinite(ours).all()
        torch.testing.assert_close(ours, theirs)


def test_dropping_the_tail_would_be_seen():
    """Pushing the student's mass outside the top-k must raise the loss, for the reverse KL too."""
    pair = Pair()
    objective = HybridObjective(divergence=DIVERGENCES["reverse_kl"], soft_weight=StaticWeight(1.0))
    kept = TeacherSignal.from_logits(
        pair.teacher_head.logits(pair.positions.of(pair.teacher_hidden)), k=2, vocab_size=12
    )
    before = pair.fast(objective, teacher=kept).terms.soft
    assert kept.ids is not None
    outside = torch.tensor([next(v for v in range(12) if v not in row) for row in kept.ids.tolist()])
    logits = pair.head.logits(pair.positions.of(pair.hidden)).detach()
    raised = logits.scatter_add(1, outside.unsqueeze(1), torch.full((len(outside), 1), 6.0, dtype=torch.float64))
    identity = LanguageModelHead(weight=torch.eye(13, dtype=torch.float64))
    after = fused_hybrid_loss(
        raised, identity, kept, pair.positions.target, pair.positions.has_successor, objective, num_items=1
    ).terms.soft
    assert (after > before).float().mean() > 0.9


def test_student_entropy_is_exact():
    pair = Pair()
    logits = pair.head.logits(pair.positions.of(pair.hidden))
    expected = torch.distributions.Categorical(logits=logits).entropy()
    got = pair.fast(HybridObjective(), measure_student=True).student_entropy
    torch.testing.assert_close(got, expected.detach())
    assert pair.fast(HybridObjective()).student_entropy is None


@pytest.mark.parametrize("top_k", [None, 4])
def test_a_hit_is_a_token_of_the_data_that_is_the_students_likeliest(top_k):
    pair = Pair(student_width=15)
    logits = pair.head.logits(pair.positions.of(pair.hidden))
    # Half of the tokens of the data are made the likeliest one.
    likeliest = logits.argmax(-1)
    pair.positions.target[::2] = likeliest[::2].clamp(max=pair.vocab_size - 1)
    got = pair.fast(HybridObjective(), measure_student=True, top_k=top_k).student_hit
    assert got.tolist() == (likeliest == pair.positions.target).tolist()
    assert 0 < got.sum() < len(got)


def overlap(pair: Pair) -> torch.Tensor:
    """Sum of min(p, q) over tokens and the padding, by its definition."""
    q, p = (
        head.logits(pair.positions.of(hidden)).detach().softmax(-1)
        for head, hidden in ((pair.head, pair.hidden), (pair.teacher_head, pair.teacher_hidden))
    )
    size = pair.vocab_size
    padding = torch.minimum(p[:, size:].sum(-1), q[:, size:].sum(-1))
    return torch.minimum(p[:, :size], q[:, :size]).sum(-1) + padding


@pytest.mark.parametrize("widths", [(12, 12), (13, 14), (12, 15)])
def test_acceptance_is_exact_for_the_whole_vocabulary_and_between_its_bounds_for_a_part(widths):
    pair = Pair(*widths)
    exact = overlap(pair)
    measured = {"objective": HybridObjective(), "measure_student": True}
    whole = pair.fast(**measured).acceptance
    torch.testing.assert_close(whole.most, exact, rtol=1e-9, atol=1e-9)
    if widths == (12, 12):
        torch.testing.assert_close(whole.least, exact, rtol=1e-9, atol=1e-9)
    gaps = []
    for top_k in (1, 2, 4, 8, 11):
        found = pair.fast(**measured, top_k=top_k).acceptance
        assert (found.least <= exact + 1e-12).all()
        assert (found.most >= exact - 1e-12).all()
        gaps.append((found.most - found.least).mean().item())
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 0.1, "most is left open by one token"
    if widths == (12, 12):
        # What is left is one token: the tail is no longer several tokens in one cell.
        torch.testing.assert_close(found.most, exact, rtol=1e-9, atol=1e-9)
    assert pair.fast(HybridObjective()).acceptance is None


def test_a_sampled_signal_says_nothing_of_acceptance():
    pair = Pair()
    logits = pair.teacher_head.logits(pair.positions.of(pair.teacher_hidden))
    drawn = TeacherSignal.from_samples(logits, 5, generator=torch.Generator().manual_seed(0))
    found = pair.fast(HybridObjective(), teacher=drawn, measure_student=True)
    assert torch.isfinite(found.loss)
    assert found.acceptance.most.isnan().all()
    assert found.acceptance.least.isnan().all()


def test_evaluation_computes_the_same_terms_and_no_gradient():
    pair = Pair()
    objective = HybridObjective.preset("risk_guided")
    trained = pair.fast(objective)
    with torch.no_grad():
        evaluated = pair.fast(objective)
    torch.testing.assert_close(evaluated.loss, trained.loss.detach())
    assert not evaluated.loss.requires_grad


def test_accumulated_micro_batches_give_the_gradient_of_the_joined_batch():
    pair = Pair()
    objective = HybridObjective.preset("risk_guided", hard_target="data")
    expected = torch.autograd.grad(pair.fast(objective).loss, pair.inputs)
    total = len(pair.positions)
    for row in range(B):
        part = SupervisedPositions.from_labels(pair.labels[row : row + 1])
        source = ProjectedTeacher(
            part.of(pair.teacher_hidden[row : row + 1]), pair.teacher_head, None, pair.vocab_size, ()
        )
        fused_hybrid_loss(
            part.of(pair.hidden[row : row + 1]),
            pair.head,
            source,
            part.target,
            part.has_successor,
            objective,
            num_items=total,
        ).loss.backward()
    for tensor, gradient in zip(pair.inputs, expected, strict=True):
        torch.testing.assert_close(tensor.grad, gradient)


def test_no_supervised_position_gives_zero_and_zero_gradients():
    pair = Pair()
    pair.labels[:] = X
    pair.positions = SupervisedPositions.from_labels(pair.labels)
    loss = pair.fast(HybridObjective.preset("risk_guided"), num_items=0).loss
    assert loss.item() == 0.0
    for gradient in torch.autograd.grad(loss, pair.inputs):
        assert (gradient == 0).all()


def test_a_scaled_loss_scales_its_gradient():
    pair = Pair()
    plain = torch.autograd.grad(pair.fast(HybridObjective()).loss, pair.inputs)
    scaled = torch.autograd.grad(pair.fast(HybridObjective()).loss * 8.0, pair.inputs)
    for once, eightfold in zip(plain, scaled, strict=True):
        torch.testing.assert_close(eightfold, 8 * once)


@pytest.mark.parametrize("top_k", [None, 4])
def test_no_chunk_outlives_its_turn(top_k):
    """Memory does not grow with the number of positions: the logits of earlier chunks are gone."""
    pair = Pair(student_width=101, teacher_width=101)
    alive = []

    class Counting:
        def __init__(self, source):
            self.source = source

        def __getitem__(self, index):
            gc.collect()
            tensors = (item for item in gc.get_objects() if issubclass(type(item), torch.Tensor))
            alive.append(sum(101 in tensor.shape and tensor.ndim == 2 for tensor in tensors))
            return self.source[index]

    positions = pair.positions
    source = ProjectedTeacher(positions.of(pair.teacher_hidden), pair.teacher_head, top_k, pair.vocab_size)
    pair.fast(HybridObjective(), teacher=Counting(source), chunk=2)
    assert len(alive) > 5
    assert alive[-1] == alive[1]


def test_a_chunk_is_as_large_as_the_free_memory_allows_and_the_loss_is_the_same(monkeypatch):
    pair, seen = Pair(), []

    class Watched:
        def __init__(self, source):
            self.source = source

        def __getitem__(self, index):
            seen.append(index.stop - index.start)
            return self.source[index]

    source = ProjectedTeacher(pair.positions.of(pair.teacher_hidden), pair.teacher_head, None, pair.vocab_size)
    monkeypatch.setattr(fused_module, "default_chunk_tokens", lambda vocab_size, device_type, free: free)
    losses = []
    for free in (2, 1000):
        monkeypatch.setattr(fused_module, "free_memory", lambda device, free=free: free)
        losses.append(pair.fast(HybridObjective(), teacher=Watched(source), chunk=None).loss)
    assert set(seen[:-1]) == {2}
    assert seen[-1] == len(pair.positions) > 2
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("by_kernels", [False, True])
def test_in_float16_a_scaled_gradient_keeps_what_a_small_part_of_many_positions_adds(by_kernels):
    """The scaler multiplies after the gradient has been made: divided by all positions before, most of it were zero."""
    if by_kernels and not pytest.importorskip("bridgegarden.objective.kernels").INTERPRETED:
        pytest.skip("the student is on the CPU")
    generator = torch.Generator().manual_seed(0)
    hidden, weight, teacher = (
        torch.randn(*shape, generator=generator) / 2 for shape in ((8, 16), (3000, 16), (8, 3000))
    )
    signal, data = TeacherSignal.from_logits(teacher, 8), torch.arange(8)
    items, scale = 65_536, 65_536.0

    def gradients(dtype: torch.dtype | None) -> list[torch.Tensor]:
        given = [part.clone().requires_grad_() for part in (hidden, weight)]
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            loss = fused_hybrid_loss(
                given[0],
                LanguageModelHead(weight=given[1]),
                signal,
                data,
                torch.ones(8, dtype=torch.bool),
                HybridObjective(),
                num_items=items,
                kernels=by_kernels,
            ).loss
        return list(torch.autograd.grad(loss * scale, given))

    for found, exact in zip(gradients(torch.float16), gradients(None), strict=True):
        assert (found - exact).norm() < 2e-3 * exact.norm()


def test_a_second_backward_is_refused_and_not_silently_wrong():
    pair = Pair()
    loss = pair.fast(HybridObjective()).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward only"):
        loss.backward()


def test_a_frozen_head_gets_no_gradient_and_costs_none():
    pair = Pair()
    pair.weight.requires_grad_(False)
    pair.bias.requires_grad_(False)
    pair.fast(HybridObjective()).loss.backward()
    assert pair.hidden.grad is not None
    assert pair.weight.grad is None


def test_autocast_multiplies_out_in_bfloat16_and_reduces_in_float32():
    """As the same numbers, rounded to bfloat16 beforehand, give without it: nothing else is rounded."""
    pair = Pair()
    given = [part.detach().bfloat16().float() for part in (pair.hidden, pair.weight)]
    signal = TeacherSignal.from_logits(
        pair.teacher_head.logits(pair.positions.of(pair.teacher_hidden)).float(), vocab_size=12
    )

    def run(dtype):
        hidden, weight = (part.to(dtype).requires_grad_() for part in given)
        positions = pair.positions
        fused = fused_hybrid_loss(
            *(positions.of(hidden), LanguageModelHead(weight=weight), signal, positions.target),
            *(positions.has_successor, HybridObjective(risk_alpha=0.1)),
            num_items=len(positions),
            measure_student=True,
        )
        return fused

    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = run(torch.float32)
    plain = run(torch.bfloat16)
    for name in ("soft", "hard", "risk", "total"):
        torch.testing.assert_close(getattr(cast.terms, name), getattr(plain.terms, name), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(cast.student_entropy, plain.student_entropy, rtol=1e-6, atol=1e-6)


def test_autocast_gives_float32_terms_close_to_the_full_precision_ones():
    pair = Pair()
    hidden = pair.hidden.detach().float().requires_grad_()
    head = LanguageModelHead(weight=pair.weight.detach().float().requires_grad_())
    positions = pair.positions
    source = ProjectedTeacher(
        positions.of(pair.teacher_hidden).float(), LanguageModelHead(weight=pair.teacher_head.weight.float()), None, 12
    )

    def run():
        return fused_hybrid_loss(
            positions.of(hidden),
            head,
            source,
            positions.target,
            positions.has_successor,
            HybridObjective(),
            num_items=len(positions),
        )

    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = run()
    high = run()
    assert low.loss.dtype == torch.float32
    torch.testing.assert_close(low.loss, high.loss, rtol=0.05, atol=0.05)
    low.loss.backward()
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.float32


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("top_k", [None, 4])
@pytest.mark.parametrize("by_kernels", [False, True])
def test_nothing_in_the_walk_over_chunks_waits_for_the_device(preset, top_k, by_kernels):
    if by_kernels and top_k is None:
        pytest.skip("kernels serve supports that have ids")
    if by_kernels:
        kernels = pytest.importorskip("bridgegarden.objective.kernels")
        if not kernels.INTERPRETED:
            pytest.skip("tests/gpu asks CUDA itself")
    generator = torch.Generator().manual_seed(0)
    hidden, weight, teacher_hidden, teacher_weight = (
        torch.randn(*shape, generator=generator) for shape in ((9, D), (13, D), (9, D), (13, D))
    )
    objective = HybridObjective.preset(preset)
    head = LanguageModelHead(weight=weight.requires_grad_())
    data, successor = torch.randint(0, 13, (9,), generator=generator), torch.ones(9, dtype=torch.bool)
    projection = LanguageModelHead(weight=teacher_weight)
    teacher = ProjectedTeacher(teacher_hidden, projection, top_k, 13, objective.exponents, labels=data)
    with WaitsForTheDevice():
        fused_hybrid_loss(
            hidden.requires_grad_(),
            head,
            teacher,
            data,
            successor,
            objective,
            num_items=9,
            progress=PROGRESS,
            chunk_tokens=4,
            measure_student=True,
            kernels=by_kernels,
        ).loss.backward()
