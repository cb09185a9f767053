"""Write the pages of the evidence and their figures from the files that a map left.

    bridgegarden lab map
    bridgegarden lab confirm
    python docs/results/write_evidence.py --take runs/map     # keeps its numbers in evidence/, then writes
    python docs/results/write_evidence.py --take-confirmed runs/confirm     # in evidence/transformers/
    python docs/results/write_evidence.py --take-pair runs/smollm2/small    # in evidence/smollm2/
    python docs/results/write_evidence.py                     # writes from what is kept

Each page is a template in ``evidence/`` of the same name. Every number in it is read from there; the sentences around
them are checked against the same files.
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from bridgegarden.lab.map.cells import ARMS, FAIRNESS
from bridgegarden.lab.map.findings import CLAIMS, KAPPA, MAIN
from bridgegarden.report.charts import standalone
from bridgegarden.report.diagnosis_words import GUIDE
from bridgegarden.statistics import spearman
from bridgegarden.study.arms import HYBRIDS
from bridgegarden.table import Column, Table

sys.path.append(str(Path(__file__).parents[2]))
from docs.figures.draw_evidence import FIGURED, figures
from docs.results.evidence_numbers import (
    CONFIRMED,
    KEPT,
    WAY,
    Evidence,
    best_arms,
    best_reading,
    between,
    corrected_count,
    counted,
    furthest,
    gain_of_oracle,
    guide_rows,
    points,
    unit_of,
    untrained,
)
from docs.results.evidence_pair import HYBRID, Pair, take_pair

HERE = Path(__file__).parent
DRAWN = HERE.parent / "figures"


def take(folder: Path) -> None:
    """Keep what a map in `folder` found."""
    runs = [json.loads(path.read_text(encoding="utf-8"))["run"] for path in sorted((folder / "cells").glob("*.json"))]
    students, seconds = (sum(run[name] for run in runs) for name in ("students", "cpu_seconds"))
    _keep(folder, KEPT, {"students": students, "cpu_seconds": seconds})


def take_confirmed(folder: Path) -> None:
    """Keep what ``bridgegarden lab confirm`` left in `folder`."""
    runs = [
        json.loads(path.read_text(encoding="utf-8"))["run"] for path in sorted((folder / "students").rglob("*.json"))
    ]
    seconds, off_script = (float(sum(run[name] for run in runs)) for name in ("cpu_seconds", "off_script"))
    made = {"students": len(runs), "cpu_seconds": seconds, "off_script": off_script / len(runs)}
    _keep(folder, CONFIRMED, made)


def _keep(folder: Path, where: Path, more: dict[str, float]) -> None:
    where.mkdir(exist_ok=True)
    for name in ("cells.csv", "claims.csv"):
        (where / name).write_text((folder / name).read_text(encoding="utf-8"), encoding="utf-8")
    tree = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    made = {name: tree[name] for name in ("settings", "versions", "commit", "command", "started")} | more
    (where / "made.json").write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")


def claims_table(evidence: Evidence, way: str) -> str:
    """Every claim: in how many cells, and over all cells the arm with the largest effect."""
    rows = []
    for claim in CLAIMS:
        counts = list(evidence.verdicts(claim.name, way).values())
        best = max(evidence.pooled(claim.name, way), key=lambda row: float(row["difference as claimed"]))
        times, digits = unit_of(claim.name)
        spread = times * float(best["between cells"])
        verdict = best["verdict"].replace("undecided", f"depends on the cell (spread {spread:.{digits}f})")
        rows.append(
            [
                claim.name,
                claim.text,
                *(str(counts.count(one)) for one in ("holds", "does not hold", "undecided")),
                f"{between(best, times, digits)} {'points' if times > 1 else ''}".strip(),
                ARMS[best["arm"]].label,
                verdict,
            ]
        )
    columns = ["claim", Column("what is claimed", words=True), "holds in", "not in", "undecided in"]
    return Table(columns=[*columns, "over all cells", "by", "verdict"], rows=rows).markdown()


def every_hybrid(evidence: Evidence, claim: str) -> str:
    """A claim over all cells, arm by arm, for each way of choosing settings."""
    times, digits = unit_of(claim)
    rows = []
    for way in FAIRNESS:
        by_arm = {row["arm"]: row for row in evidence.pooled(claim, way)}
        rows.append([way, *(between(by_arm[arm], times, digits) for arm in HYBRIDS if arm in by_arm)])
    return Table(columns=["settings", *(ARMS[arm].label for arm in HYBRIDS)], rows=rows).markdown()


def main_table(evidence: Evidence, way: str) -> str:
    """In each cell the better pure kind, the hybrid that is right most often, and the difference."""
    rows = []
    for place in evidence.places:
        tests = evidence.tests(MAIN, way, place)
        best = max(tests, key=lambda row: float(row["difference as claimed"]))
        others = [evidence.mean(place, arm, "right, greedy", way) for arm in ("sharpened", "soft_risk", "by_role")]
        rows.append(
            [
                str(place),
                f"{ARMS[best['against']].label} {points(evidence.mean(place, best['against'], 'right, greedy', way))}",
                f"{ARMS[best['arm']].label} {points(evidence.mean(place, best['arm'], 'right, greedy', way))}",
                between(best, 100, 1),
                "**holds**" if best["verdict"] == "holds" else best["verdict"],
                *map(points, others),
            ]
        )
    columns = ["cell", "better pure kind, %", "best hybrid, %", "difference, points", "verdict"]
    return Table(columns=[*columns, "sharpened", "soft with risk", "oracle by role"], rows=rows).markdown()


def measure_table(evidence: Evidence, measure: str, way: str, arms: Sequence[str], times: float = 1.0) -> str:
    """Means of a measure, by teacher, student and rows, over budgets."""
    rows = []
    for place in evidence.places:
        means = [times * evidence.mean(place, arm, measure, way) for arm in arms]
        rows.append([str(place), *(f"{mean:.{0 if times > 1 else 3}f}".replace("-", "−") for mean in means)])
    return Table(columns=["cell", *(ARMS[arm].label for arm in arms)], rows=rows).markdown()


def kappa_table(evidence: Evidence, way: str) -> str:
    """How well the teacher's distribution tells kappa, by reading and teacher."""
    teachers = list(dict.fromkeys(place.teacher for place in evidence.places))
    rows = []
    for claim in (claim for claim in CLAIMS if claim.measure in KAPPA):
        tests = evidence.tests(claim.name, way)
        means = [
            statistics.fmean(float(row["difference as claimed"]) for row in tests if row["teacher"] == teacher)
            for teacher in teachers
        ]
        (pooled,) = evidence.pooled(claim.name, way)
        predictor, reading = KAPPA[claim.measure]
        rows.append(
            [claim.name, predictor, reading, *(f"{mean:+.2f}".replace("-", "−") for mean in means), between(pooled)]
        )
    names = [teacher.replace("_", " ") for teacher in teachers]
    return Table(columns=["claim", "predictor", "kappa over", *names, "over all cells"], rows=rows).markdown()


