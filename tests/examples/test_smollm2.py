"""The SmolLM2 example: its worked solutions, its student, and the whole command on tiny models."""

import importlib.util
import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from bridgegarden.errors import ConfigError, DataError, ModelError
from bridgegarden.evaluation.tasks.questions import final_answer
from bridgegarden.recipe import load_recipe
from tests.tiny import save_tiny, tiny_model

EXAMPLE = Path(__file__).parents[2] / "examples" / "smollm2"
needs_problems = pytest.mark.skipif(
    importlib.util.find_spec("reasoning_gym") is None, reason="needs problems: pip install reasoning-gym"
)


def script(name: str) -> ModuleType:
    """A script of the example as a module, under the name by which the others import it."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


problems, prepare, run, depth = (script(name) for name in ("problems", "prepare", "run", "depth"))

WORKED = [
    (
        "chain_sum",
        "State the final answer to the following arithmetic problem: 4 - 1 - 7 =",
        "4 - 1 = 3\n3 - 7 = -4",
        -4,
    ),
    ("short_sum", "State the final answer to the following arithmetic problem: 1 + 5 =", "1 + 5 = 6", 6),
    ("short_arithmetic", "Calculate 5 - 3.", "5 - 3 = 2", 2),
    ("basic_arithmetic", "Calculate -( 5 - 3 * 4 ) + -6.", "3 * 4 = 12\n5 - 12 = -7\n-(-7) = 7\n7 + -6 = 1", 1),
    ("basic_arithmetic", "Calculate -7 / 2 / 1.", "-7 / 2 = -4\n-4 / 1 = -4", -4),
    ("products", "Solve the following multiplication: 58 * 206. Give only", "58 * 6 = 348\n58 * 200 = 11600", 11948),
    ("products", "Solve the following multiplication: 7 * 0. Give only", "7 * 0 = 0", 0),
    (
        "gcd",
        "Find the Greatest Common Divisor (GCD) of these numbers: 12, 30. Give",
        "30 = 2 * 12 + 6\n12 = 2 * 6 + 0",
        6,
    ),
    ("simple_equations", "Solve for e: 56 - 98*e = -1218", "-98*e = -1218 - 56\n-98*e = -1274\ne = -1274 / -98", 13),
    ("simple_equations", "Determine the value of h that satisfies: 405*h = 24705", "h = 24705 / 405 = 61", 61),
    ("spell_backward", "Spell this word backward (example: sun -> nus): Bat", "B a t\nt a B", "taB"),
    ("count_bits", "How many 1 bits are there in the binary representation of the number 1?", "1 = 2 * 0 + 1: 1", 1),
    ("count_bits", "How many 1 bits are there in the binary representation of the number 6?", "6 = 2 * 3 + 0: 0", 2),
    ("letter_counting", 'How many times does the letter "b" appear in the text: "Bob or b"?', "B o b: 2\no r: 2", 3),
]


@pytest.mark.parametrize(("task", "question", "beginning", "answer"), WORKED)
def test_a_solution_works_the_answer_out_and_ends_with_it(task, question, beginning, answer):
    solution = problems.TASKS[task].solution(question)
    assert solution.startswith(beginning)
    assert solution.endswith(f"\n#### {answer}")


def test_every_task_is_tried_and_an_equation_without_an_unknown_has_no_solution():
    assert {task for task, *_ in WORKED} == problems.TASKS.keys()
    assert problems.TASKS["simple_equations"].solution("Solve for f: 0 = 0") is None


@pytest.mark.parametrize(
    ("task", "question"), [("chain_sum", "x: 1 + a ="), ("simple_equations", "Solve for e: e*e = 4")]
)
def test_a_problem_of_another_kind_is_refused(task, question):
    with pytest.raises(DataError, match=r"is no sum, product or quotient|is not linear"):
        problems.TASKS[task].solution(question)


@needs_problems
@pytest.mark.parametrize("task", problems.TASKS)
def test_thousands_of_solutions_come_to_the_answer_that_the_generator_accepts(task):
    import reasoning_gym

    kind = problems.TASKS[task]
    found = reasoning_gym.create_dataset(kind.generator, seed=3, size=1500, **kind.settings)
    harder = reasoning_gym.create_dataset(kind.generator, seed=4, size=500)
    solved = 0
    for made in (found, harder):
        for problem in made:
            solution = kind.solution(problem["question"])
            if solution is None:
                continue
            solved += 1
            assert made.score_answer(solution.rpartition("#### ")[2], problem) == 1.0
            assert final_answer(solution) == final_answer(problem["answer"])
    assert solved > 1900


@needs_problems
def test_no_problem_is_in_two_files_and_other_settings_are_refused(tmp_path):
    plan = prepare.RowPlan(tasks=("gcd", "products"), seed=1, train=20, validation=5, held_out=7)
    prepare.prepare_rows(tmp_path, plan)
    files = ["train.jsonl", "validation.jsonl", "held_out/gcd.jsonl", "held_out/products.jsonl"]
    rows = [[json.loads(line) for line in (tmp_path / name).read_text().splitlines()] for name in files]
    assert [len(part) for part in rows] == [40, 10, 7, 7]
    assert len({row["prompt"] for part in rows for row in part}) == 64
    assert {row["task"] for row in rows[0][:12]} == {"gcd", "products"}
    prepare.prepare_rows(tmp_path, plan)
    with pytest.raises(ConfigError, match=r"prepared with other settings \(seed 1 -> 2\)"):
        prepare.prepare_rows(tmp_path, prepare.RowPlan(**{**vars(plan), "seed": 2}))


@needs_problems
def test_problems_are_the_same_for_the_same_seed_and_none_comes_twice():
    first, again = (list(itertools.islice(problems.distinct_rows("chain_sum", seed=2), 300)) for _ in range(2))
    assert first == again
    assert len({row["prompt"] for row in first}) == 300


@pytest.mark.slow
def test_the_curve_against_depth_begins_at_the_teacher_and_falls_with_its_layers(tmp_path):
    save_tiny(tmp_path / "base", tiny_model("llama", layers=4))
    rows = [{"prompt": f"{n} + 1 =", "completion": str(n + 1)} for n in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = {"teacher.model": "base", "data.train": "rows.jsonl", "data.eval": "rows.jsonl", "output": "out"}
    overrides = [f"{key}={tmp_path / name}" for key, name in paths.items()]
    result = depth.curve(EXAMPLE / "depth.yaml", ["student.layers=2", *overrides], [4, 2, 1])
    assert result["depths"][0]["kept"] == [0, 1, 2, 3]
    assert result["depths"][0]["loss"] == 0 < min(record["loss"] for record in result["depths"][1:])
    assert [record["kept"] for record in result["depths"] if "first" in record["choices"]] == [
        [0, 1, 2, 3],
        [0, 1],
        [0],
    ]
    assert depth.table(result).count("\n") == len(result["depths"]) + 1
    assert "by influence" in depth.draw(result)


def test_the_recipes_load_and_the_sizes_fit_what_they_name():
    for name in ("teacher", "compare", "depth"):
        load_recipe(str(EXAMPLE / f"{name}.yaml"), [])
    for size in run.SIZES.values():
        assert set(size.tasks) <= problems.TASKS.keys()
        assert "soft" in size.objectives
        assert set(size.equal_compute) <= set(size.objectives)


def test_a_teacher_that_is_not_right_often_enough_is_no_teacher(tmp_path, monkeypatch):
    commands: list[str] = []
    shares = iter((0.1, 0.3, 0.5))

    def command(place, name, *arguments):
        commands.append(name)
        folder = Path(next(a for a in arguments if str(a).startswith("output=")).removeprefix("output="))
        (folder / "model").mkdir(parents=True)
        (folder / "model" / "weights").write_text(folder.name)

    def right(place, model, tasks, output):
        results = output / "results.json"
        if not results.exists():
            output.mkdir()
            results.write_text(str(next(shares)))
        return float(results.read_text())

    monkeypatch.setattr(run.Place, "bridgegarden", command)
    monkeypatch.setattr(run.Place, "right", right)
    place, size = run.Place(work=tmp_path, threads=1, dtype="float32", bf16=False), run.SIZES["small"]
    with pytest.raises(ModelError, match="right on 30% of the validation problems after 2 rounds, and 60%"):
        run.teach(place, replace(size, rounds=2))
    assert run.teach(place, replace(size, rounds=3, right=0.5)) == tmp_path / "teacher"
    assert (tmp_path / "teacher" / "weights").read_text() == "3"
    assert commands == ["train"] * 3


@pytest.mark.slow
@needs_problems
def test_the_whole_command_runs_on_a_tiny_model_and_again_does_nothing_twice(tmp_path):
    base = save_tiny(tmp_path / "base", tiny_model("llama"))
    work = tmp_path / "work"
    arguments = ["--size", "rehearsal", "--base", str(base), "--work", str(work), "--threads", "1"]
    result = run_script(arguments)
    assert result.returncode == 0, result.stderr
    found = json.loads((work / "compare-steps" / "result.json").read_text(encoding="utf-8"))
    assert [run["objective"] for run in found["runs"]] == ["soft", "sharpened"]
    assert found["runs"][0]["measured"]["by_task"].keys() == {"chain_sum.jsonl", "simple_equations.jsonl"}
    assert found["pair"]["rows"] == 4
    assert "of the held-out problems right" in result.stderr
    again = run_script(arguments)
    assert again.returncode == 0, again.stderr
    commands = [line for line in again.stderr.splitlines() if line.startswith("$ ")]
    assert [command.split()[2] for command in commands] == ["compare"]
    kept = json.loads((work / "compare-steps" / "result.json").read_text(encoding="utf-8"))
    assert kept["runs"] == found["runs"]


def run_script(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """The example as a user starts it, with this very package."""
    source = os.pathsep.join([str(EXAMPLE.parents[1] / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(EXAMPLE / "run.py"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
