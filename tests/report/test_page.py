import json
import re
import stat

import pytest
from markupsafe import Markup

from bridgegarden.report.page import Page, Section, embedded_json, findings, terms
from bridgegarden.report.tokens import KindLayer, NumberLayer, Panel, Token, heatmap, heatmap_data
from tests.chromium import chromium, needs_chromium

EVIL = '</script><script>document.title = "taken"</script><!--'


def made(body: str = "<p>text</p>", data=None, title: str = "A report") -> Page:
    section = Section(anchor="one", title="Part", body=Markup(body))
    data = {"layers": [], "tokens": []} if data is None else data
    lead = Markup("<p>lead</p>")
    return Page(title=title, kicker="kind", lead=lead, sections=(section,), data=data, footer="end")


def page(*args, **fields) -> str:
    return made(*args, **fields).render()


def panels(tokens: list[Token]) -> list[Panel]:
    return [Panel(choice=(), title="Answer", before=Markup(""), tokens=tuple(tokens))]


def long_text(count: int) -> tuple[Markup, dict]:
    tokens = [Token(text=f"word{index % 90}", gap=" ") for index in range(count)]
    layers = [
        KindLayer(values=("bridge", "garden") * (count // 2), name="role", group="", about=""),
        NumberLayer(
            values=tuple(index % 11 / 10 for index in range(count)),
            name="entropy",
            group="λ",
            about="",
            scale="weight",
            most=1.0,
            ends=("0", "1"),
        ),
    ]
    return heatmap(panels(tokens), (), layers), heatmap_data(panels(tokens), layers)


def test_no_address_outside_the_file_is_named_where_a_browser_would_fetch():
    text = page()
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', text)
    assert "url(" not in text
    assert "@import" not in text


def test_a_title_that_looks_like_markup_stays_text():
    text = page(title=EVIL)
    assert EVIL not in text
    assert "&lt;/script&gt;&lt;script&gt;" in text


def test_data_survives_and_cannot_end_its_script_element():
    tree = {"text": EVIL + "\u2028 é & <", "more": [1, None, 0.5]}
    text = embedded_json(tree)
    assert not set("<>&") & set(text)
    assert json.loads(text) == tree


def test_a_number_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="JSON"):
        embedded_json({"loss": float("nan")})


def test_terms_and_findings_are_escaped_unless_they_are_markup():
    text = terms({"<u>": EVIL, "b": Markup("<em>1</em>")}) + findings([EVIL])
    assert EVIL not in text
    assert "<em>1</em>" in text
    assert not {"<u>"} & set(re.findall(r"<\w>", text))


def test_a_page_replaces_the_old_one_whole_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "deep" / "report.html"
    made("<p>earlier</p>").write(path)
    text = made("<p>later</p>").write(path).read_text()
    assert "<p>later</p>" in text
    assert "<p>earlier</p>" not in text
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    assert stat.S_IMODE(path.stat().st_mode) & stat.S_IRUSR


def test_a_failure_while_writing_keeps_the_old_page(tmp_path, monkeypatch):
    path = made("<p>earlier</p>").write(tmp_path / "report.html")

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(KeyboardInterrupt):
        made("<p>later</p>").write(path)
    assert "<p>earlier</p>" in path.read_text()
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


@needs_chromium
def test_the_policy_lets_the_page_script_run_and_no_other(tmp_path):
    body = Markup('<script>document.title = "taken"</script><p onclick="document.title = 1">x</p>')
    with chromium() as browser:
        browser.open(made(body).write(tmp_path / "page.html"))
        assert browser.run("document.title") == "A report"
        assert any("Content Security Policy" in line for line in browser.logged)
        body, data = long_text(10)
        browser.open(made(body, data).write(tmp_path / "page.html"))
        assert browser.logged == []
        assert browser.run("document.documentElement.className") == "scripted"


@needs_chromium
def test_five_thousand_tokens_switch_colours_without_a_wait(tmp_path):
    body, data = long_text(5000)
    switch = """(() => {
        const start = performance.now();
        document.querySelectorAll('.switch input')[1].click();
        document.body.offsetHeight;
        return performance.now() - start;
    })()"""
    with chromium() as browser:
        browser.open(made(body, data).write(tmp_path / "page.html"))
        milliseconds = browser.run(switch)
        levels = browser.run("[...document.querySelectorAll('.text .token')].map(t => t.dataset.level).slice(0, 12)")
    assert levels == [str(index % 11) for index in range(12)]
    assert milliseconds < 1000
