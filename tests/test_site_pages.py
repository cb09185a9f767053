"""What the pages of the site claim is what is kept and what is there."""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest

from docs.figures.draw_results import FIGURES, svg, with_figure
from tests.test_evidence import QUESTIONS, TABLES, evidence  # noqa: F401  a fixture

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

NOISY = ("unsure", "slips")
GUIDE = {
    # what you have: for each number, in order, the claim it counts, and in which cells
    "a teacher that is sure and right": [("right", {"teacher": ("perfect",)})],
    "a teacher that is right but unsure": [(claim, {"teacher": ("unsure",)}) for claim in ("right", "right, sampled")],
    "a teacher that slips": [(c, {"teacher": ("slips",)}) for c in ("right", "right, sampled", "sharpened")],
    "a teacher that is wrong in places": [("right", {"teacher": ("wrong_in_places",)})],
    "an unsure or slipping teacher, few rows, a student with room": [
        ("right", {"teacher": NOISY, "rows": ("few",), "student": ("room enough",)})
    ],
    "the same, and a student that is too small": [
        ("right", {"teacher": NOISY, "rows": (rows,), "student": ("too small",)}) for rows in ("many", "few")
    ],
    "the same, many rows and room enough": [
        ("right", {"teacher": NOISY, "rows": ("many",), "student": ("room enough",)})
    ],
    "time for the student to write at every step": [("on-policy", {})],
}


def guide() -> dict[str, str]:
    """The rows of the first page's guide: what you have, and the rest of the row."""
    text = (DOCS / "index.md").read_text(encoding="utf-8").split("## Which method should I use?")[1]
    rows = [line.strip("| ").split(" | ", 1) for line in text.splitlines() if line.startswith("| ")]
    return {row[0]: row[1] for row in rows}


@pytest.mark.parametrize("have", GUIDE)
def test_the_guide_counts_what_the_map_found(evidence, have):  # noqa: F811
    found = []
    for claim, cells in GUIDE[have]:
        verdicts = [
            verdict
            for place, verdict in evidence.verdicts(claim).items()
            if all(getattr(place, name) in allowed for name, allowed in cells.items())
        ]
        assert verdicts
        found.append(f"{verdicts.count('holds')} of {len(verdicts)}")
    assert re.findall(r"\d+ of \d+", guide()[have]) == found


def test_every_count_of_the_guide_is_held_to_the_map():
    counted = {have for have, row in guide().items() if re.search(r"\d+ of \d+", row)}
    assert counted == set(GUIDE)


def test_other_numbers_of_the_guide_stand_on_the_page_that_it_names():
    for row in guide().values():
        for page in re.findall(r"\]\((results/(?:quickstart|lightning)\.md)\)", row):
            there = " ".join((DOCS / page).read_text(encoding="utf-8").split())
            numbers = re.findall(r"\d+\.\d ± \d+\.\d|\d+\.\d times fewer FLOPs", row)
            assert numbers
            for number in numbers:
                assert number in there, f"{number} is not in {page}"


def test_likeness_to_the_teacher_is_what_was_measured_of_these_methods():
    page = (DOCS / "results" / "methods.md").read_text(encoding="utf-8")
    lines = page.split("## Quality and drift")[1].split("## ")[0].splitlines()
    heads, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|"))
    loss = {row[0]: row[heads.index("L_dθ")] for row in rows}
    row = guide()["a student that is to draft for its teacher"]
    said = re.search(r"L_dθ is \[(.*?) nats a text\]\(results/methods\.md\) with `soft`, (.*?) with `confidence`", row)
    assert said is not None
    assert said.groups() == (loss["soft"], loss["confidence"])


