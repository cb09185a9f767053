"""The findings and the means as tables: CSV for a program, Markdown and the terminal for a reader."""

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from bridgegarden.lab.findings import ClaimSummary, Finding, Verdict, difference, findings, summaries
from bridgegarden.lab.result import REGIMES, ROLES, LabResult, Measured
from bridgegarden.statistics import Effect
from bridgegarden.study.arms import ALL_OBJECTIVES
from bridgegarden.table import number, span
from bridgegarden.terminal import counted

COLUMNS: Mapping[str, tuple[str, Callable[[Measured], float], float]] = {
    "teacher_loss": ("L_dT", lambda measured: measured.teacher_loss, 1),
    "exposure_bias": ("exposure bias", lambda measured: measured.exposure_bias, 1),
    "student_loss": ("L_dθ", lambda measured: measured.student_loss, 1),
    "success": ("right, %", lambda measured: measured.success, 100),
    "violation": ("off script, %", lambda measured: measured.violation, 100),
    "diversity": ("variety kept, %", lambda measured: measured.diversity, 100),
}
"""Head, quantity and unit of the columns of `means_table`."""

STYLES = {Verdict.HOLDS: "green", Verdict.FAILS: "red", Verdict.OPEN: "dim"}


def tables(result: LabResult) -> Iterator[Table]:
    """Claims of each world, and below them the means of each regime."""
    found = findings(result)
    lines = summaries(found)
    for world in result.worlds:
        yield claims_table(result, world, found, lines)
        for regime in result.regimes(world):
            yield means_table(result, world, regime)


def claims_table(result: LabResult, world: str, found: Sequence[Finding], lines: Sequence[ClaimSummary]) -> Table:
    """One row a claim, one column a regime."""
    regimes = result.regimes(world)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title=world, title_justify="left")
    table.add_column("claim")
    for regime in regimes:
        table.add_column(REGIMES[regime].label)
    here = {(line.claim, line.regime): line for line in lines if line.world == world}
    for claim in dict.fromkeys(line.claim for line in lines if line.world == world):
        text = next(line.text for line in lines if line.claim == claim)
        cells = [_cell(here.get((claim, regime)), found) for regime in regimes]
        table.add_row(f"{claim}  {text}", *cells)
    seeds = len(result.settings.seeds)
    table.caption = (
        f"Effects with 95 % intervals over {counted(seeds, 'seed')}, paired. Where several hybrids are "
        "judged, the claim holds if it does for one of them at an interval widened for their number."
    )
    table.caption_justify, table.caption_style = "left", ""
    return table


def means_table(result: LabResult, world: str, regime: str) -> Table:
    """Every objective of one regime of one world, means with half of their 95 % intervals over seeds."""
    title = f"{world}, {REGIMES[regime].label}"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title=title, title_justify="left")
    table.add_column("objective", no_wrap=True)
    for head, _, _ in COLUMNS.values():
        table.add_column(head, justify="right")
    for objective in result.objectives(world, regime):
        effects = [
            (difference(result, world, regime, objective, None, quantity), unit)
            for _, quantity, unit in COLUMNS.values()
        ]
        table.add_row(ALL_OBJECTIVES[objective].label, *(_mean(effect, unit) for effect, unit in effects))
    table.caption = "Losses and exposure bias in nats an answer."
    table.caption_justify, table.caption_style = "left", ""
    return table


def _cell(line: ClaimSummary | None, found: Sequence[Finding]) -> str:
    if line is None:
        return ""
    verdict = f"[{STYLES[line.verdict]}]{line.verdict}[/]"
    names = (*line.holds, *line.fails, *line.open)
    if len(names) == 1:
        place = line.claim, line.world, line.regime
        (row,) = [
            row
            for row in found
            if (row.claim.partition(":")[0], row.world, row.regime) == place and row.supports is None
        ]
        return f"{verdict}\n{_interval(row.effect)}"
    counts = (("yes", line.holds), ("no", line.fails), ("open", line.open))
    return f"{verdict}\n" + ", ".join(f"{len(rows)} {word}" for word, rows in counts if rows)


def _interval(effect: Effect) -> str:
    if effect.mean is None:
        return "does not exist"
    if effect.interval is None:
        return f"{effect.mean:+.3g}"
    return f"{effect.mean:+.3g} ({effect.interval.low:+.3g} to {effect.interval.high:+.3g})"


