import math
import random
from dataclasses import replace
from functools import cache, partial
from statistics import stdev

import pytest
from scipy.stats import t as student_t

from bridgegarden.compare.findings import (
    all_differences,
    best,
    called,
    claims,
    difference,
    mean_of,
    price,
    qualities,
    sentences,
    summary,
)
from bridgegarden.compare.report import difference_table
from bridgegarden.compare.result import CompareRun
from bridgegarden.statistics import paired_difference
from tests.compare.made_up import made_up_result

RESULT = made_up_result()


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch):
    """Of hundreds of pages: enough for a share of pages, which is all that is asked of them."""
    fewer = partial(paired_difference, resamples=500)
    monkeypatch.setattr("bridgegarden.compare.findings.paired_difference", fewer)


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


@pytest.mark.parametrize(
    ("quantity", "ends"), [("sampled", (0.0, 1.0)), ("accepted", (0.0, 1.0)), ("student_loss", None)]
)
def test_a_share_is_said_to_lie_between_0_and_1_however_far_apart_two_seeds_are(quantity, ends):
    """Student's t of one degree of freedom is 13 standard errors wide; a loss may be below zero by it."""
    result = with_runs(lambda run: rescored(run, quantity, {str(i): float(i < 5 + 10 * run.seed) for i in range(20)}))
    result = replace(result, runs=tuple(run for run in result.runs if run.seed < 2))
    interval = summary(result, "soft", quantity).interval
    assert interval == ends if ends else interval.low < 0 and interval.high > 1


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


@cache
def equal(seed):
    """A comparison in which every objective is as good as every other, and none drifts."""
    draw = random.Random(seed)

    def drawn(run):
        right = {q: {f"sums/sums/{i}": float(draw.random() < 0.6) for i in range(60)} for q in ("sampled", "greedy")}
        teacher, student = ({str(i): draw.gauss(2, 1) for i in range(30)} for _ in range(2))
        bias = {prompt: student[prompt] - teacher[prompt] for prompt in teacher}
        losses = {"teacher_loss": teacher, "student_loss": student, "exposure_bias": bias}
        return replace(run, measured=replace(run.measured, by_unit={**right, **losses}))

    return with_runs(drawn)


def calls(result) -> int:
    """How much the page calls."""
    return sum(called(result, *claim) != 0 for claim in claims(result))


def test_where_all_are_equal_a_page_hardly_ever_calls_anything():
    alone = 0
    pages = [equal(seed) for seed in range(40)]
    assert sum(calls(page) > 0 for page in pages) <= 4
    for page in pages:
        alone += any(found["interval"][0] > 0 or found["interval"][1] < 0 for found in all_differences(page))
    assert alone >= 4, "each on its own, one page in ten would call something"


@pytest.mark.slow
def test_where_all_are_equal_one_page_in_twenty_calls_anything():
    assert sum(calls(equal(seed)) > 0 for seed in range(120)) <= 0.07 * 120


SIX = ("hard", "soft", "static", "confidence", "entropy", "gkd")


def trained_apart(seed, *, better=0.0, wilder=1.0):
    """Six objectives with three seeds each, whose loss on their own texts varies by 1 with the seed: the first has less
    by `better`, and varies `wilder` times as much."""
    draw = random.Random(seed)
    common = {number: draw.gauss(0, 1) for number in range(3)}
    rows = {name: replace(RESULT.rows["soft"], label=name) for name in SIX}
    runs = []
    for name in SIX:
        for run in RESULT.runs[:3]:
            first = name == SIX[0]
            level = 10 + common[run.seed] + (wilder if first else 1.0) * draw.gauss(0, 1) - better * first
            losses = {str(prompt): level + 0.1 * draw.gauss(0, 1) for prompt in range(12)}
            same = {quantity: {"sums/sums/0": 0.5, "sums/sums/1": 0.5} for quantity in ("sampled", "greedy")}
            by_unit = {
                **same,
                "teacher_loss": losses,
                "student_loss": losses,
                "exposure_bias": dict.fromkeys(losses, 0.0),
            }
            measured = replace(run.measured, by_unit=by_unit)
            runs.append(replace(run, objective=name, measured=measured))
    settings = replace(RESULT.settings, objectives=SIX, baseline=SIX[0])
    return replace(RESULT, settings=settings, rows=rows, runs=tuple(runs))


def calls_of_the_first(**how) -> int:
    """Of 40 pages with five comparisons of the first objective each, how many are called."""
    pages = [trained_apart(seed, **how) for seed in range(40)]
    return sum(called(page, SIX[0], name, "student_loss") != 0 for page in pages for name in SIX[1:])


@pytest.mark.slow
def test_all_objectives_together_tell_what_three_seeds_of_two_cannot(monkeypatch):
    """Four standard deviations of a seed."""
    assert calls_of_the_first(better=4.0) >= 0.4 * 200
    monkeypatch.setattr("bridgegarden.compare.findings._spread", lambda result, quantity: None)
    assert calls_of_the_first(better=4.0) <= 0.25 * 200


@pytest.mark.slow
def test_an_objective_whose_seeds_vary_more_than_the_others_is_seldom_called():
    pages = [trained_apart(seed, wilder=3.0) for seed in range(40)]
    assert sum(calls(page) > 0 for page in pages) <= 4


def test_an_objective_whose_seeds_vary_more_than_the_others_keeps_its_own_spread():
    page = trained_apart(0, wilder=20.0)
    found = difference(page, SIX[0], "soft", "student_loss")
    first, second = (summary(page, name, "student_loss").by_seed for name in (SIX[0], "soft"))
    own = stdev(a - b for a, b in zip(first, second, strict=True))
    width = 2 * student_t.ppf(0.975, (len(SIX) - 1) * (3 - 1)) * own / math.sqrt(3)
    assert found.interval.high - found.interval.low == pytest.approx(width, rel=0.15)


def test_a_real_effect_is_called_for_all_that_the_page_claims():
    assert len(claims(RESULT)) == 3 * 2 + 2 * 2 + 3
    assert called(RESULT, "confidence", "soft", "sampled") == 1
    assert called(RESULT, "soft", "confidence", "sampled") == -1
    assert called(RESULT, "soft", "gkd", "sampled") == 0
    assert best(RESULT, "sampled") == "confidence"
    assert "for all 13 comparisons of this page together" in " ".join(sentences(RESULT))


@pytest.mark.slow
def test_what_only_its_own_interval_would_call_is_said_to_be_open():
    told = [" ".join(sentences(equal(seed))) for seed in range(40)]
    open_ones = [text for text in told if "would be called on their own and are open; more seeds than 3 tell" in text]
    assert 4 <= len(open_ones) < 40


def test_the_table_calls_what_is_called_and_nothing_else():
    cells = [cell for row in difference_table(RESULT).rows for cell in row[1:]]
    told = [cell.beside.split(", ")[-1] for cell in cells]
    base = RESULT.settings.baseline
    others = [name for name in RESULT.objectives if name != base]
    words = ("open", "higher", "lower")
    quantities = ("sampled", "greedy", "student_loss", "exposure_bias")
    assert told == [words[called(RESULT, name, base, quantity)] for name in others for quantity in quantities]
    assert "for all 13 comparisons" in difference_table(RESULT).note


def test_nothing_is_said_of_what_nothing_beats():
    assert "nothing is better" not in " ".join(sentences(RESULT))


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
