"""The pages of evidence are made from the numbers that are kept, and README says none that is not on the first."""

import re
from pathlib import Path

import pytest

from bridgegarden.compare.findings import called, difference, summary
from bridgegarden.report.charts import MARGIN, standalone
from bridgegarden.report.marks import width
from docs.figures.draw_evidence import FIGURED, READ, figures
from docs.results import write_evidence
from docs.results.evidence_numbers import CONFIRMED, FREE, Evidence
from docs.results.evidence_pair import HYBRID, PAIR, Pair

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"


TABLES = ("evidence_map", "evidence_measures")
"""Pages behind the others: how, and every number."""
QUESTIONS = [name for name in write_evidence.PAGES if name not in TABLES]


@pytest.fixture(scope="module")
def evidence():
    return Evidence()


def test_pages_and_figures_are_what_the_kept_numbers_make(evidence):
    made = write_evidence.pages(evidence)
    for name, text in made.items():
        assert (RESULTS / f"{name}.md").read_text(encoding="utf-8") == text
    for name, figure in figures(evidence).items():
        kept = (ROOT / "docs" / "figures" / f"{name}.svg").read_text(encoding="utf-8")
        assert kept == standalone(figure.chart, title=figure.title)


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_page_answers_one_question_in_few_words_with_a_figure_of_its_own(name):
    """Before anything else comes the answer with an interval, then the figure; what is long is folded away."""
    text = (RESULTS / f"{name}.md").read_text(encoding="utf-8")
    title, answer, figure, rest = text.split("\n\n", 3)
    assert title.startswith("# ")
    assert title.endswith(("?", "why"))
    assert re.search(r"\[[+−][\d.]+, [+−][\d.]+\]", answer)
    assert re.fullmatch(rf"!\[.*\d.*\]\(\.\./figures/results-{name}\.svg\)", figure)
    open_ = re.sub(r"<details>.*?</details>|^!\[.*\)$", "", rest, flags=re.DOTALL | re.MULTILINE)
    assert len(open_.split()) < 800
    assert max((len(table.splitlines()) for table in re.findall(r"(?:^\|.*\n)+", open_, re.MULTILINE)), default=0) < 12


def test_the_first_page_leads_to_every_other():
    text = (RESULTS / "evidence.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\((evidence_\w+)\.md\)", text)) >= set(write_evidence.PAGES) - {"evidence"}


def test_no_name_of_a_row_is_cut_short_and_no_legend_leaves_its_figure(evidence):
    for name, figure in figures(evidence).items():
        chart = str(figure.chart)
        assert "…" not in chart, name
        (wide,) = map(float, re.findall(r'<svg[^>]* width="([\d.]+)"', chart))
        for x, words in re.findall(r'<text class="note" x="([\d.]+)"[^>]*>([^<]+)<', chart):
            assert float(x) + width(words) <= wide + MARGIN, f"{name}: {words}"
    assert len(READ) == len(set(READ.values()))


def test_where_a_hybrid_is_ahead_the_teacher_is_noisy_and_the_student_short_of_rows_or_room(evidence):
    ahead = [place for place, verdict in evidence.verdicts("right").items() if verdict == "holds"]
    assert ahead
    for place in ahead:
        assert place.teacher in ("unsure", "slips")
        assert place.rows == "few" or place.student == "too small"


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


def test_what_is_recommended_for_a_teacher_is_right_most_often_or_nearly(evidence):
    page = (RESULTS / "evidence.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([a-z ]+) \| \*\*(\w+)\*\*", page.split("## What to use")[1], flags=re.M)
    assert len(rows) == 4
    for teacher, arm in rows:
        here = [place for place in evidence.places if place.teacher == teacher.replace(" ", "_")]
        means = {
            one: sum(evidence.mean(place, one, "right, greedy") for place in here) / len(here)
            for one in evidence.arms
            if one not in FREE
        }
        assert means[arm] >= max(means.values()) - 0.01, teacher


def test_where_a_hybrid_is_drawn_as_ahead_or_behind_it_is(evidence):
    assert evidence.verdicts("right")[FIGURED["won"]] == "holds"
    assert evidence.verdicts("right")[FIGURED["lost"]] != "holds"
    for place in FIGURED.values():
        for hybrid in ("static", "confidence", "entropy", "risk_guided"):
            for role in ("Bridges", "Gardens"):
                assert evidence.mean(place, hybrid, f"L_dθ at {role}") > evidence.mean(place, "soft", f"L_dθ at {role}")


def test_transformers_are_held_against_the_map_in_cells_that_both_have(evidence):
    confirmed = Evidence(CONFIRMED)
    assert len(confirmed.places) == 2
    assert set(confirmed.places) <= set(evidence.places)
    assert (
        confirmed.made["students"] == len(confirmed.places) * len(confirmed.arms) * confirmed.made["settings"]["seeds"]
    )
    said = " ".join((RESULTS / "evidence_transformers.md").read_text(encoding="utf-8").split("![")[0].split())
    for claim, words in (("2", "less exposure bias "), ("right, sampled", "sampled, "), ("right", "greedy, ")):
        verdicts = list(confirmed.verdicts(claim, "one setting").values())
        for verdict in set(verdicts):
            told = f"{verdict} in {verdicts.count(verdict)} of 2"
            assert told in said.split(words, 1)[1][:30], claim


def test_of_a_real_pair_it_is_said_what_its_claims_came_to():
    """None is called that the comparison itself leaves open, and the words of the answer are those of the verdicts."""
    pair = Pair()
    for claim, verdict in pair.verdicts.items():
        found = difference(pair.result, HYBRID, claim.other, claim.quantity)
        low, high = sorted(claim.sign * end for end in found.interval)
        assert (verdict == "does not hold") == (high < claim.smallest)
        assert verdict != "holds" or (
            low > 0 and called(pair.result, HYBRID, claim.other, claim.quantity) == claim.sign
        )
    said = (RESULTS / "evidence_smollm2.md").read_text(encoding="utf-8").split("![")[0]
    right = [verdict for claim, verdict in pair.verdicts.items() if claim.quantity in ("greedy", "sampled")]
    assert ("not decided" in said) == (set(right) == {"undecided"})
    (own_texts,) = (verdict for claim, verdict in pair.verdicts.items() if claim.quantity == "student_loss")
    assert ("does not fit the teacher better" in said) == (own_texts == "does not hold")
    means = [summary(pair.result, name, "greedy").value for name in pair.result.objectives]
    assert ("more than any two kinds of labels" in said) == (pair.apart("greedy") > max(means) - min(means))


def test_what_is_kept_of_a_real_pair_names_no_folder_of_a_machine():
    assert not re.search(r"(?<![\w.])/(?:home|work|tmp|root|usr)/", (PAIR / "result.json").read_text(encoding="utf-8"))
