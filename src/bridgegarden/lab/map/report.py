"""The map for a reader: what came of each claim, effects over all cells, every cell; as tables, a page and CSV."""

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from markupsafe import Markup

from bridgegarden.lab.map.cells import ARMS, FAIRNESS, CellRun
from bridgegarden.lab.map.cells import Cell as Place
from bridgegarden.lab.map.findings import (
    CLAIMS,
    KAPPA,
    MAIN,
    MEASURES,
    MapClaim,
    MapEffect,
    MapResult,
    PooledEffect,
    pooled_effects,
    values_of,
    verdict_in,
)
from bridgegarden.report.page import GLOSSARY, Page, Section, details, terms
from bridgegarden.statistics import CONFIDENCE, Decision, Estimate, corrected
from bridgegarden.table import Cell, Column, Table, mean_cell, number

VERDICTS = ("holds", "does not hold", "undecided")
SHARES = ("right, sampled", "right, T = 0.5", "right, greedy", "right, equally varied", "at chance")
"""Measures that are shown in per cent."""


def claims_table(result: MapResult, way: str, *, in_words: bool = True) -> Table:
    """In how many cells some arm of a claim does what is claimed, and over all cells the arm that does most.

    `in_words` says what is claimed; a page has that in a table of its own.
    """
    found = [one for one in result.effects if one.way == way]
    over_all = [one for one in pooled_effects(result.effects) if one.way == way]
    rows = []
    for claim in CLAIMS:
        here = [one for one in found if one.claim.name == claim.name]
        if not here:
            continue
        by_cell: dict[str, list[MapEffect]] = {}
        for one in here:
            by_cell.setdefault(one.cell.name, []).append(one)
        counts = Counter(verdict_in(effects) for effects in by_cell.values())
        pooled = [one for one in over_all if one.claim.name == claim.name]
        best = max(pooled, key=lambda one: one.difference.mean, default=None)
        summary = [Cell("too few cells"), None, None] if best is None else _pooled_cells(best, len(pooled))
        rows.append(
            [claim.name, *([claim.text] if in_words else []), *(counts[verdict] for verdict in VERDICTS), *summary]
        )
    return Table(
        columns=[
            "claim",
            *([Column("what is claimed", words=True)] if in_words else []),
            *VERDICTS,
            "over all cells",
            "by",
            "verdict",
        ],
        rows=rows,
        title=f"Settings: {way}",
        note=(
            "Cells in which a claim holds for some arm, does not hold for any, or neither is certain; then the arm "
            "with the largest effect over all cells, positive as claimed, ± half its 95 % interval (random effects, "
            "widened for the number of arms). Losses in nats an answer, right answers in points."
        ),
    )


def difference_cell(claim: MapClaim, difference: Estimate, decision: Decision, arms: int) -> Cell:
    """A difference as claimed, with its interval widened for the claim's arms; bold where the claim holds."""
    interval = difference.interval(corrected(CONFIDENCE, arms))
    times = 100.0 if claim.measure in SHARES else 1.0
    return mean_cell(difference.mean, interval, times=times)._replace(strong=decision.verdict == "holds")


def _pooled_cells(one: PooledEffect, arms: int) -> list[Any]:
    cell = difference_cell(one.claim, one.difference, one.decision, arms)
    verdict = one.decision.verdict
    needed = f"needs {one.decision.needed} cells" if verdict == "undecided" else ""
    return [cell, ARMS[one.arm].label, Cell(verdict, needed)]


def pooled_table(result: MapResult, way: str) -> Table:
    """Every arm of every claim over all cells."""
    found = [one for one in pooled_effects(result.effects) if one.way == way]
    arms = list(dict.fromkeys(one.arm for one in found))
    rows = []
    for claim in CLAIMS:
        by_arm = {one.arm: one for one in found if one.claim.name == claim.name}
        if by_arm:
            row = [_pooled_cells(by_arm[arm], len(by_arm))[0] if arm in by_arm else None for arm in arms]
            rows.append([claim.name, *row])
    return Table(
        columns=["claim", *(ARMS[arm].label for arm in arms)],
        rows=rows,
        title=f"Over all cells, settings: {way}",
        note="Positive is as claimed. Bold where the claim holds.",
    )


