import math
import pickle
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu, spearmanr
from scipy.stats import t as student_t

from bridgegarden.errors import DataError
from bridgegarden.exact import Role
from bridgegarden.statistics import (
    Bootstrapped,
    Effect,
    Estimate,
    Interval,
    SeedSpread,
    auc,
    corrected,
    decide,
    exact_share,
    holm,
    paired_difference,
    pooled,
    resampled,
    spearman,
    to_plain,
)

COLUMNS = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3), st.integers(1, 4)), min_size=3, max_size=12)


def test_the_standard_error_is_that_of_the_mean():
    values = [1.0, 2.0, 4.0, 9.0]
    spread = math.sqrt(sum((value - 4) ** 2 for value in values) / 3)
    assert Estimate.over(values) == pytest.approx((4.0, spread / 2, 4))


def test_integers_and_booleans_are_shares():
    assert Estimate.over(torch.tensor([True, False])) == Estimate.over([1.0, 0.0])


@pytest.mark.parametrize("values", [[], [3.0]])
def test_the_spread_of_fewer_than_two_values_is_not_made_up(values):
    with pytest.raises(DataError, match=f"got {len(values)} value.*at least 2"):
        Estimate.over(values)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_refused(bad):
    with pytest.raises(DataError, match="1 of 3 values are not finite"):
        Estimate.over([1.0, bad, 2.0])


