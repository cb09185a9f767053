"""Write compare.md beside this file from the result of a comparison of the quickstart pair.

python examples/quickstart_pair/prepare.py --output runs/quickstart_pair
bridgegarden compare runs/quickstart_pair/compare.yaml --objectives sft,hard,soft,...
python docs/results/write_compare.py runs/quickstart_pair/compare/result.json
"""

import json
import sys
from pathlib import Path

from bridgegarden.compare.findings import QUALITIES, price, qualities, sentences, summary, times
from bridgegarden.compare.report import cost_caption, cost_table, difference_table, quality_table, seed_table
from bridgegarden.compare.result import CompareResult

sys.path.append(str(Path(__file__).parents[2]))
from docs.figures.draw_results import draw, with_figure


def page(result: CompareResult) -> str:
    """The whole page."""
    settings, pair = result.settings, result.pair
    seeds, base = len(settings.seeds), result.label(settings.baseline)
    steps = max(run.spent.steps for run in result.runs if run.spent is not None)
    problems = len(next(run.measured.by_unit["greedy"] for run in result.runs if run.measured is not None))
    found = "\n".join(f"* {sentence}" for sentence in sentences(result))
    by_seed = "\n\n".join(
        f"{QUALITIES[q].capitalize()}, seed by seed, in per cent:\n\n{seed_table(result, q).markdown()}"
        for q in qualities(result)
    )
    against = difference_table(result)
    text = f"""# Objectives compared on the quickstart pair

{found}

## How it was measured

Written by `python docs/results/write_compare.py RESULT` from the result of

    python examples/quickstart_pair/prepare.py --output runs/quickstart_pair
    {result.command}

started {result.started[:10]}, commit {(result.commit or "unknown")[:12]} ({_versions(result)}): {_minutes(result)}.

A teacher of {pair.teacher_parameters:,} parameters narrates three-step arithmetic modulo 7 in many wordings and writes
one running value in ten wrong. The student ({pair.student_parameters:,} parameters) was fine-tuned on such answers
first, as students of real pairs are: it is right as often as its teacher and slips like it. From there, every
objective gets {steps} steps on {pair.rows:,} rows of {pair.row_tokens:.0f} tokens, with {seeds} seeds and a student
for each, the same one for all objectives of a seed. Quality is measured on {problems} problems, drift on
{pair.prompts} held-out prompts.

## Quality and drift

<details><summary>Every objective</summary>

{quality_table(result).markdown()}

</details>

± is half of a 95 % interval over {seeds} seeds and the problems. L and exposure bias in nats a text: L_dT on texts that
the teacher wrote, L_dθ on the student's own, exposure bias their difference. *Entropy kept* is the student's over the
teacher's on held-out rows: hard labels give up the wordings (and the slips), soft labels keep both.

## Cost

<details><summary>Cost of every objective</summary>

{cost_table(result).markdown()}

</details>

{cost_caption(result)}

## Against {base}

<details><summary>Every difference</summary>

{"" if against is None else against.markdown()}

</details>

The objective minus {base}, paired by seed and problem. Higher and lower are said only where the interval leaves zero
out.

<details><summary>Every training</summary>

{by_seed}

</details>

## What to make of it

{remarks(result)}
"""
    return with_figure("compare", text)


def remarks(result: CompareResult) -> str:
    """What the numbers say beyond the sentences above, and what they do not."""
    lines = []
    hybrids = [name for name in ("static", "confidence", "entropy", "curriculum", "risk_guided") if name in result.rows]
    quantity = qualities(result)[0]
    if "soft" in result.objectives and hybrids:
        soft = summary(result, "soft", quantity).value
        told = ", ".join(
            f"{result.label(name)} {100 * (summary(result, name, quantity).value - soft):+.1f}" for name in hybrids
        )
        lines.append(f"* Points of drawn right answers over soft labels alone: {told}.")
    base = result.settings.baseline
    if base in result.objectives and "confidence" in result.objectives:
        one, other = price(result, "confidence"), price(result, base)
        lines.append(
            f"* The confidence hybrid takes {times(other.seconds / one.seconds)} less processor time and "
            f"{times(other.flops / one.flops)} fewer FLOPs than {result.label(base)}, its share of asking the teacher "
            "included. Models this small spend most of a step outside their matrix products, and the teacher is asked "
            "about few tokens, so these ratios are not those of models of billions."
        )
    lines.append(
        "* Being like the teacher and being right are two aims here: the teacher slips. What lowers L_dθ most need not "
        "answer best, and the other way round."
    )
    seeds = len(result.settings.seeds)
    if seeds == 2:
        lines.append(
            "* A third seed was begun and not finished; the run was interrupted several times, and each time went on "
            "with what was missing. Two seeds make intervals very wide (Student's t with one degree of freedom): most "
            "differences between objectives are open here. Read the tables seed by seed beside it."
        )
    elif seeds > 1:
        lines.append(
            f"* {seeds} seeds are few: intervals are wide where seeds differ, and a difference that is open here may "
            "be real."
        )
    lines.append(
        "* Other work ran on the machine at the same time, so wall times say little; processor times say more."
    )
    return "\n".join(lines)


def _versions(result: CompareResult) -> str:
    return ", ".join(f"{name} {version}" for name, version in result.versions.items() if name != "platform")


def _minutes(result: CompareResult) -> str:
    trained = sum(run.spent.cpu_seconds for run in result.runs if run.spent is not None)
    measured = sum(run.measured.cpu_seconds for run in result.runs if run.measured is not None)
    return f"{trained / 60:.0f} minutes of processor time in the trainings, {measured / 60:.0f} in measuring"


if __name__ == "__main__":
    result_tree = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(__file__).with_name("compare.md").write_text(page(CompareResult.from_dict(result_tree)), encoding="utf-8")
    draw("compare")
