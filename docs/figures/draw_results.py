"""Draw the figure behind the answer of each page of results, from the page's own tables.

    python docs/figures/draw_results.py

writes ``results-PAGE.svg`` beside this file for every page below and puts the line that shows it behind the page's
first answer. The writers in ``docs/results`` do the same for a page that they write anew.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from bridgegarden.lab.findings import Verdict
from bridgegarden.report.charts import Bar, Dot, Row, Shape, bar_chart, dot_plot, standalone
from bridgegarden.report.marks import Axis, Reading

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
SIZE = 480
"""Pixels: the text of a file that is shrunk to a telephone's width must stay readable."""
LISTED = 12
"""As many values are read out; of more, the first, the last and the baseline."""
CLAIMS = {
    "1": "1: worse on teacher's text",
    "2": "2: less exposure bias",
    "3a": "3a: hard better at Bridges",
    "3b": "3b: soft better at Gardens",
    "4": "4: lowest total loss",
    "5a": "5a: confidence predicts κ",
    "5b": "5b: entropy predicts κ",
    "6": "6: none on the control",
}
"""The claims of the lab, short enough for a chart."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A chart and what it says."""

    chart: Markup
    """At one width."""

    title: str
    """What is drawn."""

    alt: str
    """What came out, with its numbers."""


def tables(text: str) -> Iterator[list[dict[str, str]]]:
    """The rows of every table of a Markdown text, each by its columns."""
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        heads, _, *rows = ([cell.strip() for cell in line.strip("|").split(" | ")] for line in block.splitlines())
        yield [dict(zip(heads, row, strict=True)) for row in rows]


def reading(cell: str) -> Reading:
    """``98.5 ± 1.9`` or ``100.0 ≥ 98.5`` (all were right: the interval has one end)."""
    value, sign, other = cell.partition(" ± ") if " ± " in cell else cell.partition(" ≥ ")
    middle, end = float(value), float(other)
    return Reading(middle, middle - end, middle + end) if sign == " ± " else Reading(middle, end, middle)


