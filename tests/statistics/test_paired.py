import math

import numpy as np
import pytest
from scipy.stats import t as student_t

from bridgegarden.errors import DataError
from bridgegarden.statistics import SeedSpread, paired_difference


def scores(table):
    """One mapping a seed from an (S, P) array."""
    return [dict(enumerate(map(float, row))) for row in table]


def coverage(seeds, problems, seed_sd, problem_sd, noise_sd, simulations=200):
    """How often the interval holds the true difference, 0.1."""
    generator = np.random.default_rng(3)
    held = 0
    for _ in range(simulations):
        table = 0.1 + seed_sd * generator.standard_normal((seeds, 1))
        table = table + problem_sd * generator.standard_normal((1, problems))
        table = table + noise_sd * generator.standard_normal((seeds, problems))
        low, high = paired_difference(scores(table), scores(0 * table), resamples=600).interval
        held += low <= 0.1 <= high
    return held / simulations


@pytest.mark.parametrize(
    ("seeds", "problems", "seed_sd", "problem_sd", "noise_sd"),
    [(1, 60, 0, 1, 0), (1, 12, 0, 1, 0), (3, 60, 0.5, 1, 0.5), (5, 60, 0.1, 1, 0.5), (3, 60, 0.3, 0, 0.5)],
)
def test_the_interval_over_seeds_and_problems_holds_the_truth_as_often_as_it_says(
    seeds, problems, seed_sd, problem_sd, noise_sd
):
    # 200 simulations have a standard error of 1.5 points; without the corrections three seeds give 0.8 and less.
    assert coverage(seeds, problems, seed_sd, problem_sd, noise_sd) >= 0.905


def test_two_equal_systems_are_seldom_told_apart():
    generator = np.random.default_rng(4)
    called = 0
    for _ in range(200):
        first, second = (generator.random((1, 100)) < 0.6 for _ in range(2))
        called += paired_difference(scores(first), scores(second), resamples=600).verdict is not None
    assert called / 200 < 0.095


def test_pairing_finds_what_unpaired_errors_would_hide():
    generator = np.random.default_rng(0)
    second = generator.random(400) < 0.5
    first = second | (generator.random(400) < 0.06)
    found = paired_difference(scores([first]), scores([second]))
    unpaired = np.sqrt(first.var() / 400 + second.var() / 400)
    assert found.verdict == "first"
    assert found.mean < 1.96 * unpaired


@pytest.mark.parametrize("seeds", [1, 3, 5])
def test_a_p_value_says_what_the_interval_says(seeds):
    generator = np.random.default_rng(5)
    sides = set()
    for _ in range(40):
        table = 0.15 * generator.random() + 0.05 * generator.standard_normal((seeds, 1))
        table = table + 0.3 * generator.standard_normal((seeds, 40))
        found = paired_difference(scores(table), scores(0 * table))
        if abs(found.p - 0.05) > 0.01:
            sides.add(found.verdict is not None)
            assert (found.p < 0.05) == (found.verdict is not None)
    assert sides == {True, False}


def test_the_spread_of_all_systems_is_what_systems_and_seeds_do_not_explain():
    generator = np.random.default_rng(7)
    table = generator.standard_normal((4, 3))
    parts = np.array(
        [[float(o == i) for i in range(4)] + [float(s == j) for j in range(3)] for o in range(4) for s in range(3)]
    )
    fitted = parts @ np.linalg.lstsq(parts, table.ravel(), rcond=None)[0]
    found = SeedSpread.over(table.tolist())
    assert found is not None
    assert found.freedom == 12 - np.linalg.matrix_rank(parts) == 6
    assert found.variance == pytest.approx(((table.ravel() - fitted) ** 2).sum() / 6)
    assert SeedSpread.over(table[:1].tolist()) is SeedSpread.over(table[:, :1].tolist()) is SeedSpread.over([]) is None


def test_two_systems_alone_say_of_their_spread_what_their_differences_say():
    first, second = np.random.default_rng(8).standard_normal((2, 3, 40))
    alone = paired_difference(scores(first), scores(second))
    together = paired_difference(
        scores(first), scores(second), of_all=SeedSpread.over([first.mean(1).tolist(), second.mean(1).tolist()])
    )
    assert together.p == pytest.approx(alone.p)
    assert together.interval == pytest.approx(alone.interval)


def test_other_systems_narrow_an_interval_and_a_pair_that_varies_more_keeps_its_own_spread():
    generator = np.random.default_rng(9)
    table = 0.1 * generator.standard_normal((6, 3))
    table[1] = table[0] + [0.99, 1.0, 1.02]
    first, second = (np.repeat(table[i][:, None], 20, 1) for i in (1, 0))
    steady = paired_difference(scores(first), scores(second), of_all=SeedSpread(0.01, 10))
    assert steady.interval.high - steady.interval.low == pytest.approx(
        2 * student_t.ppf(0.975, 10) * math.sqrt(2 * 0.01 / 3), rel=0.1
    )
    wild = np.repeat(np.array([0.0, 3.0, -3.0])[:, None], 20, 1)
    varied = paired_difference(scores(wild), scores(0 * wild), of_all=SeedSpread(0.01, 10))
    assert varied.interval.high - varied.interval.low == pytest.approx(
        2 * student_t.ppf(0.975, 10) * 3 / math.sqrt(3), rel=0.1
    )


