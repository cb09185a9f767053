"""The site that `make site` builds: whole, without a warning, and without a request to anybody else."""

import os
import re
import subprocess
import sys
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

import bridgegarden
from docs.site_hooks import ELSEWHERE, _leaves, _linked
from tests.chromium import chromium, needs_chromium

ROOT = Path(__file__).parents[1]


def build(configuration: Path, site: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "-f", str(configuration), "-d", str(site)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={
            **os.environ,
            "NO_MKDOCS_2_WARNING": "1",
            "http_proxy": "http://127.0.0.1:9",
            "https_proxy": "http://127.0.0.1:9",
        },
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT / "mkdocs.yml", folder)
    assert done.returncode == 0, done.stderr
    return folder


class Fetched(HTMLParser):
    """What a browser fetches for a page without being asked."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.linked: list[str] = []
        self.ids: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given["id"]} if "id" in given else set()
        if tag == "a" and "href" in given:
            self.linked.append(given["href"])
        if tag == "link" and given.get("rel") not in ("canonical", "next", "prev", "alternate"):
            self.addresses.append(given.get("href", ""))
        if tag != "a":
            self.addresses += [given[name] for name in ("src", "srcset", "poster", "data") if name in given]


@pytest.fixture(scope="module")
def pages(site):
    return {page: Fetched(page) for page in site.rglob("*.html")}


@pytest.mark.slow
def test_no_page_has_anything_fetched_from_another_host(site, pages):
    assert len(pages) > 20
    for page, found in pages.items():
        for address in found.addresses:
            split = urlsplit(address)
            assert not split.netloc, f"{page.relative_to(site)} fetches {address}"
            assert split.scheme in ("", "data"), f"{page.relative_to(site)} fetches {address}"
    for sheet in site.rglob("*.css"):
        for address in re.findall(r"(?:url\(|@import)\s*['\"]?([^'\")\s]+)", sheet.read_text(encoding="utf-8")):
            assert not urlsplit(address).netloc, f"{sheet.relative_to(site)} fetches {address}"


def test_every_link_within_the_site_leads_to_a_page_and_a_place_on_it(site, pages):
    for page in [one for one in pages if one.name != "404.html"]:
        for link in pages[page].linked:
            split = urlsplit(link)
            if split.scheme or split.netloc:
                continue
            there = Path(os.path.normpath(page.parent / split.path)) if split.path else page
            there = there / "index.html" if there.is_dir() else there
            assert there.is_file(), f"{page.relative_to(site)} links to {link}"
            if split.fragment and there.suffix == ".html":
                assert split.fragment in pages[there].ids | {"__top"}, f"{page.relative_to(site)} links to {link}"


def test_a_link_that_leads_nowhere_fails_the_build(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# a\n\n[b](b.md) and [c](#nowhere)\n", encoding="utf-8")
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    kept = {name: settings[name] for name in ("site_name", "strict", "validation")}
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(kept | {"nav": ["index.md"]}), encoding="utf-8")
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode != 0
    assert "b.md" in done.stderr
    assert "#nowhere" in done.stderr


def test_no_line_of_a_table_ends_between_a_number_and_its_error(site):
    page = (site / "results" / "methods" / "index.html").read_text(encoding="utf-8")
    cells = re.findall(r"<td>([^<]*±[^<]*)</td>", page)
    assert len(cells) > 50
    assert not [cell for cell in cells if " ±" in cell or "± " in cell]


def test_every_public_name_is_described_with_its_equations_drawn(site):
    page = (site / "api" / "index.html").read_text(encoding="utf-8")
    for name in set(bridgegarden.__all__) - {"__version__"}:
        assert f'id="bridgegarden.{bridgegarden._HOME[name]}.{name}"' in page, name
    assert "<math" in page
    assert ".. math::" not in page
    assert ":math:" not in page


def test_llms_txt_names_every_page_once(site):
    text = (site / "llms.txt").read_text(encoding="utf-8")
    assert text.startswith("# bridgegarden\n\n> ")
    links = re.findall(r"^- \[[^]]+\]\(([^)]+)\)", text, flags=re.MULTILINE)
    pages = list(site.rglob("index.html"))
    assert {(site / link / "index.html").resolve() for link in links} == {page.resolve() for page in pages}
    assert len(links) == len(pages)


def test_what_the_navigation_places_is_there():
    named = _leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert len(named) == len(set(named))
    made = {*ELSEWHERE.values(), *(f"tutorials/{one.stem}.md" for one in (ROOT / "docs" / "tutorials").glob("*.py"))}
    assert [page for page in named if page not in made and not (ROOT / "docs" / page).is_file()] == []


@pytest.mark.parametrize(
    ("page", "written", "expected"),
    [
        ("cache.md", "[a](../examples/smollm2/README.md)", "[a](examples/smollm2.md)"),
        ("examples/smollm2.md", "[a](../../docs/cache.md#x)", "[a](../cache.md#x)"),
        ("results/lab.md", "![a](../figures/b.svg)", "![a](../figures/b.svg)"),
        ("contributing.md", "[a](README.md) [b](https://x.org/y.md)", "[a](index.md) [b](https://x.org/y.md)"),
    ],
)
def test_links_between_files_become_links_between_pages(page, written, expected):
    assert _linked(written, page) == expected


@pytest.mark.slow
@needs_chromium
def test_a_browser_asks_nobody_else_and_nothing_is_wider_than_a_phone(site):
    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet.of(site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        here = f"http://127.0.0.1:{server.server_port}/"
        with chromium() as browser:
            for page in ("", "api/", "results/evidence/", "recipe/"):
                browser.look(390, 844)
                browser.open(here + page)
                assert browser.requested
                assert [one for one in browser.requested if not one.startswith((here, "data:"))] == []
                assert browser.logged == []
                assert browser.run("document.documentElement.scrollWidth") <= 390, page
        server.shutdown()


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    @classmethod
    def of(cls, folder: Path):
        return partial(cls, directory=str(folder))

    def log_message(self, format: str, *args: object) -> None:
        pass
