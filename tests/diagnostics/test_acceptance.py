"""What a student is worth as a draft model: against every text and every draft written out, and at its limits."""

import math
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch

from bridgegarden.diagnostics.acceptance import (
    MOST_DRAFTED,
    DraftModel,
    check_cost_ratio,
    expected_passes,
    independent_tokens,
    kept_of_student,
    kept_of_teacher,
)
from bridgegarden.diagnostics.exposure_bias import exposure_bias
from bridgegarden.diagnostics.rollout import Sampling
from bridgegarden.errors import ConfigError
from tests.diagnostics.worlds import HORIZON, VOCABULARY, Enumeration, make_world, recited


def measure(world, prompts=200, **settings: Any) -> DraftModel:
    given: dict[str, Any] = {"samples": 2, "max_new_tokens": HORIZON, "max_rows": 1000, **settings}
    sampling = Sampling(**given)
    generator = torch.Generator().manual_seed(0)
    return DraftModel.of(exposure_bias(world.teacher, world.student, [()] * prompts, sampling, generator=generator))


class Decoder:
    """Speculative decoding by its algorithm, summed over every draft and every outcome of every test."""

    def __init__(self, world, drafted: int, temperature: float = 1.0) -> None:
        self.world, self.drafted = Enumeration(world, temperature), drafted
        self.passes = cache(self.passes)
        self.within = cache(self.within)

    def passes(self, state: int, left: int) -> float:
        """Expected passes of the teacher until the text is over."""
        if left == 0 or self.world.process.is_terminal(state):
            return 0.0
        return 1 + self.within(state, left, 0)

    def within(self, state: int, left: int, accepted: int) -> float:
        """Expected passes after this one, of whose draft so many tokens are accepted."""
        process = self.world.process
        if left == 0 or process.is_terminal(state):
            return 0.0
        p, q = self.world.p(state), self.world.q(state)
        later = 0.0
        for token in range(VOCABULARY):
            following = process.step(state, token)
            if accepted == self.drafted:
                later += p[token].item() * self.passes(following, left - 1)
                continue
            drawn_and_kept = q[token].item() * min(1.0, (p[token] / q[token]).item())
            later += drawn_and_kept * self.within(following, left - 1, accepted + 1)
            later += max(0.0, (p[token] - q[token]).item()) * self.passes(following, left - 1)
        return later


def every_text(world):
    """All texts there are, with their probability under the teacher."""
    truth, found = Enumeration(world), {}
    for tokens in product(range(VOCABULARY), repeat=HORIZON):
        state, text, probability = 0, [], 1.0
        for token in tokens:
            if truth.process.is_terminal(state):
                break
            probability *= truth.p(state)[token].item()
            state = truth.process.step(state, token)
            text.append(token)
        found[tuple(text)] = probability
    return found


@pytest.mark.parametrize("seed", [0, 3])
def test_passes_over_the_teachers_texts_are_those_of_the_algorithm_itself(seed):
    world = make_world(seed)
    texts = every_text(world)
    assert sum(texts.values()) == pytest.approx(1)
    prompts = [(number,) for number in range(len(texts))]
    seen = recited(Unprompted(world.teacher), Unprompted(world.student), prompts, list(texts), HORIZON)
    passes = expected_passes(kept_of_teacher(seen), seen.lengths, MOST_DRAFTED)
    mean = passes @ torch.tensor(list(texts.values()), dtype=torch.float64)
    for drafted in range(1, MOST_DRAFTED + 1):
        wanted = Decoder(world, drafted).passes(0, HORIZON)
        assert mean[drafted - 1].item() == pytest.approx(wanted, rel=1e-9), drafted


class Unprompted:
    """A policy for which every prompt is the empty one."""

    def __init__(self, policy) -> None:
        self.policy, self.vocab_size = policy, policy.vocab_size

    def start(self, prefixes):
        return self.policy.start([()] * len(prefixes))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_estimates_agree_with_the_algorithm_at_the_temperature_of_the_texts(temperature):
    world = make_world(1)
    found = measure(world, prompts=300, temperature=temperature)
    truth = Enumeration(world, temperature)
    length = mean_length(truth, 0, HORIZON)
    for draft in found.teacher_texts.drafts:
        wanted = length / Decoder(world, draft.drafted, temperature).passes(0, HORIZON)
        assert abs(draft.tokens_per_pass.mean - wanted) < 4 * draft.tokens_per_pass.stderr
        assert draft.tokens_per_pass.stderr < 0.1


def mean_length(truth: Enumeration, state: int, left: int) -> float:
    if left == 0 or truth.process.is_terminal(state):
        return 0.0
    later = [mean_length(truth, truth.process.step(state, token), left - 1) for token in range(VOCABULARY)]
    return 1 + sum(a * b for a, b in zip(truth.p(state).tolist(), later, strict=True))


def accepted_tokens(truth: Enumeration, state: int, left: int, writer, of) -> float:
    """Expected sum over a text of `writer` of `of` (state)."""
    if left == 0 or truth.process.is_terminal(state):
        return 0.0
    later = [
        accepted_tokens(truth, truth.process.step(state, token), left - 1, writer, of) for token in range(VOCABULARY)
    ]
    return of(state) + sum(a * b for a, b in zip(writer(state).tolist(), later, strict=True))


