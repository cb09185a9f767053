"""What the map says of each claim: effects over seeds in every cell, pooled over cells, and whether they matter.

A claim names its smallest effect of interest before anything is run. In a cell each hybrid is tested at an interval
widened for their number; over cells effects are pooled as random effects, so that a claim is decided for places like
these and not for the average seed. The better pure kind is chosen on the problems that settings were chosen on, never
on those measured.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from bridgegarden.lab.map.cells import Cell, CellRun, MapSettings, Setting
from bridgegarden.lab.map.measure import PREDICTORS, READINGS
from bridgegarden.statistics import CONFIDENCE, Decision, Estimate, corrected, decide, holm, pooled
from bridgegarden.study.arms import HYBRIDS, OBJECTIVES
from bridgegarden.study.kept import StudyResult

PURE = tuple(name for name, objective in OBJECTIVES.items() if objective.pure)
"""Labels of one kind alone."""

Against = Literal["soft", "hard", "sharpened", "soft_risk", "on_policy", "lower loss", "more right", "nothing"]
"""An arm, or the pure kind with the lower held-out loss, or the one with more held-out right answers; or zero."""


@dataclass(frozen=True, kw_only=True)
class MapClaim:
    """A claim about a difference between two arms."""

    name: str
    """For tables and files."""
    text: str
    """For a reader."""
    measure: str
    """Of `MEASURES`, or a predictor of kappa and a reading."""
    sign: Literal[-1, 1]
    """Whether the claim is of more (1) or of less (-1)."""
    smallest: float
    """The smallest difference of interest, in the unit of the measure: less would not matter to anybody."""
    against: Against
    """What the claimed arms are held against."""
    arms: tuple[str, ...] = HYBRIDS
    """Who is claimed to differ; each has its own test."""


CHANCE = 1 / 5**3
"""The share of right answers that guessing three values modulo five gives: who has no more did not train."""
MEASURES: Mapping[str, Callable[[Mapping[str, Tensor]], Tensor]] = {
    "L_dT": lambda found: found["teacher_loss"],
    "L_dθ": lambda found: found["student_loss"],
    "exposure bias": lambda found: found["student_loss"] - found["teacher_loss"],
    "L_dT at Bridges": lambda found: found["teacher_loss_bridges"],
    "L_dθ at Bridges": lambda found: found["student_loss_bridges"],
    "L_dθ at Gardens": lambda found: found["student_loss"] - found["student_loss_bridges"],
    "drift caused at Bridges": lambda found: found["drift_bridges"],
    "drift caused at Gardens": lambda found: found["drift_gardens"],
    "right, sampled": lambda found: found["right"],
    "right, T = 0.5": lambda found: found["right_cool"],
    "right, greedy": lambda found: found["right_greedy"],
    "right, equally varied": lambda found: found["right_as_varied"],
    "variety": lambda found: found["variety"],
    "at chance": lambda found: (found["right_greedy"] <= CHANCE).double(),
}
"""By name: from the measures of an arm to one number for each seed. Losses in nats an answer, right answers as
shares."""

KAPPA = {
    f"{predictor} and kappa over {reading}": (predictor, reading) for predictor in PREDICTORS for reading in READINGS
}
"""What a teacher's distribution tells of kappa(s), by name: predictor and reading."""

NATS, SHARE, CORRELATION = 0.05, 0.05, 0.1
"""Smallest effects of interest: of a loss over an answer of seven tokens, of right answers, of a rank correlation."""


def _right(
    name: str,
    text: str,
    against: Against = "more right",
    *,
    measure: str = "right, greedy",
    arms: tuple[str, ...] = HYBRIDS,
) -> MapClaim:
    """That a hybrid is right more often."""
    text = f"a hybrid {text}"
    return MapClaim(name=name, text=text, measure=measure, sign=1, smallest=SHARE, against=against, arms=arms)


