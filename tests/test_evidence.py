"""The page of evidence is made from the numbers that are kept, and README says none that is not on it."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"


@pytest.fixture(scope="module")
def writer():
    spec = importlib.util.spec_from_file_location("write_evidence", RESULTS / "write_evidence.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_page_and_figures_are_what_the_kept_numbers_make(writer):
    evidence = writer.Evidence()
    assert (RESULTS / "evidence.md").read_text(encoding="utf-8") == writer.page(evidence)
    for name, place in writer.FIGURED.items():
        drawn = writer.mechanism(evidence, place, str(place))
        assert (ROOT / "docs" / "figures" / f"bridges-{name}.svg").read_text(encoding="utf-8") == drawn


def test_readme_says_of_the_evidence_only_what_the_page_says():
    """Counts and sums of the paragraph that points to it."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (paragraph,) = (part for part in readme.split("\n\n") if "[Our own evidence](docs/results/evidence.md)" in part)
    said = paragraph.split("[Our own evidence](docs/results/evidence.md)")[1].split('["The')[0]
    page = " ".join((RESULTS / "evidence.md").read_text(encoding="utf-8").split())
    numbers = re.findall(r"\d+ of \d+|\d+(?:,\d+)+", " ".join(said.split()))
    assert len(numbers) >= 3
    for number in numbers:
        assert number in page.split("## What to use")[0], number


def test_what_is_recommended_for_a_teacher_is_right_most_often_or_nearly(writer):
    evidence = writer.Evidence()
    page = (RESULTS / "evidence.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([a-z ]+) \| \*\*(\w+)\*\*", page.split("## What to use")[1], flags=re.M)
    assert len(rows) == 4
    for teacher, arm in rows:
        here = [place for place in evidence.places if place.teacher == teacher.replace(" ", "_")]
        means = {
            one: sum(evidence.mean(place, one, "right, greedy") for place in here) / len(here)
            for one in evidence.arms
            if one not in writer.FREE
        }
        assert means[arm] >= max(means.values()) - 0.01, teacher


def test_where_a_hybrid_is_drawn_as_ahead_or_behind_it_is(writer):
    evidence = writer.Evidence()
    assert evidence.verdicts("right")[writer.FIGURED["won"]] == "holds"
    assert evidence.verdicts("right")[writer.FIGURED["lost"]] != "holds"
    for place in writer.FIGURED.values():
        for hybrid in ("static", "confidence", "entropy", "risk_guided"):
            for role in ("Bridges", "Gardens"):
                assert evidence.mean(place, hybrid, f"L_dθ at {role}") > evidence.mean(place, "soft", f"L_dθ at {role}")


def test_transformers_are_held_against_the_map_in_cells_that_both_have(writer):
    evidence, confirmed = writer.Evidence(), writer.Evidence(writer.CONFIRMED)
    assert len(confirmed.places) == 2
    assert set(confirmed.places) <= set(evidence.places)
    assert (
        confirmed.made["students"] == len(confirmed.places) * len(confirmed.arms) * confirmed.made["settings"]["seeds"]
    )
    said = (RESULTS / "evidence.md").read_text(encoding="utf-8").split("## With transformers")[1]
    for claim, words in (("2", "Claim 2, less exposure bias, "), ("right", "greedy, ")):
        verdicts = list(confirmed.verdicts(claim, "one setting").values())
        for verdict in set(verdicts):
            told = f"{verdict} in {verdicts.count(verdict)} of 2"
            assert told in " ".join(said.split(words, 1)[1].split())[:80], claim
