"""Questions and whether an answer is right: those of the arithmetic world, and the prompts of a file of rows."""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from bridgegarden.data import load_rows
from bridgegarden.errors import DataError
from bridgegarden.evaluation.tasks import task_name
from bridgegarden.exact.tasks.arithmetic import ArithmeticWorld, Operation, Problem, check_answer

if TYPE_CHECKING:
    from datasets import Dataset

PROBLEMS = 500
SEED = 20_260_526
"""Decides problems and wordings; no other part of the package uses it."""


def problems(**_: Any) -> "dict[str, Dataset]":
    """The task's data set: problems of the test split, the same on every machine."""
    from datasets import Dataset

    world = ArithmeticWorld()
    generator = torch.Generator().manual_seed(SEED)
    rows = [
        {
            "question": world.prompt(problem, generator),
            "answer": f"The answer is {problem.result}.",
            "modulus": problem.modulus,
            "start": problem.start,
            "operators": [operation.operator for operation in problem.operations],
            "operands": [operation.operand for operation in problem.operations],
        }
        for problem in world.problems(PROBLEMS, SEED, split="test")
    ]
    return {"test": Dataset.from_list(rows)}


def grade(answers: Sequence[Sequence[str]], rows: Sequence[Mapping[str, Any]]) -> list[list[bool]]:
    """Whether each answer to each row states the right result."""
    return [[check_answer(problem_of(row), text) for text in texts] for texts, row in zip(answers, rows, strict=True)]


def problem_of(row: Mapping[str, Any]) -> Problem:
    """The problem that a row asks."""
    steps = zip(row["operators"], row["operands"], strict=True)
    return Problem(modulus=row["modulus"], start=row["start"], operations=tuple(Operation(*step) for step in steps))


def rows_task(path: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The task that asks the prompts of a file: right is what ends as the row's completion does.

    Args:
        path: JSONL or Parquet, with a text `prompt` and a text `completion` in every row.
        config: of the arithmetic world's task, whose questions and grades are replaced.

    Raises:
        DataError: the file cannot be read, or a row has no such texts, or no final answer.
    """
    rows = load_rows(path).to_list()
    for number, row in enumerate(rows):
        texts = [row.get(key) for key in ("prompt", "completion")]
        if not all(isinstance(text, str) and text.strip() for text in texts) or not final_answer(row["completion"]):
            raise DataError(
                f"{path}, row {number}: a task needs the texts 'prompt' and 'completion' (whose final answer is the "
                f"right one) in every row, got the columns {', '.join(row)}. Give rows that have both."
            )
    asked = [{"question": row["prompt"], "answer": row["completion"]} for row in rows]
    (keeping,) = config["filter_list"]
    # A token is a byte at least, so that every worked solution has room, whatever the tokenizer.
    longest = max(len(row["answer"].encode()) for row in asked)
    return {
        **config,
        "task": task_name(path),
        "custom_dataset": partial(_as_test, asked),
        "filter_list": [{**keeping, "filter": [{"function": "custom", "filter_fn": grade_rows}]}],
        "generation_kwargs": {**config["generation_kwargs"], "max_gen_toks": longest + 1},
    }


def grade_rows(answers: Sequence[Sequence[str]], rows: Sequence[Mapping[str, Any]]) -> list[list[bool]]:
    """Whether each answer to each row ends with the right one."""
    right = [final_answer(row["answer"]) for row in rows]
    return [[final_answer(text) == wanted for text in texts] for texts, wanted in zip(answers, right, strict=True)]


def final_answer(text: str) -> str:
    """What a worked solution comes to: what stands behind its last ``####``, or else its last line.

    Case, spaces around and between words, a full stop at the end and commas between thousands do not count. Empty
    where there is nothing.
    """
    marked = text.rpartition("####")[2] if "####" in text else text.strip().rpartition("\n")[2]
    line = marked.strip().partition("\n")[0]
    words = " ".join(line.casefold().split()).removesuffix(".")
    return re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", words)


def _as_test(rows: Sequence[Mapping[str, str]], **_: Any) -> "dict[str, Dataset]":
    from datasets import Dataset

    return {"test": Dataset.from_list([dict(row) for row in rows])}