def test_the_stated_error_is_the_spread_over_repetitions():
    draws = torch.randn(4000, 25, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    estimates = [Estimate.over(row) for row in draws]
    means = torch.tensor([estimate.mean for estimate in estimates])
    stated = torch.tensor([estimate.stderr for estimate in estimates]).square().mean().sqrt()
    assert stated == pytest.approx(means.std().item(), rel=0.05)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    draws = torch.randn(4000, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    intervals = [Estimate.over(row).interval(0.95) for row in draws]
    assert sum(low <= 0 <= high for low, high in intervals) / 4000 == pytest.approx(0.95, abs=0.014)


def test_a_ratio_is_that_of_the_means():
    above, below = torch.tensor([1.0, 5.0]), torch.tensor([2.0, 4.0])
    assert Estimate.ratio(above, below).mean == 1.0


def test_a_constant_ratio_has_no_error():
    below = torch.tensor([1.0, 2.0, 5.0])
    assert Estimate.ratio(0.25 * below, below) == pytest.approx((0.25, 0.0, 3))


def test_the_error_of_a_ratio_is_its_spread_over_repetitions():
    generator = torch.Generator().manual_seed(2)
    below = 2 + torch.rand(2000, 50, generator=generator, dtype=torch.float64)
    above = below + torch.randn(2000, 50, generator=generator, dtype=torch.float64)
    estimates = [Estimate.ratio(a, b) for a, b in zip(above, below, strict=True)]
    spread = torch.tensor([estimate.mean for estimate in estimates]).std().item()
    assert sum(estimate.stderr for estimate in estimates) / 2000 == pytest.approx(spread, rel=0.05)


def test_a_ratio_needs_pairs_and_something_to_divide_by():
    with pytest.raises(DataError, match="2 values to 3"):
        Estimate.ratio([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(DataError, match="denominator has mean 0"):
        Estimate.ratio([1.0, 2.0], [-1.0, 1.0])


@pytest.mark.parametrize(
    ("freedom", "tabled"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042), (999, 1.962)]
)
def test_intervals_are_as_wide_as_the_tables_say(freedom, tabled):
    assert Estimate(0.0, 1.0, freedom + 1).interval().high == pytest.approx(tabled, rel=2e-3)


def test_an_estimate_travels_between_processes():
    estimate = Estimate(1.0, 0.5, 10)
    assert pickle.loads(pickle.dumps(estimate)) == estimate


@pytest.mark.parametrize(("successes", "n"), [(0, 5), (5, 5), (1, 5), (3, 40), (0, 1)])
def test_an_exact_interval_of_a_share_ends_where_what_was_seen_is_as_rare_as_allowed(successes, n):
    low, high = exact_share(successes, n)

    def at_least(share):
        return sum(math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(successes, n + 1))

    def at_most(share):
        return sum(math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(successes + 1))

    assert low == 0 if successes == 0 else at_least(low) == pytest.approx(0.025)
    assert high == 1 if successes == n else at_most(high) == pytest.approx(0.025)


def test_a_share_that_varies_has_the_interval_of_a_mean_and_one_that_does_not_the_exact_one():
    varied = Estimate.over([0.0, 1.0, 1.0])
    assert varied.share_interval() == varied.interval()
    alike = Estimate.over([0.0] * 5)
    assert alike.interval() == (0, 0)
    assert alike.share_interval() == exact_share(0, 5)
    assert alike.share_interval().high == pytest.approx(1 - 0.025 ** (1 / 5))


@pytest.mark.parametrize(("ends", "side"), [((0.1, 0.4), 1), ((-0.4, -0.1), -1), ((-0.1, 0.4), 0), ((0.0, 0.4), 0)])
def test_an_interval_lies_beside_a_value_only_if_it_leaves_it_out(ends, side):
    assert Interval(*ends).side() == side
    assert Interval(ends[0] + 0.5, ends[1] + 0.5).side(0.5) == side


def test_differences_of_few_prompts_are_called_as_often_as_chance_allows():
    # The percentiles of a bootstrap call 15 %.
    draws = torch.randn(4000, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    called = sum(Estimate.over(row).interval().side() != 0 for row in draws) / 4000
    assert called == pytest.approx(0.05, abs=0.014)


def test_corrected_intervals_all_hold_as_often_as_one_that_is_not():
    assert corrected(0.95, 1) == pytest.approx(0.95)
    draws = torch.randn(2000, 5, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    effects = [[Effect.over(seeds, tests=5) for seeds in family] for family in draws.tolist()]
    alone = sum(any(one.interval.side() for one in family) for family in effects) / 2000
    together = sum(any(one.corrected.side() for one in family) for family in effects) / 2000
    assert alone > 0.19
    assert together < 0.065


def test_an_effect_exists_only_where_every_seed_has_it():
    nothing = Effect(mean=None, interval=None, corrected=None, seeds=2)
    assert Effect.over([1.0, None]) == Effect.over([None, None]) == nothing
    assert Effect.over([0.5]) == Effect(mean=0.5, interval=None, corrected=None, seeds=1)
    assert Effect.over([0.5, 1.5]).interval == Estimate.over([0.5, 1.5]).interval()


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


def value_of(statistic, *columns):
    """Of one weighted sample."""
    found = statistic(*columns).item()
    return None if math.isnan(found) else found


@given(COLUMNS)
def test_whole_weights_are_repetitions(rows):
    first, second, weight = (torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True))
    times = weight.long()
    one, other = first.repeat_interleave(times), second.repeat_interleave(times)
    got = value_of(spearman, first, second, weight)
    if one.unique().numel() == 1 or other.unique().numel() == 1:
        assert got is None
    else:
        assert abs(got - spearmanr(one.numpy(), other.numpy()).statistic) < 1e-12


@given(COLUMNS, st.floats(0.1, 10.0))
def test_only_ranks_and_relative_weights_count(rows, factor):
    first, second, weight = (torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True))
    got, scaled = value_of(spearman, first, second, weight), value_of(spearman, first.exp(), second, factor * weight)
    assert (got is None and scaled is None) or abs(got - scaled) < 1e-12


def test_a_rank_correlation_is_one_for_any_growing_function_and_minus_one_for_any_falling_one():
    values, weight = torch.tensor([0.1, 2.0, -3.0, 0.5]).double(), torch.tensor([1.0, 2.5, 0.1, 3.0]).double()
    assert spearman(values, values.exp(), weight) == pytest.approx(1.0)
    assert spearman(values, -values.pow(3), weight) == pytest.approx(-1.0)


def test_rounding_makes_no_ranks():
    """Kappa of forced positions is 0 but for the last digit; that must not order them."""
    noise = 1e-16 * torch.tensor([1.0, -1.0, 2.0, 0.0, 0.0]).double()
    first = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0]).double()
    rising, once = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]).double(), torch.ones(5).double()
    assert spearman(first + noise, rising, once) == spearman(first, rising, once)
    upper = torch.tensor([True, False, True, False, False])
    assert auc(first + noise, upper, ~upper, once) == auc(first, upper, ~upper, once) == pytest.approx(1 / 3)


