"""Write tokenizers.md and tokenizers.json beside this file from the trainings in a folder.

python benchmarks/tokenizer_students.py FOLDER
python docs/results/write_tokenizers.py FOLDER
"""

import json
import sys
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bridgegarden.statistics import PairedDifference, SeedSpread, holm_adjusted, paired_difference
from bridgegarden.study.arms import OBJECTIVES
from bridgegarden.table import Table

sys.path.append(str(Path(__file__).parents[2]))
from docs.figures.draw_results import draw, with_figure

OURS = ("soft", "confidence", "static", "hard_data", "hard")
GOLD = {
    "gold": "GOLD, as it is",
    "gold_shifted": "GOLD, bayesian",
    "gold_ends": "GOLD, bayesian, with the end",
    "gold_hard": "GOLD, bayesian, with the end and cross-entropy",
}
ARMS = (*OURS, *GOLD)
OTHERS = {"teacher": "the teacher", "before": "the student before"}


class Results:
    """All trainings with one tokenizer."""

    def __init__(self, runs: Sequence[dict[str, Any]]) -> None:
        self.runs = {(run["arm"], run["seed"]): run for run in runs}
        # Seeds and objectives of which everything is there.
        self.seeds = sorted(seed for arm, seed in self.runs if arm == "soft")
        self.arms = [arm for arm in ARMS if all((arm, seed) in self.runs for seed in self.seeds)]

    def share(self, arm: str, seed: int, decoding: str) -> float:
        """Of right answers."""
        marks = self.runs[arm, seed][decoding]
        return marks.count("1") / len(marks)

    def scores(self, arm: str, seed: int, decoding: str) -> Mapping[Hashable, float]:
        """1 for each problem that was answered rightly."""
        return {(seed, place): float(mark) for place, mark in enumerate(self.runs[arm, seed][decoding])}

    def mean(self, arm: str, quantity: str) -> float:
        """Over seeds."""
        return sum(self.runs[arm, seed][quantity] for seed in self.seeds) / len(self.seeds)

    def spread(self, decoding: str) -> SeedSpread | None:
        """How far trainings of one objective are apart, of all objectives together."""
        return SeedSpread.over([[self.share(arm, seed, decoding) for seed in self.seeds] for arm in self.arms])

    def difference(self, first: str, second: str, decoding: str) -> PairedDifference:
        """Of two objectives on the same problems."""
        sides = [[self.scores(arm, seed, decoding) for seed in self.seeds] for arm in (first, second)]
        return paired_difference(sides[0], sides[1], of_all=self.spread(decoding))


def label(arm: str) -> str:
    """For a reader."""
    return OTHERS[arm] if arm in OTHERS else GOLD[arm] if arm in GOLD else OBJECTIVES[arm].label


HEADS = ("objective", "against", "decoding", "right, points", "95 % interval", "after Holm")
"""Of the table of differences."""


def quality(results: Results) -> Table:
    """Every objective beside the teacher."""
    teacher = results.mean("teacher", "entropy")
    records = []
    for arm in ("teacher", "before", *results.arms):
        shares = {d: [results.share(arm, seed, d) for seed in results.seeds] for d in ("sampled", "greedy")}
        kept = {d: sum(found) / len(found) for d, found in shares.items()}
        records.append(
            {
                "objective": label(arm),
                "right, sampled": f"{100 * kept['sampled']:.1f} %",
                "by seeds": ", ".join(f"{100 * one:.0f}" for one in shares["sampled"]),
                "right, greedy": f"{100 * kept['greedy']:.1f} %",
                "by seeds, greedy": ", ".join(f"{100 * one:.0f}" for one in shares["greedy"]),
                "entropy kept": f"{results.mean(arm, 'entropy') / teacher:.0%}",
                "loss on the teacher's answers": f"{results.mean(arm, 'loss'):.1f}",
                "CPU s": "" if arm in OTHERS else f"{results.mean(arm, 'seconds'):.0f}",
            }
        )
    return Table.of(records)


def differences(results: Results) -> tuple[Table, str]:
    """Pairs that a reader asks about, and what could have been told."""
    gold = sorted(
        (arm for arm in results.arms if arm in GOLD),
        key=lambda arm: sum(results.share(arm, seed, "sampled") for seed in results.seeds),
    )[-1:]
    beside = [arm for arm in ("hard_data", *gold) if arm in results.arms]
    pairs = [(arm, other) for other in beside for arm in results.arms if arm in OURS and arm != other]
    found = [
        (first, second, decoding, results.difference(first, second, decoding))
        for first, second in pairs
        for decoding in ("sampled", "greedy")
    ]
    adjusted = holm_adjusted([one.p for *_, one in found])
    records, halves = [], {"sampled": 0.0, "greedy": 0.0}
    for (first, second, decoding, one), p in zip(found, adjusted, strict=True):
        halves[decoding] = max(halves[decoding], 50 * (one.interval.high - one.interval.low))
        told = "open" if p >= 0.05 else ("more" if one.mean > 0 else "fewer")
        between = f"{100 * one.interval.low:+.1f} to {100 * one.interval.high:+.1f}"
        records.append([label(first), label(second), decoding, f"{100 * one.mean:+.1f}", between, told])
    power = (
        f"A difference that is told from zero has to be about {halves['sampled']:.0f} points or more when sampling and "
        f"{halves['greedy']:.0f} when decoding greedily, before Holm's correction over these {len(found)} comparisons."
    )
    return Table(columns=HEADS, rows=records), power


