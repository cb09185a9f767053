import pytest

from bridgegarden.compare.student import scores_of
from bridgegarden.evaluation.results import Evaluation, Score


def score(task, metric, decoding="greedy", filter_name="none", part_of=None):
    return Score(
        task=task,
        metric=metric,
        filter=filter_name,
        decoding=decoding,
        mean=0.5,
        stderr=0.1,
        problems=2,
        part_of=part_of,
    )


def line(task, problem, decoding="greedy", filter_name="none", **scores):
    return {"task": task, "decoding": decoding, "filter": filter_name, "problem": problem, "scores": scores}


def evaluation(scores, problems):
    return Evaluation(model="m", scores=tuple(scores), problems=tuple(problems), settings={})


def test_greedy_and_drawn_answers_are_two_qualities():
    found = evaluation(
        [score("sums", "acc"), score("sums", "acc", "sampled")],
        [line("sums", "a", acc=1), line("sums", "b", acc=0), line("sums", "a", "sampled", acc=0.25)],
    )
    by_unit, by_task = scores_of(found)
    assert by_unit == {"greedy": {"sums/sums/a": 1.0, "sums/sums/b": 0.0}, "sampled": {"sums/sums/a": 0.25}}
    assert by_task == {"sums": {"greedy": 0.5, "sampled": 0.25}}


def test_of_several_metrics_and_filters_the_first_that_is_a_share_counts():
    found = evaluation(
        [
            score("q", "perplexity", "likelihood"),
            score("q", "acc", "likelihood"),
            score("q", "acc_norm", "likelihood"),
            score("gsm", "exact_match", filter_name="strict-match"),
            score("gsm", "exact_match", filter_name="flexible-extract"),
        ],
        [
            line("q", "a", "likelihood", perplexity=9.0, acc=1, acc_norm=0),
            line("gsm", "a", filter_name="strict-match", exact_match=0),
            line("gsm", "a", filter_name="flexible-extract", exact_match=1),
        ],
    )
    by_unit, _ = scores_of(found)
    assert by_unit == {"greedy": {"q/q/a": 1.0, "gsm/gsm/a": 0.0}}


def test_tasks_of_a_group_count_as_one_by_their_problems():
    found = evaluation(
        [
            score("bbh", "exact_match"),
            score("bbh_1", "exact_match", part_of="bbh"),
            score("bbh_2", "exact_match", part_of="bbh"),
        ],
        [line("bbh_1", "a", exact_match=1), line("bbh_1", "b", exact_match=1), line("bbh_2", "a", exact_match=0)],
    )
    by_unit, by_task = scores_of(found)
    assert set(by_unit["greedy"]) == {"bbh/bbh_1/a", "bbh/bbh_1/b", "bbh/bbh_2/a"}
    assert by_task["bbh"]["greedy"] == pytest.approx(2 / 3)
