import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridgegarden.report.charts import (
    LEAST,
    Bar,
    Dot,
    Point,
    Row,
    bar_chart,
    dot_plot,
    responsive,
    scatter,
    standalone,
    unbeaten,
)
from bridgegarden.report.marks import Axis, Reading

SHARE = Axis(label="share", percent=True)


def point(name: str, x: float, y: float, **fields) -> Point:
    about = f"{name} at {x}, {y}"
    return Point(name=name, x=Reading(x, x - 0.05, x + 0.05), y=Reading(y, y, y), about=about, **fields)


POINTS = [
    point("hard", 0.1, 0.9),
    point("soft", 0.99, 0.5),
    point("entropy", 0.9, 0.8),
    point("static", 0.8, 0.6, shape="ring"),
    point("teacher", 1.0, 1.0, shape="diamond"),
]


def tree(chart) -> ET.Element:
    return ET.fromstring(str(chart))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=8))
def test_a_point_is_left_out_exactly_when_another_beats_it(places):
    points = [point(str(index), x, y) for index, (x, y) in enumerate(places)]
    kept = {p.name for p in unbeaten(points)}
    for p, (x, y) in zip(points, places, strict=True):
        beaten = any((a >= x and b > y) or (a > x and b >= y) for a, b in places)
        assert (p.name in kept) is not beaten


def test_the_best_points_are_joined_from_left_to_right_and_the_teacher_is_none_of_them():
    assert [p.name for p in unbeaten(POINTS)] == ["hard", "entropy", "soft"]


def test_a_scatter_is_well_formed_and_each_point_can_be_focused_and_is_named():
    marks = tree(scatter(POINTS, x=SHARE, y=SHARE, about="all of it")).findall("g[@tabindex='0']")
    assert [mark.get("aria-label") for mark in marks] == [p.about for p in POINTS]
    assert [mark.findtext("title") for mark in marks] == [p.about for p in POINTS]


def test_shapes_tell_points_apart_without_colour():
    marks = tree(scatter(POINTS, x=SHARE, y=SHARE, about="all of it")).findall("g[@tabindex='0']")
    shapes = [mark.find("*[@class='shape']") is not None for mark in marks]
    assert shapes == [True, True, True, False, False]


@pytest.mark.parametrize("size", [340, 720])
def test_everything_lies_inside_the_drawing(size):
    drawing = tree(scatter(POINTS, x=SHARE, y=SHARE, about="all of it", size=size))
    height = float(drawing.get("height"))
    for circle in drawing.iter("circle"):
        assert 0 <= float(circle.get("cx")) <= size
        assert 0 <= float(circle.get("cy")) <= height
    assert all(0 <= float(text.get("x")) <= size for text in drawing.iter("text"))


def test_text_that_looks_like_markup_stays_text():
    evil = '</title><script>alert("1")</script>'
    drawing = tree(scatter([point(evil, 0.5, 0.5)], x=Axis(label=evil), y=SHARE, about=evil))
    assert not list(drawing.iter("script"))
    assert evil in [text.text for text in drawing.iter("text")]
    assert drawing.get("aria-label") == evil


def test_a_dot_plot_has_a_mark_for_every_series_of_every_row():
    dots = tuple(Dot(reading=Reading(v, v / 2, 2 * v), seeds=(v,), about=f"{v} nats") for v in (0.001, 3.0))
    chart = dot_plot(
        [Row(name="hard", dots=dots), Row(name="soft", dots=dots)],
        axis=Axis(label="KL", log=True),
        series=(("at Bridges", "square"), ("at Gardens", "ring")),
        about="KL",
    )
    drawing = tree(chart)
    assert [mark.get("aria-label") for mark in drawing.findall("g[@tabindex='0']")] == ["0.001 nats", "3.0 nats"] * 2
    texts = [text.text for text in drawing.iter("text")]
    assert {"hard", "soft", "at Bridges", "at Gardens"} <= set(texts)
    assert "0.01" in texts