def guide_table(evidence: Evidence) -> str:
    """By cell, what is right most often by each decoding."""
    rows = []
    for place in evidence.places:
        cells = []
        for measure in ("right, greedy", "right, sampled", "right, equally varied"):
            best = best_arms(evidence, place, measure)
            cells.append(f"{ARMS[best[0]].label} {points(evidence.mean(place, best[0], measure))}" + _also(best[1:]))
        rows.append([str(place), *cells])
    columns = [Column(name, words=True) for name in ("greedy, %", "sampled, %", "at half the teacher's variety, %")]
    return Table(columns=["cell", *columns], rows=rows).markdown()


def _also(arms: Sequence[str]) -> str:
    return f" ({', '.join(ARMS[arm].label for arm in arms)})" if arms else ""


def explains_table(evidence: Evidence, way: str = WAY) -> str:
    """Over cells, whether what a hybrid changes against soft labels goes with how much more often it is right."""
    weight = torch.ones(len(evidence.places), dtype=torch.float64)
    rows = []
    for arm in HYBRIDS:

        def gained(measure: str, sign: float, arm: str = arm) -> torch.Tensor:
            means = [[evidence.mean(p, one, measure, way) for one in (arm, "soft")] for p in evidence.places]
            return sign * torch.tensor([hybrid - soft for hybrid, soft in means], dtype=torch.float64)

        right = gained("right, greedy", 1.0)
        found = [
            spearman(gained(measure, -1.0), right, weight).item()
            for measure in ("exposure bias", "L_dθ", "L_dT at Bridges", "L_dθ at Bridges")
        ]
        rows.append([ARMS[arm].label, *(f"{one:+.2f}".replace("-", "−") for one in found)])
    columns = ["hybrid", "less exposure bias", "lower L_dθ", "lower L_dT at Bridges", "lower L_dθ at Bridges"]
    return Table(columns=columns, rows=rows).markdown()


