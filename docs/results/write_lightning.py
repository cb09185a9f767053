"""Write lightning.md beside this file: soft labels on texts that the student wrote once, beside GKD.

examples/quickstart_pair/lightning.sh runs/quickstart_pair
python docs/results/write_lightning.py runs/quickstart_pair

reads what four comparisons left: one on the teacher's rows, with GKD, and one for each of three students on the answers
that it wrote itself before training.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

from bridgegarden.compare.findings import called, difference, price, qualities
from bridgegarden.compare.report import cost_table, difference_table, quality_table
from bridgegarden.compare.result import CompareResult, CompareRun, Spent
from bridgegarden.table import Table

sys.path.append(str(Path(__file__).parents[2]))
from docs.figures.draw_results import draw, with_figure

SEEDS = (0, 1, 2)
SUFFIX = "_lightning"


def read(path: Path) -> CompareResult:
    """What a comparison left."""
    return CompareResult.from_dict(json.loads(path.read_text(encoding="utf-8")))


def together(live: CompareResult, written_once: dict[int, CompareResult], writing: dict[int, float]) -> CompareResult:
    """One comparison: objectives on the teacher's rows, on texts written once, and on-policy.

    What is trained on texts written once pays for writing them and for asking the teacher about them, alone.
    """
    first = written_once[SEEDS[0]]
    names = [name for name in first.settings.objectives if name in live.rows]
    rows = {**live.rows}
    runs = list(live.runs)
    for name in names:
        rows[name + SUFFIX] = replace(rows[name], label=f"{rows[name].label}, written once", asks_teacher=False)
        runs += [_paid(result, result.runs_of(name)[0], seed, writing[seed]) for seed, result in written_once.items()]
    settings = replace(live.settings, objectives=tuple(rows), baseline="gkd")
    return replace(live, settings=settings, rows=rows, runs=tuple(runs))


def _paid(result: CompareResult, run: CompareRun, seed: int, writing: float) -> CompareRun:
    spent, cache, pair = run.spent, result.cache, result.pair
    assert spent is not None
    assert cache is not None
    assert cache.seconds is not None
    assert cache.cpu_seconds is not None
    read = round(pair.rows * (pair.row_tokens - pair.row_positions))
    written = round(pair.rows * pair.row_positions)
    costs = Spent(
        steps=spent.steps,
        seconds=spent.seconds + cache.seconds + writing,
        cpu_seconds=spent.cpu_seconds + cache.cpu_seconds + writing,
        teacher_tokens=spent.teacher_tokens + cache.tokens,
        student_tokens=spent.student_tokens,
        prompt_tokens=read,
        generated_tokens=written,
        # Two operations a parameter and token, as everywhere.
        flops=spent.flops + cache.flops + 2 * pair.student_parameters * (read + written),
        peak_memory=spent.peak_memory,
    )
    return CompareRun(objective=run.objective + SUFFIX, seed=seed, spent=costs, measured=run.measured)


def markdown(table: Table | None) -> str:
    """A table, which there is."""
    assert table is not None
    return f"{table.markdown()}\n\n{table.note}"


def verdict(result: CompareResult) -> str:
    """What texts written once give and cost beside GKD, in sentences."""
    quantity = qualities(result)[0]
    lines = []
    for name in (name for name in result.objectives if name.endswith(SUFFIX)):
        found, other = difference(result, name, "gkd", quantity), difference(result, name, "gkd", "student_loss")
        assert found is not None
        assert other is not None
        half, loss_half = (50 * (one.interval.high - one.interval.low) for one in (found, other))
        called_as = ("not told from GKD", "right more often than GKD", "right less often")[
            called(result, name, "gkd", quantity)
        ]
        lines.append(
            f"* {result.label(name)}: {called_as} ({100 * found.mean:+.1f} ± {half:.1f} points, sampled), L_dθ "
            f"{other.mean:+.2f} ± {loss_half / 100:.2f} nats a text."
        )
    one, gkd = price(result, f"soft{SUFFIX}"), price(result, "gkd")
    lines.append(
        f"* A training on texts written once takes {gkd.flops / one.flops:.1f} times fewer FLOPs and "
        f"{gkd.seconds / one.seconds:.1f} times less processor time than GKD if it pays alone for writing and asking; "
        "most of the time of writing is Python starting, which a larger model would not notice. Another objective on "
        "the same texts pays for its steps alone."
    )
    return "\n".join(lines)


def page(result: CompareResult, writing: dict[int, float]) -> str:
    """The whole page."""
    pair = result.pair
    seconds = ", ".join(f"{writing[seed]:.1f}" for seed in SEEDS)
    text = f"""# On-policy labels, written once

{verdict(result)}

## How it was measured

Written by `python docs/results/write_lightning.py runs/quickstart_pair` from what

    python examples/quickstart_pair/prepare.py --output runs/quickstart_pair
    bash examples/quickstart_pair/lightning.sh runs/quickstart_pair

left (started {result.started[:10]}, commit {(result.commit or "unknown")[:12]}). The pair, its rows and its measures
are those of [Objectives compared on the quickstart pair](compare.md); "written once" are objectives on {pair.rows:,}
answers that the student wrote before it was trained, at temperature 1, and about which the teacher was asked once; each
of three students wrote its own. Their cost holds writing ({seconds} seconds of processor time, the start of Python
included) and asking the teacher.

## Quality and drift

<details><summary>Every objective</summary>

{markdown(quality_table(result))}

</details>

## Cost

<details><summary>Cost of every objective</summary>

{markdown(cost_table(result))}

</details>

## Against GKD

<details><summary>Every difference</summary>

{markdown(difference_table(result))}

</details>
"""
    return with_figure("lightning", text)


def main() -> None:
    """Read the comparisons in a folder and write the page."""
    folder = Path(sys.argv[1])
    writing = {seed: float((folder / f"answers-{seed}.seconds").read_text(encoding="utf-8")) for seed in SEEDS}
    live = read(folder / "live" / "result.json")
    once = {seed: read(folder / f"lightning-{seed}" / "result.json") for seed in SEEDS}
    Path(__file__).with_name("lightning.md").write_text(page(together(live, once, writing), writing), encoding="utf-8")
    draw("lightning")


if __name__ == "__main__":
    main()
