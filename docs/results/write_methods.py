"""Write methods.md beside this file from the result of a comparison of all methods on the quickstart pair.

python examples/quickstart_pair/prepare.py --output runs/quickstart_pair
bridgegarden diagnose ... --output runs/quickstart_pair       (as below: it writes kappa_probe.json)
bridgegarden compare runs/quickstart_pair/compare.yaml --objectives ...
python docs/results/write_methods.py runs/quickstart_pair/compare/result.json
"""

import json
import statistics
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import torch

from bridgegarden.compare.findings import (
    QUALITIES,
    called,
    difference,
    entropy_kept,
    qualities,
    sentences,
    spent,
    summary,
)
from bridgegarden.compare.report import cost_caption, cost_table, difference_table, quality_table, seed_table
from bridgegarden.compare.result import CompareResult, Quantity
from bridgegarden.objective.methods import METHODS
from bridgegarden.statistics import spearman
from bridgegarden.study.arms import ALIASES, ON_POLICY
from bridgegarden.table import Cell, Table, difference_cell, mean_cell, number

sys.path.append(str(Path(__file__).parents[2]))
from docs.figures.draw_results import draw, with_figure

PROBE = """\
    bridgegarden diagnose --teacher TEACHER --student runs/quickstart_pair/student-0 \\
        --prompts runs/quickstart_pair/held_out.jsonl --prompt-column question --max-new-tokens 64 \\
        --budget 800k --batch-size 512 --limit 190 --show 0 --output runs/quickstart_pair
"""
"""Where the recipe's rule comes from."""
RECIPE = "recipe"
"""The row of the recipe's own objective: the rule that was fitted on the pair."""


def page(result: CompareResult) -> str:
    """The whole page."""
    result = by_what_came_out(with_probe_named(result))
    settings, pair = result.settings, result.pair
    base, first = settings.baseline, qualities(result)[0]
    steps = max(run.spent.steps for run in result.runs if run.spent is not None)
    problems = len(next(run.measured.by_unit["greedy"] for run in result.runs if run.measured is not None))
    against = difference_table(result)
    text = f"""# Methods compared on the quickstart pair

{chr(10).join(f"* {sentence}" for sentence in sentences(result))}

{reading(result)}

## How it was measured

Written by `python docs/results/write_methods.py RESULT` from the result of

    python examples/quickstart_pair/prepare.py --output runs/quickstart_pair
{PROBE if RECIPE in result.rows else ""}    {result.command}

started {result.started[:10]} ({_versions(result)}). The pair is that of [compare.md](compare.md), where it is told;
the methods are those of [methods.md](../methods.md). Every one gets {steps} steps on {pair.rows:,} rows of
{pair.row_tokens:.0f} tokens, with {_seeds(result)} and the same first student for all methods of a seed. Quality is
measured on {problems} problems, drift on {pair.prompts} held-out prompts.{not_run(result)}

## Quality and drift, the best first

<details><summary>Every method</summary>

{_told(quality_table(result))}

</details>

## Against {result.label(base)}

<details><summary>Every difference</summary>

{"" if against is None else _told(against)}

</details>

{power(result)}

{own_texts(result)}

{fitted_rule(result)}

## Cost

<details><summary>Cost of every method</summary>

{cost_table(result).markdown()}

</details>

{cost_caption(result)} Other work ran on the machine at the same time, so processor times say more than wall times.

## Seed by seed

{QUALITIES[first].capitalize()}, in per cent:

<details><summary>Every training</summary>

{seed_table(result, first).markdown()}

</details>
"""
    return with_figure("methods", text)


def by_what_came_out(result: CompareResult) -> CompareResult:
    """The same, its rows sorted by the share of drawn answers that are right."""
    quantity = qualities(result)[0]
    names = sorted(result.objectives, key=lambda name: -summary(result, name, quantity).value)
    return replace(result, settings=replace(result.settings, objectives=tuple(names)))


def not_run(result: CompareResult) -> str:
    """Which methods are not there, and on which texts none of them ran."""
    missing = [name for name in METHODS.own if name not in result.rows]
    told = f"Not run: {', '.join(f'`{name}`' for name in missing)}. " if missing else ""
    if not any(row.lmbda for row in result.rows.values()):
        written = ", ".join(f"`{name}`" for name, method in METHODS.own.items() if method.on_policy)
        told += (
            f"All rows are fixed: {written}, which their papers put on the student's own texts, are on the data's "
            "here, which is another method than theirs."
        )
    return f" {told.strip()}" if told else ""


def with_probe_named(result: CompareResult) -> CompareResult:
    """The same, with the recipe's rule called what it is."""
    if RECIPE not in result.rows:
        return result
    return replace(result, rows={**result.rows, RECIPE: replace(result.rows[RECIPE], label="kappa probe")})