def test_the_options_that_are_said_to_be_trl_s_are(monkeypatch):
    from dataclasses import fields

    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.gold.gold_config import GOLDConfig

    from bridgegarden.recipe.from_trl import _known

    known = {*_known("gkd"), *_known("distillation"), *(one.name for one in fields(GOLDConfig))}
    section = (DOCS / "coming_from.md").read_text(encoding="utf-8").split("## TRL")[1].split("\n## ")[0]
    rows = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)} - {"SFTConfig"}
    assert len(named) > 15
    assert named <= known


def test_the_keys_that_stand_for_them_are_a_recipe_s():
    from bridgegarden.recipe import Recipe
    from docs.write_recipe_reference import sections

    keys = {f"{path}.{name}".lstrip(".") for path, kind in sections("", Recipe) for name in kind.__dataclass_fields__}
    text = (DOCS / "coming_from.md").read_text(encoding="utf-8")
    cells = [cell for line in text.splitlines() if line.startswith("| `") for cell in line.split(" | ")[1:2]]
    named = set(re.findall(r"`((?:teacher|student|data|objective|on_policy)\.\w+)", " ".join(cells)))
    assert len(named) > 10
    assert named <= keys


TESTED = ("footguns.md", "paper.md", "coming_from.md")


@pytest.mark.parametrize("page", TESTED)
def test_every_test_and_file_that_a_page_names_is_there(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text)
    assert named or page == "coming_from.md"
    for file, test in named:
        code = (ROOT / file).read_text(encoding="utf-8")
        assert not test or re.search(rf"^def {test}\(", code, flags=re.MULTILINE), f"{file} has no {test}"
    for file in re.findall(r"`((?!tests/)\w[\w/]*/\w+\.py)`", text):
        assert (ROOT / "src" / "bridgegarden" / file).is_file(), file


def test_every_footgun_has_a_test():
    sections = (DOCS / "footguns.md").read_text(encoding="utf-8").split("\n## ")[1:]
    assert len(sections) >= 8
    for section in sections:
        assert "`tests/" in section, section.splitlines()[0]


CLAIMS = {"1:": "1", "2:": "2", "3a:": "3a", "3b:": "3b", "4:": "4", "a hybrid is right more often": "right"}


def test_the_paper_s_claims_hold_in_as_many_cells_as_is_said(evidence):  # noqa: F811
    rows = [row for row in (DOCS / "paper.md").read_text(encoding="utf-8").splitlines() if "holds in" in row]
    said = {row.strip("| ").split(" | ")[0]: row.rpartition("holds in ")[2].strip("| ") for row in rows[1:]}
    assert len(said) == 7
    for begins, claim in CLAIMS.items():
        (count,) = (count for statement, count in said.items() if statement.startswith(begins))
        verdicts = list(evidence.verdicts(claim).values())
        assert count == f"{verdicts.count('holds')} of {len(verdicts)}", begins
    (count,) = (count for statement, count in said.items() if statement.startswith("5:"))
    fives = [claim for claim in {row["claim"] for row in evidence.claims} if claim.startswith("5")]
    assert len(fives) == 8
    assert {f"{list(evidence.verdicts(c).values()).count('holds')} of 32" for c in fives} == {count}


@pytest.mark.parametrize("page", ["compare", *QUESTIONS, "lab", "lightning", "methods", "tokenizers"])
def test_a_page_of_results_begins_with_its_answer_and_an_interval(page):
    text = (DOCS / "results" / f"{page}.md").read_text(encoding="utf-8")
    before, _, after = text.partition("Written by")
    assert re.search(r"± \d|[\[(][+−-][\d.]+(?:,| to) [+−-]", before)
    assert re.search(r"^    (?:bridgegarden|bash|python) ", after.split("\n\n## ")[0], flags=re.MULTILINE), (
        "the command"
    )