def regimes_table(evidence: Evidence, way: str, arms: Sequence[str], measure: str = "right, greedy") -> str:
    """Means over the cells of a teacher, in per cent."""
    rows = []
    for teacher in dict.fromkeys(place.teacher for place in evidence.places):
        here = [place for place in evidence.places if place.teacher == teacher]
        means = [statistics.fmean(evidence.mean(place, arm, measure, way) for place in here) for arm in arms]
        rows.append([teacher.replace("_", " "), *map(points, means)])
    return Table(columns=["teacher", *(ARMS[arm].label for arm in arms)], rows=rows).markdown()


def confirmed_claims(map_: Evidence) -> str:
    """Claims that transformers can tell, in each of their cells, beside what the map says of it with one setting."""
    evidence, way = Evidence(CONFIRMED), FAIRNESS[0]
    rows = []
    for claim in (claim for claim in CLAIMS if evidence.tests(claim.name, way)):
        row = [claim.name, claim.text]
        for place in evidence.places:
            tests = evidence.tests(claim.name, way, place)
            best = max(tests, key=lambda row: float(row["difference as claimed"]))
            there = map_.verdicts(claim.name, way)[place]
            told = between(best, *unit_of(claim.name))
            row.append(f"{evidence.verdicts(claim.name, way)[place]}: {told}, {ARMS[best['arm']].label} (map: {there})")
        rows.append(row)
    columns = [Column(str(place), words=True) for place in evidence.places]
    return Table(columns=["claim", Column("what is claimed", words=True), *columns], rows=rows).markdown()


def confirmed_verdict(map_: Evidence, claim: str) -> str:
    """What transformers say of a claim, in how many of their cells."""
    found = list(Evidence(CONFIRMED).verdicts(claim, FAIRNESS[0]).values())
    said = [f"{verdict} in {found.count(verdict)} of {len(found)}" for verdict in dict.fromkeys(found)]
    return "is " + said[0] if said[0].startswith("undecided") and len(said) == 1 else " and ".join(said)


def confirmed_seeds(map_: Evidence, claim: str) -> str:
    """How many seeds would decide it, in each of their cells, for the arm that does most."""
    evidence, found = Evidence(CONFIRMED), []
    for place in evidence.places:
        best = max(evidence.tests(claim, FAIRNESS[0], place), key=lambda row: float(row["difference as claimed"]))
        found.append(best["needed"])
    return " and ".join(found)


def confirmed_differences(map_: Evidence, claim: str) -> str:
    """Of the arm that does most, in each of their cells."""
    evidence = Evidence(CONFIRMED)
    tests = [evidence.tests(claim, FAIRNESS[0], place) for place in evidence.places]
    best = [max(each, key=lambda row: float(row["difference as claimed"])) for each in tests]
    return " and ".join(between(row, *unit_of(claim)) for row in best)


def confirmed_measures(map_: Evidence) -> str:
    """Right answers, exposure bias and loss of every kind of labels, transformers beside the map's networks."""
    evidence, way = Evidence(CONFIRMED), FAIRNESS[0]
    rows = []
    for place in evidence.places:
        for arm in evidence.arms:
            row = [str(place), ARMS[arm].label]
            for measure, times, digits in CONFIRMED_MEASURES:
                pair = [times * of.mean(place, arm, measure, way) for of in (evidence, map_)]
                row.append(" / ".join(f"{mean:.{digits}f}".replace("-", "−") for mean in pair))
            rows.append(row)
    return Table(columns=["cell", "labels", *(name for name, _, _ in CONFIRMED_MEASURES)], rows=rows).markdown()


