"""Write evidence.md and its figure from the files that a map left.

    bridgegarden lab map
    bridgegarden lab confirm
    python docs/results/write_evidence.py --take runs/map     # keeps its numbers in evidence/, then writes
    python docs/results/write_evidence.py --take-confirmed runs/confirm     # in evidence/transformers/
    python docs/results/write_evidence.py                     # writes from what is kept

Every number of the page is read from ``evidence/``; the sentences around them are checked against the same files.
"""

import argparse
import csv
import io
import json
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from jinja2 import Environment, StrictUndefined

from bridgegarden.lab.map.cells import ARMS, FAIRNESS
from bridgegarden.lab.map.findings import CLAIMS, KAPPA, MAIN
from bridgegarden.report.charts import Bar, bar_chart, standalone
from bridgegarden.report.diagnosis_words import GUIDE
from bridgegarden.report.marks import Axis
from bridgegarden.statistics import spearman
from bridgegarden.study.arms import HYBRIDS
from bridgegarden.table import Column, Table

HERE = Path(__file__).parent
KEPT = HERE / "evidence"
CONFIRMED = KEPT / "transformers"
"""What tiny transformers say of two of its cells."""
FIGURES = HERE.parent / "figures"
WAY = "tuned by right answers"
"""How settings were chosen where the page does not say."""
FREE = ("by_role", "by_kappa", "on_policy")
"""What is not to be had for the price of fine-tuning: oracles, and texts of the student that the teacher reads."""
Row = dict[str, str]


class Place(NamedTuple):
    """A cell of the map."""

    teacher: str
    student: str
    rows: str
    budget: str

    def __str__(self) -> str:
        return f"{self.teacher.replace('_', ' ')}, {self.student}, {self.rows} rows, {self.budget}"


class Evidence:
    """What a map found, as it is kept."""

    def __init__(self, folder: Path = KEPT) -> None:
        self.cells = _rows(folder / "cells.csv")
        self.claims = _rows(folder / "claims.csv")
        self.made = json.loads((folder / "made.json").read_text(encoding="utf-8"))
        self.places = list(dict.fromkeys(map(_place, self.cells)))
        self.arms = list(dict.fromkeys(row["arm"] for row in self.cells))
        self._cell = {(row["settings"], _place(row), row["arm"]): row for row in self.cells}

    def mean(self, place: Place, arm: str, measure: str, way: str = WAY) -> float:
        """Over seeds."""
        return float(self._cell[way, place, arm][measure])

    def tests(self, claim: str, way: str = WAY, place: Place | None = None) -> list[Row]:
        """Of a claim, in every cell or in one."""
        return [
            row
            for row in self.claims
            if row["claim"] == claim
            and row["settings"] == way
            and row["teacher"] != "all"
            and place in (None, _place(row))
        ]

    def pooled(self, claim: str, way: str = WAY) -> list[Row]:
        """Of a claim, over all cells."""
        return [r for r in self.claims if (r["claim"], r["settings"], r["teacher"]) == (claim, way, "all")]

    def verdicts(self, claim: str, way: str = WAY) -> dict[Place, str]:
        """In every cell, of *some* arm of a claim: one that holds is enough."""
        found: dict[Place, list[str]] = {}
        for row in self.tests(claim, way):
            found.setdefault(_place(row), []).append(row["verdict"])
        return {
            place: "holds" if "holds" in each else "undecided" if "undecided" in each else "does not hold"
            for place, each in found.items()
        }


def _rows(path: Path) -> list[Row]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def _place(row: Row) -> Place:
    return Place(*(row[name] for name in Place._fields))


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


def points(share: float) -> str:
    """Of right answers."""
    return f"{100 * share:.0f}"


def between(row: Row, times: float = 1.0, digits: int = 3) -> str:
    """A difference with its interval."""
    mean, low, high = (times * float(row[name]) for name in ("difference as claimed", "low", "high"))
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]".replace("-", "−")


def _unit(claim: str) -> tuple[float, int]:
    measure = next(one.measure for one in CLAIMS if one.name == claim)
    return (100.0, 1) if measure.startswith("right") else (1.0, 3)


def claims_table(evidence: Evidence, way: str) -> str:
    """Every claim: in how many cells, and over all cells the arm with the largest effect."""
    rows = []
    for claim in CLAIMS:
        counts = list(evidence.verdicts(claim.name, way).values())
        best = max(evidence.pooled(claim.name, way), key=lambda row: float(row["difference as claimed"]))
        times, digits = _unit(claim.name)
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
    times, digits = _unit(claim)
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


def mechanism(evidence: Evidence, place: Place, title: str) -> str:
    """What the students of a cell pay on their own answers, at Bridges and at Gardens; an SVG file."""
    bars = []
    for arm in ("hard", "soft", "static", "confidence", "entropy", "risk_guided", "sharpened", "by_role"):
        bridges, gardens = (evidence.mean(place, arm, f"L_dθ at {role}") for role in ("Bridges", "Gardens"))
        right = points(evidence.mean(place, arm, "right, greedy"))
        about = f"{ARMS[arm].label}\n{bridges:.2f} nats at Bridges, {gardens:.2f} at Gardens\nright {right} %, greedy"
        bars.append(Bar(name=ARMS[arm].label, filled=bridges, hollow=gardens, label=f"right {right} %", about=about))
    chart = bar_chart(
        bars,
        axis=Axis(label="L_dθ, nats an answer →"),
        about=title,
        parts=("lost at Bridges (values)", "lost at Gardens (wordings)"),
    )
    return standalone(chart, title=title)


