"""The claims and the numbers beside them, as tables for a terminal."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from rich import box
from rich.table import Table

from bridgegarden.lab.findings import ClaimSummary, Finding, Verdict, difference, findings, summaries
from bridgegarden.lab.result import LabResult, Measured
from bridgegarden.lab.settings import REGIMES
from bridgegarden.statistics import Effect
from bridgegarden.study.arms import ALL_OBJECTIVES
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
        (row,) = [row for row in found if (row.claim, row.world, row.regime) == place]
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
