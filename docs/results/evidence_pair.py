"""What the students of a real pair were measured to do, as it is kept in ``evidence/smollm2/``, and what the page says
of it."""

import json
import math
import re
import statistics
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bridgegarden.compare.findings import LOSSES, QUALITIES, difference, mean_of, percent, sentences, spent, summary
from bridgegarden.compare.report import cost_table, difference_table, quality_table, seed_table, task_table
from bridgegarden.compare.result import CompareResult, CompareRun, Quantity
from bridgegarden.report.charts import Dot, Row, Shape, dot_plot
from bridgegarden.report.marks import Axis, Reading
from bridgegarden.statistics import CONFIDENCE, PairedDifference, SeedSpread, exact_share, holm_adjusted
from bridgegarden.table import Column, Table
from bridgegarden.terminal import listed
from docs.figures.draw_results import SIZE, Figure
from docs.results.evidence_numbers import KEPT

PAIR = KEPT / "smollm2"
SHARE, NATS = 0.05, 0.2
"""Smallest effects of interest, of right answers and of a loss over a text; named before any two were compared."""


class PairClaim(NamedTuple):
    """What is claimed of a hybrid against another objective."""

    text: str
    other: str
    quantity: Quantity
    sign: Literal[-1, 1]
    """Whether the claim is of more (1) or of less (-1)."""

    @property
    def smallest(self) -> float:
        """The smallest difference that would matter."""
        return SHARE if self.quantity in QUALITIES else NATS


HYBRID = "confidence"
CLAIMS = (
    PairClaim("has less exposure bias than soft labels", "soft", "exposure_bias", -1),
    PairClaim("fits the teacher better on its own texts than soft labels", "soft", "student_loss", -1),
    PairClaim("is right more often than soft labels, greedy", "soft", "greedy", 1),
    PairClaim("is right more often than soft labels, sampled", "soft", "sampled", 1),
    PairClaim("is right more often than hard labels, greedy", "hard", "greedy", 1),
    PairClaim("is right more often than hard labels, sampled", "hard", "sampled", 1),
    PairClaim("is right more often than sharpened soft labels, greedy", "sharpened", "greedy", 1),
)