CONFIRMED_MEASURES = (
    ("right, greedy", 100.0, 0),
    ("right, sampled", 100.0, 0),
    ("exposure bias", 1.0, 3),
    ("L_dθ", 1.0, 2),
)
"""Of what both kinds of students have, as shown: times, digits."""


def ways_table(evidence: Evidence) -> str:
    """In how many cells a hybrid is right most often, by how settings are chosen."""
    rows = []
    for claim in ("right", "right, sampled", "right, equally varied", "sharpened", "soft with risk", "2", "4"):
        text = next(one.text for one in CLAIMS if one.name == claim)
        rows.append([claim, text, *(counted(evidence, claim, way) for way in FAIRNESS)])
    return Table(columns=["claim", Column("what is claimed", words=True), *FAIRNESS], rows=rows).markdown()


MEASURED = {
    "right, greedy": 100.0,
    "right, sampled": 100.0,
    "right, T = 0.5": 100.0,
    "right, equally varied": 100.0,
    "variety": 100.0,
    "L_dT": 1.0,
    "L_dθ": 1.0,
    "exposure bias": 1.0,
    "L_dT at Bridges": 1.0,
    "L_dθ at Bridges": 1.0,
    "drift caused at Bridges": 1.0,
    "drift caused at Gardens": 1.0,
}
"""Measures whose tables the page has: with shares in per cent."""


PAGES = tuple(sorted(path.name.removesuffix(".md.jinja") for path in KEPT.glob("*.md.jinja")))
"""Names of the pages, one a question, and the one that answers them in short."""


def pages(evidence: Evidence) -> dict[str, str]:
    """By name, every page: the words of its template with the numbers in their places."""
    environment = Environment(
        loader=FileSystemLoader(KEPT),
        undefined=StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    bound = {
        function.__name__: partial(function, evidence)
        for function in (
            claims_table,
            main_table,
            ways_table,
            every_hybrid,
            measure_table,
            kappa_table,
            explains_table,
            regimes_table,
            guide_table,
            guide_rows,
            counted,
            corrected_count,
            untrained,
            gain_of_oracle,
            best_reading,
            furthest,
            confirmed_claims,
            confirmed_differences,
            confirmed_measures,
            confirmed_seeds,
            confirmed_verdict,
        )
    }
    environment.globals |= bound | {
        "made": evidence.made,
        "confirmed": Evidence(CONFIRMED),
        "pair": Pair(),
        "loses": sum(
            evidence.mean(one, HYBRID, "L_dθ") > evidence.mean(one, "soft", "L_dθ") for one in evidence.places
        ),
        "arms": evidence.arms,
        "cells": len(evidence.places),
        "figured": FIGURED,
        "drawn": figures(evidence),
        "guide": GUIDE,
        "measured": MEASURED,
        "ways": FAIRNESS,
        "shown": WAY,
        "points": points,
    }
    texts = {name: environment.get_template(f"{name}.md.jinja").render() for name in PAGES}
    # What a macro leaves empty is one empty line.
    return {name: re.sub(r"\n{3,}", "\n\n", text).strip() + "\n" for name, text in texts.items()}


def main() -> None:
    """Take a map's numbers if asked to, and write the pages and their figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--take", metavar="DIR", type=Path, help="a finished map whose numbers are kept first")
    parser.add_argument("--take-confirmed", metavar="DIR", type=Path, help="its cells with transformers, likewise")
    parser.add_argument("--take-pair", metavar="DIR", type=Path, help="what a real pair's students did, likewise")
    arguments = parser.parse_args()
    if arguments.take is not None:
        take(arguments.take)
    if arguments.take_confirmed is not None:
        take_confirmed(arguments.take_confirmed)
    if arguments.take_pair is not None:
        take_pair(arguments.take_pair)
    evidence = Evidence()
    for name, text in pages(evidence).items():
        HERE.joinpath(f"{name}.md").write_text(text, encoding="utf-8")
    for name, figure in figures(evidence).items():
        DRAWN.joinpath(f"{name}.svg").write_text(standalone(figure.chart, title=figure.title), encoding="utf-8")


if __name__ == "__main__":
    main()
