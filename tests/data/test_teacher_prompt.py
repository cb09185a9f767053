"""The teacher's own prompt: what is put where, and that both sequences hold the same tokens to learn."""

import logging

import pytest
from datasets import Dataset

from bridgegarden.data import Columns, RowRules, TeacherPrompt, tokenise, tokenise_stream
from bridgegarden.errors import ConfigError, DataError
from tests.tiny import tiny_tokenizer

HINT = TeacherPrompt(suffix="\n(Hint: {solution}, {{sic}}; {n})")
ROWS = [
    {"prompt": "1 + 1 =", "completion": " two", "solution": "2", "n": 1},
    {"prompt": "What is six times seven?", "completion": " It is forty-two.", "solution": "{42}", "n": 2},
]
TALK = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "2 + 2"},
        {"role": "assistant", "content": "4"},
    ],
    "solution": "four",
    "n": 0,
}


def made(rows, prompt=HINT, tokenizer=None, **rules):
    return tokenise(Dataset.from_list(rows), tokenizer or tiny_tokenizer(), RowRules(teacher_prompt=prompt, **rules))


def learnt(labels):
    return [label for label in labels[1:] if label != -100]


def text(ids):
    return tiny_tokenizer().decode(ids)


def test_the_student_reads_the_row_as_ever_and_the_teacher_its_prompt_with_the_same_answer():
    rows = made(ROWS)
    assert rows.remove_columns(["teacher_ids", "teacher_labels"])[:] == made(ROWS, None)[:]
    for row, hint in zip(rows, ("(Hint: 2, {sic}; 1)", "(Hint: {42}, {sic}; 2)"), strict=True):
        source = ROWS[row["row"]]
        assert text(row["teacher_ids"]) == f"{source['prompt']}\n{hint}{source['completion']}<|im_end|>"
        assert learnt(row["teacher_labels"]) == learnt(row["labels"])


def test_a_system_message_takes_the_place_of_the_rows_own_and_the_last_user_turn_is_framed():
    row = made([TALK], TeacherPrompt(system="Know it all.", prefix="[{solution}] ", suffix=" ?"))[0]
    assert text(row["teacher_ids"]) == (
        "<|im_start|>system\nKnow it all.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello"
        "<|im_end|>\n<|im_start|>user\n[four] 2 + 2 ?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>"
    )
    assert text(learnt(row["teacher_labels"])) == "Hello<|im_end|>4<|im_end|>"
    assert learnt(row["teacher_labels"]) == learnt(row["labels"])
    pairs = zip(row["teacher_ids"], row["teacher_labels"], strict=True)
    assert all(label in (-100, index) for index, label in pairs)
    pair = made(ROWS, TeacherPrompt(system="S"), columns=Columns(prompt="prompt", completion="completion"))[0]
    assert text(pair["teacher_ids"]).startswith("<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n1 + 1 =")


def test_what_is_learnt_of_a_conversation_is_the_same_behind_another_system_message_and_behind_a_new_one():
    for asked in (TALK["messages"][:2], TALK["messages"][1:2]):
        talk = {"prompt": asked, "completion": TALK["messages"][2:3]}
        row = made([talk], TeacherPrompt(system="S"))[0]
        assert text(row["teacher_ids"]).startswith("<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi")
        assert text(learnt(row["teacher_labels"])) == text(learnt(row["labels"])) == "Hello<|im_end|>"


def test_ids_of_the_answer_are_copied_where_the_tokenizer_would_write_them_otherwise():
    """In a row whose answer was tokenised elsewhere the ids are kept; so they are behind the teacher's prompt."""
    ids = [65, 66, 67, 68]
    given = {"input_ids": ids, "labels": [-100, -100, 67, 68], "teacher_ids": [1, 2, 3, 67, 68]}
    row = tokenise(Dataset.from_list([{**given, "teacher_labels": [-100, -100, -100, 67, 68]}]), tiny_tokenizer())[0]
    assert (row["teacher_ids"], row["teacher_labels"]) == ([1, 2, 3, 67, 68], [-100, -100, -100, 67, 68])
    with pytest.raises(DataError, match=r"row 0: 'teacher_labels' has 1 tokens to learn and 'labels' 2, or other ones"):
        tokenise(Dataset.from_list([{**given, "teacher_labels": [-100] * 4 + [68]}]), tiny_tokenizer())
    with pytest.raises(DataError, match=r"row 0: has 'teacher_ids' but no 'teacher_labels'; give both"):
        tokenise(Dataset.from_list([given]), tiny_tokenizer())
    with pytest.raises(DataError, match=r"row 0: has 'input_ids', so there is no prompt for teacher.prompt to change"):
        made([{"input_ids": ids, "labels": ids}])
    bare = {"input_ids": ids, "labels": ids, "teacher_ids": None, "teacher_labels": None}
    mixed = Dataset.from_list([{**given, "teacher_labels": [-100] * 3 + [67, 68]}, bare])
    with pytest.raises(DataError, match=r"some rows have 'teacher_ids' and others do not"):
        tokenise(mixed, tiny_tokenizer())


