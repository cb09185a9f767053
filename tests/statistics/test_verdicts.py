from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import t as student_t

from bridgegarden.errors import DataError
from bridgegarden.statistics import Estimate, decide, holm, pooled


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
