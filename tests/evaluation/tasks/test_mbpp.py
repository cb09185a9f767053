from datasets import Dataset

from bridgegarden.evaluation.tasks import FOLDER
from bridgegarden.evaluation.tasks.mbpp import examples, prompt, scorable
from bridgegarden.evaluation.tasks.programs import verdict_on

ROWS = [
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
    assert [row["task_id"] for row in scorable(Dataset.from_list(ROWS))] == [2, 11]


def test_the_functions_that_a_test_calls_are_found():
    row = scorable(Dataset.from_list(ROWS))[0]
    assert row["names"] == ["double"]
    assert verdict_on(row["solution"], row) == (True, "")
    assert verdict_on("```python\ndef double(x):\n    return x + x\n```", row).passed
    assert not verdict_on("def double(x):\n    return 3 * x\n", row).passed


def test_the_prompt_shows_the_tests_and_the_examples_are_the_paper_s():
    assert prompt(ROWS[0]).startswith("You are an expert Python programmer, and here is your task: Write a function")
    assert prompt(ROWS[0]).endswith("== {1}\n[BEGIN]\n")
    assert [row["task_id"] for row in examples(Dataset.from_list(ROWS))] == [2]


def test_the_task_file_runs_on_such_rows(scores_of, tmp_path):
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    Dataset.from_list(ROWS).to_json(tmp_path / "rows.jsonl")
    files = {split: str(tmp_path / "rows.jsonl") for split in ("test", "prompt")}
    config = {**load_yaml(FOLDER / "mbpp.yaml"), "dataset_path": "json", "dataset_name": None}
    config["dataset_kwargs"] = {"data_files": files, "cache_dir": str(tmp_path)}
    task = TaskManager(include_defaults=False).load([config])["tasks"]["mbpp"]
    assert task.fewshot_context(task.eval_docs[0], 1).count("[DONE]") == 1
    assert scores_of(task, lambda row: row["code"])["pass@1"] == 1.0
    assert scores_of(task, lambda row: "def double(x):\n    return x")["pass@1"] == 0.0