def test_tables_that_are_long_are_folded_away_on_pages_of_results():
    for path in sorted((DOCS / "results").glob("*.md")):
        shown = re.sub(r"<details>.*?</details>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        rows = [len(table.splitlines()) - 2 for table in re.findall(r"(?:^\|.*\n)+", shown, flags=re.MULTILINE)]
        assert max(rows, default=0) <= 8, path.name


def test_what_is_said_of_cost_is_what_was_measured():
    """A number that the first page links to stands in a cell of the table it links to."""
    costs = (DOCS / "index.md").read_text(encoding="utf-8").split("## What does it cost?")[1]
    rows = [row for row in costs.splitlines() if "times](benchmarks.md#" in row]
    assert len(rows) == 3
    parts = (DOCS / "benchmarks.md").read_text(encoding="utf-8").split("\n## ")
    anchored = {re.sub(r"[^\w -]", "", part.splitlines()[0].lower()).replace(" ", "-"): part for part in parts}
    for row in rows:
        said, anchor = re.findall(r"\[([\d.]+) times\]\(benchmarks\.md#([\w-]+)\)", row)[0]
        part = anchored[anchor]
        assert re.search(rf"\| (?:\*\*)?{re.escape(said)}(?:\*\*)? \|", part), f"{said} is not under {anchor}"


@pytest.mark.parametrize("name", sorted(FIGURES))
def test_the_figure_of_a_page_of_results_is_drawn_from_its_tables(name):
    page = (DOCS / "results" / f"{name}.md").read_text(encoding="utf-8")
    assert page == with_figure(name, page)
    assert (DOCS / "figures" / f"results-{name}.svg").read_text(encoding="utf-8") == svg(name, page)


def test_every_page_of_results_shows_a_figure_behind_its_first_answer():
    # Pages of one world are the tables behind lab.md.
    behind = (*TABLES, *(path.stem for path in (DOCS / "results").glob("lab_*.md")))
    pages = [path for path in sorted((DOCS / "results").glob("*.md")) if path.stem not in behind]
    assert {path.stem for path in pages} > set(FIGURES)
    for path in pages:
        figures = re.findall(r"^!\[(.+)\]\((.+)\)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert figures, path.name
        assert all((path.parent / file).is_file() for _, file in figures), path.name
        if path.stem in FIGURES:
            assert re.search(r"\d", figures[0][0]), path.name


@pytest.mark.parametrize("name", sorted(FIGURES))
def test_a_page_that_is_written_anew_keeps_its_figure(name):
    """The figure's line is put where it was, once, and its numbers are those of the text."""
    page = (DOCS / "results" / f"{name}.md").read_text(encoding="utf-8")
    without = "".join(line for line in page.splitlines(keepends=True) if not line.startswith("![")).replace(
        "\n\n\n", "\n\n"
    )
    assert without != page
    assert with_figure(name, without) == page
    script = (DOCS / "results" / f"write_{name}.py").read_text(encoding="utf-8")
    assert f'with_figure("{name}", ' in script
    assert f'draw("{name}")' in script


def test_a_changed_cell_is_another_figure():
    page = (DOCS / "results" / "compare.md").read_text(encoding="utf-8")
    changed = page.replace("| soft | 63.6 ± 8.9 |", "| soft | 99.0 ± 0.5 |")
    assert changed != page
    assert svg("compare", changed) != svg("compare", page)
    assert "in per cent with 95 % intervals: soft 99.0 ± 0.5; hard 98.5 ± 1.9" in with_figure("compare", changed)


def test_the_page_of_tokenizers_is_what_its_numbers_say(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS / "results"))
    page = importlib.import_module("write_tokenizers")
    monkeypatch.delitem(sys.modules, "write_tokenizers")
    runs = json.loads((DOCS / "results" / "tokenizers.json").read_text(encoding="utf-8"))
    assert page.page(runs) == (DOCS / "results" / "tokenizers.md").read_text(encoding="utf-8")


def test_lists_in_lists_are_indented_as_the_site_reads_them():
    """By four spaces: Python-Markdown takes what stands behind two for one more point of the list outside."""
    for page in sorted(DOCS.rglob("*.md")):
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        assert not re.search(r"^ {1,3}[*-] ", text, flags=re.MULTILINE), page.name
