import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bridgegarden.quickstart.report import interval_words, percent, report_page
from bridgegarden.study.arms import OBJECTIVES
from bridgegarden.table import plus_minus, span
from tests.chromium import Browser, chromium, needs_chromium
from tests.quickstart.made_up import WORDS, made_up_result

ONE = made_up_result()
THREE = made_up_result(objectives=tuple(OBJECTIVES), seeds=(0, 1, 2))
EVIL = '</script><img src=x onerror="document.title=1"><b>'
CARD = "document.getElementById('card')"


def text_of(result, tmp_path: Path) -> str:
    return report_page(result).write(tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("result", "units"), [(ONE, "1,000 problems of the only seed"), (THREE, "3 seeds")])
def test_the_page_says_what_its_intervals_are_over(result, units, tmp_path):
    assert f"95 % t-intervals over the {units}" in text_of(result, tmp_path)


@pytest.mark.parametrize("result", [ONE, THREE])
def test_every_objective_is_there_with_its_numbers(result, tmp_path):
    text = text_of(result, tmp_path)
    for objective in result.objectives:
        assert re.search(rf'<th scope="row">{re.escape(result.label(objective))}( \*)?</th>', text)
        accuracy = 100 * result.summary(objective, "accuracy_sampled").mean
        assert f"<td>{accuracy:.1f}" in text
    assert result.command in text
    assert "torch 2.13.0+cpu" in text


@pytest.mark.parametrize("result", [ONE, THREE])
def test_numbers_come_with_half_of_their_intervals(result, tmp_path):
    text = text_of(result, tmp_path)
    for objective in result.objectives:
        found = result.summary(objective, "accuracy_sampled")
        cell = re.search(rf"<td>{100 * found.mean:.1f}[\d]* %<small>± ([\d.]+) %</small>", text)
        assert cell is not None
        assert float(cell[1]) == pytest.approx(50 * (found.interval.high - found.interval.low), rel=0.1)


@pytest.mark.parametrize(("result", "tokens"), [(ONE, "61,234"), (THREE, "183,702")])
def test_the_page_says_that_the_teacher_was_asked_once_a_seed(result, tokens, tmp_path):
    assert f"once for {tokens} tokens" in text_of(result, tmp_path)


def test_a_single_seed_has_no_dots_of_seeds(tmp_path):
    assert 'class="seed"' not in text_of(ONE, tmp_path)
    assert 'class="seed"' in text_of(THREE, tmp_path)


def test_nothing_is_fetched_and_the_file_is_small(tmp_path):
    text = text_of(THREE, tmp_path)
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', text)
    assert "://" not in text
    assert len(text.encode()) <= 400_000


def test_one_objective_alone_makes_a_page(tmp_path):
    assert "in one way" in text_of(made_up_result(objectives=("entropy",)), tmp_path)


def test_an_answer_without_a_token_makes_a_page(tmp_path):
    assert "One answer" in text_of(made_up_result(words=[]), tmp_path)


@pytest.mark.slow
def test_the_frontier_is_drawn_from_a_stored_result(tmp_path):
    stored, drawn = tmp_path / "result.json", tmp_path / "frontier.svg"
    stored.write_text(json.dumps(THREE.to_dict()), encoding="utf-8")
    script = Path(__file__).parents[2] / "docs" / "figures" / "draw_quickstart_frontier.py"
    subprocess.run([sys.executable, script, stored, "--output", drawn], check=True, capture_output=True)
    assert all(THREE.label(objective) in drawn.read_text(encoding="utf-8") for objective in THREE.objectives)


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


def shown(browser: Browser) -> str | None:
    return browser.run(f"{CARD}.hidden ? null : {CARD}.innerText")


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("result", [ONE, THREE])
def test_a_browser_has_nothing_to_complain_of_and_fetches_nothing(result, dark, browser, tmp_path):
    page = report_page(result).write(tmp_path / "report.html")
    browser.look(1100, 900, dark=dark)
    browser.open(page)
    assert browser.logged == []
    assert browser.requested == [page.as_uri()]


@needs_chromium
@pytest.mark.parametrize("width", [320, 390, 768, 1400])
def test_the_page_never_scrolls_sideways(width, browser, tmp_path):
    browser.look(width, 800)
    browser.open(report_page(THREE).write(tmp_path / "report.html"))
    assert browser.run("document.documentElement.scrollWidth") == width
    assert browser.run("[...document.querySelectorAll('.chart')].filter(c => c.clientWidth).length") == 3


@needs_chromium
def test_pointing_at_a_token_shows_what_everyone_expected(browser, tmp_path):
    browser.look(1100, 900)
    browser.open(report_page(ONE).write(tmp_path / "report.html"))
    assert shown(browser) is None
    browser.point(".text .token:nth-of-type(5)")
    card = shown(browser)
    assert card.startswith("3\n")
    assert "Bridge" in card
    assert "confidence 0.1" in card
    for name in ("teacher", *(ONE.label(objective) for objective in ONE.objectives)):
        assert name in card
    assert card.count("90 %") == 1 + len(ONE.objectives)
    browser.press("Escape")
    assert shown(browser) is None