def test_zero_is_marked_where_it_was_asked_for():
    dot = Dot(reading=Reading(2.0, 1.0, 3.0), about="2")
    rows = [Row(name="hard", dots=(dot,))]
    series = (("bias", "disc"),)
    with_zero = dot_plot(rows, axis=Axis(label="bias", include=(0.0,)), series=series, about="bias")
    without = dot_plot(rows, axis=Axis(label="bias"), series=series, about="bias")
    assert 'class="zero"' in with_zero
    assert 'class="zero"' not in without


def test_both_widths_are_drawn():
    both = responsive(lambda size: scatter(POINTS, x=SHARE, y=SHARE, about="all", size=size))
    assert 'width="720"' in both
    assert 'width="340"' in both


def test_a_file_of_its_own_is_xml_with_a_title_and_no_reference_outside():
    text = standalone(scatter(POINTS, x=SHARE, y=SHARE, about="all & more"), title="a < b")
    drawing = ET.fromstring(text)
    assert drawing.findtext("{http://www.w3.org/2000/svg}title") == "a < b"
    assert "--bridge:" in text
    assert text.count("http") == 1  # the namespace


BAR_SHARE = Axis(label="share", percent=True, most=1)


def one_bar(name: str, filled: float, hollow: float = 0.0) -> Bar:
    total = filled + hollow
    return Bar(name=name, filled=filled, hollow=hollow, label=f"{total:.0%}", about=f"{name}\n{total} of all")


BARS = [one_bar("0 to 1", 0.2), one_bar("1 to 2", 0.1, 0.3), one_bar("2 to 3", 0.0, 0.4), one_bar("from 3", 0.0)]


def bars_of(bars=BARS, **fields) -> list[ET.Element]:
    return ET.fromstring(str(bar_chart(bars, axis=BAR_SHARE, about="all", **fields))).findall("g[@tabindex='0']")


def widths(mark: ET.Element, kind: str) -> list[float]:
    return [float(rectangle.get("width", "")) for rectangle in mark.findall(f"rect[@class='{kind}']")]


def test_lengths_are_proportional_to_values_and_parts_follow_each_other():
    first, second, third, _ = bars_of()
    (unit,) = widths(first, "bar")
    assert widths(second, "bar") == [pytest.approx(unit / 2, abs=0.2)]
    assert widths(second, "bar hollow") == [pytest.approx(unit * 1.5, abs=0.2)]
    assert widths(third, "bar hollow") == [pytest.approx(unit * 2, abs=0.2)]
    filled, hollow = (second.find(f"rect[@class='{kind}']") for kind in ("bar", "bar hollow"))
    assert float(hollow.get("x")) == pytest.approx(float(filled.get("x")) + float(filled.get("width")), abs=0.2)


def test_nothing_has_no_bar_and_next_to_nothing_has_one():
    assert widths(bars_of()[3], "bar") + widths(bars_of()[3], "bar hollow") == []
    assert widths(bars_of([*BARS, one_bar("rare", 1e-6)])[4], "bar") == [LEAST]


def test_each_bar_can_be_focused_and_says_everything():
    assert [mark.get("aria-label") for mark in bars_of()] == [b.about.replace("\n", " ") for b in BARS]
    assert [mark.findtext("title") for mark in bars_of()] == [b.about for b in BARS]
    assert [mark.findtext("text") for mark in bars_of()] == ["20%", "40%", "40%", "0%"]


@pytest.mark.parametrize("size", [340, 720])
@pytest.mark.parametrize("bars", [BARS, [one_bar("all", 1.0)], [one_bar("none", 0.0)]])
def test_every_bar_and_its_label_lie_inside_the_drawing(size, bars):
    for mark in bars_of(bars, parts=("sure", "other"), size=size):
        for rectangle in mark.findall("rect[@height='14']"):
            assert 0 < float(rectangle.get("x")) < float(rectangle.get("x")) + float(rectangle.get("width")) < size
        label = mark.find("text")
        assert float(label.get("x")) + 7.3 * len(label.text) <= size


def test_parts_are_named_where_there_are_two():
    named = ET.fromstring(str(bar_chart(BARS, axis=BAR_SHARE, about="all", parts=("sure", "<b>other"))))
    assert [text.text for text in named.findall("text[@class='note']")] == ["sure", "<b>other"]
    assert not ET.fromstring(str(bar_chart(BARS, axis=BAR_SHARE, about="all"))).findall("text[@class='note']")