def test_rank_statistics_of_many_samples_are_scipys():
    rng = np.random.default_rng(0)
    first, second = (torch.tensor(rng.integers(0, 6, 40)).double() for _ in range(2))
    above, below = torch.arange(40) < 15, torch.arange(40) > 22
    weight = torch.cat([torch.ones(1, 40), torch.tensor(rng.integers(0, 3, (5, 40)))]).double()
    for row, correlation, share in zip(
        weight.long(), spearman(first, second, weight), auc(first, above, below, weight), strict=True
    ):
        at = torch.arange(40).repeat_interleave(row)
        assert correlation == pytest.approx(spearmanr(first[at], second[at]).statistic)
        up, down = first[at][above[at]], first[at][below[at]]
        assert share == pytest.approx(mannwhitneyu(up, down).statistic / (len(up) * len(down)))


def test_rank_statistics_do_not_exist_without_spread_or_without_one_of_the_kinds():
    rising, once = torch.arange(5).double(), torch.ones(5).double()
    one_place = torch.tensor([0.0, 0.0, 3.0, 0.0, 0.0]).double()
    none, every = torch.zeros(5, dtype=torch.bool), torch.ones(5, dtype=torch.bool)
    assert value_of(spearman, torch.ones(5).double(), rising, once) is None
    assert value_of(spearman, rising, rising, one_place) is None
    assert value_of(auc, rising, none, every, once) is None
    nothing = torch.zeros(0, dtype=torch.float64)
    assert value_of(spearman, nothing, nothing, nothing) is None


def test_a_sample_has_the_value_beside_others_that_it_has_alone():
    generator = torch.Generator().manual_seed(5)
    first, second = torch.randn(2, 200, generator=generator, dtype=torch.float64)
    weight = torch.rand(7, 200, generator=generator, dtype=torch.float64)
    alone = [spearman(first, second, row).item() for row in weight]
    assert spearman(first, second, weight).tolist() == pytest.approx(alone, rel=1e-12)


def test_whole_units_are_resampled():
    weight = resampled([3, 3, 9, 4, 9, 9], torch.Generator().manual_seed(0), 500)
    assert weight.shape == (501, 6)
    assert (weight[0] == 1).all()
    assert (weight[:, 0] == weight[:, 1]).all()
    assert (weight[:, 2] == weight[:, 4]).all()
    assert (weight[:, [0, 2, 3]].sum(1) == 3).all()
    assert weight.mean(0).tolist() == pytest.approx([1.0] * 6, abs=0.1)


def test_a_resampled_statistic_without_anything_to_show_is_seldom_called():
    rng, called = np.random.default_rng(6), 0
    for seed in range(300):
        units = np.repeat(np.arange(8), 4)
        first, second = (torch.tensor(rng.normal(size=8)[units] + rng.normal(size=32)) for _ in range(2))
        weight = resampled(units.tolist(), torch.Generator().manual_seed(seed), 200)
        called += Bootstrapped.of(lambda w, a=first, b=second: spearman(a, b, w), weight, 8).interval.side() != 0
    assert called / 300 < 0.085


def test_a_statistic_that_most_resamples_lack_has_no_interval():
    weight = resampled([0, 1, 2], torch.Generator().manual_seed(0), 100)
    lacking = Bootstrapped.of(lambda w: torch.where(w[:, 0] > 0, w[:, 0], math.nan), weight, 3)
    assert lacking == Bootstrapped(value=1.0, interval=None)
    assert Bootstrapped.of(lambda w: w[:, 0] * math.nan, weight, 3) == Bootstrapped(value=None, interval=None)


@dataclass(frozen=True)
class Found:
    name: str
    parts: tuple
    hidden: object = None


