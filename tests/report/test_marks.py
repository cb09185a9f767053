import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridgegarden.errors import DataError
from bridgegarden.report.marks import Axis, Box, Reading, place, scale, shortened, width
from bridgegarden.table import number

finite = st.floats(-1e6, 1e6, allow_subnormal=False)


def reading(value: float) -> Reading:
    return Reading(value, value - 0.1, value + 0.1)


@given(st.lists(finite, min_size=1, max_size=6))
def test_every_value_lies_inside_the_axis_and_in_its_order(values):
    axis = scale(Axis(label="x"), map(reading, values), 10, 110)
    pixels = [axis.at(value) for value in sorted(values)]
    assert all(10 <= pixel <= 110 for pixel in pixels)
    assert pixels == sorted(pixels)


@given(st.lists(finite, min_size=1, max_size=6), st.integers(3, 8))
def test_ticks_are_few_and_inside(values, most):
    axis = scale(Axis(label="x"), map(reading, values), 0, 100)
    ticks = axis.ticks(most)
    assert 1 <= len(ticks) <= most + 1
    assert all(axis.low - 1e-6 * abs(axis.low) <= tick <= axis.high + 1e-6 * abs(axis.high) for tick in ticks)


@pytest.mark.parametrize(("most", "ticks"), [(13, [0, 5, 10]), (1.5, [0, 1]), (60, [0, 20, 40, 60])])
def test_what_is_counted_has_ticks_at_whole_numbers_alone(most, ticks):
    axis = scale(Axis(label="tokens", whole=True), [Reading(v, v, v) for v in (0, most)], 0, 100)
    assert axis.ticks() == ticks


@given(st.lists(st.floats(1e-8, 1e6), min_size=1, max_size=6))
def test_equal_ratios_are_equal_distances_on_a_logarithmic_axis(values):
    axis = scale(Axis(label="x", log=True), [Reading(v, v, v) for v in values], 0, 100)
    middle = math.sqrt(axis.low * axis.high)
    assert axis.at(middle) == pytest.approx(50)
    assert len(axis.ticks(6)) <= 7


def test_an_interval_that_reaches_zero_stretches_a_logarithmic_axis_by_no_more_than_a_decade():
    axis = scale(Axis(label="x", log=True), [Reading(1.0, -3.0, 5.0)], 0, 100)
    assert axis.low > 0.05
    assert axis.at(-3.0) == 0


def test_an_axis_ends_where_values_are_impossible():
    axis = scale(Axis(label="share", least=0, most=1), [Reading(0.9, 0.6, 1.2), Reading(0.02, -0.1, 0.1)], 0, 100)
    assert (axis.low, axis.high) == (0, 1)


def test_an_axis_of_one_value_has_a_length():
    axis = scale(Axis(label="x"), [Reading(0.0, 0.0, 0.0)], 0, 100)
    assert axis.low < 0 < axis.high


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_refused_by_the_axis_name(value):
    with pytest.raises(DataError, match=r"'diversity'.*finite"):
        scale(Axis(label="diversity"), [reading(value)], 0, 1)


def test_a_logarithmic_axis_without_a_positive_value_is_refused():
    with pytest.raises(DataError, match="above zero"):
        scale(Axis(label="KL", log=True), [reading(0.0)], 0, 1)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.5, "−0.5"),
        (0.000123456, "0.000123"),
        (1.2e-7, "1.2 × 10⁻⁷"),
        (-3e-9, "−3 × 10⁻⁹"),
        (123456.0, "123000"),
        (99.96, "100"),
        (0.1 + 0.2, "0.3"),
    ],
)
def test_numbers_are_written_short(value, text):
    assert number(value) == text


FRAME = Box(0, 0, 400, 300)


def test_names_of_points_far_apart_stand_right_beside_them():
    labels = place(["one", "two"], [(100, 100), (300, 200)], [], FRAME)
    assert not any(label.far for label in labels)
    assert labels[0].box.left == 110


def test_names_of_crowded_points_do_not_cover_each_other():
    draw = random.Random(0)
    for _ in range(50):
        points = [(200 + draw.uniform(-25, 25), 150 + draw.uniform(-25, 25)) for _ in range(7)]
        names = ["hard (argmax)", "soft", "static", "confidence", "entropy", "curriculum", "risk-guided"]
        boxes = [label.box for label in place(names, points, [], FRAME)]
        shared = sum(one.overlap(other) for i, one in enumerate(boxes) for other in boxes[:i])
        assert shared < 0.02 * sum(16 * width(name) for name in names)


def test_a_name_at_the_edge_turns_inwards():
    for x, y in ((395, 150), (5, 150), (200, 3), (200, 297), (399, 1)):
        (label,) = place(["risk-guided"], [(x, y)], [], FRAME)
        assert label.box.outside(FRAME) == 0


def test_a_name_that_is_too_long_loses_its_end():
    assert shortened("entropy", 200) == "entropy"
    short = shortened("a name that goes on and on", 100)
    assert short.endswith("…")
    assert short.startswith("a name")
    assert width(short) <= 100
