import json

import pytest
import torch
from datasets import Dataset

from bridgegarden.data import Columns, RowRules, tokenise
from bridgegarden.errors import ConfigError, DataError
from bridgegarden.evaluation.harness import load_tasks
from bridgegarden.evaluation.lm_eval import EvaluationOptions, evaluate_model
from bridgegarden.evaluation.tasks import choose
from bridgegarden.evaluation.tasks.questions import PROBLEMS, final_answer, grade, problem_of, problems
from bridgegarden.exact.tasks.arithmetic import ArithmeticWorld
from bridgegarden.exact.world import split_of
from tests.tiny import tiny_model, tiny_tokenizer


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


ROWS = [{"prompt": f"{n} + 1?", "completion": f"{n} + 1 = {n + 1}\n#### {n + 1}", "kind": "sum"} for n in range(6)]


def rows_file(folder, rows=ROWS, name="sums.jsonl"):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(folder / name)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("2 + 3 = 5\n#### 5", "5"),
        ("#### 4\nno, wait\n####  5.\nGoodbye", "5"),
        ("I count them.\n\nFive  Letters.\n", "five letters"),
        ("#### 1,234,567", "1234567"),
        ("1,23", "1,23"),
        ("-3", "-3"),
        ("#### 2.5", "2.5"),
        ("work\n####", ""),
        ("", ""),
    ],
)
def test_the_final_answer_is_what_the_last_mark_or_the_last_line_says(text, answer):
    assert final_answer(text) == answer


def test_of_a_file_of_rows_what_ends_as_the_completion_does_is_right(tmp_path, scores_of):
    (loaded,) = load_tasks([rows_file(tmp_path)], samples=4, temperature=1.0)
    assert loaded.names == ["sums.jsonl", "sums.jsonl_sampled"]
    greedy, drawn = loaded.tasks
    assert [row["question"] for row in greedy.eval_docs] == [row["prompt"] for row in ROWS]
    assert scores_of(greedy, lambda row: row["answer"])["acc"] == 1.0
    assert scores_of(greedy, lambda row: f"other words\n#### {row['question'][0]}")["acc"] == 0.0
    turns = iter(range(10**9))
    found = scores_of(drawn, lambda row: row["answer"] if next(turns) % 4 == 0 else "no")
    assert (found["acc"], found["pass@4"]) == (0.25, 1.0)


def test_a_file_s_longest_worked_solution_has_room_and_little_more(tmp_path):
    long = {"prompt": "x", "completion": "é" * 30 + " 7"}
    (loaded,) = load_tasks([rows_file(tmp_path, [*ROWS, long])], samples=0, temperature=1.0)
    assert loaded.tasks[0].config.generation_kwargs["max_gen_toks"] == 63


def turns(row):
    return {
        "messages": [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["completion"]},
        ]
    }


NAMED = Columns(prompt="prompt", completion="completion")
CHATS = [turns(row) for row in ROWS]
PARTED = [{"prompt": row["messages"][:1], "completion": row["messages"][1:]} for row in CHATS]


@pytest.mark.parametrize(
    ("rows", "columns", "chat"),
    [(ROWS, Columns(), False), (ROWS, NAMED, True), (CHATS, Columns(), True), (PARTED, Columns(), True)],
)
@pytest.mark.parametrize("template", [True, False])
def test_a_model_is_asked_the_very_tokens_after_which_training_learns(tmp_path, rows, columns, chat, template):
    model, tokenizer = tiny_model("llama", hidden_size=8, layers=1), tiny_tokenizer()
    if not template:
        tokenizer.chat_template = None
        rows, chat = ROWS, False
    seen: list[list[int]] = []

    def keep(module, arguments, given):
        ids = given["input_ids"]
        if ids.shape[1] > 1:
            masks = given.get("attention_mask", torch.ones_like(ids)).bool()
            seen.extend(row[mask].tolist() for row, mask in zip(ids, masks, strict=True))

    model.register_forward_pre_hook(keep, with_kwargs=True)
    options = EvaluationOptions(tasks=(rows_file(tmp_path, rows),), samples=0, columns=columns)
    found = evaluate_model(model, tokenizer, options, name="tiny")
    assert found.settings["asked_as_chat"] == ([str(tmp_path / "sums.jsonl")] if chat else [])
    taught = tokenise(Dataset.from_list(rows), tokenizer, RowRules(columns=columns)).to_list()
    prompts = [[i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label == -100] for row in taught]
    assert sorted(seen) == sorted(prompts)


def test_a_task_is_named_after_its_file(tmp_path):
    (tmp_path / "more").mkdir()
    tasks = (rows_file(tmp_path, CHATS), rows_file(tmp_path / "more", ROWS[:3], "few.jsonl"))
    model, tokenizer = tiny_model("llama", hidden_size=8, layers=1), tiny_tokenizer()
    found = evaluate_model(model, tokenizer, EvaluationOptions(tasks=tasks, limit=4), name="tiny")
    shown = [(score.task, score.decoding, score.problems, score.part_of) for score in found.scores]
    assert shown == [(f"{name}.jsonl", how, n, None) for name, n in (("sums", 4), ("few", 3)) for how in HOW]
    assert found.settings["asked_as_chat"] == [tasks[0]]
    assert len(found.by_problem("sums.jsonl", "acc", decoding="sampled")) == 4


HOW = ("greedy", "sampled")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "", "completion": "7"},
        {"prompt": "x", "completion": "####"},
        {"prompt": [{"role": "system", "content": "s"}, *PARTED[0]["prompt"]], "completion": PARTED[0]["completion"]},
        {"prompt": CHATS[0]["messages"] + PARTED[1]["prompt"], "completion": PARTED[1]["completion"]},
        {**PARTED[0], "tools": [{"type": "function", "function": {"name": "f"}}]},
    ],
)
def test_a_row_that_is_more_or_less_than_a_question_and_its_answer_is_named(tmp_path, row):
    path = rows_file(tmp_path, [PARTED[0] if isinstance(row["prompt"], list) else ROWS[0], row])
    with pytest.raises(DataError, match=r"sums\.jsonl, row 1: a task needs one question and one answer in words"):
        load_tasks([path], samples=0, temperature=1.0)


def test_a_row_without_an_answer_and_turns_among_texts_are_named(tmp_path):
    for row, message in (
        ({"prompt": "x"}, "row 1: 'completion' is null"),
        ({"text": "x 7"}, "row 1: 'prompt' is null"),
        (CHATS[0], "row 1: is a conversation, and row 0 is not; a task is asked in one way"),
    ):
        with pytest.raises(DataError, match=message):
            load_tasks([rows_file(tmp_path, [ROWS[0], row])], samples=0, temperature=1.0)


def test_a_file_that_is_not_there_and_two_of_one_name_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.jsonl"):
        load_tasks([str(tmp_path / "nothing.jsonl")], samples=0, temperature=1.0)
    with pytest.raises(ConfigError, match=r"a/x\.jsonl and b/x\.jsonl would both be called x\.jsonl"):
        choose(["a/x.jsonl", "b/x.jsonl"], allow_code_execution=False)