def test_everything_a_result_holds_becomes_plain():
    value = Found("a", (1, math.inf, Role.BRIDGE, Interval(0.0, math.nan), {"x": (True, None)}), hidden=object())
    assert to_plain(value, leave_out=("hidden",)) == {
        "name": "a",
        "parts": [1, None, "bridge", {"low": 0.0, "high": None}, {"x": [True, None]}],
    }


def test_an_estimate_brings_its_interval():
    estimate = Estimate(1.0, 0.5, 9)
    low, high = estimate.interval()
    assert to_plain([estimate]) == [{"mean": 1.0, "stderr": 0.5, "n": 9, "low": low, "high": high}]


def test_a_claim_is_decided_by_where_the_interval_lies_between_nothing_and_what_would_matter():
    def decided(mean, stderr, n=1000):
        return decide(Estimate(mean, stderr, n), 0.1).verdict

    assert decided(0.2, 0.05) == "holds"
    assert decided(0.08, 0.03) == "holds"  # above 0, and it may be as large as what matters
    assert decided(0.05, 0.02) == "does not hold"  # above 0, but too small to matter
    assert decided(0.0, 0.04) == "does not hold"
    assert decided(-0.3, 0.15) == "does not hold"
    assert decided(0.0, 0.06) == "undecided"
    assert decided(0.1, 0.06) == "undecided"


def test_a_claim_is_seldom_called_wrongly_and_with_the_units_it_asks_for_never_undecided():
    rng = np.random.default_rng(3)
    wrong = Counter()
    for _ in range(600):
        for truth, mistake in ((0.0, "holds"), (0.1, "does not hold")):
            first = decide(Estimate.over(rng.normal(truth, 0.5, 20)), 0.1)
            wrong[mistake] += first.verdict == mistake
            assert first.needed > 20
    assert wrong["holds"] / 600 < 0.045
    assert wrong["does not hold"] / 600 < 0.045
    sample = rng.normal(0.06, 0.5, 4000)
    estimate = Estimate.over(sample)
    needed = decide(Estimate(estimate.mean, estimate.stderr * 10, 40), 0.1).needed
    low, high = Estimate(estimate.mean, estimate.stderr * (4000 / needed) ** 0.5, needed).interval()
    assert high - low == pytest.approx(0.1, rel=0.05)


def test_places_of_equal_precision_pool_to_the_t_test_on_their_means():
    means = torch.tensor([0.1, 0.4, -0.2, 0.9])
    together, between = pooled([Estimate(mean, 0.05, 10) for mean in means.tolist()])
    expected = Estimate.over(means)
    assert together == pytest.approx(expected)
    assert between == pytest.approx((means.var().item() - 0.05**2) ** 0.5)
    assert pooled([Estimate(mean, 3.0, 10) for mean in means.tolist()])[1] == 0.0


def test_a_pooled_interval_holds_the_mean_of_the_true_effects_as_often_as_it_says():
    rng, held = np.random.default_rng(4), 0
    for _ in range(800):
        effects, errors = rng.normal(0.3, 0.2, 12), rng.uniform(0.05, 0.4, 12)
        seen = [Estimate(effect, error, 50) for effect, error in zip(rng.normal(effects, errors), errors, strict=True)]
        held += pooled(seen)[0].interval().side(0.3) == 0
    assert 0.925 < held / 800 < 0.975


def test_a_place_without_spread_is_not_pooled():
    with pytest.raises(DataError, match="cannot be pooled"):
        pooled([Estimate(0.1, 0.0, 10), Estimate(0.2, 0.1, 10)])


def test_holms_p_values_are_those_of_its_steps():
    """The smallest times all of them, the next times one less, and never below the one before."""
    estimates = [Estimate(mean, 1.0, 100) for mean in (2.5, 0.1, 3.0, 2.4)]
    raw = [ttest_of(estimate) for estimate in estimates]
    assert holm(estimates) == pytest.approx([3 * raw[0], raw[1], 4 * raw[2], max(3 * raw[0], 2 * raw[3])])
    assert holm([Estimate(0.0, 0.0, 5)]) == [1.0]


def ttest_of(estimate):
    return 2 * student_t.sf(abs(estimate.mean) / estimate.stderr, estimate.n - 1)