def part(name: str, results: Results) -> str:
    """One tokenizer's."""
    run = next(iter(results.runs.values()))
    shares, settings = run["shares"], run["settings"]
    table, power = differences(results)
    asked = run["asking"] * settings["steps"] * settings["batch"] / settings["train_problems"]
    return f"""## {name.capitalize()}

{run["vocabulary"]} tokens, {run["tokens"]:.0f} an answer, where the teacher has {run["words"]:.0f}. Of the positions
{shares["aligned"]:.1%} are aligned, {shares["conditional"]:.1%} conditional, {shares["hard_only"]:.1%} hard only; of
the teacher's mass {shares["exact"]:.1%} is in proved cells, {shares["approximate"]:.1%} in tried ones,
{shares["open"]:.1%} open. Seeds {", ".join(map(str, results.seeds))}.

<details><summary>Every objective</summary>

{quality(results).markdown()}

</details>

*Entropy kept*: nats of the whole answers that a model writes at temperature 1, over the teacher's; a measure of
variety. *Loss*: nats an answer, on {len(run["greedy"])} held-out answers of the teacher's. *CPU s*: of its training.
Asking the teacher about all rows once took {run["asking"]:.0f} s and translating {run["translating"]:.1f} s, for all of
ours together. GOLD was given these answers, too; its own trainer asks a live teacher at every step, {asked:.0f} s more.

<details><summary>Every difference</summary>

{table.markdown()}

</details>

{power}
"""


def answer(name: str, results: Results) -> str:
    """How many differences are told from zero, and the largest of ours over hard labels."""
    rows = [dict(zip(HEADS, row, strict=True)) for row in differences(results)[0].rows]
    told = sum(row["after Holm"] != "open" for row in rows)
    ours = [row for row in rows if (row["against"], row["decoding"]) == (label("hard_data"), "sampled")]
    said = f"* {name.capitalize()}: {told} of {len(rows)} differences in right answers are told from zero."
    if not ours:
        return said
    most = max(ours, key=lambda row: float(row["right, points"]))
    verdict = "not told from zero" if most["after Holm"] == "open" else "told from zero"
    return (
        f"{said} The largest over {label('hard_data')}, sampled, is that of {most['objective']}: "
        f"{most['right, points']} ({most['95 % interval']}) points, {verdict}."
    )


def page(runs: Sequence[dict[str, Any]]) -> str:
    """The whole page."""
    names = list(dict.fromkeys(run["tokenizer"] for run in runs))
    parts = {name: Results([run for run in runs if run["tokenizer"] == name]) for name in names}
    run = runs[0]
    settings = run["settings"]
    answers = [answer(name, results) for name, results in parts.items() if results.seeds]
    text = f"""# A student with another tokenizer

{chr(10).join(answers)}

## How it was measured

Written by `python docs/results/write_tokenizers.py FOLDER` from what

    python benchmarks/tokenizer_students.py FOLDER

left; the numbers are in [tokenizers.json](tokenizers.json).

The packaged word-level teacher and the quickstart's rows ({settings["train_problems"]:,} answers). The student is of
the quickstart's size, with a byte-level BPE trained on the same answers. As students in use have learnt from texts
before they are distilled, each seed's was trained on the rows' text first ({run["steps before"]} steps). From there
every objective takes {settings["steps"]} steps of {settings["batch"]} at a peak learning rate of
{settings["learning_rate"]:g}, with the same rows and optimiser. Ours learn from the teacher's whole distribution,
translated ([how](../tokenizers.md)); *hard (data)* is its sampled text alone, which needs no translation.

GOLD is the loss of `trl.experimental.gold` (`ULDLoss`, extended alignment by bytes) on the same rows, without the
student's own texts, which its trainer mixes in by half. *As it is*: its defaults. *Bayesian*:
`uld_token_merge_strategy="bayesian"`, which holds each position's distribution against the token that it predicts.
*With the end*: the end of the turn is learnt, which the defaults leave out. *And cross-entropy*:
`uld_crossentropy_weight=1`.

{chr(10).join(part(name, results) for name, results in parts.items() if results.seeds)}"""
    return with_figure("tokenizers", text)


def write(folder: Path, beside: Path) -> None:
    """The numbers and the page."""
    kept = beside / "tokenizers.json"
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*-*-*.json"))]
    for run in runs:
        run |= {name: "".join(map(str, run[name])) for name in ("greedy", "sampled")}
    kept.write_text("[\n" + ",\n".join(json.dumps(run) for run in runs) + "\n]\n", encoding="utf-8")
    kept.with_suffix(".md").write_text(page(runs), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(__file__).parent)
    draw("tokenizers")
