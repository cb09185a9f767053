import pytest

from bridgegarden.report.shades import DIVERGING, ENDS, LEVELS, contrast, level, shades, stylesheet


def rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", ENDS)
def test_text_can_be_read_on_every_shade(name, dark):
    assert all(contrast(rgb(shade.fill), rgb(shade.ink)) >= 4.5 for shade in shades(name, dark=dark))


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", ENDS)
def test_lightness_alone_tells_the_order_of_shades(name, dark):
    against_black = [contrast(rgb(shade.fill), (0, 0, 0)) for shade in shades(name, dark=dark)]
    assert against_black in (sorted(against_black), sorted(against_black, reverse=True))
    assert max(against_black) > 3 * min(against_black)


def test_contrast_is_that_of_wcag():
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast((119, 119, 119), (255, 255, 255)) == pytest.approx(4.48, abs=0.01)


def test_levels_span_the_scale_and_stay_on_it():
    assert [level(share) for share in (-1, 0, 0.5, 1, 7)] == [0, 0, 5, LEVELS - 1, LEVELS - 1]


def test_every_level_has_a_rule():
    rules = stylesheet()
    assert rules.count("data-level") == 2 * LEVELS * (len(ENDS) + len(DIVERGING))
