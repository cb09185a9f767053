import codecs
import json
import logging
import re

import pytest
from datasets import Dataset, Json

from bridgegarden.data import Columns, RowsAsWritten, conversation, load_rows
from bridgegarden.data.json_rows import as_written, read_json
from bridgegarden.errors import DataError

GOOD = b'{"prompt": "p", "completion": "c"}\n'


@pytest.fixture
def written(tmp_path):
    def write(content: bytes, name: str = "rows.jsonl"):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


def test_blank_lines_and_a_byte_order_mark_are_skipped(written):
    rows = read_json(written(codecs.BOM_UTF8 + b"\n" + GOOD + b"   \r\n\n" + GOOD))
    assert rows.to_list() == [{"prompt": "p", "completion": "c"}] * 2


def test_the_last_line_needs_no_line_break(written):
    assert len(read_json(written(GOOD + GOOD.rstrip()))) == 2


def test_a_key_that_only_later_rows_have_is_kept(written):
    rows = read_json(written(b'{"a": 1}\n{"a": 2, "b": "x"}\n'))
    assert rows.to_list() == [{"a": 1, "b": None}, {"a": 2, "b": "x"}]


def test_an_array_of_objects_is_read_as_rows(written):
    rows = read_json(written(b' [\n{"a": 1},\n {"a": 2}]', "rows.json"))
    assert rows["a"][:] == [1, 2]


def test_text_beyond_the_basic_plane_and_a_megabyte_on_one_line_survive(written):
    text = "\N{BRIDGE AT NIGHT}é" * 200_000
    rows = read_json(written(json.dumps({"a": text}).encode() + b"\n" + json.dumps({"a": "\U0001f309"}).encode()))
    assert rows["a"][:] == [text, "\U0001f309"]


def test_reading_stops_at_the_limit_before_a_bad_line(written):
    assert len(read_json(written(GOOD * 2 + b"broken"), limit=2)) == 2


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'{"a": \n', "not valid JSON (Expecting value, column 6), got '{\"a\":'; expected one JSON object a line."),
        (b"plain words\n", "not valid JSON (Expecting value, column 1), got 'plain words'; expected one JSON object"),
        (b"{'a': 1}\n", "not valid JSON (Expecting property name enclosed in double quotes, column 2)"),
        (b'{"a": NaN}\n', "NaN is not JSON; expected a number or null."),
        (b'{"a": -Infinity}\n', "-Infinity is not JSON"),
        (b'{"a": 1, "a": 2}\n', "key 'a' is given twice in one object"),
        (b'{"b": {"a": 1, "a": 2}}\n', "key 'a' is given twice in one object"),
        (b"[1, 2]\n", "got list [1, 2]; expected a JSON object"),
        (b'"text"\n', "got str 'text'; expected a JSON object"),
        (b"null\n", "got NoneType None; expected a JSON object"),
        (b"{}\n", "got an empty object; expected the fields of a row."),
        (b'{"a": "caf\xe9"}\n', "not UTF-8 text (byte 0xe9 at column 11); expected JSON in UTF-8."),
        (b"\x89PNG\r\n", "not UTF-8 text (byte 0x89 at column 1)"),
        (b"\x00\x01\x02\n", "not valid JSON"),
        (b'{"a": "\\ud83d"}\n', "holds half of a surrogate pair"),
        (b'{"a": ' + b"[" * 100_000 + b"\n", "nested too deeply to be a row."),
        (b'{"a": ' + b"9" * 5000 + b"}\n", "integer string conversion"),
        (
            b'{"prompt": ["p"], "completion": "c"}\n',
            "'prompt' is list ['p']; expected as in the rows before, such as 'p'",
        ),
        (b'{"prompt": 7, "completion": "c"}\n', "'prompt' is int 7; expected as in the rows before, such as 'p'."),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(written, line, complaint):
    path = written(GOOD * 2 + b"\n" + line + GOOD)
    with pytest.raises(DataError, match=rf"^{re.escape(str(path))}:4: .*{re.escape(complaint)}"):
        read_json(path)


def test_a_long_bad_line_is_quoted_in_part(written):
    with pytest.raises(DataError) as error:
        read_json(written(b"x" * 1_000_000))
    assert len(str(error.value)) < 300


def test_a_bad_array_is_named_by_its_line_or_item(written):
    path = written(b'[{"a": 1},\n{"a": }]', "rows.json")
    with pytest.raises(DataError, match=rf"^{re.escape(str(path))}:2: not valid JSON"):
        read_json(path)
    with pytest.raises(DataError, match=r"rows\.json:3: not UTF-8 text \(byte 0xff at column 8\)"):
        read_json(written(b'[\n{"a": 1},\n{"a": "\xff"}]', "rows.json"))
    with pytest.raises(DataError, match=r"rows\.json, item 2: got int 3; expected a JSON object"):
        read_json(written(b'[{"a": 1}, 3]', "rows.json"))


