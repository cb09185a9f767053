import pytest

from bridgegarden.errors import DataError
from bridgegarden.evaluation.judge import Judged, JudgeResult, Pair


def judged(prompt, in_order, swapped, first="aa", second="b"):
    return Judged(Pair(prompt, first, second), in_order, swapped)


def test_several_answers_to_one_prompt_count_as_one_unit():
    found = JudgeResult.of(
        [judged("p", "first", "second"), judged("p", "second", "first"), judged("q", "first", "second")],
        judge={},
        failed=0,
    )
    assert (found.win_rate.mean, found.win_rate.n) == (0.75, 2)
    assert (found.wins, found.losses) == (2, 1)


def test_a_preference_is_called_only_if_the_interval_excludes_a_half():
    some = [judged(f"p{i}", "first", "second" if i % 2 else "first") for i in range(3)]
    assert JudgeResult.of(some, judge={}, failed=0).verdict is None
    many = [judged(f"p{i}", "second", "first" if i % 9 else "tie") for i in range(60)]
    assert JudgeResult.of(many, judge={}, failed=0).verdict == "second"


def test_all_ties_say_nothing_of_place_and_length():
    found = JudgeResult.of([judged("p", "tie", "tie"), judged("q", "tie", "tie")], judge={}, failed=2)
    assert (found.shown_first_wins, found.longer_wins) == (None, None)
    assert "No decided pair differs in length" in str(found)
    assert "2 pairs have no verdict" in str(found)


def test_the_file_holds_the_verdict_and_the_interval():
    tree = JudgeResult.of(
        [judged("p", "first", "second"), judged("q", "first", "tie")], judge={"a": 1}, failed=0
    ).to_dict()
    assert tree["win_rate"]["mean"] == 0.875
    assert tree["verdict"] is None
    assert tree["judge"] == {"a": 1}


def test_nothing_judged_is_an_error():
    with pytest.raises(DataError, match="0 prompts have verdicts"):
        JudgeResult.of([], judge={}, failed=3)
