"""The findings and the means as tables: CSV for a program, Markdown and the terminal for a reader."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from bridgegarden.lab.findings import ClaimSummary, Finding, Verdict, difference, error_of, findings, summaries
from bridgegarden.lab.result import REGIMES, ROLES, LabResult, Measured
from bridgegarden.statistics import Effect
from bridgegarden.study.arms import ALL_OBJECTIVES
from bridgegarden.table import Cell, Column, Table, mean_cell, number, span
from bridgegarden.terminal import counted

EXITS = "of it, by leaving"
COLUMNS: Mapping[str, tuple[str, Callable[[Measured], float], float]] = {
    "teacher_loss": ("L_dT", lambda measured: measured.teacher_loss, 1),
    "exposure_bias": ("exposure bias", lambda measured: measured.exposure_bias, 1),
    "exposure_bias_exits": (EXITS, lambda measured: measured.exposure_bias_exits, 1),
    "student_loss": ("L_dθ", lambda measured: measured.student_loss, 1),
    "success": ("right, %", lambda measured: measured.success, 100),
    "violation": ("off script, %", lambda measured: measured.violation, 100),
    "diversity": ("variety kept, %", lambda measured: measured.diversity, 100),
}
"""Head, quantity and unit of the columns of `means_table`."""

TONES: Mapping[Verdict, Literal["good", "bad", "quiet"]] = {
    Verdict.HOLDS: "good",
    Verdict.FAILS: "bad",
    Verdict.OPEN: "quiet",
}


def tables(result: LabResult) -> Iterator[Table]:
    """Claims of each world, and below them the means of each regime."""
    found = findings(result)
    for world in result.worlds:
        yield verdict_table(result, world, found)
        for regime in result.regimes(world):
            yield mean_table(result, world, regime)


def over(result: LabResult) -> str:
    """What intervals are over."""
    count = len(result.settings.seeds)
    return f"95 % t-intervals over {count} seeds" if count > 1 else "One seed, so there are no intervals"


def verdict_table(result: LabResult, world: str, found: Sequence[Finding]) -> Table:
    """What each claim came to in each regime of `world`, with its effect, or how many hybrids it holds for."""
    regimes = result.regimes(world)
    lines = [line for line in summaries(found) if line.world == world]
    here = {(line.claim, line.regime): line for line in lines}
    texts = {line.claim: line.text for line in lines}
    rows = [
        [f"{claim}: {text}", *(_verdict(here.get((claim, regime)), found) for regime in regimes)]
        for claim, text in texts.items()
    ]
    return Table(
        columns=[Column("claim", words=True), *(Column(REGIMES[regime].label, words=True) for regime in regimes)],
        rows=rows,
        title=world,
        note=f"Effects are paired by seed. {over(result)}. Where several hybrids are judged, the claim holds if it "
        "does for one of them at an interval widened for their number.",
    )


def _verdict(line: ClaimSummary | None, found: Sequence[Finding]) -> Cell:
    if line is None:
        return Cell("")
    names = (*line.holds, *line.fails, *line.open)
    if len(names) == 1:
        place = line.claim, line.world, line.regime
        (row,) = [
            row
            for row in found
            if (row.claim.partition(":")[0], row.world, row.regime) == place and row.supports is None
        ]
        interval = "" if row.effect.interval is None else f" ({interval_words(row.effect)})"
        said = effect_words(row.effect) + interval
    else:
        counts = (("yes", line.holds), ("no", line.fails), ("open", line.open))
        said = ", ".join(f"{len(rows)} {word}" for word, rows in counts if rows)
    return Cell(str(line.verdict), said, strong=line.verdict is Verdict.HOLDS, tone=TONES[line.verdict])


def effect_table(result: LabResult, found: Sequence[Finding]) -> Table:
    """Every finding with its effect."""
    rows = [
        [
            f"{finding.claim}: {finding.text}",
            label(finding.objective),
            "zero" if finding.reference is None else label(finding.reference),
            effect_words(finding.effect),
            interval_words(finding.effect),
            str(finding.verdict),
        ]
        for finding in found
    ]
    columns = ["claim", "objective", "against", "effect", "95 % interval", "verdict"]
    return Table(
        columns=[Column(head, words=True) for head in columns],
        rows=rows,
        note=f"Effects are the objective's value minus the other's. {over(result)}.",
    )


def mean_table(result: LabResult, world: str, regime: str) -> Table:
    """Every objective of one regime of one world, means with half of their 95 % intervals over seeds."""
    rows = [
        [label(objective), *(_mean(result, world, regime, objective, name) for name in COLUMNS)]
        for objective in result.objectives(world, regime)
    ]
    title = f"{world}, {REGIMES[regime].label}"
    return Table(
        columns=["objective", *(Column(head, detail=head == EXITS) for head, _, _ in COLUMNS.values())],
        rows=rows,
        title=title,
        note=(
            f"{title}. Losses and exposure bias in nats an answer; an answer that leaves the script is over and pays "
            f"no more, which lowers exposure bias. {over(result)}."
        ),
    )


def _mean(result: LabResult, world: str, regime: str, objective: str, name: str) -> Cell:
    _, quantity, unit = COLUMNS[name]
    effect = difference(result, world, regime, objective, None, quantity)
    if effect.mean is None:
        return Cell("")
    if effect.interval is None:
        return Cell(number(unit * effect.mean))
    return mean_cell(effect.mean, effect.interval, times=unit)


MEANS: Mapping[str, Callable[[Measured], float]] = {
    **{name: quantity for name, (_, quantity, _) in COLUMNS.items()},
    **{f"error_{role}": error_of(role) for role in ROLES},
}
"""Quantities in ``means.csv``: losses and errors in nats an answer, the others shares."""


def findings_csv(result: LabResult) -> str:
    """One line for each finding; what does not exist is empty.

    ``effect`` is `objective` minus `reference`, ``low`` to ``high`` its 95 % interval, ``corrected_low`` to
    ``corrected_high`` the one widened for the number of hybrids; ``beside_`` are other differences of the same pair.
    """
    return Table.of([_finding_cells(finding) for finding in findings(result)]).csv()


def means_csv(result: LabResult) -> str:
    """One line for each quantity of each objective, with its 95 % interval over seeds; empty with one seed."""
    places = [(world, regime) for world in result.worlds for regime in result.regimes(world)]
    return Table.of(
        [
            {
                "world": world,
                "regime": regime,
                "objective": objective,
                "quantity": name,
                **_effect_cells("mean", difference(result, world, regime, objective, None, quantity)),
                "seeds": len(result.runs_of(world, regime, objective)),
            }
            for world, regime in places
            for objective in result.objectives(world, regime)
            for name, quantity in MEANS.items()
        ]
    ).csv()


def tables_markdown(result: LabResult) -> str:
    """Verdicts of each world, then effects and means of each of its regimes."""
    found = findings(result)
    count = len(result.settings.seeds)
    parts = [
        "# What the lab found",
        f"`{result.command}`, started {result.started}, commit {result.commit or 'unknown'}.",
        f"Effects and means over {counted(count, 'seed')}, with 95 % t-intervals; effects are paired by "
        "seed. Losses, errors and exposure bias are in nats an answer.",
    ]
    for world in result.worlds:
        parts += [f"## {world}", verdict_table(result, world, found).markdown()]
        for regime in result.regimes(world):
            here = [finding for finding in found if (finding.world, finding.regime) == (world, regime)]
            parts += [f"### {world}, {REGIMES[regime].label}", effect_table(result, here).markdown()]
            parts.append(mean_table(result, world, regime).markdown())
    return "\n\n".join(parts) + "\n"


def label(objective: str) -> str:
    """An objective for a reader."""
    return ALL_OBJECTIVES[objective].label


def effect_words(effect: Effect) -> str:
    """The mean with its sign."""
    return "does not exist" if effect.mean is None else signed(effect.mean)


def interval_words(effect: Effect) -> str:
    """Both ends with their signs; a dash with one seed."""
    return "–" if effect.interval is None else span(effect.interval, signed)


def signed(value: float) -> str:
    """A difference for a reader."""
    return f"+{number(value)}" if value > 0 else number(value)


def _finding_cells(finding: Finding) -> dict[str, Any]:
    corrected = finding.effect.corrected
    cells: dict[str, Any] = {
        "world": finding.world,
        "regime": finding.regime,
        "claim": finding.claim,
        "text": finding.text,
        "quantity": finding.quantity,
        "objective": finding.objective,
        "reference": finding.reference,
        "claimed_sign": finding.side,
        **_effect_cells("effect", finding.effect),
        "corrected_low": None if corrected is None else corrected.low,
        "corrected_high": None if corrected is None else corrected.high,
        "seeds": finding.effect.seeds,
        "verdict": str(finding.verdict),
        "supports": finding.supports,
    }
    for name, effect in finding.beside.items():
        cells |= _effect_cells(f"beside_{name}", effect, prefix=f"beside_{name}_")
    return cells


def _effect_cells(name: str, effect: Effect, *, prefix: str = "") -> dict[str, float | None]:
    low, high = (None, None) if effect.interval is None else effect.interval
    return {name: effect.mean, f"{prefix}low": low, f"{prefix}high": high}
