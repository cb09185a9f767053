"""What docs/results/lab.md says is what the result says."""

import importlib
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bridgegarden.study.arms import HYBRIDS
from tests.lab.made_up import made_up_result

SCRIPTS = Path(__file__).parents[2] / "docs" / "results"


@pytest.fixture
def words(monkeypatch):
    """The module with the words."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield importlib.import_module("lab_words")
    for name in ("lab_words", "write_lab"):
        sys.modules.pop(name, None)


def planted(**of_hybrids):
    """Hybrids that measure this, a little different for every seed; all others as made up."""

    def change(world, regime, objective, seed, measured):
        off = 1 + 1e-3 * seed
        return replace(measured, **{n: v * off for n, v in of_hybrids.items()}) if objective in HYBRIDS else measured

    return made_up_result(worlds=("arithmetic",), change=change)


def test_the_page_has_every_claim_place_and_objective(words):
    pages = importlib.import_module("write_lab").pages(made_up_result())
    assert set(pages) == {"lab.md", "lab_arithmetic.md", "lab_control.md"}
    for text in pages.values():
        assert text.count("<details>") == text.count("</details>") > 0
    assert "* **2: a hybrid has less exposure bias than soft labels.** Of 8 places:" in pages["lab.md"]
    for world, place in (("arithmetic", "small student"), ("control", "no limit")):
        assert f"{world} ({place})" in pages["lab.md"]
        text = pages[f"lab_{world}.md"]
        assert text.count(f"<summary>{world} ({place})</summary>") == 2
        assert "| risk-guided |" in text
        effects = text.split("## Effects")[1].split("## Every objective")[0]
        named = set(re.findall(r"^\| (\d[\w.:-]*(?: \d\w*)?) \| \w", effects, flags=re.MULTILINE))
        assert len(named) > 5
        assert named <= set(
            re.findall(r"^\| (\d[\w.:-]*(?: \d\w*)?) \| \w", text.split("## Effects")[0], flags=re.MULTILINE)
        )


def test_the_pages_that_are_kept_are_of_one_run():
    kept = {path.name: path.read_text(encoding="utf-8") for path in sorted(SCRIPTS.glob("lab*.md"))}
    assert len(kept) == 5
    (command,) = re.findall(r"^    (bridgegarden lab run .*)$", kept["lab.md"], flags=re.MULTILINE)
    assert all(command in text for text in kept.values())
    for name in kept:
        assert name == "lab.md" or f"]({name})" in kept["lab.md"]


@pytest.mark.parametrize(
    ("loss", "success", "verdicts"),
    [(0.1, 0.99, ("hybrid", "hybrid")), (9.0, 0.1, ("one kind", "one kind")), (9.0, 0.99, ("one kind", "hybrid"))],
)
def test_a_hybrid_is_better_only_where_the_widened_interval_says_so(words, loss, success, verdicts):
    result = planted(student_loss=loss, success=success)
    place = words.places(result)[0]
    found = [words.compared(result, place, *quantity).verdict for quantity in (words.LIKENESS, words.SUCCESS)]
    assert tuple(found) == verdicts


def test_what_differs_less_than_it_varies_is_not_told_apart(words):
    def change(world, regime, objective, seed, measured):
        return replace(measured, student_loss=1.0 + (0.1 if objective in HYBRIDS else -0.1) * (seed - 1))

    result = made_up_result(worlds=("arithmetic",), change=change)
    assert words.compared(result, words.places(result)[0], *words.LIKENESS).verdict == "not told apart"


def test_the_frontier_is_what_nothing_beats_at_both(words):
    result = planted(success=0.99, diversity=2.0)
    assert words.frontier(result, words.places(result)[0]) == list(HYBRIDS)
    assert not set(words.frontier(planted(success=0.1, diversity=-1.0), words.places(result)[0])) & set(HYBRIDS)
