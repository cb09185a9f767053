"""Claims on results that were made up so that the answer is known."""

import json
import math
from dataclasses import replace

import pytest
from scipy import stats

from bridgegarden.lab.findings import CLAIMS, Verdict, difference, findings, judge, summaries
from bridgegarden.lab.result import LabResult
from bridgegarden.statistics import Interval
from bridgegarden.study.arms import HYBRIDS
from bridgegarden.study.kept import to_tree
from tests.lab.made_up import made_up_result

MAIN = "small"


def rows(result, claim, *, regime=MAIN, world="arithmetic"):
    """Objective to finding."""
    return {
        row.objective: row for row in findings(result) if (row.claim, row.regime, row.world) == (claim, regime, world)
    }


def summary(result, claim, *, regime=MAIN, world="arithmetic"):
    (found,) = [
        line for line in summaries(findings(result)) if (line.claim, line.regime, line.world) == (claim, regime, world)
    ]
    return found


def changed(**quantities):
    """A result in which the quantity of each objective is what a function of objective and seed says."""

    def change(world, regime, objective, seed, measured):
        return replace(measured, **{name: value(objective, seed) for name, value in quantities.items()})

    return made_up_result(worlds=("arithmetic",), change=change)


@pytest.mark.parametrize(
    ("interval", "side", "verdict"),
    [
        ((0.1, 0.3), 1, Verdict.HOLDS),
        ((0.1, 0.3), -1, Verdict.FAILS),
        ((-0.3, -0.1), -1, Verdict.HOLDS),
        ((-0.3, -0.1), 1, Verdict.FAILS),
        ((-0.1, 0.3), 1, Verdict.OPEN),
        ((-0.1, 0.3), -1, Verdict.OPEN),
        ((0.0, 0.0), 1, Verdict.FAILS),
        ((0.0, 0.0), -1, Verdict.FAILS),
        ((0.0, 0.2), 1, Verdict.OPEN),
    ],
)
def test_the_side_of_zero_decides(interval, side, verdict):
    assert judge(Interval(*interval), side) is verdict


def test_an_effect_is_paired_by_seed_and_its_interval_students():
    result = changed(teacher_loss=lambda name, seed: 10.0**seed + (name == "static") * (seed + 1))
    effect = rows(result, "1")["static"].effect
    paired = stats.ttest_rel([11.0 - 9.0, 3.0 + 9.0, 4.0 + 99.0], [1.0, 10.0, 100.0])
    low, high = paired.confidence_interval(0.95)
    assert effect.mean == pytest.approx(2.0)
    assert effect.interval == pytest.approx((low, high))
    assert effect.seeds == 3


def test_the_corrected_interval_is_wider_for_the_number_of_hybrids():
    result = changed(teacher_loss=lambda name, seed: 10.0**seed + (name == "static") * (seed + 1))
    effect = rows(result, "1")["static"].effect
    stderr = 1 / math.sqrt(3)
    assert effect.corrected.high - effect.mean == pytest.approx(stats.t.ppf(1 - 0.025 / len(HYBRIDS), 2) * stderr)
    assert effect.corrected.high > effect.interval.high


def test_a_hybrid_that_fits_worse_drifts_less_and_errs_more_is_told_as_it_is():
    result = made_up_result()
    assert {row.verdict for row in rows(result, "1").values()} == {Verdict.HOLDS}
    less_drift = rows(result, "2")
    assert less_drift["confidence"].verdict is Verdict.HOLDS
    assert less_drift["curriculum"].verdict is Verdict.FAILS
    assert {row.verdict for row in rows(result, "4").values()} == {Verdict.FAILS}
    assert summary(result, "2").verdict is Verdict.HOLDS
    assert summary(result, "2").fails == ("curriculum",)
    assert summary(result, "4").verdict is Verdict.FAILS


def test_what_varies_more_than_it_differs_is_not_enough_evidence():
    result = changed(exposure_bias=lambda name, seed: 0.5 - 0.1 * (name in HYBRIDS) * math.cos(math.pi * seed))
    assert {row.verdict for row in rows(result, "2").values()} == {Verdict.OPEN}
    assert summary(result, "2").verdict is Verdict.OPEN
    assert set(summary(result, "2").open) == set(HYBRIDS)


def test_one_lucky_hybrid_does_not_carry_the_claim_past_its_corrected_interval():
    """At three seeds and five hybrids t must exceed 9.92, uncorrected 4.30."""
    values = {0: 0.07, 1: 0.10, 2: 0.13}
    result = changed(exposure_bias=lambda name, seed: 1.0 - (name == "static") * values[seed])
    row = rows(result, "2")["static"]
    assert row.verdict is Verdict.HOLDS
    assert row.effect.corrected.high > 0
    assert summary(result, "2").verdict is Verdict.OPEN


def test_one_seed_is_never_enough():
    result = made_up_result(seeds=(0,))
    assert {row.verdict for row in findings(result)} == {Verdict.OPEN}
    assert all(row.effect.interval is None for row in findings(result))


def test_the_lowest_inference_loss_must_be_below_every_pure_one():
    losses = {"soft": 3.0, "hard": 2.0, "hard_data": 2.5, "confidence": 1.0, "static": 2.2}
    result = changed(student_loss=lambda name, seed: losses.get(name, 9.0) + 0.01 * seed * (name == "hard"))
    found = rows(result, "4")
    assert found["confidence"].verdict is Verdict.HOLDS
    assert found["confidence"].reference == "hard"
    assert found["static"].verdict is Verdict.FAILS
    assert found["static"].reference == "hard"
    assert found["entropy"].effect.mean == pytest.approx(9.0 - 2.01)