def test_acceptance_and_agreement_are_means_over_the_tokens_of_each_writer():
    world = make_world(0)
    found, truth, cool = measure(world, temperature=0.5, prompts=400), Enumeration(world), Enumeration(world, 0.5)

    def overlap(of):
        return lambda state: torch.minimum(of.p(state), of.q(state)).sum().item()

    def agreement(state):
        return float(truth.p(state).argmax() == truth.q(state).argmax())

    for got, writer in ((found.teacher_texts, cool.p), (found.student_texts, cool.q)):
        length = accepted_tokens(truth, 0, HORIZON, writer, lambda state: 1.0)
        measures = (got.acceptance, overlap(truth)), (got.tempered, overlap(cool)), (got.agreement, agreement)
        for estimate, of in measures:
            wanted = accepted_tokens(truth, 0, HORIZON, writer, of) / length
            assert 0.1 < wanted < 0.99
            assert abs(estimate.mean - wanted) < 4 * estimate.stderr
            assert estimate.stderr < 0.02


def test_what_the_teacher_keeps_of_a_students_token_averages_to_the_overlap():
    # E_q min(1, p/q) = sum min(p, q): the tokens' own probabilities and the distance are two routes to one number.
    world = make_world(2)
    sampling = Sampling(samples=1, max_new_tokens=HORIZON, max_rows=5000)
    bias = exposure_bias(
        world.teacher, world.student, [()] * 5000, sampling, generator=torch.Generator().manual_seed(1)
    )
    for texts, kept in (
        (bias.teacher_texts, kept_of_teacher(bias.teacher_texts)),
        (bias.student_texts, kept_of_student(bias.student_texts)),
    ):
        there = torch.arange(texts.horizon) < texts.lengths[:, None]
        gap = torch.where(there, kept - texts.overlap[0], 0.0).sum(-1)
        assert gap.abs().max() > 0.1
        assert abs(gap.mean()) < 4 * gap.std() / math.sqrt(len(gap))


def test_greedy_drafts_are_accepted_as_long_as_both_have_the_same_likeliest_token():
    world = make_world(0)
    found = measure(world, prompts=2, samples=1, temperature=0.0)
    truth, state, alike = Enumeration(world), 0, []
    while not truth.process.is_terminal(state) and len(alike) < HORIZON:
        token = int(truth.p(state).argmax())
        alike.append(token == int(truth.q(state).argmax()))
        state = truth.process.step(state, token)
    assert {True, False} == {*alike}, "both happen"
    assert found.teacher_texts.tempered.mean == pytest.approx(sum(alike) / len(alike))
    assert found.teacher_texts.agreement.mean == pytest.approx(sum(alike) / len(alike))
    for draft in found.teacher_texts.drafts:
        passes, at = 0, 0
        while at < len(alike):
            passes += 1
            kept = next((k for k, same in enumerate(alike[at : at + draft.drafted]) if not same), draft.drafted)
            at += kept + 1
        assert draft.tokens_per_pass.mean == pytest.approx(len(alike) / passes)


def test_a_student_that_is_its_teacher_is_always_accepted_and_one_that_shares_nothing_never():
    lengths = torch.tensor([1, 7, 20])
    always, never = (expected_passes(torch.full((3, 20), kept), lengths, 8) for kept in (1.0, 0.0))
    for drafted in range(1, 9):
        assert always[drafted - 1].tolist() == [math.ceil(length / (drafted + 1)) for length in (1, 7, 20)]
        assert never[drafted - 1].tolist() == [1, 7, 20]
    assert independent_tokens(1.0, 4) == 5
    assert independent_tokens(0.0, 4) == 1


def test_what_lies_behind_the_end_of_a_text_does_not_matter():
    kept = torch.rand(2, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    other = torch.where(torch.arange(12) < 5, kept, 1 - kept)
    lengths = torch.tensor([5, 5])
    assert torch.equal(expected_passes(kept, lengths, 8), expected_passes(other, lengths, 8))


@pytest.mark.parametrize("acceptance", [0.3, 0.9])
def test_independent_acceptances_give_the_papers_formula(acceptance):
    # A long text, all of whose tokens are accepted with one probability: what the formula assumes.
    lengths = torch.tensor([4000])
    passes = expected_passes(torch.full((1, 4000), acceptance), lengths, 8)
    for drafted in range(1, 9):
        closed = (1 - acceptance ** (drafted + 1)) / (1 - acceptance)
        assert independent_tokens(acceptance, drafted) == pytest.approx(closed)
        assert 4000 / passes[drafted - 1].item() == pytest.approx(closed, rel=2e-3)


def test_acceptances_that_come_together_are_worth_more_than_the_formula_says():
    # Half of the text easy, half hopeless: a mean of 0.5, and long drafts in the easy half.
    kept = torch.cat([torch.ones(1, 2000), torch.zeros(1, 2000)], 1)
    tokens = 4000 / expected_passes(kept, torch.tensor([4000]), 4)[3].item()
    assert tokens == pytest.approx(4000 / (400 + 2000), rel=1e-3)
    assert independent_tokens(0.5, 4) == pytest.approx(1.9375)


def test_a_speed_up_is_tokens_a_pass_over_what_a_pass_and_its_draft_cost():
    found = measure(make_world(0), prompts=50)
    assert len(found.teacher_texts.drafts) == MOST_DRAFTED
    draft = found.teacher_texts.drafts[3]
    for ratio in (0.0, 0.2):
        speed_up = draft.speed_up(ratio)
        assert speed_up.mean == pytest.approx(draft.tokens_per_pass.mean / (4 * ratio + 1))
        assert speed_up.interval().low == pytest.approx(draft.tokens_per_pass.interval().low / (4 * ratio + 1))
    assert found.fastest(0.0).drafted == HORIZON - 1, "longer ones are of no more use"
    assert found.fastest(5.0).drafted == 1
    for wrong in (-0.1, math.nan, math.inf):
        with pytest.raises(ConfigError, match="cost_ratio must be a number >= 0"):
            check_cost_ratio(wrong)
