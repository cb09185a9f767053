"""Questions and whether an answer is right: those of the arithmetic world, and the prompts of a file of rows."""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from bridgegarden.data import Columns, load_rows
from bridgegarden.data.chat import conversation
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


class Questions(NamedTuple):
    """What a file of rows asks."""

    rows: list[dict[str, str]]
    """A text ``question`` and a text ``answer`` each."""
    as_turns: bool
    """Whether training makes turns of these rows where there is a chat template, or takes them as they stand."""


def read_questions(path: str, columns: Columns) -> Questions:
    """The questions of a file, each a row as training reads it: a question, and an answer that ends with the right one.

    Raises:
        DataError: the file cannot be read, a row is more than a question and its answer, or no final answer is in it,
            or some rows are turns and others are not.
    """
    found: list[dict[str, str]] = []
    forms: list[bool] = []
    for number, row in enumerate(load_rows(path).to_list()):
        place = f"{path}, row {number}"
        chat = conversation(row, columns, place=place)
        roles = tuple(message["role"] for message in chat.messages)
        texts = [message["content"] for message in chat.messages]
        plain = not chat.tools and not chat.variables and all(isinstance(text, str) and text.strip() for text in texts)
        if roles != ("user", "assistant") or not plain or not final_answer(texts[-1]):
            raise DataError(
                f"{place}: a task needs one question and one answer in words, whose end is what is right; got "
                f"{'text with no prompt' if chat.form == 'document' else ', '.join(roles)}"
                f"{'' if plain else ', with an empty text, tools or variables of the chat template'}. Give rows with "
                "'prompt' and 'completion', or with a user's message and the assistant's."
            )
        found.append({"question": texts[0], "answer": texts[1]})
        forms.append(chat.form != "text")
        if forms[-1] != forms[0]:
            raise DataError(
                f"{place}: is {'a conversation' if forms[-1] else 'text as it stands'}, and row 0 is not; a task is "
                "asked in one way. Give files of one kind each."
            )
    return Questions(found, forms[0])


def rows_task(path: str, questions: Questions, config: Mapping[str, Any]) -> dict[str, Any]:
    """The task that asks the questions of a file: right is what ends as the row's answer does.

    Args:
        path: of the file.
        questions: in it.
        config: of the arithmetic world's task, whose questions and grades are replaced.
    """
    asked = questions.rows
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
