from itertools import combinations

import pytest

from bridgegarden.errors import ConfigError
from bridgegarden.evaluation.results import pass_at_k, reported_ks


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
