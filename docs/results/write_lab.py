"""Write lab.md, and lab_WORLD.md for every world, beside this file from the result of a run.

bridgegarden lab run --world all --objectives all --seeds 5
python docs/results/write_lab.py runs/lab/result.json
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from lab_words import (
    LIKENESS,
    SUCCESS,
    Place,
    compared,
    compared_cells,
    frontier,
    in_short,
    kappa_by_role,
    listed,
    places,
    remarks,
)

from bridgegarden.lab.findings import CLAIMS, ClaimSummary, Finding, Verdict, findings, summaries
from bridgegarden.lab.result import REGIMES, LabResult
from bridgegarden.lab.tables import effect_table, label, mean_table, verdict_table
from bridgegarden.table import Table

sys.path.append(str(Path(__file__).parents[2]))
from docs.figures.draw_results import draw, with_figure

UNDERPOWERED = """With five seeds these intervals are wide, so "not enough evidence" here is no finding. \
[evidence.md](evidence.md) is the
study that decides; this page has further worlds."""
RULES = (
    "A claim *holds* where the 95 % interval of its effect over seeds lies on the claimed side of zero, *does not "
    "hold* where it lies on the other; else there is *not enough evidence*. A claim about hybrids holds if it does "
    "for one of them at an interval widened for their number; with {seeds} seeds such an interval is wide."
)
MEANS = "Means with half of their 95 % t-intervals over seeds. Losses and exposure bias are in nats an answer."


def pages(result: LabResult) -> dict[str, str]:
    """Every page by the name of its file: the answers, and a page of tables a world."""
    rows = findings(result)
    written = {"lab.md": page(result, rows)}
    return written | {f"lab_{world}.md": world_page(result, rows, world) for world in result.worlds}


def page(result: LabResult, rows: Sequence[Finding]) -> str:
    """The answers."""
    lines = summaries(rows)
    parts = [
        "# Do the claims hold in further worlds?",
        in_short(result, lines),
        UNDERPOWERED,
        made(result),
        f"Every effect and every mean: {', '.join(f'[{world}](lab_{world}.md)' for world in result.worlds)}.",
        "## What came of the claims",
        RULES.format(seeds=len(result.settings.seeds)),
        "\n".join(_counted(lines)),
        "## Where a hybrid pays, and where it does not",
        paying(result),
        "## What to make of it",
        "\n".join(remarks(result, rows, lines)),
        _folded(
            "Mean κ(s) in nats of the soft students, on the example answers of all seeds (number of positions)",
            kappa_by_role(result),
        ),
    ]
    return with_figure("lab", "\n\n".join(parts) + "\n")


def world_page(result: LabResult, rows: Sequence[Finding], world: str) -> str:
    """The tables of one world."""
    texts = {row.claim: row.text for row in rows if row.world == world}
    quantities = [[name, texts.pop(name), claim.quantity] for name, claim in CLAIMS.items() if name in texts]
    quantities += [[name, text, ""] for name, text in texts.items()]
    parts = [
        f"# The lab: {world}",
        "The tables behind [the answers](lab.md): written by `python docs/results/write_lab.py RESULT` from the result "
        f"of `{result.command}`.",
        verdict_table(result, world, rows).markdown(),
        _folded("The claims", Table(columns=["claim", "what is claimed", "quantity"], rows=quantities).markdown()),
        "## Effects",
    ]
    for regime in result.regimes(world):
        here = [row for row in rows if (row.world, row.regime) == (world, regime)]
        table = effect_table(result, here)
        short = replace(table, rows=[[one.claim, *row[1:]] for one, row in zip(here, table.rows, strict=True)])
        parts.append(_folded(f"{Place(world, regime)}", short.markdown()))
    parts += ["## Every objective", MEANS]
    parts += [
        _folded(str(Place(world, regime)), mean_table(result, world, regime).markdown())
        for regime in result.regimes(world)
    ]
    return "\n\n".join(parts) + "\n"


def made(result: LabResult) -> str:
    """What was run, and how."""
    settings = result.settings
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items() if name != "platform")
    trained = sum(run.training.cpu_seconds + run.training.measuring_seconds for run in result.runs)
    return f"""Written by `python docs/results/write_lab.py RESULT` from the result of

    {result.command}

started {result.started[:10]}, commit {(result.commit or "unknown")[:7]} ({versions}): {len(result.runs)} students, \
{trained / 60:.0f} minutes of processor time to train and measure them, {trained / len(result.runs):.0f} s each.

Each student is a Llama of 16 to 48 dimensions and one or two layers, trained by the package's own trainer on at most
{REGIMES["ample"].answers} answers that an exact process wrote (at most {settings.steps} steps of {settings.batch}), \
stopped by its own loss on
{settings.validation_problems} other problems, and measured on {settings.test_problems} problems that are in neither \
set. Nothing is sampled there: every
quantity below is a sum over all texts that can be written. Seeds: {len(settings.seeds)}; first weights, problems, \
answers and their order are
the same for all objectives of a seed, so effects are paired. `bridgegarden lab worlds` describes the worlds, and
`bridgegarden lab check` verifies the identities that the numbers rest on."""


def paying(result: LabResult) -> str:
    """The best hybrid against the best pure objective, place by place, by likeness and by success."""
    rows = []
    for place in places(result):
        by_loss, by_success = (compared(result, place, *quantity) for quantity in (LIKENESS, SUCCESS))
        if by_loss is not None and by_success is not None:
            cells = [*compared_cells(by_loss, 1), *compared_cells(by_success, 100)]
            rows.append([str(place), *cells, ", ".join(map(label, frontier(result, place)))])
    heads = ["place", "L_dθ: best hybrid − best of one kind", "better", "right, %: the same", "better", "frontier"]
    return (
        "Of the hybrids and of the objectives with labels of one kind (hard by argmax or by the data, soft), the best "
        "of each by mean, and their difference paired by seed. The interval is widened for the number of pairs there "
        "were to choose from. L_dθ is likeness to the teacher on the student's own answers, lower is better; *right* "
        "is the probability of a right answer when sampling. On the *frontier* are objectives that no other beats at "
        "both right answers and variety kept, by mean.\n\n"
        + _folded("Every place", Table(columns=heads, rows=rows).markdown())
    )


def _counted(lines: Sequence[ClaimSummary]) -> Iterator[str]:
    """A line a claim: where it holds, where not."""
    for claim in dict.fromkeys(line.claim for line in lines):
        here = [line for line in lines if line.claim == claim]
        told = [
            f"    * {verdict} in {len(where)}: {listed(where)}"
            for verdict in Verdict
            if (where := [Place(line.world, line.regime) for line in here if line.verdict is verdict])
        ]
        yield "\n".join([f"* **{claim}: {here[0].text}.** Of {len(here)} place{'s' if len(here) > 1 else ''}:", *told])


def _folded(title: str, table: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{table}\n\n</details>"


if __name__ == "__main__":
    read = LabResult.from_dict(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    for name, text in pages(read).items():
        Path(__file__).with_name(name).write_text(text, encoding="utf-8")
    draw("lab")