def cells_table(runs: Sequence[CellRun], way: str, measure: str) -> Table:
    """A measure of every arm in every cell, means over seeds; the highest of right answers in bold."""
    arms = list(runs[0].settings[way])
    times = 100.0 if measure in SHARES else 1.0
    rows = []
    for run in runs:
        means = {arm: times * values_of(run, way, arm, measure).mean().item() for arm in arms}
        best = max(means.values()) if measure in SHARES else None
        rows.append([run.cell.label, *(Cell(number(mean), strong=mean == best) for mean in means.values())])
    unit = ", %" if measure in SHARES else "" if measure == "variety" else ", nats an answer"
    return Table(
        columns=["cell", *(ARMS[arm].label for arm in arms)],
        rows=rows,
        title=f"{measure}{unit}; settings: {way}",
        note=f"A cell is a teacher, a student, rows, training. Means over {_seeds(runs)} seeds.",
    )


def _seeds(runs: Sequence[CellRun]) -> int:
    return len(values_of(runs[0], *next((way, next(iter(by_arm))) for way, by_arm in runs[0].settings.items()), "L_dT"))


def cells_csv(runs: Sequence[CellRun], measures: Sequence[str] = tuple(MEASURES)) -> str:
    """One row for each arm, way and cell: how it was trained, and mean and standard error of every measure."""
    records = []
    for run in runs:
        for way, by_arm in run.settings.items():
            for arm, setting in by_arm.items():
                record: dict[str, Any] = {"settings": way, **_place(run), "arm": arm}
                record |= {"learning_rate": setting.learning_rate, "weight_decay": setting.weight_decay}
                record |= {"steps": setting.steps, "seeds": _seeds(runs)}
                for measure in measures:
                    estimate = Estimate.over(values_of(run, way, arm, measure))
                    record |= {measure: _digits(estimate.mean), f"{measure}, standard error": _digits(estimate.stderr)}
                records.append(record)
    return Table.of(records).csv()


def claims_csv(effects: Sequence[MapEffect], over_all: Sequence[PooledEffect]) -> str:
    """One row for each claim, arm, way and cell, then those over all cells."""
    tests = Counter((one.way, one.cell, one.claim.name) for one in effects)
    records = [
        {
            "settings": one.way,
            **_where(one.cell),
            "claim": one.claim.name,
            "arm": one.arm,
            "against": one.other,
            **_numbers(one.claim, one.difference, tests[one.way, one.cell, one.claim.name]),
            "p, Holm": _digits(one.p_value),
            "verdict": one.decision.verdict,
            "needed": one.decision.needed,
        }
        for one in effects
    ]
    tests_pooled = Counter((one.way, one.claim.name) for one in over_all)
    for one in over_all:
        numbers = _numbers(one.claim, one.difference, tests_pooled[one.way, one.claim.name])
        place = {"settings": one.way, "teacher": "all", "claim": one.claim.name, "arm": one.arm}
        decided = {
            "between cells": _digits(one.between),
            "verdict": one.decision.verdict,
            "needed": one.decision.needed,
        }
        records.append({**place, **numbers, **decided})
    return Table.of(records).csv()


def _numbers(claim: MapClaim, difference: Estimate, tests: int) -> dict[str, Any]:
    low, high = difference.interval(corrected(CONFIDENCE, tests))
    return {
        "difference as claimed": _digits(difference.mean),
        "low": _digits(low),
        "high": _digits(high),
        "smallest of interest": claim.smallest,
        "n": difference.n,
    }


def _place(run: CellRun) -> dict[str, str]:
    return _where(run.cell)


def _where(cell: Place) -> dict[str, str]:
    return {"teacher": cell.teacher, "student": cell.student, "rows": cell.rows, "budget": cell.budget}


def _digits(value: float) -> float:
    """As many as a reader of the file can use."""
    return float(f"{value:.5g}")


def tables(result: MapResult) -> list[Table]:
    """What a terminal shows, in 80 columns: the claims, and of settings tuned by right answers what came of them."""
    way = FAIRNESS[-1]
    words = Table(
        columns=["claim", Column("what is claimed", words=True)],
        rows=[[claim.name, claim.text] for claim in CLAIMS],
    )
    return [words, claims_table(result, way, in_words=False), teachers_table(result, way)]