class Pair:
    """A finished comparison, and how its teacher was made."""

    def __init__(self, folder: Path = PAIR) -> None:
        tree = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        self.result = CompareResult.from_dict(tree)
        self.teacher: dict[str, Any] = json.loads((folder / "teacher.json").read_text(encoding="utf-8"))

    @cached_property
    def steps(self) -> int:
        """Optimiser steps of a student."""
        return max(run.spent.steps for run in self.result.runs if run.spent is not None)

    @property
    def minutes(self) -> tuple[float, float]:
        """Processor time of a training and of measuring a student, on average."""
        measured = [run.measured.cpu_seconds for run in self.result.runs if run.measured is not None]
        return spent(self.result.runs, "cpu_seconds") / 60, statistics.fmean(measured) / 60

    @property
    def smallest(self) -> str:
        """What would matter, in words."""
        return f"{100 * SHARE:.0f} points and {NATS} nats a text"

    @property
    def teacher_right(self) -> float:
        """Share of the held-out problems that the teacher has right, greedy, mean over tasks."""
        return statistics.fmean(self.teacher["held_out"].values())

    @property
    def problems(self) -> int:
        """That right answers are counted over."""
        return len(next(run.measured.by_unit["greedy"] for run in self.result.runs if run.measured is not None))

    def right(self, objective: str, quantity: Quantity = "greedy") -> str:
        """Per cent with half an interval."""
        found = summary(self.result, objective, quantity)
        return percent(found.value, *found.interval)

    @property
    def shares(self) -> str:
        """Right answers of every objective, greedy, mean over seeds."""
        names = self.result.objectives
        found = [
            f"{100 * summary(self.result, name, 'greedy').value:.0f} % ({self.result.label(name)})" for name in names
        ]
        return listed(found)

    def between(self, first: str, second: str, quantity: Quantity) -> str:
        """A difference with its interval, over seeds and problems or prompts."""
        found = self._difference(first, second, quantity)
        times, digits = (100, 1) if quantity in QUALITIES else (1, 2)
        mean, low, high = (times * one for one in (found.mean, *found.interval))
        return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]".replace("-", "−")

    @cached_property
    def verdicts(self) -> dict[PairClaim, str]:
        """Of every claim: *holds* after Holm over all of them, *does not hold* where less than would matter is left."""
        found = {claim: self._difference(HYBRID, claim.other, claim.quantity) for claim in CLAIMS}
        adjusted = holm_adjusted([one.p for one in found.values()])
        verdicts = {}
        for (claim, one), p in zip(found.items(), adjusted, strict=True):
            low, high = sorted(claim.sign * end for end in one.interval)
            found_so = low > 0 and p <= 1 - CONFIDENCE
            verdicts[claim] = "does not hold" if high < claim.smallest else "holds" if found_so else "undecided"
        return verdicts

    def _difference(self, first: str, second: str, quantity: Quantity) -> PairedDifference:
        found = difference(self.result, first, second, quantity)
        assert found is not None, f"{first} and {second} share no seed"
        return found

    def apart(self, quantity: Quantity) -> float:
        """How far apart two trainings of one objective are that differ in the seed alone, at most."""
        means = [[mean_of(run, quantity) or 0.0 for run in self._runs(name)] for name in self.result.objectives]
        return max(max(found) - min(found) for found in means)

    def needed(self, quantity: Quantity) -> int:
        """Seeds with which, at this spread, an interval is as wide as what would matter."""
        found = SeedSpread.over(
            [[mean_of(run, quantity) or 0.0 for run in self._runs(name)] for name in self.result.objectives]
        )
        assert found is not None
        z = statistics.NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
        smallest = SHARE if quantity in QUALITIES else NATS
        return math.ceil((2 * z * math.sqrt(2 * found.variance) / smallest) ** 2)

    def _runs(self, objective: str) -> list[CompareRun]:
        return list(self.result.runs_of(objective).values())

    @property
    def said(self) -> str:
        """The findings of the comparison, as a list."""
        return "\n".join(f"* {sentence}" for sentence in sentences(self.result))

    def counted(self, verdict: str) -> str:
        """How many of the claims have a verdict."""
        return f"{list(self.verdicts.values()).count(verdict)} of {len(self.verdicts)}"

    def claims_table(self) -> str:
        """Every claim, its difference, and the verdict."""
        told = {**QUALITIES, **LOSSES}
        rows = [
            [
                claim.text,
                f"{told[claim.quantity]}, {'points' if claim.quantity in QUALITIES else 'nats a text'}",
                self.between(HYBRID, claim.other, claim.quantity),
                verdict,
            ]
            for claim, verdict in self.verdicts.items()
        ]
        columns = [Column("the hybrid (confidence)", words=True), "measure", "hybrid minus the other", "verdict"]
        return Table(columns=columns, rows=rows).markdown()

    def quality(self) -> str:
        """Right answers and losses of every objective."""
        return quality_table(self.result).markdown()

    def differences(self) -> str:
        """Every objective against the baseline."""
        found = difference_table(self.result)
        return "" if found is None else found.markdown()

    def tasks(self) -> str:
        """Right answers by task."""
        found = task_table(self.result)
        return "" if found is None else found.markdown()

    def seeds(self, quantity: Quantity) -> str:
        """Right answers of every training."""
        return seed_table(self.result, quantity).markdown()

    def costs(self) -> str:
        """What every objective took."""
        return cost_table(self.result).markdown()

    def half(self, quantity: Quantity) -> str:
        """Half an interval of a difference from the baseline, median over objectives: what could have been seen."""
        base = self.result.settings.baseline
        found = [difference(self.result, name, base, quantity) for name in self.result.objectives if name != base]
        halves = [(one.interval.high - one.interval.low) / 2 for one in found if one is not None]
        return f"{statistics.median(halves) * (100 if quantity in QUALITIES else 1):.1f}"

    @property
    def figure(self) -> Figure:
        """Right answers of every training, greedy."""
        shapes: tuple[Shape, ...] = ("disc", "ring", "square", "diamond")
        seeds, rows, told = self.result.settings.seeds, [], []
        for name in self.result.objectives:
            label, dots, said = self.result.label(name), [], []
            for seed, run in self.result.runs_of(name).items():
                assert run.measured is not None
                right = list(run.measured.by_unit["greedy"].values())
                low, high = exact_share(round(sum(right)), len(right))
                said.append(f"{100 * statistics.fmean(right):.0f} %")
                reading = Reading(100 * statistics.fmean(right), 100 * low, 100 * high)
                dots.append(Dot(reading=reading, about=f"{label}, seed {seed}: {said[-1]} right"))
            rows.append(Row(name=label, dots=tuple(dots)))
            told.append(f"{label} {' and '.join(said)}")
        title = "Right answers of every student, greedy, by the seed of its training"
        alt = f"{title}, with 95 % intervals over problems: {'; '.join(told)}"
        axis = Axis(label="right answers, %", include=(0.0,))
        series = list(zip((f"seed {seed}" for seed in seeds), shapes, strict=False))
        return Figure(chart=dot_plot(rows, axis=axis, series=series, about=alt, size=SIZE), title=title, alt=alt)


def take_pair(folder: Path) -> None:
    """Keep what ``python examples/smollm2/run.py --work FOLDER`` left."""

    def scores(path: Path) -> list[dict[str, Any]]:
        return json.loads(path.read_text(encoding="utf-8"))["scores"]

    rounds = sorted((folder / "teacher-rounds").iterdir(), key=lambda path: int(path.name))
    teacher = {
        "rows": json.loads((folder / "rows.json").read_text(encoding="utf-8")),
        "rounds": [statistics.fmean(one["mean"] for one in scores(r / "validation" / "results.json")) for r in rounds],
        "held_out": {
            Path(one["task"]).stem: one["mean"] for one in scores(folder / "teacher-held-out" / "results.json")
        },
    }
    PAIR.mkdir(exist_ok=True)
    (PAIR / "teacher.json").write_text(json.dumps(teacher, indent=2) + "\n", encoding="utf-8")
    text = (folder / "compare-steps" / "result.json").read_text(encoding="utf-8")
    # Paths as somebody sees them who types the command in a checkout.
    text = re.sub(r"[^\s'\",]*/(?=examples/smollm2/)", "", text.replace(str(folder.resolve()), "runs/smollm2/small"))
    (PAIR / "result.json").write_text(text, encoding="utf-8")
