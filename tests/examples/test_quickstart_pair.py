"""The quickstart pair as files: what is written is what the packaged teacher was trained on."""

import importlib.util
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console
from transformers import AutoModelForCausalLM

from bridgegarden.compare.pair import check_pair, placed
from bridgegarden.compare.result import CompareSettings
from bridgegarden.compare.run import compare
from bridgegarden.evaluation.lm_eval import EvaluationOptions
from bridgegarden.exact.tasks.arithmetic import ArithmeticWorld
from bridgegarden.quickstart import TEACHER
from bridgegarden.quickstart.student import prompt_ids
from bridgegarden.recipe import load_recipe

EXAMPLE = Path(__file__).parents[2] / "examples" / "quickstart_pair"


def prepare(folder: Path, *arguments: str) -> Path:
    """What the script writes."""
    spec = importlib.util.spec_from_file_location("quickstart_pair_prepare", EXAMPLE / "prepare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    result = CliRunner().invoke(module.main, ["--output", str(folder), *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return folder / "compare.yaml"


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    return prepare(folder, "--rows", "40", "--held-out", "6", "--seeds", "2", "--steps", "0")


def test_the_recipe_names_the_packaged_teacher_and_a_student_for_each_seed(recipe_file):
    recipe = placed(load_recipe(recipe_file), str(recipe_file))
    pair, _ = check_pair(recipe, [0, 1])
    assert recipe.teacher.model == str(TEACHER)
    assert pair.vocab_size == recipe.teacher.top_k
    assert pair.counts.rows == 40
    weights = [
        AutoModelForCausalLM.from_pretrained(recipe_file.parent / f"student-{seed}").lm_head.weight for seed in (0, 1)
    ]
    assert not weights[0].equal(weights[1])


def test_rows_are_the_ids_that_the_teacher_was_trained_on(recipe_file):
    world = ArithmeticWorld()
    _, data = check_pair(placed(load_recipe(recipe_file), str(recipe_file)), [0])
    lines = (recipe_file.parent / "rows.jsonl").read_text().splitlines()
    for line, row in zip(map(json.loads, lines), data.train, strict=True):
        prompt = prompt_ids(world, line["question"])
        assert row["input_ids"][: len(prompt)] == prompt
        assert [i for i in row["labels"] if i >= 0] == row["input_ids"][len(prompt) :]
        assert row["input_ids"][len(prompt) : -1] == world.encode(line["answer"])


def test_no_held_out_question_is_among_the_training_rows(recipe_file):
    def questions(name):
        return {json.loads(line)["question"] for line in (recipe_file.parent / name).read_text().splitlines()}

    assert not questions("rows.jsonl") & questions("held_out.jsonl")


@pytest.mark.slow
def test_the_pair_is_compared_with_tasks_from_end_to_end(recipe_file, tmp_path):
    settings = CompareSettings(
        objectives=("confidence", "gkd"),
        seeds=(0,),
        baseline="gkd",
        evaluation=EvaluationOptions(tasks=("bridgegarden_arithmetic",), limit=4, batch_size=4),
        prompts=4,
        samples=1,
        max_new_tokens=40,
    )
    result, folder = compare(
        str(recipe_file),
        settings,
        command="typed",
        overrides=["training.max_steps=3"],
        output=tmp_path / "out",
        console=Console(quiet=True),
    )
    for run in result.runs:
        assert set(run.measured.by_task) == {"bridgegarden_arithmetic"}
        assert len(run.measured.by_unit["sampled"]) == len(run.measured.by_unit["greedy"]) == 4
        assert run.measured.entropy_kept > 0
    assert 'id="frontier"' in folder.report.read_text()
