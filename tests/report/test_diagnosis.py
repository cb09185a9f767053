"""A diagnosis as a page: all of it is there, none of it is markup, and it can be walked through."""

import re
from dataclasses import replace

import pytest

from bridgegarden.diagnostics.exposure_bias import StudentDifference
from bridgegarden.diagnostics.kappa import Kind
from bridgegarden.report.diagnosis import diagnosis_page
from bridgegarden.report.diagnosis_words import (
    GUIDE,
    _difference,
    advice_words,
    agreement_words,
    bias_words,
    guide_words,
)
from bridgegarden.statistics import Estimate
from tests.chromium import chromium, needs_chromium
from tests.diagnostics.small import EVIL, WORDS, small_diagnosis, small_findings

CARD = "document.getElementById('card')"
LAYERS = (
    "Bridge or Garden",
    "κ(s)",
    "contribution",
    "static",
    "confidence",
    "entropy",
    "teacher entropy",
    "student surprise",
    "loss l(s)",
)


@pytest.fixture(scope="module")
def whole():
    return small_diagnosis(small_findings())


@pytest.mark.parametrize(("mean", "prompts", "lower"), [(2.1, 400, "b"), (2.1, 5, None), (-2.1, 400, "a")])
def test_a_difference_is_bold_and_called_where_the_interval_over_prompts_leaves_out_zero(mean, prompts, lower):
    # 2.1 standard errors are enough with many prompts; with five, Student's t asks for 2.8.
    difference = Estimate(mean, 1.0, prompts)
    one = StudentDifference(first="a", second="b", measure="exposure_bias", difference=difference)
    cell = _difference(one)
    assert one.lower == lower
    assert cell.strong == (lower is not None)
    assert cell.beside.endswith({"a": ", lower", "b": ", higher", None: ", open"}[lower])


@pytest.fixture(scope="module")
def one():
    return small_diagnosis(small_findings(names=["near"]))


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


def page(diagnosis, tmp_path):
    return diagnosis_page(diagnosis).write(tmp_path / "report.html")


def text_of(diagnosis, tmp_path) -> str:
    return page(diagnosis, tmp_path).read_text(encoding="utf-8")


def busy(browser) -> float:
    """Seconds that the page's thread has worked."""
    metrics = browser.call("Performance.getMetrics")["metrics"]
    return next(one["value"] for one in metrics if one["name"] == "TaskDuration")


