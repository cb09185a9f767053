"""What the tests of tasks share: lm-eval, and models that know the answers."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from lm_eval.api.model import LM

from bridgegarden.evaluation.harness import quiet_lm_eval


class Answering(LM):
    """A model that is asked by lm-eval and answers as `reply` says, given the problem's row."""

    def __init__(self, reply: Callable[[dict[str, Any]], str]) -> None:
        super().__init__()
        self.reply = reply

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        return [self.reply(request.doc) for request in requests]

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
        raise AssertionError("no task here asks for likelihoods")

    loglikelihood_rolling = loglikelihood


@pytest.fixture(autouse=True)
def _without_expected_warnings() -> Iterator[None]:
    with quiet_lm_eval():
        yield


@pytest.fixture
def scores_of() -> Callable[..., dict[str, float]]:
    """Metrics of a task, as lm-eval averages them, of a model that answers as a function says."""

    def run(task: Any, reply: Callable[[dict[str, Any]], str], limit: int | None = None) -> dict[str, float]:
        from lm_eval.evaluator import evaluate

        task.set_config("num_fewshot", 0)
        results = evaluate(
            lm=Answering(reply), task_dict={"tasks": {task.task_name: task}}, limit=limit, confirm_run_unsafe_code=True
        )
        metrics = results["results"][task.task_name]
        return {key.removesuffix(",none"): value for key, value in metrics.items() if key.endswith(",none")}

    return run
