"""The arithmetic world as questions and right answers."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

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
