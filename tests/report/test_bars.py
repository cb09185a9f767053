import xml.etree.ElementTree as ET

import pytest

from bridgegarden.report.bars import LEAST, Bar, bar_chart
from bridgegarden.report.scale import Axis

SHARE = Axis(label="share", percent=True, most=1)


def bar(name: str, filled: float, hollow: float = 0.0) -> Bar:
    total = filled + hollow
    return Bar(name=name, filled=filled, hollow=hollow, label=f"{total:.0%}", about=f"{name}\n{total} of all")


BARS = [bar("0 to 1", 0.2), bar("1 to 2", 0.1, 0.3), bar("2 to 3", 0.0, 0.4), bar("from 3", 0.0)]


def marks(bars=BARS, **fields) -> list[ET.Element]:
    return ET.fromstring(str(bar_chart(bars, axis=SHARE, about="all", **fields))).findall("g[@tabindex='0']")


def widths(mark: ET.Element, kind: str) -> list[float]:
    return [float(rectangle.get("width", "")) for rectangle in mark.findall(f"rect[@class='{kind}']")]


def test_lengths_are_proportional_to_values_and_parts_follow_each_other():
    first, second, third, _ = marks()
    (unit,) = widths(first, "bar")
    assert widths(second, "bar") == [pytest.approx(unit / 2, abs=0.2)]
    assert widths(second, "bar hollow") == [pytest.approx(unit * 1.5, abs=0.2)]
    assert widths(third, "bar hollow") == [pytest.approx(unit * 2, abs=0.2)]
    filled, hollow = (second.find(f"rect[@class='{kind}']") for kind in ("bar", "bar hollow"))
    assert float(hollow.get("x")) == pytest.approx(float(filled.get("x")) + float(filled.get("width")), abs=0.2)


def test_nothing_has_no_bar_and_next_to_nothing_has_one():
    assert widths(marks()[3], "bar") + widths(marks()[3], "bar hollow") == []
    assert widths(marks([*BARS, bar("rare", 1e-6)])[4], "bar") == [LEAST]


def test_each_bar_can_be_focused_and_says_everything():
    assert [mark.get("aria-label") for mark in marks()] == [b.about.replace("\n", " ") for b in BARS]
    assert [mark.findtext("title") for mark in marks()] == [b.about for b in BARS]
    assert [mark.findtext("text") for mark in marks()] == ["20%", "40%", "40%", "0%"]


@pytest.mark.parametrize("size", [340, 720])
@pytest.mark.parametrize("bars", [BARS, [bar("all", 1.0)], [bar("none", 0.0)]])
def test_every_bar_and_its_label_lie_inside_the_drawing(size, bars):
    for mark in marks(bars, parts=("sure", "other"), size=size):
        for rectangle in mark.findall("rect[@height='14']"):
            assert 0 < float(rectangle.get("x")) < float(rectangle.get("x")) + float(rectangle.get("width")) < size
        label = mark.find("text")
        assert float(label.get("x")) + 7.3 * len(label.text) <= size


def test_parts_are_named_where_there_are_two():
    named = ET.fromstring(str(bar_chart(BARS, axis=SHARE, about="all", parts=("sure", "<b>other"))))
    assert [text.text for text in named.findall("text[@class='note']")] == ["sure", "<b>other"]
    assert not ET.fromstring(str(bar_chart(BARS, axis=SHARE, about="all"))).findall("text[@class='note']")
