"""Which of several teachers reads a row: said by a column, carried with its tokens, refused where it names nobody."""

import logging

import pytest
from datasets import Dataset

from bridgegarden.data import RowRules, TeacherByRow, tokenise, tokenise_stream
from bridgegarden.errors import DataError
from tests.tiny import tiny_tokenizer

BY = TeacherByRow(column="subject", names=("math", "code"))
ROWS = [
    {"prompt": "1 + 1 =", "completion": " two", "subject": "math"},
    {"prompt": "print(", "completion": "1)", "subject": "code"},
    {"prompt": "2 + 2 =", "completion": " four", "subject": "math"},
]


def made(rows, **rules):
    return tokenise(Dataset.from_list(rows), tiny_tokenizer(), RowRules(teacher_by=BY, **rules))


def test_every_row_carries_the_number_of_its_teacher_cut_streamed_or_tokenised_again():
    whole = made(ROWS)
    assert whole["teacher_number"] == [0, 1, 0]
    assert made(ROWS, max_length=12)["teacher_number"] == [0, 1, 0]
    assert tokenise(whole, tiny_tokenizer()).to_list() == whole.to_list()
    stream = tokenise_stream(Dataset.from_list(ROWS).to_iterable_dataset(), tiny_tokenizer(), RowRules(teacher_by=BY))
    assert list(stream) == whole.to_list()
    assert "teacher_number" not in tokenise(Dataset.from_list(ROWS), tiny_tokenizer()).column_names


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "maths",
            r"^train, row 1: the column 'subject' \(teacher.by\): unknown teacher 'maths'. Did you mean 'math'\?",
        ),
        ("", r"^train, row 1: the column 'subject' \(teacher.by\): unknown teacher ''. Known: code, math"),
        (None, r"^train, row 1: the column 'subject' \(teacher.by\) is null; .* name of a teacher \(code, math\)"),
    ],
)
def test_a_row_that_names_no_teacher_is_refused_with_its_place_and_the_names_there_are(value, message, caplog):
    rows = [ROWS[0], {**ROWS[1], "subject": value}, ROWS[2]]
    with pytest.raises(DataError, match=message):
        made(rows)
    with caplog.at_level(logging.WARNING):
        assert made(rows, skip_bad=True)["row"] == [0, 2]
    assert "skipped 1 of 3 rows" in caplog.text


def test_a_column_that_is_not_there_is_named_with_those_that_are():
    rows = [{"prompt": "a", "completion": "b", "subjects": "math"}]
    with pytest.raises(
        DataError, match=r"^train, row 0: teacher.by: unknown column 'subject'. Did you mean 'subjects'"
    ):
        made(rows)
    numbers = [{**row, "subject": 3} for row in ROWS]
    with pytest.raises(DataError, match=r"unknown teacher 3. Known: code, math"):
        made(numbers)
