from dataclasses import replace

import pytest

from bridgegarden.compare.findings import (
    all_differences,
    beats,
    best,
    difference,
    frontier,
    mean_of,
    price,
    qualities,
    summary,
)
from bridgegarden.compare.result import CompareRun
from tests.compare.made_up import made_up_result

RESULT = made_up_result()


def with_runs(change, result=RESULT):
    return replace(result, runs=tuple(change(run) for run in result.runs))


def rescored(run, quantity, values):
    return replace(run, measured=replace(run.measured, by_unit={**run.measured.by_unit, quantity: values}))


def failed(run):
    return CompareRun(objective=run.objective, seed=run.seed, spent=None, measured=None, failure="loss is nan")


def test_a_mean_is_over_seeds_of_the_means_over_problems():
    found = summary(RESULT, "soft", "sampled")
    by_hand = [sum(run.measured.by_unit["sampled"].values()) / 80 for run in RESULT.runs if run.objective == "soft"]
    assert found.by_seed == pytest.approx(by_hand)
    assert found.value == pytest.approx(sum(by_hand) / 3)
    assert found.interval.low < found.value < found.interval.high


def test_every_task_counts_the_same_however_many_problems_it_has():
    scores = {**{f"many/many/{i}": 1.0 for i in range(90)}, **{f"few/few/{i}": 0.0 for i in range(10)}}
    result = with_runs(lambda run: rescored(run, "sampled", scores))
    assert summary(result, "soft", "sampled").value == pytest.approx(0.5)
    assert mean_of(result.runs[0], "sampled") == pytest.approx(0.5)


def test_a_difference_is_called_only_where_its_interval_leaves_zero_out():
    called = difference(RESULT, "confidence", "soft", "sampled")
    open_ = difference(RESULT, "soft", "gkd", "sampled")
    assert called.verdict == "first"
    assert called.interval.low > 0
    assert open_.verdict is None
    assert open_.interval.low < 0 < open_.interval.high


def test_differences_are_kept_for_every_pair_and_quantity():
    pairs = {(found["first"], found["second"]) for found in all_differences(RESULT)}
    assert pairs == {("soft", "confidence"), ("soft", "gkd"), ("confidence", "gkd")}
    assert len(all_differences(RESULT)) == 3 * 5


def test_what_reads_the_cache_carries_its_share_and_nothing_else_does():
    soft, gkd = price(RESULT, "soft"), price(RESULT, "gkd")
    assert soft.flops == pytest.approx(1e11 + 1.2e11 / 6)
    assert soft.flops_alone == pytest.approx(1e11 + 1.2e11)
    assert (soft.seconds, soft.seconds_alone) == pytest.approx((20 + 12 / 6, 20 + 12))
    assert gkd == (4e11, 4e11, 200.0, 200.0)


def test_hard_labels_of_the_data_pay_nothing_for_the_teacher():
    rows = {**RESULT.rows, "soft": replace(RESULT.rows["soft"], asks_teacher=False)}
    assert price(replace(RESULT, rows=rows), "soft").flops == 1e11


def test_where_students_were_on_a_gpu_time_is_on_the_clock():
    result = replace(RESULT, pair=replace(RESULT.pair, device="cuda"))
    assert price(result, "soft").seconds == pytest.approx(22 + 18 / 6)


def test_one_objective_beats_another_if_it_is_better_and_costs_no_more():
    assert beats(RESULT, "confidence", "soft", "sampled")
    assert beats(RESULT, "confidence", "gkd", "sampled")
    assert not beats(RESULT, "soft", "confidence", "sampled")
    assert not beats(RESULT, "soft", "gkd", "sampled")
    assert frontier(RESULT, "sampled") == ("confidence",)
    assert best(RESULT, "sampled") == "confidence"


def test_a_better_one_that_costs_more_beats_nothing():
    dearer = with_runs(
        lambda run: replace(run, spent=replace(run.spent, flops=9e11)) if run.objective == "confidence" else run
    )
    assert not beats(dearer, "confidence", "soft", "sampled")
    assert set(frontier(dearer, "sampled")) == {"soft", "confidence", "gkd"}


def test_a_training_that_failed_is_left_out_and_its_objective_goes_on_with_the_other_seeds():
    result = with_runs(lambda run: failed(run) if (run.objective, run.seed) == ("soft", 1) else run)
    assert result.objectives == RESULT.objectives
    assert len(summary(result, "soft", "sampled").by_seed) == 2
    assert difference(result, "soft", "gkd", "sampled").seeds == 2
    gone = with_runs(lambda run: failed(run) if run.objective == "soft" else run)
    assert gone.objectives == ("confidence", "gkd")


def test_without_tasks_there_are_no_qualities():
    def strip(run):
        kept = {name: values for name, values in run.measured.by_unit.items() if "loss" in name or "bias" in name}
        return replace(run, measured=replace(run.measured, by_unit=kept))

    assert qualities(RESULT) == ("sampled", "greedy")
    assert qualities(with_runs(strip)) == ()