def best_arms(evidence: Evidence, place: Place, measure: str, way: str = WAY, within: float = 0.02) -> list[str]:
    """Everything to be had for the price of fine-tuning that is within two points of the best, the best first."""
    means = {arm: evidence.mean(place, arm, measure, way) for arm in evidence.arms if arm not in FREE}
    top = max(means.values())
    return sorted((arm for arm, mean in means.items() if mean >= top - within), key=lambda arm: -means[arm])


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
            told = between(best, *_unit(claim.name))
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


def untrained(evidence: Evidence, way: str = WAY) -> list[str]:
    """Arms and cells in which more than one student of twenty guesses."""
    return [
        f"{place}: {ARMS[arm].label} {points(share)} %"
        for place in evidence.places
        for arm in evidence.arms
        if (share := evidence.mean(place, arm, "at chance", way)) > 0.05
    ]


def counted(evidence: Evidence, claim: str, way: str = WAY, teacher: str | None = None, verdict: str = "holds") -> str:
    """In how many cells of how many some arm of a claim has a verdict."""
    here = [v for place, v in evidence.verdicts(claim, way).items() if teacher in (None, place.teacher)]
    return f"{here.count(verdict)} of {len(here)}"


def corrected_count(evidence: Evidence, claim: str, way: str = WAY) -> int:
    """In how many cells a claim holds with a p value that Holm's correction over all its tests leaves below 0.05."""
    tests = evidence.tests(claim, way)
    held = {_place(row) for row in tests if row["verdict"] == "holds" and float(row["p, Holm"]) < 0.05}
    return len(held)


def gain_of_oracle(evidence: Evidence, arm: str) -> list[float]:
    """In every cell, how much more often an arm is right than the better pure kind, greedy, points."""
    found = []
    for place in evidence.places:
        (pure,) = {row["against"] for row in evidence.tests(MAIN, WAY, place)}
        right, theirs = (evidence.mean(place, one, "right, greedy") for one in (arm, pure))
        found.append(100 * (right - theirs))
    return found


def furthest(evidence: Evidence, claim: str) -> str:
    """Of a claim, the largest difference of any arm over all cells."""
    best = max(evidence.pooled(claim), key=lambda row: float(row["difference as claimed"]))
    return between(best, *_unit(claim))


def best_reading(evidence: Evidence) -> float:
    """The largest rank correlation with kappa of any predictor and reading, over all cells."""
    pooled = [row for claim in CLAIMS if claim.measure in KAPPA for row in evidence.pooled(claim.name)]
    return max(float(row["difference as claimed"]) for row in pooled)


def guide_rows(evidence: Evidence, teacher: str) -> dict[str, str]:
    """What is right most often with a teacher, greedy, means over its cells: the best four, and what costs more."""
    here = [place for place in evidence.places if place.teacher == teacher]
    means = {arm: statistics.fmean(evidence.mean(p, arm, "right, greedy") for p in here) for arm in evidence.arms}
    cheap = sorted((arm for arm in means if arm not in FREE), key=lambda arm: -means[arm])
    best = ", ".join(f"{ARMS[arm].label} {points(means[arm])}" for arm in cheap[:4])
    return {"best": best, "oracle": points(means["by_role"]), "on_policy": points(means["on_policy"])}


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


def page(evidence: Evidence) -> str:
    """The whole page: the words of ``evidence/page.md.jinja`` with the numbers in their places."""
    environment = Environment(undefined=StrictUndefined, autoescape=False, trim_blocks=True, keep_trailing_newline=True)
    text = environment.from_string((KEPT / "page.md.jinja").read_text(encoding="utf-8"))
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
            confirmed_measures,
            confirmed_seeds,
            confirmed_verdict,
        )
    }
    return text.render(
        **bound,
        made=evidence.made,
        confirmed=Evidence(CONFIRMED),
        arms=evidence.arms,
        cells=len(evidence.places),
        figured=FIGURED,
        guide=GUIDE,
        measured=MEASURED,
        ways=FAIRNESS,
        shown=WAY,
        points=points,
    )


FIGURED = {
    "won": Place("slips", "too small", "many", "long"),
    "lost": Place("perfect", "too small", "few", "long"),
}
"""Cells that are drawn: one where a hybrid is ahead of both pure kinds, one where it is behind; chosen for that."""


def main() -> None:
    """Take a map's numbers if asked to, and write the page and its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--take", metavar="DIR", type=Path, help="a finished map whose numbers are kept first")
    parser.add_argument("--take-confirmed", metavar="DIR", type=Path, help="its cells with transformers, likewise")
    arguments = parser.parse_args()
    if arguments.take is not None:
        take(arguments.take)
    if arguments.take_confirmed is not None:
        take_confirmed(arguments.take_confirmed)
    evidence = Evidence()
    HERE.joinpath("evidence.md").write_text(page(evidence), encoding="utf-8")
    for name, place in FIGURED.items():
        FIGURES.joinpath(f"bridges-{name}.svg").write_text(mechanism(evidence, place, str(place)), encoding="utf-8")


if __name__ == "__main__":
    main()