@needs_chromium
def test_a_tap_shows_the_card_and_leaves_the_token_in_sight(browser, tmp_path):
    browser.look(390, 700)
    browser.open(report_page(THREE).write(tmp_path / "report.html"))
    browser.tap(".text .token:nth-of-type(20)")
    assert shown(browser).startswith("4\n")
    foot = browser.run("document.querySelector('.text .token.open').getBoundingClientRect().bottom")
    assert 0 < foot <= browser.run(f"{CARD}.getBoundingClientRect().top")
    browser.tap("h1")
    assert shown(browser) is None


@needs_chromium
def test_arrow_keys_walk_from_token_to_token(browser, tmp_path):
    browser.look(1100, 900)
    browser.open(report_page(ONE).write(tmp_path / "report.html"))
    browser.run("document.querySelector('.text .token').focus()")
    assert shown(browser).startswith("let\n")
    browser.press("ArrowRight")
    browser.press("ArrowRight")
    assert shown(browser).startswith("begin\n")
    browser.press("ArrowLeft")
    assert shown(browser).startswith("us\n")
    assert browser.run("document.querySelectorAll('.text .token[tabindex=\"0\"]').length") == 1


@needs_chromium
def test_the_tab_key_reaches_every_point_of_the_first_chart(browser, tmp_path):
    browser.look(1100, 900)
    browser.open(report_page(ONE).write(tmp_path / "report.html"))
    browser.run("document.querySelector('.wide .mark').focus()")
    assert shown(browser).startswith("hard (argmax)\n")
    assert "right answers, sampled: 8" in shown(browser)
    for _ in ONE.objectives[1:]:
        browser.press("Tab")
    assert shown(browser).startswith("entropy\n")
    browser.press("Tab")
    assert shown(browser).startswith("teacher\n")


@needs_chromium
def test_the_switch_repaints_the_answer_and_changes_the_legend(browser, tmp_path):
    browser.look(1100, 900)
    browser.open(report_page(ONE).write(tmp_path / "report.html"))
    paint = "[...document.querySelectorAll('.text .token')].map(t => getComputedStyle(t).backgroundColor)"
    legend = "[...document.querySelectorAll('.key-row')].filter(k => k.offsetHeight).map(k => k.innerText).join()"
    by_role = browser.run(paint)
    assert "Bridge" in browser.run(legend)
    browser.run("document.querySelectorAll('.switch input')[2].click()")
    assert "hard label" in browser.run(legend)
    by_weight = browser.run(paint)
    assert by_role != by_weight
    assert len(set(by_weight)) == 3  # one made-up weight per role
    browser.run("document.querySelectorAll('.switch input')[0].click()")
    assert browser.run(paint) == by_role


@needs_chromium
def test_a_token_that_looks_like_markup_stays_text(browser, tmp_path):
    browser.look(1100, 900)
    browser.open(report_page(made_up_result(words=[*WORDS, (EVIL, "garden")])).write(tmp_path / "report.html"))
    browser.point(".text .token:last-of-type")
    assert EVIL.replace(" ", "␣") in shown(browser)
    assert browser.run("document.querySelector('.text .token:last-of-type').textContent") == EVIL
    assert browser.run("document.images.length") == 0
    assert browser.run("document.title") == "Hard labels, soft labels, or both"
    assert browser.logged == []


@needs_chromium
def test_it_prints(browser, tmp_path):
    browser.open(report_page(THREE).write(tmp_path / "report.html"))
    browser.pdf(tmp_path / "report.pdf")
    pages = re.findall(rb"/Type\s*/Page\b", (tmp_path / "report.pdf").read_bytes())
    assert 3 <= len(pages) <= 8


@pytest.mark.parametrize(
    ("mean", "half", "texts"),
    [
        (0.30211, 0.0033, ("0.3021", "0.0033")),
        (53.7449, 0.998, ("53.7", "1.0")),
        (60.3, 4.26, ("60.3", "4.3")),
        (-0.1583, 0.056, ("−0.158", "0.056")),
        (52.6, 16.2, ("53", "16")),
        (98.0, 0.0, ("98.0", "0.0")),
        (0.0, 1e-9, ("0.00000", "0.00000")),
    ],
)
def test_a_mean_has_as_many_digits_as_its_interval_allows(mean, half, texts):
    assert plus_minus(mean, half) == texts


def test_an_interval_names_its_unit_once():
    assert span((0.785, 0.84), percent) == "78.5 to 84 %"


def test_what_an_interval_is_over_depends_on_the_number_of_seeds():
    assert interval_words(made_up_result()).endswith("the 1,000 problems of the only seed")
    assert interval_words(made_up_result(seeds=(0, 1, 2))).endswith("the 3 seeds")