@pytest.mark.parametrize("keep", ["start", "end"])
def test_the_students_cut_decides_what_is_learnt_and_the_teachers_prompt_is_never_cut(keep, caplog):
    whole = made(ROWS)
    with caplog.at_level(logging.WARNING, "bridgegarden"):
        cut = made(ROWS, max_length=29, keep=keep)
    short, long = (next(row for row in rows if row["row"] == 1) for rows in (cut, whole))
    assert len(short["input_ids"]) == 29 < len(long["input_ids"])
    assert learnt(short["teacher_labels"]) == learnt(short["labels"])
    prompt = long["teacher_labels"].count(-100)
    assert short["teacher_ids"][:prompt] == long["teacher_ids"][:prompt]
    if keep == "start":
        assert short["teacher_ids"] == long["teacher_ids"][: len(short["teacher_ids"])]
    else:
        assert short["teacher_ids"] == long["teacher_ids"]
    longest = max(len(row["teacher_ids"]) for row in cut)
    assert (
        f"train: with the teacher's prompt 2 of 2 rows are longer than max_length=29, the longest {longest} tokens; "
        "the teacher reads them whole."
    ) in caplog.messages


def test_of_a_row_of_which_only_the_beginning_is_made_the_teacher_reads_as_much():
    rows = [{**ROWS[0], "completion": " word" * 20_000}]
    row = made(rows, max_length=64)[0]
    assert learnt(row["teacher_labels"]) == learnt(row["labels"])
    assert len(row["labels"]) == 64
    unended = made([{**TALK, "finish_reason": "length"}], TeacherPrompt(system="S"))[0]
    assert text(learnt(unended["teacher_labels"])) == "Hello<|im_end|>4"
    assert learnt(unended["teacher_labels"]) == learnt(unended["labels"])


def test_a_row_whose_own_prompt_fills_it_is_left_out_as_without_a_teacher_prompt():
    long = {**TALK, "messages": [{"role": "user", "content": "long " * 2_000}, *TALK["messages"][2:]]}
    rows, rules = [TALK, long], RowRules(teacher_prompt=HINT, max_length=64)
    assert made(rows, None, max_length=64)["row"] == [0]
    assert made(rows, max_length=64)["row"] == [0]
    stream = tokenise_stream(Dataset.from_list(rows).to_iterable_dataset(), tiny_tokenizer(), rules)
    assert [row["row"] for row in stream] == [0]


def test_a_stream_has_the_same_columns():
    whole = made(ROWS)
    rules = RowRules(teacher_prompt=HINT)
    assert list(tokenise_stream(Dataset.from_list(ROWS).to_iterable_dataset(), tiny_tokenizer(), rules)) == list(whole)
    assert list(tokenise_stream(whole.to_iterable_dataset(), tiny_tokenizer())) == list(whole)


@pytest.mark.parametrize(
    ("row", "prompt", "message"),
    [
        ({"prompt": "a", "completion": "b"}, HINT, r"row 0: teacher.prompt.suffix: unknown column 'solution'"),
        ({**ROWS[0], "solution": None}, HINT, r"row 0: teacher.prompt.suffix takes .* 'solution', which is null"),
        ({**ROWS[0], "solution": ["x"]}, HINT, r"'solution', which is list; expected text or a number"),
        ({"text": "abc"}, HINT, r"row 0: is text with no prompt, and teacher.prompt changes the prompt"),
        ({"prompt": "", "completion": "b"}, TeacherPrompt(prefix="x"), r"row 0: has an empty prompt"),
        (ROWS[0], TeacherPrompt(system="S"), r"row 0: is a prompt that is read as it stands, .* teacher.prompt.system"),
        (
            {"messages": [{"role": "system", "content": "s"}, {"role": "assistant", "content": "a"}]},
            TeacherPrompt(prefix="x"),
            r"row 0: has no user turn before the assistant's last one",
        ),
    ],
)
def test_a_row_for_which_there_is_no_such_prompt_is_refused_by_name(row, prompt, message):
    with pytest.raises(DataError, match=message):
        made([row], prompt)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, r"^teacher.prompt: changes nothing"),
        ({"system": " "}, r"^teacher.prompt.system is empty"),
        ({"prefix": "{solution"}, r"^teacher.prompt.prefix: .* Write a column in braces"),
        ({"suffix": "{}"}, r"^teacher.prompt.suffix: braces hold ''"),
        ({"suffix": "{x!r}"}, r"^teacher.prompt.suffix: braces hold 'x' and a format"),
    ],
)
def test_a_template_that_cannot_be_filled_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        TeacherPrompt(**fields)


def test_it_goes_with_answers_alone():
    with pytest.raises(ConfigError, match=r"^teacher.prompt: .* answers alone can be learnt"):
        RowRules(teacher_prompt=HINT, completion_only=False)
