import pytest

from bridgegarden.evaluation.harness import load_tasks
from bridgegarden.evaluation.tasks.arithmetic import PROBLEMS, grade, problem_of, problems
from bridgegarden.exact.tasks.arithmetic import ArithmeticWorld
from bridgegarden.exact.world import split_of


def task(samples=0):
    (loaded,) = load_tasks(["bridgegarden_arithmetic"], samples=samples, temperature=1.0)
    return loaded.tasks[-1]


def test_problems_are_distinct_the_same_each_time_and_none_is_trained_on():
    rows = problems()["test"]
    assert len(rows) == PROBLEMS
    assert rows.to_list() == problems()["test"].to_list()
    asked = [problem_of(row) for row in rows]
    assert len(set(asked)) == PROBLEMS
    assert {split_of(problem) for problem in asked} == {"test"}
    assert rows[0]["question"].startswith("Start with 0 then plus 5 then plus 2 then times 4.")


def test_a_question_holds_only_words_that_the_world_s_tokenizer_knows():
    world = ArithmeticWorld()
    for row in problems()["test"].select(range(50)):
        assert world.decode(world.encode(row["question"])) == row["question"]


def test_a_perfect_model_scores_one_and_a_wrong_one_zero(scores_of):
    right = scores_of(task(), lambda row: f"We begin at 3. The answer is {problem_of(row).result}.")
    assert right == {"acc": 1.0, "acc_stderr": 0.0}
    wrong = scores_of(task(), lambda row: f"The answer is {(problem_of(row).result + 1) % 7}.")
    assert wrong["acc"] == 0.0
    assert scores_of(task(), lambda row: "")["acc"] == 0.0


def test_the_target_itself_is_a_right_answer(scores_of):
    assert scores_of(task(), lambda row: row["answer"])["acc"] == 1.0


def test_drawn_answers_give_accuracy_and_pass_at_k(scores_of):
    turns = iter(range(10**9))
    found = scores_of(task(samples=4), lambda row: row["answer"] if next(turns) % 4 == 0 else "no", limit=20)
    assert found["acc"] == pytest.approx(0.25)
    assert found["pass@4"] == 1.0


def test_the_last_statement_decides():
    row = problems()["test"][0]
    result = problem_of(row).result
    said = [f"The answer is 9. The answer is {result}.", f"The answer is {result}. The answer is 9.", f"{result}"]
    assert grade([said], [row]) == [[True, False, False]]
