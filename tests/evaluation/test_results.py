import json
from itertools import combinations

import pytest

from bridgegarden.errors import ConfigError, DataError
from bridgegarden.evaluation.results import Evaluation, Score, pass_at_k, reported_ks, shown_mean


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


@pytest.mark.parametrize("answers", range(1, 7))
def test_it_is_the_share_of_all_choices_of_k_answers_that_hold_a_right_one(answers):
    for right in range(answers + 1):
        grades = [True] * right + [False] * (answers - right)
        for k in range(1, answers + 1):
            chosen = list(combinations(grades, k))
            assert pass_at_k(answers, right, k) == pytest.approx(sum(map(any, chosen)) / len(chosen), abs=1e-12)


def test_it_is_unbiased_where_the_plug_in_estimate_is_not():
    rate, answers, k = 0.3, 5, 3
    mean = plug_in = 0.0
    for code in range(2**answers):
        right = code.bit_count()
        probability = rate**right * (1 - rate) ** (answers - right)
        mean += probability * pass_at_k(answers, right, k)
        plug_in += probability * (1 - (1 - right / answers) ** k)
    assert mean == pytest.approx(1 - (1 - rate) ** k, abs=1e-12)
    assert plug_in < mean - 0.01


@pytest.mark.parametrize(("answers", "k"), [(4, 5), (4, 0), (0, 1)])
def test_more_answers_than_there_are_cannot_be_chosen(answers, k):
    with pytest.raises(ConfigError, match=f"pass@{k} needs at least"):
        pass_at_k(answers, 0, k)


@pytest.mark.parametrize(("answers", "ks"), [(1, [1]), (4, [1, 4]), (10, [1, 5, 10]), (12, [1, 5, 10, 12])])
def test_the_usual_ks_and_all_answers_are_reported(answers, ks):
    assert reported_ks(answers) == ks
