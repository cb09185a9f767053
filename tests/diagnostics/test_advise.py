"""Advice, on planted positions whose truth is known."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from bridgegarden.diagnostics.advise import LEAST_PROMPTS, RuleScore, _decide, advise, more_tokens
from bridgegarden.diagnostics.kappa import KappaResult, Kind, PositionKappa
from bridgegarden.statistics import Bootstrapped, Estimate, Interval

VOCABULARY = 100
NONE = Bootstrapped(value=None, interval=None)


def planted(kappa_of, *, prompts=30, each=4, noise=0.02, seed=0, choose="random") -> KappaResult:
    """Positions whose kappa is a function of how unsure the teacher is (0 to 1), and noise."""
    rng = np.random.default_rng(seed)
    positions = []
    for number in range(prompts * each):
        unsure = float(rng.uniform(0.01, 0.9))
        value = kappa_of(unsure, rng) + noise * float(rng.normal())
        kind = Kind.BRIDGE if value > 0.6 else Kind.GARDEN if value < 0.4 else Kind.UNDECIDED
        positions.append(
            PositionKappa(
                text=number // each,
                prompt=number // each,
                position=number % each,
                token=0,
                teacher_entropy=unsure * math.log(VOCABULARY) * 0.5,
                teacher_max_prob=1 - unsure,
                teacher_margin=1 - 2 * unsure,
                likeliest=0,
                agreement=1 - unsure,
                loss=0.1,
                actions=(),
                state_kappa=Estimate(value, noise, 8),
                contribution=Estimate(0.0, 0.0, 8),
                kind=kind,
            )
        )
    return KappaResult(
        positions=tuple(positions),
        candidates=10 * len(positions),
        choose=choose,
        threshold=0.5,
        top=2,
        rounds=8,
        temperature=1.0,
        budget=10_000,
        generated_tokens=10_000,
    )


def gaining(rule, value, low, high) -> RuleScore:
    """Of a rule whose gain is `value`, of 1 at most."""
    gain = Bootstrapped(value=value, interval=Interval(low, high))
    return RuleScore(rule=rule, mean_weight=0.5, spearman=NONE, auc=NONE, separation=NONE, gain=gain, most=1.0)


def skewed(unsure, rng) -> float:
    """No kappa anywhere on average, but noise that is skewed and larger the less sure the teacher is."""
    return unsure * float(rng.lognormal(0.0, 1.0) - math.exp(0.5))


def rare(unsure, rng) -> float:
    """The same with one disaster in twenty."""
    return unsure * (20.0 * float(rng.uniform() < 0.05) - 1.0)


def advice(result, **settings):
    return advise(result, vocab_size=VOCABULARY, generator=torch.Generator().manual_seed(0), **settings)


def test_a_teacher_that_is_unsure_at_gardens_speaks_for_an_adaptive_rule():
    got = advice(planted(lambda unsure, rng: 1 - unsure))
    assert got.recommended in ("confidence", "entropy")
    assert got.either, "both read the same here"
    assert got.more_tokens is None
    for score in got.scores:
        assert score.spearman.value < -0.9
        assert score.auc.value == 1.0
        assert score.separation.interval.low > 0
        assert score.gain.interval.low > 0
    assert "softer where kappa is lower" in got.reason


def test_a_teacher_that_is_unsure_at_bridges_speaks_against_them():
    got = advice(planted(lambda unsure, rng: unsure))
    assert got.recommended == "static"
    assert "softer where kappa is higher, the wrong way round: its hard labels cover -" in got.reason
    assert all(score.auc.value == 0.0 and score.gain.interval.high < 0 for score in got.scores)


def test_no_relation_and_many_positions_rule_an_effect_out():
    got = advice(planted(lambda unsure, rng: float(rng.uniform()), prompts=600, seed=1), resamples=200)
    assert got.recommended == "static"
    assert "nothing to aim with" in got.reason


def test_no_relation_and_few_positions_are_rarely_taken_for_evidence():
    found = [
        advice(planted(lambda unsure, rng: float(rng.uniform()), prompts=20, each=2, seed=seed)) for seed in range(60)
    ]
    # An interval of 95% is wholly on the good side by chance once in 40.
    assert sum(one.recommended in ("confidence", "entropy") for one in found) <= 5
    undecided = [one for one in found if one.recommended is None]
    assert len(undecided) > 40
    for one in undecided:
        assert one.more_tokens >= 1000
        assert f"About {one.more_tokens:,} more" in one.reason


def test_few_prompts_are_not_enough_however_many_positions_they_have():
    got = advice(planted(lambda unsure, rng: 1 - unsure, prompts=4, each=100))
    assert (got.recommended, got.either, got.more_tokens) == (None, False, None)
    assert "positions of 4 prompts" in got.reason


@pytest.mark.parametrize("noise", [skewed, rare])
@pytest.mark.parametrize(("prompts", "runs"), [(30, 60), (100, 40)])
def test_skewed_noise_whose_scale_follows_the_weight_makes_no_rule(noise, prompts, runs):
    found = [advice(planted(noise, prompts=prompts, noise=0.0, seed=seed), resamples=20) for seed in range(runs)]
    ruled = sum(one.recommended in ("confidence", "entropy") for one in found)
    assert ruled <= 0.05 * runs
    if prompts == 100:
        ranks = sum(one.scores[0].spearman.value < -0.2 for one in found)
        assert ranks > 0.9 * runs, "by ranks nearly all would have named a rule"


@pytest.mark.slow
def test_with_fewer_prompts_than_are_asked_for_such_noise_makes_rules(monkeypatch):
    def share(prompts):
        found = [
            advice(planted(rare, prompts=prompts, noise=0.0, seed=1000 + seed), resamples=20) for seed in range(300)
        ]
        return sum(one.recommended in ("confidence", "entropy") for one in found) / 300

    assert share(8) == 0
    monkeypatch.setattr("bridgegarden.diagnostics.advise.LEAST_PROMPTS", 5)
    shares = {prompts: share(prompts) for prompts in (8, 16, LEAST_PROMPTS)}
    print(shares)
    assert shares[8] > 0.1
    assert shares[LEAST_PROMPTS] <= 0.05


def test_a_real_gain_is_found_through_such_noise():
    def kappa(unsure, rng):
        return 3 * (0.9 - unsure) + 0.5 * skewed(unsure, rng)

    found = [advice(planted(kappa, prompts=30, noise=0.0, seed=seed), resamples=20) for seed in range(20)]
    assert sum(one.recommended in ("confidence", "entropy") for one in found) >= 18


@pytest.mark.parametrize(("confidence", "entropy", "better"), [(0.7, 0.3, "confidence"), (0.3, 0.7, "entropy")])
@pytest.mark.parametrize("told_apart", [True, False])
def test_of_two_rules_that_aim_well_the_one_that_gains_more_is_recommended(confidence, entropy, better, told_apart):
    scores = gaining("confidence", confidence, 0.1, 0.9), gaining("entropy", entropy, 0.1, 0.9)
    value = confidence - entropy
    spread = 0.1 if told_apart else 1.0
    difference = Bootstrapped(value=value, interval=Interval(value - spread, value + spread))
    recommended, either, reason, more = _decide(scores, difference, 20, 1000)
    assert (recommended, either, more) == (better, not told_apart, None)
    assert f"The {better} rule is softer where kappa is lower: its hard labels cover +0.7 nats a place" in reason
    assert ("The other adaptive rule is as good" in reason) == (not told_apart)


def test_one_rule_that_may_yet_be_useful_keeps_the_question_open():
    useless, open_yet = gaining("confidence", -0.1, -0.25, 0.05), gaining("entropy", 0.1, -0.1, 0.3)
    assert _decide((useless, useless), NONE, 20, 1000)[0] == "static"
    recommended, either, reason, more = _decide((useless, open_yet), NONE, 20, 1000)
    assert (recommended, either, more) == (None, False, 3000)
    assert "the hard labels of the entropy rule cover +0.1 nats a place (-0.1 to +0.3) more" in reason


def test_with_the_tokens_asked_for_the_relation_is_found():
    def found(prompts, seed):
        return advice(
            planted(lambda unsure, rng: 0.5 * (1 - unsure) + float(rng.uniform()), prompts=prompts, seed=seed)
        )

    few = [found(20, seed) for seed in range(40)]
    short = [one.more_tokens for one in few if one.recommended is None]
    assert len(short) >= 10
    prompts = round(20 * (1 + np.median(short) / 10_000))
    assert prompts > 25
    enough = [found(prompts, seed) for seed in range(100, 140)]
    shares = [sum(one.recommended is not None for one in some) / 40 for some in (few, enough)]
    assert shares[1] > max(0.5, shares[0])


def test_a_static_rule_of_the_same_mean_gains_nothing():
    result = planted(lambda unsure, rng: 1 - unsure)
    got = advice(result)
    kappa = np.array([place.state_kappa.mean for place in result.positions])
    weight = np.array([1 - place.teacher_max_prob for place in result.positions])
    hard = np.mean((1 - weight) * kappa) - np.mean(1 - weight) * np.mean(kappa)
    assert got.scores[0].gain.value == pytest.approx(hard)
    assert got.scores[0].mean_weight == pytest.approx(weight.mean())


def test_noise_in_kappa_does_not_bias_the_gain():
    quiet = advice(planted(lambda unsure, rng: 1 - unsure, prompts=200, noise=0.0), resamples=50).scores[0].gain
    noisy = advice(planted(lambda unsure, rng: 1 - unsure, prompts=200, noise=1.0), resamples=50).scores[0].gain
    assert noisy.interval.low < quiet.value < noisy.interval.high


def test_positions_of_one_prompt_widen_the_interval():
    independent = advice(planted(lambda unsure, rng: float(rng.uniform()), prompts=60, each=1), resamples=300)
    result = planted(lambda unsure, rng: float(rng.uniform()), prompts=60, each=1)
    copies = tuple(place for place in result.positions for _ in range(4))
    repeated = advice(replace(result, positions=copies), resamples=300)
    width = [
        one.scores[0].spearman.interval.high - one.scores[0].spearman.interval.low for one in (independent, repeated)
    ]
    assert width[1] == pytest.approx(width[0], rel=0.25)


def test_a_biased_choice_of_positions_is_said_to_be_one():
    assert advice(planted(lambda unsure, rng: unsure)).representative
    assert not advice(planted(lambda unsure, rng: unsure, choose="uncertain")).representative


def test_no_bridge_leaves_what_needs_one_undefined():
    got = advice(planted(lambda unsure, rng: 0.1 * unsure))
    assert all(score.auc.value is None and score.separation.value is None for score in got.scores)
    document = json.loads(json.dumps(got.to_dict(), allow_nan=False))
    assert document["scores"][0]["auc"] == {"value": None, "interval": None}
    assert document["scores"][0]["spearman"]["interval"]["low"] > 0


def test_more_tokens_follow_the_square_root_of_the_width():
    assert more_tokens(-0.2, Interval(-0.6, 0.2), 1000, least=0.1) == 3000
    assert more_tokens(0.0, Interval(-0.2, 0.2), 1000, least=0.1) == 3000