def teachers_table(result: MapResult, way: str) -> Table:
    """Right answers of every arm, greedy, means over the cells of a teacher."""
    by_teacher: dict[str, list[CellRun]] = {}
    for run in result.runs:
        by_teacher.setdefault(run.cell.teacher, []).append(run)
    means = {
        teacher: {
            arm: fmean(100 * values_of(run, way, arm, "right, greedy").mean().item() for run in runs)
            for arm in result.settings.arms
        }
        for teacher, runs in by_teacher.items()
    }
    rows = [
        [ARMS[arm].label, *(Cell(number(here[arm]), strong=here[arm] == max(here.values())) for here in means.values())]
        for arm in result.settings.arms
    ]
    return Table(
        columns=["", *(f"{teacher.replace('_', ' ')}" for teacher in means)],
        rows=rows,
        title=f"right, greedy, %; settings: {way}",
        note=(
            f"By teacher: means over its cells and {_seeds(result.runs)} seeds. Every cell, and other settings, are in "
            "the report."
        ),
    )


def tables_markdown(result: MapResult) -> str:
    """All tables for a reader of Markdown."""
    shown: list[Table] = []
    for way in FAIRNESS:
        shown += [claims_table(result, way), pooled_table(result, way)]
        shown += [cells_table(result.runs, way, measure) for measure in MEASURES]
    return "\n".join(f"## {table.title}\n\n{table.markdown()}\n\n{table.note}\n" for table in shown)


def report_page(result: MapResult) -> Page:
    """What the page says."""
    sections = [
        claimed_section(CLAIMS),
        Section(
            anchor="claims",
            title="What came of the claims",
            body=Markup("").join(titled(claims_table(result, way, in_words=False)) for way in FAIRNESS),
        ),
        Section(
            anchor="pooled",
            title="Over all cells",
            body=Markup("").join(titled(pooled_table(result, way)) for way in FAIRNESS),
        ),
        Section(
            anchor="cells",
            title="Every cell",
            body=Markup("").join(
                details(f"{measure}; settings: {way}", cells_table(result.runs, way, measure).html())
                for way in FAIRNESS
                for measure in MEASURES
            ),
        ),
        Section(anchor="words", title="Words", body=terms(_words())),
    ]
    settings = result.settings
    lead = Markup(
        "<p>{} cells (a teacher, a student's size, a number of rows and of steps), {} arms, {} seeds each; rates, "
        "decay and the step to stop chosen on {} other seeds. {:,} students in {:.0f} minutes of processor time. "
        "Everything is exact: no text is sampled to measure.</p>"
    ).format(
        len(result.runs),
        len(settings.arms),
        settings.seeds,
        settings.tuning_seeds,
        sum(run.students for run in result.runs),
        sum(run.cpu_seconds for run in result.runs) / 60,
    )
    return Page(
        title="Which labels are better where", kicker="bridgegarden lab map", lead=lead, sections=tuple(sections)
    )


def titled(table: Table) -> Markup:
    """A table under its title."""
    return Markup("<h3>{}</h3>{}").format(table.title, table.html())


def claimed_section(claims: Sequence[MapClaim]) -> Section:
    """Every claim, and from what size on it would matter."""
    rows = []
    for claim in claims:
        share, correlation = claim.measure in SHARES, claim.measure in KAPPA
        unit = "points" if share else "of rank correlation" if correlation else "nats an answer"
        smallest = f"{(100 if share else 1) * claim.smallest:g} {unit}"
        rows.append([claim.name, claim.text, claim.measure, smallest])
    columns = ["claim", Column("what is claimed", words=True), "measure", "smallest effect of interest"]
    note = f"Named before the map was made; the claim that decides is “{MAIN}”."
    return Section(anchor="claimed", title="What is claimed", body=Table(columns=columns, rows=rows, note=note).html())


def _words() -> Mapping[str, str]:
    names: Sequence[str] = ("hard label", "soft label", "hybrid", "L_dT", "L_dθ", "exposure bias", "Bridge", "Garden")
    return {name: GLOSSARY[name] for name in names}
