import json

import pytest

from bridgegarden.errors import DataError
from bridgegarden.evaluation.results import Evaluation, Score, shown_mean


def score(**changes):
    usual = {"task": "t", "metric": "acc", "filter": "none", "decoding": "greedy", "mean": 0.5, "stderr": 0.1}
    return Score(**{**usual, "problems": 4, **changes})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "50.00 ± 10.00"),
        ({"stderr": None}, "50.00"),
        ({"metric": "bits_per_byte", "mean": 0.8}, "0.80 ± 0.10"),
        ({"metric": "pass@10", "mean": 1.0, "stderr": 0.0}, "100.00 (≥ 39.8)"),
        ({"mean": 0.0, "stderr": 0.0}, "0.00 (≤ 60.2)"),
        ({"metric": "word_perplexity", "mean": 31.25, "stderr": None}, "31.25"),
    ],
)
def test_shares_are_shown_in_per_cent_and_other_numbers_as_they_are(changes, text):
    assert shown_mean(score(**changes)) == text


def test_a_number_that_json_cannot_write_does_not_lose_the_rest():
    line = {"task": "t", "problem": "p", "scores": {"perplexity": float("inf"), "acc": 1.0}}
    found = Evaluation(model="m", scores=(score(mean=float("nan")),), problems=(line,), settings={})
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["scores"][0]["mean"] is None
    assert json.loads(found.problem_lines())["scores"] == {"perplexity": None, "acc": 1.0}


def test_scores_that_are_not_there_are_named():
    found = Evaluation(model="m", scores=(score(),), problems=(), settings={})
    with pytest.raises(DataError, match=r"m: no scores of acc for .* There are: .*'t', 'greedy', 'acc', 'none'"):
        found.by_problem("t", "acc")
