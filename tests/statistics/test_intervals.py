import math
import pickle
from dataclasses import dataclass

import pytest
import torch

from bridgegarden.errors import DataError
from bridgegarden.exact import Role
from bridgegarden.statistics import Effect, Estimate, Interval, corrected, exact_share, to_plain


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