def _mean(effect: Effect, unit: float) -> str:
    if effect.mean is None:
        return ""
    text = f"{unit * effect.mean:.3g}"
    if effect.interval is None:
        return text
    return f"{text} ± {unit * (effect.interval.high - effect.mean):.2g}"


def _error(role: str) -> Callable[[Measured], float]:
    return lambda measured: measured.error_by_role[role]


MEANS: Mapping[str, Callable[[Measured], float]] = {
    **{name: quantity for name, (_, quantity, _) in COLUMNS.items()},
    **{f"error_{role}": _error(role) for role in ROLES},
}
"""Quantities in ``means.csv``: losses and errors in nats an answer, the others shares."""


def findings_csv(result: LabResult) -> str:
    """One line for each finding; what does not exist is empty.

    ``effect`` is `objective` minus `reference`, ``low`` to ``high`` its 95 % interval, ``corrected_low`` to
    ``corrected_high`` the one widened for the number of hybrids; ``beside_`` are other differences of the same pair.
    """
    return _csv([_finding_cells(finding) for finding in findings(result)])


def means_csv(result: LabResult) -> str:
    """One line for each quantity of each objective, with its 95 % interval over seeds; empty with one seed."""
    places = [(world, regime) for world in result.worlds for regime in result.regimes(world)]
    return _csv(
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
    )


def tables_markdown(result: LabResult) -> str:
    """Verdicts of each world, then effects and means of each of its regimes."""
    found = findings(result)
    lines = summaries(found)
    count = len(result.settings.seeds)
    parts = [
        "# What the lab found",
        f"`{result.command}`, started {result.started}, commit {result.commit or 'unknown'}.",
        f"Effects and means over {counted(count, 'seed')}, with 95 % t-intervals; effects are paired by "
        "seed. Losses, errors and exposure bias are in nats an answer.",
    ]
    for world in result.worlds:
        parts += [f"## {world}", markdown_table(*verdict_rows(result, world, lines))]
        for regime in result.regimes(world):
            here = [finding for finding in found if (finding.world, finding.regime) == (world, regime)]
            parts += [f"### {world}, {REGIMES[regime].label}", markdown_table(*effect_rows(here))]
            parts.append(markdown_table(*mean_rows(result, world, regime)))
    return "\n\n".join(parts) + "\n"


def verdict_rows(result: LabResult, world: str, lines: Sequence[ClaimSummary]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows: what each claim came to in each regime of `world`."""
    regimes = result.regimes(world)
    here = {(line.claim, line.regime): line for line in lines if line.world == world}
    texts = {line.claim: line.text for line in lines if line.world == world}
    rows = [
        [
            f"{claim}: {text}",
            *(str(here[claim, regime].verdict) if (claim, regime) in here else "" for regime in regimes),
        ]
        for claim, text in texts.items()
    ]
    return ["claim", *(REGIMES[regime].label for regime in regimes)], rows


def effect_rows(found: Sequence[Finding]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows: every finding with its effect."""
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
    return ["claim", "objective", "against", "effect", "95 % interval", "verdict"], rows


def mean_rows(result: LabResult, world: str, regime: str) -> tuple[list[str], list[list[str]]]:
    """Heads and rows: every objective of one regime with its means."""
    rows = [
        [label(objective), *(_mean_words(result, world, regime, objective, name) for name in COLUMNS)]
        for objective in result.objectives(world, regime)
    ]
    return ["objective", *(head for head, _, _ in COLUMNS.values())], rows


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


def _mean_words(result: LabResult, world: str, regime: str, objective: str, name: str) -> str:
    _, quantity, unit = COLUMNS[name]
    effect = difference(result, world, regime, objective, None, quantity)
    if effect.mean is None:
        return ""
    if effect.interval is None:
        return number(unit * effect.mean)
    return f"{number(unit * effect.mean)} ± {number(unit * (effect.interval.high - effect.mean), 2)}"


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


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    heads = list(dict.fromkeys(name for row in rows for name in row))
    file = io.StringIO()
    writer = csv.DictWriter(file, heads, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown has it."""

    def lines() -> Iterator[str]:
        for cells in (heads, ["---"] * len(heads), *rows):
            yield f"| {' | '.join(cells)} |"

    return "\n".join(lines())