def with_long_text(diagnosis, count: int):
    """The first student's first text, written again and again until it has `count` tokens."""
    student = diagnosis.findings.students[0]
    tokens = student.texts[0].tokens * (count // len(student.texts[0].tokens) + 1)
    long = replace(student.texts[0], tokens=tokens[:count])
    findings = replace(diagnosis.findings, students=(replace(student, texts=(long,)),))
    return replace(diagnosis, findings=findings, students=diagnosis.students[:1])


def sure_at_bridges(diagnosis, *likeliest: float):
    """The first student, whose Bridges have these probabilities of the teacher's likeliest token; each of a prompt."""
    student = diagnosis.findings.students[0]
    place = student.kappa.positions[0]
    bridges = [
        replace(place, kind=Kind.BRIDGE, prompt=prompt, teacher_max_prob=one) for prompt, one in enumerate(likeliest)
    ]
    gardens = [replace(place, kind=Kind.GARDEN, prompt=prompt, teacher_max_prob=0.1) for prompt in range(20)]
    return replace(student, kappa=replace(student.kappa, positions=(*bridges, *gardens)))


def test_the_guide_is_quoted_for_a_teacher_as_sure_as_this_one_is_at_its_bridges(whole):
    sure = guide_words(sure_at_bridges(whole, *[0.99] * 8))
    assert sure is not None
    assert "At its 8 Bridges" in sure
    assert f"begins with soft labels: {GUIDE['perfect'][1]}" in sure
    unsure = guide_words(sure_at_bridges(whole, 0.5, 0.6, 0.65, 0.7, 0.6, 0.55))
    assert unsure is not None
    for kind in ("unsure", "slips", "wrong_in_places"):
        assert f"{GUIDE[kind][0]} labels ({GUIDE[kind][1]})" in unsure


def test_the_guide_is_not_quoted_where_it_is_not_known_how_sure_the_teacher_is(whole):
    between = guide_words(sure_at_bridges(whole, 0.2, 1.0, 0.99, 0.98, 0.97, 0.4))
    assert between is not None
    assert "not told apart" in between
    assert not any(because in between for _, because in GUIDE.values())
    assert guide_words(sure_at_bridges(whole, *[0.99] * 4)) is None
    one_prompt = sure_at_bridges(whole, *[0.99] * 8)
    places = tuple(replace(place, prompt=0) for place in one_prompt.kappa.positions)
    assert guide_words(replace(one_prompt, kappa=replace(one_prompt.kappa, positions=places))) is None
    assert guide_words(replace(one_prompt, kappa=None)) is None


def test_the_page_quotes_the_guide(whole, tmp_path):
    student = sure_at_bridges(whole, *[0.99] * 8)
    found = replace(whole.findings, students=(student, *whole.findings.students[1:]))
    assert guide_words(student) in text_of(replace(whole, findings=found), tmp_path).replace("&#39;", "'")


def test_every_section_says_what_was_found(whole, tmp_path):
    text = text_of(whole, tmp_path)
    for anchor in ("bias", "length", "tokens", "origin", "rule", "words", "made"):
        assert f'<section id="{anchor}"' in text
    escaped = text.replace("&#39;", "'")
    for student in whole.findings.students:
        for words in (bias_words(student), agreement_words(student), *advice_words(student.advice)):
            assert words in escaped
    assert f'data-agrees="{"yes" if whole.findings.students[0].attribution.agrees else "no"}"' in text
    assert "Students compared, prompt by prompt" in text


def test_one_student_is_compared_with_nobody(one, tmp_path):
    text = text_of(one, tmp_path)
    assert "Students compared" not in text
    assert '<section id="tokens"' in text


def test_an_interrupted_diagnosis_makes_a_page_that_says_so(whole, tmp_path):
    cut = tuple(
        replace(student, kappa=None, shown_kappa=None, attribution=None, advice=None, texts=(), largest=())
        for student in whole.findings.students
    )
    findings = replace(whole.findings, students=cut, interrupted="near: attribution")
    text = text_of(replace(whole, findings=findings), tmp_path)
    assert "<b>Interrupted</b> during “near: attribution”" in text
    assert "No advice." in text
    assert "Not measured: interrupted before." in text


def test_a_model_that_prints_a_script_or_is_named_like_one_prints_text(whole, tmp_path):
    assert EVIL in WORDS
    text = text_of(replace(whole, command=EVIL), tmp_path)
    assert EVIL not in text
    assert text.count("<script") == 2
    assert "&lt;script&gt;document.title=" in text
    assert "\x1b" not in text


def test_nothing_is_fetched(whole, tmp_path):
    text = text_of(whole, tmp_path)
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', text)
    assert "://" not in text


@needs_chromium
def test_no_script_of_a_model_runs_and_nothing_is_asked_of_the_network(browser, whole, tmp_path):
    path = page(whole, tmp_path)
    browser.open(path)
    assert browser.run("document.title").startswith("Where students near, far")
    assert browser.logged == []
    assert browser.requested == [path.as_uri()]


@needs_chromium
def test_the_heatmap_switches_between_everything_that_was_measured(browser, one, tmp_path):
    browser.look(1280, 900)
    browser.open(page(one, tmp_path))
    names = browser.run(
        "[...document.querySelectorAll('.switch input[name=layer]')].map(i => i.parentElement.innerText)"
    )
    assert tuple(names) == LAYERS
    seen = set()
    for index in range(len(names)):
        shown = browser.run(
            f"(() => {{ document.querySelectorAll('.switch input[name=layer]')[{index}].click();"
            "const text = [...document.querySelectorAll('.tokens .panel')].find(p => !p.hidden).querySelector('.text');"
            "return [text.dataset.scale, ...[...text.querySelectorAll('.token')].map(t => t.dataset.level),"
            "document.querySelectorAll('.key-row:not([hidden])').length]; })()"
        )
        assert shown[-1] == 1, "one legend at a time"
        seen.add(tuple(shown))
    assert len(seen) >= len(LAYERS) - 1


@needs_chromium
@pytest.mark.parametrize("way", ["mouse", "touch", "keyboard"])
def test_a_token_shows_what_both_models_expected_and_kappa_of_each_choice(browser, one, tmp_path, way):
    student = one.findings.students[0]
    at = next(i for i, token in enumerate(student.texts[0].tokens) if token.kappa is not None)
    browser.look(390 if way == "touch" else 1280, 900)
    browser.open(page(one, tmp_path))
    selector = ".tokens .panel:not([hidden]) .text .token"
    if way == "mouse":
        browser.run(f"document.querySelectorAll('{selector}')[{at}].id = 'chosen'")
        browser.point("#chosen")
    elif way == "touch":
        browser.run(f"document.querySelectorAll('{selector}')[{at}].id = 'chosen'")
        browser.tap("#chosen")
        # A tap becomes a click a moment later.
        browser.run("new Promise(done => setTimeout(done, 400))")
    else:
        browser.run(f"document.querySelector('{selector}').focus()")
        for _ in range(at):
            browser.press("ArrowRight")
    assert browser.run(f"{CARD}.hidden") is False
    card = browser.run(f"{CARD}.innerText")
    assert "teacher" in card
    assert "near" in card
    assert "κ, later cost" in card
    assert "xa0" not in card
    rows = browser.run(f"{CARD}.querySelectorAll('table.actions tr').length")
    assert rows == 1 + len(student.texts[0].tokens[at].kappa.actions)
    browser.press("Escape")
    assert browser.run(f"{CARD}.hidden") is True


@needs_chromium
def test_students_and_texts_are_chosen_one_at_a_time(browser, whole, tmp_path):
    browser.look(1280, 900)
    browser.open(page(whole, tmp_path))
    visible = "[...document.querySelectorAll('.tokens .panel')].filter(p => !p.hidden).map(p => p.dataset.choice)"
    assert browser.run(visible) == ["0 0"]
    browser.run("document.querySelectorAll('.switch input[name=facet-0]')[1].click()")
    browser.run("document.querySelectorAll('.switch input[name=facet-1]')[1].click()")
    assert browser.run(visible) == ["1 1"]


@pytest.mark.slow
@needs_chromium
def test_five_thousand_tokens_switch_colours_and_open_cards_without_a_wait(browser, whole, tmp_path):
    path = page(with_long_text(whole, 5000), tmp_path)
    browser.look(1280, 900)
    browser.open(path)
    assert browser.run("document.querySelectorAll('.tokens .text .token').length") == 5000
    inputs = len(LAYERS)

    def spent(script: str) -> float:
        """Processor milliseconds of the page's own thread, which other work on the machine does not lengthen."""
        before = busy(browser)
        browser.run(f"(() => {{ {script}; document.body.offsetHeight; }})()")
        return 1000 * (busy(browser) - before)

    browser.call("Performance.enable", timeDomain="threadTicks")
    choose = "document.querySelectorAll('.switch input[name=layer]')[{}].click()"
    switching = [spent(choose.format(index)) for index in (*range(1, inputs), 0)]
    opening = spent("document.querySelectorAll('.tokens .text .token')[4000].focus()")
    print(f"5,000 tokens: switching took {[round(one) for one in switching]} ms, opening a card {opening:.0f} ms")
    assert max(switching) < 400
    assert opening < 200
    assert path.stat().st_size < 16_000_000


@needs_chromium
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_wider_than_the_window(browser, whole, tmp_path, width, dark):
    browser.look(width, 900, dark=dark)
    browser.open(page(whole, tmp_path))
    assert browser.run("document.documentElement.scrollWidth") <= width