def test_constant_weights_of_the_sweep_decide_nothing():
    assert {row.objective for row in findings(made_up_result())} == {*HYBRIDS, "hard", "soft"}


def test_theorem_rows_compare_hard_with_soft_at_each_role():
    def change(world, regime, objective, seed, measured):
        bridge, garden = {"hard": (0.1, 9.0), "soft": (0.6, 0.1)}.get(objective, (0.3, 0.3))
        return replace(
            measured,
            teacher_loss_by_role={"bridge": 2 * bridge, "garden": garden, "forced": 0.0},
            exposure_bias_by_role={"bridge": bridge, "garden": 0.0, "forced": 0.0},
        )

    result = made_up_result(worlds=("arithmetic",), change=change)
    at_bridges, at_gardens = rows(result, "3a")["hard"], rows(result, "3b")["hard"]
    assert at_bridges.effect.mean == pytest.approx(3 * (0.1 - 0.6))
    assert at_gardens.effect.mean == pytest.approx(9.0 - 0.1)
    assert (at_bridges.verdict, at_gardens.verdict) == (Verdict.HOLDS, Verdict.HOLDS)
    assert rows(result, "3a-drift")["hard"].effect.mean == pytest.approx(-0.5)
    assert rows(result, "3a-fit")["hard"].effect.mean == pytest.approx(2 * (0.1 - 0.6) / 5.0)
    assert {row.claim for row in findings(result) if row.supports == "3a"} == {"3a-drift", "3a-fit"}


def test_rows_that_support_are_in_no_summary():
    assert {line.claim for line in summaries(findings(made_up_result()))} == {
        "1", "2", "3a", "3b", "4", "5a", "5b", "6",
    }  # fmt: skip


def test_a_correlation_that_does_not_exist_is_not_enough_evidence():
    row = rows(made_up_result(), "5b-weighted-choices")["soft"]
    assert row.effect.mean is None
    assert row.verdict is Verdict.OPEN
    assert rows(made_up_result(), "5a")["soft"].verdict is Verdict.HOLDS


def test_only_the_control_has_claim_six_and_it_is_the_opposite():
    result = made_up_result()
    found = findings(result)
    assert {row.world for row in found if row.claim.startswith("6")} == {"control"}
    opposite = {Verdict.HOLDS: Verdict.FAILS, Verdict.FAILS: Verdict.HOLDS, Verdict.OPEN: Verdict.OPEN}
    for claim in ("1", "2", "3a", "3b", "4"):
        there, absent = (rows(result, name, world="control") for name in (claim, f"6: {claim}"))
        assert {name: opposite[row.verdict] for name, row in there.items()} == {
            name: row.verdict for name, row in absent.items()
        }
    assert summary(result, "6", world="control").verdict is Verdict.FAILS
    assert "1 (static)" in summary(result, "6", world="control").fails


def test_effects_too_small_to_matter_are_absent_on_the_control():
    """Everything alike but for half a per cent, in the claimed direction every time."""

    def change(world, regime, objective, seed, measured):
        off = 1e-3 * (objective in HYBRIDS) * (1 + 0.1 * seed)
        zero = dict.fromkeys(("bridge", "garden", "forced"), 0.0)
        return replace(
            measured,
            teacher_loss=1.0 + off,
            exposure_bias=0.1 - off,
            student_loss=1.1 - off,
            teacher_loss_by_role=zero,
            exposure_bias_by_role=zero,
        )

    result = made_up_result(worlds=("control",), change=change)
    assert rows(result, "2", world="control")["static"].verdict is Verdict.HOLDS
    assert summary(result, "6", world="control").verdict is Verdict.HOLDS


def test_less_exposure_bias_never_stands_alone():
    for row in findings(made_up_result()):
        if row.reference is not None:
            assert set(row.beside) == {"student_loss", "success", "violation", "diversity"}
    row = rows(made_up_result(), "2")["confidence"]
    assert row.beside["student_loss"].mean > 0
    assert row.beside["success"].interval.low > 0


def test_a_claim_whose_reference_was_not_run_is_left_out():
    result = made_up_result(settings={"objectives": ("hard", "static")}, sweep=False)
    assert {row.claim for row in findings(result) if row.supports is None and row.world == "arithmetic"} == {"4"}


def test_a_claim_about_bridges_is_left_out_where_there_are_none():
    def change(world, regime, objective, seed, measured):
        visits = {**measured.teacher_visits_by_role, "bridge": 0.0 if world == "control" else 5.0}
        return replace(measured, teacher_visits_by_role=visits)

    found = {(row.world, row.claim) for row in findings(made_up_result(change=change))}
    assert ("arithmetic", "3a") in found
    assert ("control", "3b") in found
    assert not {claim for world, claim in found if world == "control" and "3a" in claim}


def test_difference_against_nothing_is_the_quantity_itself():
    effect = difference(made_up_result(), "arithmetic", MAIN, "soft", None, lambda measured: measured.length)
    assert effect.mean == pytest.approx(17.2)
    assert effect.interval == pytest.approx((17.2, 17.2))


def test_findings_can_be_written_as_json():
    text = json.dumps(to_tree(findings(made_up_result())), allow_nan=False)
    assert '"does not hold"' in text


def test_a_result_survives_json():
    result = made_up_result()
    assert LabResult.from_dict(json.loads(json.dumps(result.to_dict(), allow_nan=False))) == result


def test_every_claim_is_about_something_that_is_trained():
    for claim in CLAIMS.values():
        assert claim.objectives
        assert claim.supports is None or claim.supports in CLAIMS
