"""What a map found, as it is kept in ``evidence/``, and what is counted and compared of it."""

import csv
import io
import json
import statistics
from pathlib import Path
from typing import NamedTuple

from bridgegarden.lab.map.cells import ARMS
from bridgegarden.lab.map.findings import CLAIMS, KAPPA, MAIN

KEPT = Path(__file__).parent / "evidence"
CONFIRMED = KEPT / "transformers"
"""What tiny transformers say of two of its cells."""
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
        self.places = list(dict.fromkeys(map(place_of, self.cells)))
        self.arms = list(dict.fromkeys(row["arm"] for row in self.cells))
        self._cell = {(row["settings"], place_of(row), row["arm"]): row for row in self.cells}

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
            and place in (None, place_of(row))
        ]

    def pooled(self, claim: str, way: str = WAY) -> list[Row]:
        """Of a claim, over all cells."""
        return [r for r in self.claims if (r["claim"], r["settings"], r["teacher"]) == (claim, way, "all")]

    def verdicts(self, claim: str, way: str = WAY) -> dict[Place, str]:
        """In every cell, of *some* arm of a claim: one that holds is enough."""
        found: dict[Place, list[str]] = {}
        for row in self.tests(claim, way):
            found.setdefault(place_of(row), []).append(row["verdict"])
        return {
            place: "holds" if "holds" in each else "undecided" if "undecided" in each else "does not hold"
            for place, each in found.items()
        }


def _rows(path: Path) -> list[Row]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def place_of(row: Row) -> Place:
    """The cell that a row is of."""
    return Place(*(row[name] for name in Place._fields))


def points(share: float) -> str:
    """Of right answers."""
    return f"{100 * share:.0f}"


def between(row: Row, times: float = 1.0, digits: int = 3) -> str:
    """A difference with its interval."""
    mean, low, high = (times * float(row[name]) for name in ("difference as claimed", "low", "high"))
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]".replace("-", "−")


def unit_of(claim: str) -> tuple[float, int]:
    """What a difference is multiplied by, and digits behind its point: right answers in points, losses as they are."""
    measure = next(one.measure for one in CLAIMS if one.name == claim)
    return (100.0, 1) if measure.startswith("right") else (1.0, 3)


def counted(evidence: Evidence, claim: str, way: str = WAY, teacher: str | None = None, verdict: str = "holds") -> str:
    """In how many cells of how many some arm of a claim has a verdict."""
    here = [v for place, v in evidence.verdicts(claim, way).items() if teacher in (None, place.teacher)]
    return f"{here.count(verdict)} of {len(here)}"


def corrected_count(evidence: Evidence, claim: str, way: str = WAY) -> int:
    """In how many cells a claim holds with a p value that Holm's correction over all its tests leaves below 0.05."""
    tests = evidence.tests(claim, way)
    held = {place_of(row) for row in tests if row["verdict"] == "holds" and float(row["p, Holm"]) < 0.05}
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
    return between(best, *unit_of(claim))


def best_reading(evidence: Evidence) -> float:
    """The largest rank correlation with kappa of any predictor and reading, over all cells."""
    pooled = [row for claim in CLAIMS if claim.measure in KAPPA for row in evidence.pooled(claim.name)]
    return max(float(row["difference as claimed"]) for row in pooled)


def best_arms(evidence: Evidence, place: Place, measure: str, way: str = WAY, within: float = 0.02) -> list[str]:
    """Everything to be had for the price of fine-tuning that is within two points of the best, the best first."""
    means = {arm: evidence.mean(place, arm, measure, way) for arm in evidence.arms if arm not in FREE}
    top = max(means.values())
    return sorted((arm for arm, mean in means.items() if mean >= top - within), key=lambda arm: -means[arm])


def guide_rows(evidence: Evidence, teacher: str) -> dict[str, str]:
    """What is right most often with a teacher, greedy, means over its cells: the best four, and what costs more."""
    here = [place for place in evidence.places if place.teacher == teacher]
    means = {arm: statistics.fmean(evidence.mean(p, arm, "right, greedy") for p in here) for arm in evidence.arms}
    cheap = sorted((arm for arm in means if arm not in FREE), key=lambda arm: -means[arm])
    best = ", ".join(f"{ARMS[arm].label} {points(means[arm])}" for arm in cheap[:4])
    return {"best": best, "oracle": points(means["by_role"]), "on_policy": points(means["on_policy"])}


def untrained(evidence: Evidence, way: str = WAY) -> list[str]:
    """Arms and cells in which more than one student of twenty guesses."""
    return [
        f"{place}: {ARMS[arm].label} {points(share)} %"
        for place in evidence.places
        for arm in evidence.arms
        if (share := evidence.mean(place, arm, "at chance", way)) > 0.05
    ]
