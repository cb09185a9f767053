"""Results as JSON."""

import math
from dataclasses import dataclass

from bridgegarden.diagnostics.kappa import Kind
from bridgegarden.diagnostics.plain import to_plain
from bridgegarden.statistics import Estimate, Interval


@dataclass(frozen=True)
class Sample:
    name: str
    parts: tuple
    hidden: object = None


def test_everything_a_result_holds_becomes_plain():
    value = Sample("a", (1, math.inf, Kind.BRIDGE, Interval(0.0, math.nan), {"x": (True, None)}), hidden=object())
    assert to_plain(value, leave_out=("hidden",)) == {
        "name": "a",
        "parts": [1, None, "bridge", {"low": 0.0, "high": None}, {"x": [True, None]}],
    }


def test_an_estimate_brings_its_interval():
    estimate = Estimate(1.0, 0.5, 9)
    low, high = estimate.interval()
    assert to_plain([estimate]) == [{"mean": 1.0, "stderr": 0.5, "n": 9, "low": low, "high": high}]
