"""From graded answers to a problem's scores, in the form that lm-eval averages."""

from collections.abc import Mapping, Sequence
from typing import Any

from bridgegarden.evaluation.results import pass_at_k, reported_ks


def passes(row: Mapping[str, Any], results: Sequence[Sequence[bool]]) -> dict[str, float]:
    """``pass@k`` of one problem, whose graded answers are the only entry of `results`."""
    (grades,) = results
    return {f"pass@{k}": pass_at_k(len(grades), sum(grades), k) for k in reported_ks(len(grades))}


def accuracy(row: Mapping[str, Any], results: Sequence[Sequence[bool]]) -> dict[str, float]:
    """As :func:`passes`, with the usual name for a single answer."""
    scores = passes(row, results)
    return {"acc": scores.pop("pass@1"), **scores}
