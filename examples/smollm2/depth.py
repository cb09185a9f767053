"""What is left of SmolLM2 with fewer layers and no training: quality against depth, for two ways to choose layers.

    python examples/smollm2/depth.py          # half an hour of one core; writes depth.json and depth.svg

Once by influence, as `bridgegarden prune` chooses, and once the first so many. Needs `pip install reasoning-gym`.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from prepare import RowPlan, prepare_base, prepare_rows, say

from bridgegarden.errors import BridgegardenError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from bridgegarden.data import TokenisedRow

HERE = Path(__file__).parent
ROWS = RowPlan(tasks=("chain_sum", "simple_equations"), seed=0, train=320, validation=32, held_out=0)
DEPTHS = (30, 29, 28, 27, 26, 24, 22, 20, 18, 15, 12, 10, 8, 5)


def supervised_logp(model: "PreTrainedModel", rows: "Sequence[TokenisedRow]") -> "Iterator[Tensor]":
    """The log-probabilities of a model at the supervised positions of each row, ``(N, V)``."""
    import torch

    from bridgegarden.objective.alignment import SupervisedPositions

    for row in rows:
        positions = SupervisedPositions.from_labels(torch.tensor([row.labels]))
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row.input_ids]), use_cache=False).logits
        yield positions.of(logits).log_softmax(-1)


def quality(model: "PreTrainedModel", teacher: "Sequence[Tensor]", rows: "Sequence[TokenisedRow]") -> dict[str, float]:
    """Soft loss in nats a token, mean over rows with its standard error, and how often both argmaxes are one."""
    import torch

    from bridgegarden.objective.divergences import forward_kl

    losses, same = [], []
    for theirs, ours in zip(teacher, supervised_logp(model, rows), strict=True):
        losses.append(forward_kl(theirs, ours).mean())
        same.append((theirs.argmax(-1) == ours.argmax(-1)).float().mean())
    loss, agreement = torch.stack(losses), torch.stack(same)
    error = (loss.std() / math.sqrt(len(loss))).item()
    return {"loss": loss.mean().item(), "stderr": error, "agreement": agreement.mean().item()}


def curve(recipe_path: Path, overrides: Sequence[str], depths: Sequence[int]) -> dict[str, Any]:
    """Every depth, by influence and the first so many layers, on the recipe's evaluation rows."""
    from bridgegarden.data import TokenisedRow
    from bridgegarden.pruning.cut import Kept, cut
    from bridgegarden.pruning.importance import measure, most_important
    from bridgegarden.recipe import load_recipe
    from bridgegarden.run.cut_student import CutStudent
    from bridgegarden.run.models import load_model
    from bridgegarden.run.pair import recipe_pair
    from bridgegarden.run.teachers import teacher_of

    recipe = load_recipe(recipe_path, overrides)
    student, pair = CutStudent.of(recipe), recipe_pair(recipe)
    data = teacher_of(recipe).rows(pair)
    rows = [TokenisedRow(input_ids=row["input_ids"], labels=row["labels"]) for row in map(dict, data.evaluation or ())]
    teacher = load_model(student.parent)
    said = list(supervised_logp(teacher, rows))
    calibration = [(row.input_ids, row.labels) for row in student.calibration(data)]
    influence = measure(teacher, calibration).layers
    found: list[dict[str, Any]] = []
    for depth in depths:
        ways = {"influence": most_important(influence, depth), "first": tuple(range(depth))}
        for kept in dict.fromkeys(ways.values()):
            record = {"depth": depth, "choices": [way for way in ways if ways[way] == kept], "kept": list(kept)}
            found.append(record | quality(cut(teacher, Kept(layers=kept)), said, rows))
            say(json.dumps(found[-1]))
    return {"rows": len(rows), "influence": influence.tolist(), "depths": found}


def draw(result: dict[str, Any]) -> str:
    """The curve as the text of an SVG file."""
    from bridgegarden.report.charts import Curve, CurvePoint, curve_chart, standalone
    from bridgegarden.report.marks import Axis, Reading

    def point(record: dict[str, Any]) -> CurvePoint:
        loss, half = record["loss"], 1.96 * record["stderr"]
        words = f"{record['depth']} layers: {loss:.2f} nats"
        return CurvePoint(record["depth"], Reading(loss, max(loss - half, 0.0), loss + half), words)

    curves = []
    for choice, name in (("influence", "chosen by influence"), ("first", "the first so many")):
        records = [record for record in result["depths"] if choice in record["choices"]]
        points = tuple(point(record) for record in sorted(records, key=lambda record: record["depth"]))
        curves.append(Curve(name=name, points=points, sure=len(points)))
    about = "Soft loss of SmolLM2 against the number of its layers that are kept, for two ways to choose them"
    x, y = Axis(label="layers kept, of 30", whole=True), Axis(label="soft loss, nats a token", least=0.0)
    return standalone(curve_chart(curves, x=x, y=y, about=about), title=about)


def table(result: dict[str, Any]) -> str:
    """The curve as Markdown."""
    lines = ["| layers | chosen | soft loss | same likeliest token |", "| ---: | --- | ---: | ---: |"]
    for record in result["depths"]:
        loss = f"{record['loss']:.2f} ± {record['stderr']:.2f}"
        chosen = " = ".join(record["choices"])
        lines.append(f"| {record['depth']} | {chosen} | {loss} | {100 * record['agreement']:.0f} % |")
    return "\n".join(lines)


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--work", type=click.Path(path_type=Path), default=Path("runs/smollm2-depth"), show_default=True)
@click.option("--depths", default=",".join(map(str, DEPTHS)), show_default=True, help="Layers that are kept.")
def main(work: Path, depths: str) -> None:
    """The curve, from nothing."""
    from bridgegarden.run.quiet import quiet_libraries

    try:
        prepare_base(work / "base")
        prepare_rows(work, ROWS)
        paths = {"teacher.model": work / "base", "data.train": work / "train.jsonl"}
        paths |= {"data.eval": work / "validation.jsonl", "output": work / "curve"}
        overrides = [f"{name}={path.absolute()}" for name, path in paths.items()]
        with quiet_libraries(interactive=False):
            result = curve(HERE / "depth.yaml", overrides, [int(depth) for depth in depths.split(",")])
    except BridgegardenError as error:
        raise click.ClickException(str(error)) from error
    (work / "depth.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (work / "depth.svg").write_text(draw(result), encoding="utf-8")
    click.echo(table(result))


if __name__ == "__main__":
    main()
