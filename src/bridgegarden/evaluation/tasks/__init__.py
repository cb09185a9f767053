"""Tasks by name: groups after the paper's benchmarks, our own tasks, files of rows, and everything that lm-eval knows.

Here are the YAML files of our own and what they refer to. lm-eval takes this folder as an ``include_path``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bridgegarden.data.rows import SUFFIXES
from bridgegarden.errors import ConfigError

FOLDER = Path(__file__).parent
"""Where the YAML files are."""

GROUPS = {
    "offline": ("bridgegarden_arithmetic", "bridgegarden_programs"),
    "reasoning": (
        "bbh",
        "mmlu",
        "arc_challenge",
        "gsm8k",
        "minerva_math",
        "agieval_gaokao_biology",
        "agieval_gaokao_chemistry",
        "agieval_gaokao_chinese",
        "agieval_gaokao_english",
        "agieval_gaokao_geography",
        "agieval_gaokao_history",
        "agieval_gaokao_mathcloze",
        "agieval_gaokao_mathqa",
        "agieval_gaokao_physics",
    ),
    "coding": ("humaneval", "mbpp"),
}
"""What ``--tasks`` takes beside the names of single tasks. lm-eval has no TheoremQA; of Gaokao it has AGIEval's."""

OWN_TASKS = frozenset({*GROUPS["offline"], *GROUPS["coding"]})
"""Those whose YAML files are in :data:`bridgegarden.evaluation.tasks.FOLDER`."""


RUNS_CODE = frozenset({"bridgegarden_programs", *GROUPS["coding"]})
"""Those that run what the model writes."""


def is_file(name: str) -> bool:
    """Whether a task is a file of rows, whose prompts are asked."""
    return name.endswith(SUFFIXES)


def task_name(name: str) -> str:
    """What to call a task: a file by its own name, without its folder."""
    return Path(name).name if is_file(name) else name


def is_own(name: str) -> bool:
    """Whether a task is ours, and not lm-eval's."""
    return name in OWN_TASKS or is_file(name)


class Chosen(NamedTuple):
    """What is to be run."""

    tasks: tuple[str, ...]
    """Names of tasks or of lm-eval's own groups, or files of rows, each once."""
    left_out: tuple[str, ...]
    """Tasks of a chosen group that run code, which was not allowed."""


def choose(names: Sequence[str], *, allow_code_execution: bool) -> Chosen:
    """The tasks that `names` (of groups or tasks) stand for.

    Raises:
        ConfigError: none is named, two files have one name, or what is left runs code, and that was not allowed.
    """
    asked = dict.fromkeys(part.strip() for name in names for part in name.split(",") if part.strip())
    if not asked:
        raise ConfigError(
            f"--tasks names no task. Groups: {', '.join(GROUPS)}; or any task of lm-eval, or a file of rows."
        )
    tasks = list(dict.fromkeys(task for name in asked for task in GROUPS.get(name, (name,))))
    named = {task_name(task): task for task in tasks}
    for task in tasks:
        if named[task_name(task)] != task:
            raise ConfigError(
                f"--tasks: {task} and {named[task_name(task)]} would both be called {task_name(task)}. Rename one."
            )
    if allow_code_execution:
        return Chosen(tuple(tasks), ())
    run = [task for task in tasks if task not in RUNS_CODE]
    refused = tuple(task for task in tasks if task in RUNS_CODE)
    if not run or any(task in asked for task in refused):
        raise ConfigError(
            f"{', '.join(refused)}: answers are programs, which are run to see whether they are right. Allow it with "
            "--allow-code-execution; each runs in a process that can open no file or socket (see docs/evaluate.md)."
        )
    return Chosen(tuple(run), refused)