@pytest.mark.parametrize("content", [b"", b"\n\n  \n", codecs.BOM_UTF8, b"[]"])
def test_a_file_without_rows_is_refused(written, content):
    with pytest.raises(DataError, match=r"rows\.jsonl: holds no rows; expected one JSON object a line\."):
        read_json(written(content))


def test_bad_lines_are_skipped_counted_and_named_where_that_is_asked_for(tmp_path, caplog):
    path = tmp_path / "rows.jsonl"
    lines = [
        '{"a": 1, "b": "x"}',
        "{",
        '{"a": 2, "b": "y"}',
        "[1]",
        '{"a": "three", "b": "z"}',
        '{"a": NaN}',
        '{"a": 4}',
    ]
    path.write_text("\n".join(lines))
    with caplog.at_level(logging.WARNING, "bridgegarden"):
        rows = read_json(path, skip_bad=True)
    assert rows["a"][:] == [1, 2, 4]
    assert rows["b"][:] == ["x", "y", None]
    (message,) = caplog.messages
    assert message.startswith(f"{path}: skipped 4 of 7 rows: {path}:2: not valid JSON")
    assert all(f"{path}:{number}: " in message for number in (2, 4, 5, 6))
    with pytest.raises(DataError, match=":2: not valid JSON"):
        read_json(path)


def test_items_of_an_array_are_skipped_too_and_a_file_of_bad_rows_alone_is_refused(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('[{"a": 1}, 2, {}]')
    assert read_json(path, skip_bad=True)["a"][:] == [1]
    path.write_text("[2, 3]")
    with pytest.raises(DataError, match="item 1: got int 2"):
        read_json(path, skip_bad=True)


@pytest.mark.parametrize("bad", ["{", '{"a": "three"}', '{"a": NaN}', f'{{"a": {"9" * 5000}}}'])
def test_a_bad_line_names_the_setting_that_leaves_it_out_where_there_is_one(tmp_path, bad):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"a": 1}}\n{bad}\n')
    with pytest.raises(DataError, match=r":2: .*[^.]\. Mend it, or set data\.skip_bad_rows: true") as error:
        read_json(path, skip_bad=False)
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match=r":2: ") as error:
        read_json(path)
    assert "skip_bad_rows" not in str(error.value)
    assert len(read_json(path, skip_bad=True)) == 1


def test_damage_to_an_array_names_no_setting_since_it_has_no_rows_to_leave_out(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('[{"a": 1}, {"a": ]')
    with pytest.raises(DataError, match=r"not valid JSON") as error:
        read_json(path, skip_bad=False)
    assert "skip_bad_rows" not in str(error.value)


def test_a_limit_counts_the_rows_that_are_kept(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{\n{"a": 1}\n{\n{"a": 2}\n{"a": 3}\n')
    assert read_json(path, 2, skip_bad=True)["a"][:] == [1, 2]


USER = {"role": "user", "content": "question"}


def row(arguments, **more):
    call = {"type": "function", "function": {"name": "add", "arguments": arguments}}
    return {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [call]}], **more}


@pytest.fixture
def loaded(tmp_path):
    def write(*rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(one) + "\n" for one in rows))
        return load_rows(str(path))

    return write


def test_arguments_of_a_file_of_json_are_read_as_they_were_written(loaded):
    arguments = [
        {"n": 1, "unit": None},
        {"n": 2.5},
        {"m": "1"},
        {"n": 10**30, "f": 0.1234567890123456789, "l": [1, 2.5]},
    ]
    rows = RowsAsWritten(loaded(*map(row, arguments)))
    for number, expected in enumerate(arguments):
        (call,) = conversation(rows[number], Columns(), place="row").messages[1]["tool_calls"]
        assert json.dumps(call["function"]["arguments"]) == json.dumps(expected)
    assert list(rows) == rows[0 : len(rows)]


def test_a_default_of_null_in_a_tool_survives(loaded):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"x": {"default": None}}}}]
    for given in (tools, json.dumps(tools)):
        (read,) = RowsAsWritten(loaded(row({}, tools=given)))
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


def test_selected_and_shuffled_rows_are_the_right_ones(loaded):
    rows = loaded(*(row({"n": number}) for number in range(250))).select(range(240, 100, -1))
    read = RowsAsWritten(rows)
    numbers = [one["messages"][1]["tool_calls"][0]["function"]["arguments"]["n"] for one in read]
    assert numbers == list(range(240, 100, -1))
    assert read[3]["messages"] == list(read)[3]["messages"]