def right_answers(page: str) -> Figure:
    """Right answers of every objective when it samples, the highest first."""
    column = "right, sampled, %"
    cells = next(rows for rows in tables(page) if column in rows[0])
    found = re.search(r"^## Against (.+)$", page, flags=re.MULTILINE)
    baseline = None if found is None else found[1]
    ranked = sorted(cells, key=lambda row: -reading(row[column]).value)
    called = [row["objective"] + (" (baseline)" if row["objective"] == baseline else "") for row in ranked]
    told = [f"{name} {row[column]}" for name, row in zip(called, ranked, strict=True)]
    rows = [
        Row(name=name, dots=(Dot(reading=reading(row[column]), about=f"{name}: {row[column]} % right"),))
        for name, row in zip(called, ranked, strict=True)
    ]
    if len(told) > LISTED:
        kept = [one for one in told[LISTED // 2 : -1] if "(baseline)" in one]
        told = [*told[: LISTED // 2], *kept, f"lowest of {len(ranked)} {told[-1]}"]
    title = "Right answers when sampling, by objective"
    alt = f"{title}, in per cent with 95 % intervals: {'; '.join(told)}"
    axis = Axis(label="right when sampling, %", least=0, most=100)
    chart = dot_plot(rows, axis=axis, series=[("right, sampled", "disc")], about=alt, size=SIZE)
    return Figure(chart=chart, title=title, alt=alt)


def differences(page: str) -> Figure:
    """What objectives have over the text alone and over GOLD, sampled and greedy."""
    parts = [part for part in page.split("\n## ")[1:] if "| against |" in part]
    found = []
    for part in parts:
        (rows,) = (rows for rows in tables(part) if "against" in rows[0])
        prefix = f"{part.splitlines()[0].lower()}: " if len(parts) > 1 else ""
        found += [row | {"pair": prefix + _pair(row)} for row in rows]
    ways: list[tuple[str, Shape]] = [("sampled", "disc"), ("greedy", "ring")]
    drawn = {(row["pair"], row["decoding"]): row for row in found}
    rows = [
        Row(name=pair, dots=tuple(_difference(drawn[pair, way]) for way, _ in ways))
        for pair in dict.fromkeys(row["pair"] for row in found)
    ]
    most = max((row for row in found if row["decoding"] == "sampled"), key=lambda row: float(row["right, points"]))
    told = sum(row["after Holm"] != "open" for row in found)
    title = "Differences in right answers, with 95 % intervals"
    alt = (
        f"{title}: {told} of {len(found)} are told from zero; the largest when sampling is {most['pair']}, "
        f"{most['right, points']} points ({most['95 % interval']})"
    )
    axis = Axis(label="difference in right answers, points", include=(0.0,))
    chart = dot_plot(rows, axis=axis, series=ways, about=alt, size=SIZE)
    return Figure(chart=chart, title=title, alt=alt)


def _pair(row: dict[str, str]) -> str:
    # Of GOLD, the best of its variants is compared; the table says which.
    return f"{row['objective']} − {row['against'].partition(',')[0]}"


def _difference(row: dict[str, str]) -> Dot:
    low, high = map(float, row["95 % interval"].split(" to "))
    about = f"{row['objective']} − {row['against']}, {row['decoding']}: {row['right, points']} ({row['95 % interval']})"
    return Dot(reading=Reading(float(row["right, points"]), low, high), about=f"{about} points")


def verdicts(page: str) -> Figure:
    """In how many places each claim holds, and in how many the evidence does not suffice."""
    claims = re.findall(r"^\* \*\*(.+?): (.+)\.\*\* Of (\d+) places?:\n((?:    \* .*\n?)+)", page, flags=re.MULTILINE)
    bars, told = [], []
    for claim, text, places, list_ in claims:
        holds, fails, open_ = (
            int(found[1]) if (found := re.search(rf"^    \* {verdict} in (\d+):", list_, flags=re.MULTILINE)) else 0
            for verdict in (Verdict.HOLDS, Verdict.FAILS, Verdict.OPEN)
        )
        said = f"{holds} of {places}" + (f", fails in {fails}" if fails else "")
        label = said.replace("fails in", "not in")
        about = f"{text}: holds in {said}, not enough evidence in {open_}"
        name = CLAIMS.get(claim) or claim
        bars.append(Bar(name=name, filled=holds, hollow=open_, label=label, about=about))
        told.append(f"{claim} in {said}")
    title = "In how many places each claim holds"
    alt = f"{title}: {'; '.join(told)}"
    axis = Axis(label="places (regimes of worlds)", include=(max(float(claim[2]) for claim in claims),), whole=True)
    parts = ("holds", "not enough evidence")
    return Figure(chart=bar_chart(bars, axis=axis, about=alt, parts=parts, size=SIZE + 80), title=title, alt=alt)


FIGURES: dict[str, Callable[[str], Figure]] = {
    "compare": right_answers,
    "lab": verdicts,
    "lightning": right_answers,
    "methods": right_answers,
    "tokenizers": differences,
}
"""By page."""


def svg(name: str, page: str) -> str:
    """The text of a page's figure."""
    figure = FIGURES[name](page)
    return standalone(figure.chart, title=figure.title)


def with_figure(name: str, page: str) -> str:
    """The page with the line that shows its figure behind its first answer, instead of one that is there."""
    title, answer, rest = page.split("\n\n", 2)
    if rest.startswith("!["):
        rest = rest.split("\n\n", 1)[1]
    return f"{title}\n\n{answer}\n\n![{FIGURES[name](page).alt}](../figures/results-{name}.svg)\n\n{rest}"


def draw(name: str) -> None:
    """Write a page's figure, and show it on the page."""
    path = RESULTS / f"{name}.md"
    page = path.read_text(encoding="utf-8")
    path.write_text(with_figure(name, page), encoding="utf-8")
    HERE.joinpath(f"results-{name}.svg").write_text(svg(name, page), encoding="utf-8")


if __name__ == "__main__":
    for one in FIGURES:
        draw(one)