def test_a_large_difference_has_a_p_value_that_many_comparisons_leave_small():
    """Counted among the draws it would be one of 4,000 at least, and nothing would hold among a hundred comparisons."""
    generator = np.random.default_rng(6)
    table = 1 + 0.01 * generator.standard_normal((5, 200))
    for seeds in (1, 5):
        assert paired_difference(scores(table[:seeds]), scores(0 * table[:seeds])).p < 1e-5


def test_swapping_the_systems_mirrors_everything():
    generator = np.random.default_rng(1)
    first, second = generator.random((2, 3, 50))
    one, other = paired_difference(scores(first), scores(second)), paired_difference(scores(second), scores(first))
    assert one.mean == pytest.approx(-other.mean)
    assert one.interval.low == pytest.approx(-other.interval.high, abs=0.02)
    assert one.wins + other.wins + one.ties == pytest.approx(1)
    assert one.p == pytest.approx(other.p, abs=0.02)


def test_ties_are_counted_and_a_difference_of_nothing_is_not_called():
    table = np.array([[1, 0, 1, 1]])
    same = paired_difference(scores(table), scores(table))
    assert (same.mean, same.ties, same.wins, same.verdict) == (0, 1, 0, None)
    differs = paired_difference(scores(table), scores(np.array([[1, 1, 1, 0]])))
    assert (differs.ties, differs.wins, differs.verdict) == (0.5, 0.25, None)


def test_a_sure_difference_is_called_in_either_direction():
    table = np.linspace(0, 1, 40)[None]
    assert paired_difference(scores(table + 0.5), scores(table)).verdict == "first"
    assert paired_difference(scores(table), scores(table + 0.5)).verdict == "second"


def test_seeds_that_disagree_widen_the_interval_though_problems_are_many():
    generator = np.random.default_rng(2)
    shifts = np.array([[-0.2], [0.1], [0.4]])
    table = shifts + 0.1 * generator.standard_normal((3, 2000))
    found = paired_difference(scores(table), scores(0 * table))
    assert found.verdict is None
    # Student's interval with two degrees of freedom, of the three means
    half = 4.303 * shifts.std(ddof=1) / np.sqrt(3)
    assert found.interval.high - found.interval.low == pytest.approx(2 * half, rel=0.1)


def test_problems_that_every_seed_has_for_itself_are_part_of_the_spread_between_seeds():
    generator = np.random.default_rng(5)
    table = generator.standard_normal((4, 30))
    own = [{(seed, problem): value for problem, value in enumerate(row)} for seed, row in enumerate(table)]
    found = paired_difference(own, [dict.fromkeys(seed, 0.0) for seed in own])
    half = 3.182 * table.mean(1).std(ddof=1) / 2
    assert found.interval.high - found.interval.low == pytest.approx(2 * half, rel=0.1)


def test_the_same_scores_give_the_same_interval():
    table = np.random.default_rng(6).random((2, 20))
    first, second = scores(table), scores(table[::-1])
    assert paired_difference(first, second) == paired_difference(first, second)


@pytest.mark.parametrize(
    ("first", "second", "match"),
    [
        ([], [], "0 seeds of the first system and 0 of the second"),
        ([{1: 1.0, 2: 0.0}], [], "1 seeds of the first system and 0"),
        ([{1: 1.0, 2: 0.0}], [{1: 1.0, 3: 0.0}], "2 problems have the score of one system only"),
        ([{1: 1.0}], [{1: 1.0}], "1 problem; expected at least 2"),
        ([{1: 1.0, 2: float("nan")}], [{1: 1.0, 2: 0.0}], "not finite"),
        ([{1: 1.0, 2: 0.0}, {2: 1.0, 3: 0.0}], [{1: 1.0, 2: 0.0}, {2: 1.0, 3: 0.0}], "share some of their problems"),
    ],
)
def test_what_cannot_be_compared_is_refused(first, second, match):
    with pytest.raises(DataError, match=match):
        paired_difference(first, second)


@pytest.mark.parametrize(("first", "second"), [(1, 1), (0, 0), (1, 0), (0, 1)])
def test_problems_that_came_out_alike_leave_room_for_unlike_ones(first, second):
    problems = 8
    found = paired_difference(scores(np.full((2, problems), first)), scores(np.full((2, problems), second)))
    # Of 8 problems none was unlike; that has a chance of 2.5 % where the share of unlike ones is this.
    unseen = 1 - 0.025 ** (1 / problems)
    truth = first - second
    expected = {0: (-unseen, unseen), 1: (1 - 2 * unseen, 1.0), -1: (-1.0, 2 * unseen - 1)}[truth]
    assert found.mean == truth
    assert found.interval == pytest.approx(expected)


def test_losses_that_are_the_same_everywhere_differ_by_nothing():
    table = np.array([[0.3, 0.7, 0.2]])
    assert paired_difference(scores(table), scores(table)).interval == (0, 0)
