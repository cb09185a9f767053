import json

import pytest
from datasets import Dataset, Json

from bridgegarden.data import Columns, RowsAsWritten, conversation, load_rows
from bridgegarden.data.nested import as_written

USER = {"role": "user", "content": "question"}


def row(arguments, **more):
    call = {"type": "function", "function": {"name": "add", "arguments": arguments}}
    return {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [call]}], **more}


@pytest.fixture
def written(tmp_path):
    def write(*rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(one) + "\n" for one in rows))
        return load_rows(str(path))

    return write


def test_arguments_of_a_file_of_json_are_read_as_they_were_written(written):
    arguments = [
        {"n": 1, "unit": None},
        {"n": 2.5},
        {"m": "1"},
        {"n": 10**30, "f": 0.1234567890123456789, "l": [1, 2.5]},
    ]
    rows = RowsAsWritten(written(*map(row, arguments)))
    for number, expected in enumerate(arguments):
        (call,) = conversation(rows[number], Columns(), place="row").messages[1]["tool_calls"]
        assert json.dumps(call["function"]["arguments"]) == json.dumps(expected)
    assert list(rows) == rows[0 : len(rows)]


def test_a_default_of_null_in_a_tool_survives(written):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"x": {"default": None}}}}]
    for given in (tools, json.dumps(tools)):
        (read,) = RowsAsWritten(written(row({}, tools=given)))
        assert conversation(read, Columns(), place="row").tools == tuple(tools)


def test_nulls_that_a_column_of_objects_adds_are_removed():
    rows = RowsAsWritten(Dataset.from_list([row({"x": 1}), row({"y": "two"})]))
    calls = [conversation(one, Columns(), place="row").messages[1]["tool_calls"][0]["function"] for one in rows]
    assert [call["arguments"] for call in calls] == [{"x": 1}, {"y": "two"}]
    assert conversation(rows[0], Columns(), place="row").messages[0] == USER


def test_nulls_in_datasets_own_type_for_json_are_explicit():
    given = [row({"n": 1, "unit": None}), row({"n": 2.5})]
    rows = RowsAsWritten(Dataset.from_list(given, on_mixed_types="use_json"))
    assert json.dumps([conversation(one, Columns(), place="row").messages[1]["tool_calls"] for one in rows]) == (
        json.dumps([one["messages"][1]["tool_calls"] for one in given])
    )


def test_a_column_without_a_known_type_is_left_as_it_is():
    given = {"a": {"x": None}, "b": '{"x": null}'}
    assert as_written(given, {"b": Json()}) == {"a": {"x": None}, "b": {"x": None}}


def test_selected_and_shuffled_rows_are_the_right_ones(written):
    rows = written(*(row({"n": number}) for number in range(250))).select(range(240, 100, -1))
    read = RowsAsWritten(rows)
    numbers = [one["messages"][1]["tool_calls"][0]["function"]["arguments"]["n"] for one in read]
    assert numbers == list(range(240, 100, -1))
    assert read[3]["messages"] == list(read)[3]["messages"]
