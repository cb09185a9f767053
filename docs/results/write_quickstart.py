"""Write quickstart.md beside this file from the result of a run.

bridgegarden quickstart --full
python docs/results/write_quickstart.py runs/quickstart-full/result.json
"""

import json
import sys
from pathlib import Path

from bridgegarden.quickstart.result import QuickstartResult, Summary, beats, finding, frontier

COLUMNS = {
    "accuracy_sampled": ("right, sampled", 100, 1),
    "accuracy_greedy": ("right, greedy", 100, 1),
    "diversity": ("diversity kept", 100, 1),
    "kl_bridge": ("KL at Bridges", 1, 4),
    "kl_garden": ("KL at Gardens", 1, 4),
    "teacher_loss": ("L_dT", 1, 3),
    "student_loss": ("L_dθ", 1, 3),
    "exposure_bias": ("exposure bias", 1, 3),
}
"""Quantity: heading, factor, digits."""


def page(result: QuickstartResult) -> str:
    """The whole page."""
    settings = result.settings
    seeds = len(settings.seeds)
    sample = result.summary(result.objectives[0], "diversity")
    trained = sum(run.cpu_seconds for run in result.runs)
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items() if name != "platform")
    return f"""# Quickstart: hard labels, soft labels, and both

**{finding(result)}**

![Right answers against variety kept, for every objective](../figures/quickstart-frontier.svg)

Written by `python docs/results/write_quickstart.py RESULT` from the result of

    {result.command}

on {result.started[:10]} ({versions}): {trained / 60:.0f} minutes of processor time in the trainings.

A teacher of 0.65 million parameters narrates three-step arithmetic modulo 7 in many wordings and writes one running
value in ten wrong. Students seven times smaller are trained on {settings.train_problems:,} of its sampled answers:
{settings.steps} steps of {settings.batch}; data, order and first weights are the same for every objective of a seed;
seeds: {seeds}. The teacher was asked once, for {result.teacher_tokens:,} tokens; students read what it said from disk.
Everything is measured on {settings.test_problems:,} problems that are not among the training problems.

{table(result)}

± is half of a 95 % t-interval over the {sample.n} {sample.units}. Accuracies and diversity in per cent, KLs in nats a
token, L and exposure bias in nats an answer. *Diversity kept* is the student's entropy over the teacher's at the
Gardens of the teacher's answers. *L_dT* is the divergence from the teacher summed over answers that the teacher wrote,
*L_dθ* over answers that the student wrote, their difference is the exposure bias. The teacher itself, sampled:
{_plain(result.teacher.accuracy_sampled.mean, 100, 1)} % right.

On the frontier of accuracy and diversity: {", ".join(result.label(name) for name in frontier(result))}.
{beaten(result)}

<details><summary>Right answers when sampling, seed by seed, in per cent</summary>

{by_seed(result)}

</details>

## What to make of it

{remarks(result)}
"""


def table(result: QuickstartResult) -> str:
    """All objectives and quantities."""
    head = ["objective", *[heading for heading, _, _ in COLUMNS.values()], "CPU s"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name in result.objectives:
        cells = [_cell(result.summary(name, quantity), *form[1:]) for quantity, form in COLUMNS.items()]
        runs = result.runs_of(name)
        cells.append(f"{sum(run.cpu_seconds for run in runs) / len(runs):.0f}")
        lines.append("| " + " | ".join([result.label(name), *cells]) + " |")
    return "\n".join(lines)


def by_seed(result: QuickstartResult) -> str:
    """Sampled accuracy of every single training: a mean hides a training that failed."""
    head = ["objective", *[f"seed {seed}" for seed in result.settings.seeds]]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name in result.objectives:
        cells = [_plain(run.measured.accuracy_sampled.mean, 100, 1) for run in result.runs_of(name)]
        lines.append("| " + " | ".join([result.label(name), *cells]) + " |")
    return "\n".join(lines)


def failed(result: QuickstartResult) -> str:
    """Trainings whose likeliest answers are often wrong: there the optimisation failed, not the objective's aim."""
    found = [run for run in result.runs if run.measured.accuracy_greedy.mean < 0.9]
    if not found:
        return "* Every training learned the task: greedy answers are right at least nine times in ten."
    told = "; ".join(
        f"{run.label}, seed {run.seed} ({_plain(run.measured.accuracy_greedy.mean, 100, 1)} % right when greedy)"
        for run in found
    )
    return (
        f"* Not every training learned the task: {told}. The mean and interval of such an objective mix failure to "
        "learn with what it leads to when learned; read its row in the table by seeds."
    )


def beaten(result: QuickstartResult) -> str:
    """Who is beaten at both, and by whom."""
    pairs = [(a, b) for a in result.objectives for b in result.objectives if beats(result, a, b)]
    if not pairs:
        return "No objective is beaten at both by another."
    told = [f"{result.label(loser)} by {result.label(winner)}" for winner, loser in pairs]
    return f"Beaten at both: {'; '.join(told)}."


def remarks(result: QuickstartResult) -> str:
    """What can be read off the numbers, said only where they say it."""
    exposure = {name: result.summary(name, "exposure_bias") for name in result.objectives}
    total = {name: result.summary(name, "student_loss") for name in result.objectives}
    lowest = min(result.objectives, key=lambda name: total[name].mean)
    signs = {
        "above zero": [name for name, s in exposure.items() if s.interval.low > 0],
        "below zero": [name for name, s in exposure.items() if s.interval.high < 0],
        "not told from zero": [name for name, s in exposure.items() if s.interval.low <= 0 <= s.interval.high],
    }
    told = "; ".join(
        f"{where}: {', '.join(result.label(name) for name in names)}" for where, names in signs.items() if names
    )
    return "\n".join(
        [
            failed(result),
            f"* Exposure bias is {told}.",
            f"* The lowest total loss on a student's own answers, L_dθ, is that of {result.label(lowest)}. It measures "
            "likeness to the teacher, slips included: a student that slips less than its teacher pays for it here.",
            "* With the data's token as the target, hard labels are draws from the teacher's distribution and teach "
            "its slips; sharpening needs the teacher's likeliest token.",
        ]
    )


def _cell(summary: Summary, factor: float, digits: int) -> str:
    half = (summary.interval.high - summary.interval.low) / 2
    return f"{_plain(summary.mean, factor, digits)} ± {_plain(half, factor, digits)}"


def _plain(value: float, factor: float, digits: int) -> str:
    return f"{factor * value:.{digits}f}"


if __name__ == "__main__":
    found = QuickstartResult.from_dict(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    Path(__file__).with_name("quickstart.md").write_text(page(found), encoding="utf-8")