def own_texts(result: CompareResult) -> str:
    """Every objective on the student's own texts, held against itself on fixed rows."""
    quantity, rows = qualities(result)[0], []
    for name in [name for name in result.objectives if result.rows[name].lmbda]:
        fixed = ALIASES[name][0].removeprefix(ON_POLICY) if name in ALIASES else name.removeprefix(ON_POLICY)
        if fixed not in result.rows:
            continue
        cost = [spent(result.runs_of(one).values(), "cpu_seconds") for one in (name, fixed)]
        losses = [_mean(result, one, "student_loss") for one in (name, fixed)]
        right = [_mean(result, one, quantity, 100) for one in (name, fixed)]
        rows.append([result.label(fixed), *reversed(right), _difference(result, name, fixed), *reversed(losses)])
        rows[-1].append(f"{number(cost[0] / cost[1], 2)}×")
    if not rows:
        return ""
    columns = [
        *("objective", "right, sampled, %: fixed rows", "own texts", "points"),
        *("L_dθ: fixed rows", "own texts", "processor time"),
    ]
    told = (
        "The same objective at the same number of steps, once on the fixed rows and once on texts that the student "
        "writes anew for every step. The second asks the teacher as it goes and costs what the last column says. "
        "Higher or lower is said where it holds for all comparisons of the page together."
    )
    return _section("On the student's own texts", told, Table(columns=columns, rows=rows))


def fitted_rule(result: CompareResult) -> str:
    """What the rule that was fitted on the pair gave, against those that need no fitting."""
    if RECIPE not in result.rows:
        return ""
    quantity = qualities(result)[0]
    rows = [
        [result.label(name), _mean(result, name, quantity, 100), _difference(result, RECIPE, name)]
        for name in ("static", "confidence", "entropy", "hard", "soft")
        if name in result.rows
    ]
    told = (
        "`kappa probe` is the rule that the diagnosis above fitted on the first seed's student and 190 held-out "
        "prompts, for all seeds ([how](../diagnose.md#a-rule-fitted-on-the-pair)). Its students draw right answers in "
        f"{_mean(result, RECIPE, quantity, 100).line()} % of cases. A rule that predicts kappa hardens where much "
        "hangs on a token; whether that makes a student right more often is another question, answered here."
    )
    columns = ["against", "right, sampled, %", "kappa probe minus it, points"]
    return _section("The rule fitted on the pair", told, Table(columns=columns, rows=rows))


def _section(title: str, told: str, table: Table) -> str:
    return f"## {title}\n\n{textwrap.fill(told, 118)}\n\n{table.markdown()}"


def _mean(result: CompareResult, name: str, quantity: Quantity, times: float = 1) -> Cell:
    found = summary(result, name, quantity)
    return mean_cell(found.value, found.interval, times=times)


def _difference(result: CompareResult, first: str, second: str) -> Cell:
    quantity = qualities(result)[0]
    found = difference(result, first, second, quantity)
    assert found is not None
    return difference_cell(found.mean, found.interval, times=100, side=called(result, first, second, quantity))


def reading(result: CompareResult) -> str:
    """What the numbers say beyond the sentences above."""
    quantity = qualities(result)[0]
    rank = {name: place for place, name in enumerate(result.objectives)}
    kept = [entropy_kept(result, name) for name in result.objectives]
    right = [summary(result, name, quantity).value for name in result.objectives]
    both = [(one, other) for one, other in zip(right, kept, strict=True) if other is not None]
    lines = [
        "The teacher slips, one value in ten, so being like it and being right are two aims here, and the rows are "
        "sorted by the second: a method stands higher the more it sharpens. Over methods, the rank correlation of "
        f"right drawn answers and entropy kept is {_spearman(both):+.2f}. Of a pair whose teacher is right when it "
        "draws, this order says nothing.",
    ]
    base = result.settings.baseline
    ahead = [name for name in result.objectives if rank[name] < rank[base]]
    lines.append(
        f"Of {len(result.objectives)} methods, {len(ahead)} have a higher mean than {result.label(base)} and "
        f"{len(result.objectives) - len(ahead) - 1} a lower one; the second table says what is more than chance."
    )
    return "\n\n".join(lines)


def power(result: CompareResult) -> str:
    """How small a difference the comparison could have seen."""
    base, quantity = result.settings.baseline, qualities(result)[0]
    found = [difference(result, name, base, quantity) for name in result.objectives if name != base]
    halves = [100 * (one.interval.high - one.interval.low) / 2 for one in found if one is not None]
    middle, seeds = statistics.median(halves), len(result.settings.seeds)
    if seeds == 1:
        return (
            f"One seed tells nothing of other seeds. Half of an interval is {middle:.1f} points in the median and "
            f"{max(halves):.1f} at most, over problems alone."
        )
    return (
        f"Half of such an interval is {middle:.1f} points in the median and {max(halves):.1f} at most, before "
        f"correction: with {seeds} seeds, smaller differences than that are mostly open. An interval narrows with the "
        f"root of the seeds, so a difference of 2 points would take about "
        f"{max(seeds, round(seeds * (middle / 2) ** 2))} of them."
    )


def _told(table: Table) -> str:
    return f"{table.markdown()}\n\n{table.note}"


def _seeds(result: CompareResult) -> str:
    seeds = len(result.settings.seeds)
    return "one seed" if seeds == 1 else f"{seeds} seeds"


def _spearman(pairs: list[tuple[float, float]]) -> float:
    first, second = torch.tensor(pairs, dtype=torch.float64).T
    return spearman(first, second, torch.ones_like(first)).item()


def _versions(result: CompareResult) -> str:
    return ", ".join(f"{name} {version}" for name, version in result.versions.items() if name != "platform")


if __name__ == "__main__":
    result_tree = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(__file__).with_name("methods.md").write_text(page(CompareResult.from_dict(result_tree)), encoding="utf-8")
    draw("methods")
