"""The page about a cache, also as a browser shows it."""

import json
import re
from dataclasses import replace

import pytest
from click.testing import CliRunner
from datasets import Dataset

from bridgegarden.cli.main import cli
from bridgegarden.run.cache_report import cache_page, write_cache_report
from bridgegarden.teacher.cache.info import ServedNumbers, cache_info
from bridgegarden.teacher.cache.record import RecordFormat
from bridgegarden.teacher.cache.spec import Served, Support
from tests.chromium import chromium, needs_chromium
from tests.teacher.cache.conftest import build, cache_spec

EVIL = '</script><img src=x onerror="document.title=1"><b>'
SUPPORTS = [Support(k=16), Support(kind="mass", k=16, mass=0.8), Support(kind="sampled", k=8), Support(k=300)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return build(tmp_path_factory.mktemp("caches") / "cache", cache_spec(teacher=EVIL))


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.mark.parametrize("support", SUPPORTS, ids=str)
def test_the_page_has_the_numbers_that_info_prints(tmp_path, support):
    folder = build(tmp_path / "cache", cache_spec(support))
    info = write_cache_report(folder, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert info == cache_info(folder)
    for words in (f"{info.positions:,} positions", f"hold {info.captured_mass:.4f}", f"{info.bridge_like:.1%}"[:-1]):
        assert words in text
    rows = dict(re.findall(r'<th scope="row">(0 to 0\.01|from 5)</th><td>.*?</td><td>.*?</td><td>(.*?) %</td>', text))
    for label, count in (("0 to 0.01", info.entropy_histogram[0]), ("from 5", info.entropy_histogram[-1])):
        assert float(rows[label]) == pytest.approx(100 * count / info.positions, abs=0.051)
    assert ("there is no tail" in text) == (not info.spec.has_tail)


@pytest.mark.parametrize("support", SUPPORTS, ids=str)
def test_bytes_by_part_add_up_to_what_lies_on_disk(tmp_path, support):
    folder = build(tmp_path / "cache", cache_spec(support))
    info = write_cache_report(folder, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    section = text[text.index('<section id="bytes"') : text.index('<section id="words"')]
    rows = re.findall(r'<th scope="row">(.*?)</th><td>(.*?)</td>', section)
    sizes = {name: float(size.replace("\N{MINUS SIGN}", "-")) for name, size in rows}
    together = sizes.pop("together")
    assert together == pytest.approx(info.bytes_per_position, rel=5e-3)
    assert sum(sizes.values()) == pytest.approx(together, rel=1e-2)
    parts = [size for name, size in sizes.items() if name not in ("keys and frame", "saved by compression")]
    assert sum(parts) == RecordFormat(info.spec).bytes_per_position


def test_an_empty_cache_makes_a_page(tmp_path):
    empty = Dataset.from_dict({"input_ids": [[1, 2]], "labels": [[-100, -100]]})
    write_cache_report(build(tmp_path / "cache", rows=empty), tmp_path / "page.html")
    assert "0 rows with 0 positions" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_of_a_served_teacher_the_page_says_what_is_a_bound(cache):
    bound = ServedNumbers(label_alone=1, smallest_tail=2, entropy_at_most=4.5)
    info = cache_info(cache)
    spec = replace(info.spec, exponents=(), served=Served(temperature=0.0))
    text = cache_page(cache, replace(info, served=bound, spec=spec)).render()
    assert "the least that the entropy can be, 4.5 nats on average the most" in text
    assert "asked on a server" in text
    spec = replace(spec, served=Served(temperature=1.0, source="imported"))
    assert "whose file was imported" in cache_page(cache, replace(info, served=bound, spec=spec)).render()
    assert "asked on a server" not in cache_page(cache, cache_info(cache)).render()


def test_nothing_is_fetched_and_a_name_that_looks_like_markup_stays_text(cache, tmp_path):
    write_cache_report(cache, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', text)
    assert EVIL not in text
    assert len(text) < 200_000


def test_the_command_writes_the_page_and_prints_as_without(cache, tmp_path):
    def info(*options):
        result = CliRunner().invoke(cli, ["cache", "info", str(cache), *map(str, options)])
        assert result.exit_code == 0, result.output
        return result.stdout

    assert info("--html", tmp_path / "a.html") == info()
    assert json.loads(info("--json", "--html", tmp_path / "b.html")) == json.loads(info("--json"))
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [320, 390, 1200])
def test_a_browser_shows_four_charts_fetches_nothing_and_never_scrolls_sideways(cache, browser, tmp_path, width, dark):
    page = tmp_path / "page.html"
    write_cache_report(cache, page)
    browser.look(width, 800, dark=dark)
    browser.open(page)
    browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.logged == []
    assert browser.requested == [page.as_uri()]
    assert browser.run("document.documentElement.scrollWidth") == width
    assert browser.run("[...document.querySelectorAll('.chart')].filter(c => c.clientWidth).length") == 4
    outside = "[...document.querySelectorAll('.chart')].filter(c => c.clientWidth).flatMap(c => [...c.querySelectorAll("
    outside += (
        "'text')]).filter(t => { const b = t.getBoundingClientRect(); return b.left < 0 || b.right > innerWidth })"
    )
    assert browser.run(f"{outside}.length") == 0


@needs_chromium
def test_pointing_at_a_bar_tells_how_many_positions_it_stands_for(cache, browser, tmp_path):
    info = write_cache_report(cache, tmp_path / "page.html")
    browser.look(1100, 900)
    browser.open(tmp_path / "page.html")
    browser.point("#entropy .wide .mark[tabindex]")
    name, counted, sure = browser.run("[...document.querySelectorAll('#card p')].map(p => p.innerText)")
    assert name == "0 to 0.01 nats"
    assert counted.endswith(f" % of the positions: {info.entropy_histogram[0]:,}")
    assert sure.startswith("of them Bridge-like: ")
