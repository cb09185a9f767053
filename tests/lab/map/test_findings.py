"""Claims from made-up numbers of which the answer is known."""

import numpy as np
import pytest

from bridgegarden.lab.map.cells import FAIRNESS, Cell, CellRun, Setting
from bridgegarden.lab.map.findings import CLAIMS, HYBRIDS, effects, held_against, pooled_effects, verdict_in
from bridgegarden.lab.map.measure import PREDICTORS, READINGS

SEEDS = 40
ARMS = ("hard", "hard_data", "soft", "sharpened", *HYBRIDS)


def made(budget, *, seed=0, **means):
    """A cell in which arms have these means of right answers (0.5 unless given), and noise of 0.02 that is theirs."""
    rng = np.random.default_rng(seed)
    common = rng.normal(0, 0.2, SEEDS)
    measures = {}
    for arm in ARMS:
        right = means.get(arm, 0.5) + common + rng.normal(0, 0.02, SEEDS)
        zero = tuple(rng.normal(1, 0.01, SEEDS).tolist())
        measures[arm] = {
            **dict.fromkeys(("teacher_loss", "student_loss", "teacher_loss_bridges", "student_loss_bridges"), zero),
            **dict.fromkeys(("drift_bridges", "drift_gardens"), zero),
            **dict.fromkeys(("right", "right_cool", "right_greedy", "right_as_varied"), tuple(right.tolist())),
            "variety": zero,
        }
    settings = {
        arm: Setting(
            learning_rate=0.1, weight_decay=0.0, steps=1, held_out_loss=1.0, held_out_right=means.get(arm, 0.5) + 0.01
        )
        for arm in ARMS
    }
    kappa = {name: {reading: tuple(rng.normal(0.3, 0.1, SEEDS)) for reading in READINGS} for name in PREDICTORS}
    kappa["confidence"]["every token"] = tuple(rng.normal(-0.3, 0.1, SEEDS))
    cell = Cell(teacher="slips", student="too small", rows="few", budget=budget)
    return CellRun(
        cell=cell,
        settings=dict.fromkeys(FAIRNESS, settings),
        measures=dict.fromkeys(FAIRNESS, measures),
        kappa=dict.fromkeys(FAIRNESS, kappa),
        students=1,
        cpu_seconds=1.0,
    )


def of(found, claim, arm=None, budget="long"):
    return [
        one
        for one in found
        if claim in (None, one.claim.name)
        and one.way == FAIRNESS[0]
        and arm in (None, one.arm)
        and getattr(one, "cell", None) in (None, Cell(teacher="slips", student="too small", rows="few", budget=budget))
    ]


def test_a_hybrid_that_is_right_more_often_than_every_pure_kind_is_found_and_the_others_are_not():
    found = effects([made("long", confidence=0.7, soft=0.58)])
    (winner,) = of(found, "right", "confidence")
    assert winner.other == "soft"
    assert winner.difference.mean == pytest.approx(0.12, abs=0.01)
    assert winner.decision.verdict == "holds"
    assert winner.p_value < 1e-6
    (loser,) = of(found, "right", "static")
    assert loser.difference.mean == pytest.approx(-0.08, abs=0.01)
    assert loser.decision.verdict == "does not hold"
    assert verdict_in(of(found, "right")) == "holds"


def test_a_difference_too_small_to_matter_is_a_claim_that_does_not_hold():
    found = effects([made("long", confidence=0.53)])
    (effect,) = of(found, "right", "confidence")
    assert effect.difference.interval().low > 0
    assert effect.decision.verdict == "does not hold"


def test_the_claim_is_held_against_the_pure_kind_that_was_better_on_other_problems():
    run = made("long", hard=0.6)
    settings = run.settings[FAIRNESS[0]]
    assert held_against("more right", settings) == "hard"
    assert held_against("soft_risk", settings) is None
    assert held_against("sharpened", settings) == "sharpened"
    better = settings | {
        "hard_data": Setting(learning_rate=1, weight_decay=0, steps=1, held_out_loss=0.5, held_out_right=0.1)
    }
    assert held_against("lower loss", better) == "hard_data"
    assert not of(effects([run]), "soft with risk")


def test_what_predicts_kappa_is_held_against_nothing():
    found = of(effects([made("long")]), None)
    verdicts = {one.claim.name: one.decision.verdict for one in found if one.claim.name.startswith("5")}
    assert verdicts == {f"5{letter}.{number}": "holds" for letter in "ab" for number in range(1, 5)} | {
        "5a.1": "does not hold"
    }


def test_pairing_takes_away_what_seeds_have_in_common():
    """The seeds of a made-up cell differ ten times more than the arms' own noise."""
    (effect,) = of(effects([made("long", confidence=0.56)]), "right", "confidence")
    assert effect.difference.stderr < 0.01


def test_cells_that_disagree_pool_to_an_interval_as_wide_as_their_disagreement():
    agree = [made(budget, seed=seed, confidence=0.6) for seed, budget in enumerate(("short", "long", "longer"))]
    differ = [
        made(budget, seed=seed, confidence=mean)
        for seed, (budget, mean) in enumerate((("short", 0.4), ("long", 0.6), ("longer", 0.8)))
    ]
    (sure,) = of(pooled_effects(effects(agree)), "right", "confidence")
    (unsure,) = of(pooled_effects(effects(differ)), "right", "confidence")
    assert sure.decision.verdict == "holds"
    assert sure.between < 0.02
    assert unsure.difference.mean == pytest.approx(0.1, abs=0.03)
    assert unsure.decision.verdict == "undecided"
    assert unsure.decision.needed > 3
    assert unsure.between == pytest.approx(0.2, abs=0.03)


def test_where_all_arms_are_alike_a_claim_is_seldom_called():
    """Over all claims of right answers together, by Holm: one in twenty, not one in two."""
    called = 0
    for seed in range(60):
        found = effects([made("long", seed=seed), made("short", seed=1000 + seed)])
        called += any(one.p_value < 0.05 for one in found if one.claim.name == "right" and one.way == FAIRNESS[0])
    assert called <= 9


def test_every_claim_names_a_smallest_effect_and_its_arms():
    assert len({claim.name for claim in CLAIMS}) == len(CLAIMS)
    for claim in CLAIMS:
        assert claim.smallest > 0
        assert claim.arms