CLAIMS = (
    MapClaim(
        name="1",
        text="a hybrid fits the teacher's prefixes worse than soft labels",
        measure="L_dT",
        sign=1,
        smallest=NATS,
        against="soft",
    ),
    MapClaim(
        name="2",
        text="a hybrid has less exposure bias than soft labels",
        measure="exposure bias",
        sign=-1,
        smallest=0.01,
        against="soft",
    ),
    MapClaim(
        name="3a",
        text="hard labels lose less than soft ones at Bridges",
        measure="L_dθ at Bridges",
        sign=-1,
        smallest=NATS,
        against="soft",
        arms=("hard",),
    ),
    MapClaim(
        name="3b",
        text="soft labels lose less than hard ones at Gardens",
        measure="L_dθ at Gardens",
        sign=-1,
        smallest=NATS,
        against="hard",
        arms=("soft",),
    ),
    MapClaim(
        name="4",
        text="a hybrid has a lower total inference loss than the better pure kind",
        measure="L_dθ",
        sign=-1,
        smallest=NATS,
        against="lower loss",
    ),
    *(
        MapClaim(
            name=f"5{letter}.{number}",
            text=f"the teacher's {predictor} predicts kappa, summed over {reading}",
            measure=f"{predictor} and kappa over {reading}",
            sign=1,
            smallest=CORRELATION,
            against="nothing",
            arms=("soft",),
        )
        for letter, predictor in zip("ab", PREDICTORS, strict=True)
        for number, reading in enumerate(READINGS, 1)
    ),
    _right("right", "is right more often than the better pure kind, greedy"),
    _right("right, sampled", "is right more often than the better pure kind, sampled", measure="right, sampled"),
    _right(
        "right, equally varied",
        "is right more often than the better pure kind, each at the temperature of half the variety",
        measure="right, equally varied",
    ),
    _right("sharpened", "is right more often than soft labels of a sharpened teacher, greedy", "sharpened"),
    _right("soft with risk", "is right more often than soft labels with the risk term, greedy", "soft_risk"),
    _right("on-policy", "is right more often than soft labels on the student's own texts, greedy", "on_policy"),
    _right(
        "oracle",
        "that knows its Bridges is right more often than the better pure kind, greedy",
        arms=("by_role", "by_kappa"),
    ),
)
"""The paper's claims 1 to 5 in its order, its use (more right answers), and the same against the baselines."""

MAIN = "right"
"""The claim that was fixed beforehand as the one that decides; the others are read beside it."""


@dataclass(frozen=True, kw_only=True)
class MapEffect:
    """One arm in one cell: how much more than what it is held against, in the claimed direction."""

    way: str
    """Of `FAIRNESS`."""
    cell: Cell
    """Where."""
    claim: MapClaim
    """What is claimed."""
    arm: str
    """Of whom."""
    other: str
    """The arm it is held against here; empty if that is zero."""
    difference: Estimate
    """Mean over seeds; positive is as claimed."""
    decision: Decision
    """At the interval widened for the claim's arms."""
    p_value: float
    """Of no difference, adjusted by Holm over all cells and arms of the claim under this way of choosing settings."""


@dataclass(frozen=True, kw_only=True)
class PooledEffect:
    """One arm over all cells."""

    way: str
    """Of `FAIRNESS`."""
    claim: MapClaim
    """What is claimed."""
    arm: str
    """Of whom."""
    difference: Estimate
    """Mean over cells; positive is as claimed."""
    between: float
    """Standard deviation of the true effects between cells."""
    decision: Decision
    """At the interval widened for the claim's arms."""


def tested(claim: MapClaim, arms: Sequence[str]) -> tuple[str, ...]:
    """The arms of a claim that were trained."""
    return tuple(arm for arm in claim.arms if arm in arms)


