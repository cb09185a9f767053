"""MBPP's rows as programs to be run."""

import ast
import builtins
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

EXAMPLES = (2, 3, 4)
"""``task_id`` of the problems that are shown with their answers, as in the paper."""
IMPORTS = "import math\nimport re\nimport sys\n"
"""What tests may use beside the answer."""


def scorable(rows: "Dataset") -> "Dataset":
    """The problems whose tests need nothing of an answer but its functions.

    A few build objects of the answer's own classes first (``test_setup_code``); those cannot be handed from one process
    to another, so these problems are left out.
    """
    kept = rows.filter(lambda row: not row["test_setup_code"].strip())
    return kept.map(lambda row: _fields(row))


def examples(rows: "Dataset") -> "Dataset":
    """The problems that are shown."""
    return rows.filter(lambda row: row["task_id"] in EXAMPLES)


def prompt(row: dict[str, Any]) -> str:
    """What a model is shown (Austin et al., 2021, section 3)."""
    tests = "\n".join(row["test_list"])
    return (
        f"You are an expert Python programmer, and here is your task: {row['text']} Your code should pass these "
        f"tests:\n\n{tests}\n[BEGIN]\n"
    )


def _fields(row: dict[str, Any]) -> dict[str, Any]:
    test = "\n".join(row["test_list"])
    called = {node.func.id for node in ast.walk(ast.parse(test)) if _is_call_by_name(node)}  # pyright: ignore
    names = sorted(called - set(vars(builtins)))
    return {"prompt": "", "context": IMPORTS, "test": test, "names": names, "solution": row["code"]}


def _is_call_by_name(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
