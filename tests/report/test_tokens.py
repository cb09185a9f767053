import json
from html.parser import HTMLParser

import pytest
from markupsafe import Markup

from bridgegarden.report.tokens import (
    DIVERGING,
    ENDS,
    LEVELS,
    KindLayer,
    NumberLayer,
    Panel,
    Thought,
    Token,
    contrast,
    heatmap,
    heatmap_data,
    level,
    shades,
    stylesheet,
    visible,
)

ROLE = KindLayer(values=("garden", "bridge", "forced"), name="role", group="", about="Read off the process.")
LAMBDA = NumberLayer(
    values=(0.9, 0.0, 0.51), name="entropy", group="Soft weight", about="", scale="weight", most=1.0, ends=("0", "1")
)
EVIL = '</script><img src=x onerror=alert(1)>&amp;"'
TOKENS = [
    Token(text="so", thoughts=(Thought(model="teacher", top=(("so", 0.8), (EVIL, 0.2)), note="sure"),)),
    Token(text="4", gap=" "),
    Token(text=EVIL),
]


def panels(tokens: list[Token]) -> list[Panel]:
    return [Panel(choice=(), title="Answer", before=Markup(""), tokens=tuple(tokens))]


class Spans(HTMLParser):
    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(str(markup))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


def test_the_text_is_all_there_with_its_gaps_and_nothing_of_it_is_markup():
    page = Spans(heatmap(panels(TOKENS), (), [ROLE, LAMBDA]))
    assert page.text.endswith(f"so 4{EVIL}")
    assert "img" not in page.tags
    assert "script" not in page.tags


def test_tokens_are_painted_by_the_first_layer_before_any_script_runs():
    painted = str(heatmap(panels(TOKENS), (), [ROLE, LAMBDA])).split('class="text"')[1]
    assert [part.split('"')[0] for part in painted.split('data-level="')[1:]] == ["garden", "bridge", "forced"]


def test_one_token_alone_is_a_stop_of_the_tab_key():
    painted = str(heatmap(panels(TOKENS), (), [ROLE])).split('class="text"')[1]
    assert painted.count('tabindex="0"') == 1
    assert painted.count('tabindex="-1"') == len(TOKENS) - 1


def test_the_data_has_every_layer_and_every_card():
    data = json.loads(json.dumps(heatmap_data(panels(TOKENS), [ROLE, LAMBDA])))
    assert [layer["scale"] for layer in data["layers"]] == ["role", "weight"]
    assert data["layers"][1]["levels"] == [9, 0, 5]
    assert data["tokens"][0]["thoughts"] == [
        {"model": "teacher", "note": "sure", "top": [["so", 0.8, True], [EVIL.replace(" ", "␣"), 0.2, False]]}
    ]


def test_the_legend_of_roles_names_those_that_occur():
    only = KindLayer(values=("bridge",), name="role", group="", about="")
    page = Spans(heatmap(panels([Token(text="4")]), (), [only]))
    assert "Bridge" in page.text
    assert "Garden" not in page.text


def test_an_empty_answer_can_be_shown():
    assert "Answer" in heatmap(panels([]), (), [KindLayer(values=(), name="role", group="", about="")])


def test_characters_that_hide_or_turn_text_are_shown_as_escapes():
    assert visible("a\x1b[31m\u202eb\x00") == "a\\x1b[31m\\u202eb\\x00"
    assert visible("one\ntwo") == "one⏎\ntwo"
    assert visible("é 你") == "é 你"


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