def effects(runs: Sequence[CellRun], claims: Sequence[MapClaim] = CLAIMS) -> list[MapEffect]:
    """Every claim in every cell, for each of its arms that was trained; claims whose other arm was not are left out."""
    found = []
    for way in runs[0].settings:
        for claim in claims:
            rows = list(_differences(runs, way, claim))
            for row, p_value in zip(rows, holm([estimate for *_, estimate in rows]), strict=True):
                cell, arm, other, estimate = row
                confidence = corrected(CONFIDENCE, len(tested(claim, list(runs[0].settings[way]))))
                decision = decide(estimate, claim.smallest, confidence)
                found.append(
                    MapEffect(
                        way=way,
                        cell=cell,
                        claim=claim,
                        arm=arm,
                        other=other,
                        difference=estimate,
                        decision=decision,
                        p_value=p_value,
                    )
                )
    return found


def _differences(runs: Sequence[CellRun], way: str, claim: MapClaim) -> Iterator[tuple[Cell, str, str, Estimate]]:
    for run in runs:
        if claim.against == "nothing":
            yield (
                run.cell,
                claim.arms[0],
                "",
                Estimate.over(claim.sign * values_of(run, way, claim.arms[0], claim.measure)),
            )
            continue
        other = held_against(claim.against, run.settings[way])
        if other is None:
            continue
        values = {
            name: values_of(run, way, name, claim.measure) for name in {other, *claim.arms} & run.settings[way].keys()
        }
        for arm in tested(claim, list(values)):
            if arm != other:
                yield run.cell, arm, other, Estimate.over(claim.sign * (values[arm] - values[other]))


def values_of(run: CellRun, way: str, arm: str, measure: str) -> Tensor:
    """``(S,)`` float64: one of `MEASURES` or `KAPPA` of an arm in a cell."""
    if measure in KAPPA:
        predictor, reading = KAPPA[measure]
        return torch.tensor(run.kappa[way][predictor][reading], dtype=torch.float64)
    columns = {name: torch.tensor(column, dtype=torch.float64) for name, column in run.measures[way][arm].items()}
    return MEASURES[measure](columns)


def held_against(against: Against, settings: Mapping[str, Setting]) -> str | None:
    """The arm that a claim's arms are held against in a cell; None if it was not trained."""
    pure = [name for name in PURE if name in settings]
    if against == "lower loss":
        return min(pure, key=lambda name: settings[name].held_out_loss)
    if against == "more right":
        return max(pure, key=lambda name: (settings[name].held_out_right, -settings[name].held_out_loss))
    return against if against in settings else None


def pooled_effects(found: Sequence[MapEffect]) -> list[PooledEffect]:
    """Each claim's arms over all cells where they have one, if these are two or more."""
    groups: dict[tuple[str, str, str], list[MapEffect]] = {}
    for one in found:
        if one.difference.stderr > 0:
            groups.setdefault((one.way, one.claim.name, one.arm), []).append(one)
    arms = {(way, claim): {arm for w, c, arm in groups if (w, c) == (way, claim)} for way, claim, _ in groups}
    effects = []
    for (way, claim, arm), cells in groups.items():
        if len(cells) < 2:
            continue
        estimate, between = pooled([one.difference for one in cells])
        decision = decide(estimate, cells[0].claim.smallest, corrected(CONFIDENCE, len(arms[way, claim])))
        effects.append(
            PooledEffect(
                way=way, claim=cells[0].claim, arm=arm, difference=estimate, between=between, decision=decision
            )
        )
    return effects


def verdict_in(found: Sequence[MapEffect]) -> str:
    """What the effects of one claim in one cell say of *some* of its arms: one that holds is enough."""
    verdicts = [one.decision.verdict for one in found]
    if "holds" in verdicts:
        return "holds"
    return "undecided" if "undecided" in verdicts else "does not hold"


@dataclass(frozen=True, kw_only=True)
class MapResult(StudyResult):
    """The whole map."""

    settings: MapSettings
    """What was run."""
    runs: tuple[CellRun, ...]
    """Every cell."""

    @cached_property
    def effects(self) -> list[MapEffect]:
        """Every claim in every cell."""
        return effects(self.runs)
