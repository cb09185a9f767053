"""Make the quickstart pair as files, so that a recipe can name it.

    python examples/quickstart_pair/prepare.py --output runs/quickstart_pair

Writes `rows.jsonl` and `held_out.jsonl` (questions of the arithmetic world in words, answers drawn from the exact
process that the packaged teacher was trained on, slips included), `student-SEED` (one folder a seed) and
`compare.yaml`, a recipe for `bridgegarden compare`.

Students are the quickstart's, fine-tuned on data labels alone (its objective `hard (data)`), as a pair of real models
would be: they know the task and the teacher's slips, and objectives can be compared in a few hundred steps. A student
with random weights (`--steps 0`) writes nothing worth judging, which costs on-policy objectives dearly.
"""

import json
import tempfile
from pathlib import Path
from string import Template

import click
import torch

from bridgegarden.exact.process import sample
from bridgegarden.exact.tasks.arithmetic import ArithmeticWorld
from bridgegarden.exact.world import END, Split
from bridgegarden.quickstart import TEACHER
from bridgegarden.quickstart.result import STUDENT_SIZE, QuickstartSettings
from bridgegarden.quickstart.student import keep_signals, load_teacher, load_tokenizer, train_student, training_rows
from bridgegarden.run.quiet import quiet_libraries
from bridgegarden.study.arms import OBJECTIVES
from bridgegarden.study.run import one_thread
from bridgegarden.study.students import new_llama
from bridgegarden.teacher.cache.reader import TeacherCache

SEED = 7
"""Of problems, wordings and answers."""
RECIPE = Path(__file__).with_name("compare.yaml")


def write_rows(path: Path, count: int, *, split: Split) -> None:
    """`count` questions with an answer each."""
    world, generator = ArithmeticWorld(), torch.Generator().manual_seed(SEED)
    with path.open("w", encoding="utf-8") as file:
        for problem in world.problems(count, SEED, split=split):
            question = world.prompt(problem, generator)
            tokens = [token for token in sample(world.process(problem), generator) if token != END]
            file.write(json.dumps({"question": question, "answer": world.decode(tokens)}) + "\n")


def write_student(folder: Path, seed: int, steps: int) -> None:
    """The quickstart's student of `seed`, fine-tuned for `steps` steps on its own rows."""
    tokenizer = load_tokenizer()
    if steps:
        settings, rows = QuickstartSettings(steps=steps), training_rows(ArithmeticWorld(), 2_000, seed)
        with tempfile.TemporaryDirectory(prefix="bridgegarden-") as signals:
            # The trainer reads what the teacher says, though labels of the data do not need it.
            keep_signals(Path(signals) / "cache", rows, load_teacher(), tokenizer)
            cache = TeacherCache(Path(signals) / "cache")
            student = train_student(OBJECTIVES["hard_data"], seed, settings, rows, cache, lambda step: None).model
    else:
        student = new_llama(ArithmeticWorld(), STUDENT_SIZE, seed)
    student.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@click.command()
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder to write.")
@click.option("--rows", type=click.IntRange(min=1), default=2_000, show_default=True, help="Training rows.")
@click.option("--held-out", type=click.IntRange(min=2), default=200, show_default=True, help="Rows to measure on.")
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Students.")
@click.option("--steps", type=click.IntRange(min=0), default=800, show_default=True, help="Their fine-tuning.")
def main(output: Path, rows: int, held_out: int, seeds: int, steps: int) -> None:
    """Write rows, students and a recipe to --output."""
    output.mkdir(parents=True, exist_ok=True)
    write_rows(output / "rows.jsonl", rows, split="train")
    write_rows(output / "held_out.jsonl", held_out, split="test")
    recipe = Template(RECIPE.read_text(encoding="utf-8")).substitute(teacher=json.dumps(str(TEACHER)))
    (output / "compare.yaml").write_text(recipe, encoding="utf-8")
    with quiet_libraries(interactive=False), one_thread():
        for seed in range(seeds):
            write_student(output / f"student-{seed}", seed, steps)
            click.echo(f"student {seed + 1} of {seeds}", err=True)
    click.echo(f"{output / 'compare.yaml'}")


if __name__ == "__main__":
    main()
