import re

import pytest

from bridgegarden.data import Columns, conversation, prompt, with_answer
from bridgegarden.data.columns import Messages, Pair, Text, content_of
from bridgegarden.errors import ConfigError, DataError

USER = {"role": "user", "content": "question"}
ASSISTANT = {"role": "assistant", "content": "answer"}
SYSTEM = {"role": "system", "content": "be brief"}
CHAT = [USER, ASSISTANT]
PLACE = "train rows.jsonl, row 17"


def found(row, **columns):
    return content_of(row, Columns(**columns), place=PLACE)


def test_the_first_shape_that_a_row_has_is_read_and_text_is_the_last():
    row = {"text": "whole text", "output": "o", "instruction": "i"}
    assert found({"text": "whole text"}) == Text("text", "whole text")
    assert found(row) == Pair("instruction", "i", "output", "o", True)
    row |= {"prompt": "p", "completion": "c"}
    assert found(row) == Pair("prompt", "p", "completion", "c", False)
    row |= {"conversations": CHAT}
    assert found(row) == Messages("conversations", CHAT)
    row |= {"messages": CHAT[:1]}
    assert found(row) == Messages("messages", CHAT[:1])
    row |= {"question": "q", "answer": "a"}
    assert found(row, prompt="question", completion="answer") == Pair("question", "q", "answer", "a", True)
    assert found(row, messages="conversations") == Messages("conversations", CHAT)
    assert found(row, text="text") == Text("text", "whole text")


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"prompt": "p", "text": "t"}, "has columns 'prompt', 'text'; expected"),
        ({"completion": "c", "text": "t"}, "has columns 'completion', 'text'; expected"),
        ({"messages": None, "text": "t"}, "'messages' is null"),
        ({"prompt": "p", "completion": None, "text": "t"}, "'completion' is null"),
        ({"instruction": "i", "output": None}, "'output' is null"),
        ({"text": None}, "'text' is null"),
        ({"instruction": ["i"], "output": "o"}, "'instruction' is list; expected a string."),
        ({"instruction": "i", "output": "o", "history": [["a", "b"]]}, "has earlier turns in 'history'"),
        ({"instruction": "i", "output": "o", "system": 3}, "'system' is int; expected a string."),
    ],
)
def test_half_of_a_shape_is_refused_rather_than_read_as_something_else(row, complaint):
    with pytest.raises(DataError, match="^" + re.escape(f"{PLACE}: {complaint}")):
        found(row)


def test_columns_are_named_in_one_way():
    with pytest.raises(ConfigError, match=r"data\.text excludes data\.messages"):
        Columns(text="body", prompt="question")


def test_sharegpt_and_alpaca_say_what_messages_say():
    want = conversation({"messages": [SYSTEM, USER, ASSISTANT]}, Columns(), place=PLACE)
    sharegpt = [{"from": "human", "value": "question"}, {"from": "gpt", "value": "answer"}]
    first = {"from": "system", "value": "be brief"}
    for row in (
        {"conversations": [first, *sharegpt]},
        {"conversations": sharegpt, "system": "be brief"},
        {"conversations": [first, *sharegpt], "system": "be brief"},
        {"messages": [first, *sharegpt]},
    ):
        assert conversation(row, Columns(), place=PLACE) == want
    alpaca = conversation(
        {"instruction": "Add.", "input": "2 and 2", "output": "4", "system": "be brief"}, Columns(), place=PLACE
    )
    assert [message["content"] for message in alpaca.messages] == ["be brief", "Add.\n\n2 and 2", "4"]
    assert alpaca.form == "chat"
    bare = conversation({"instruction": "Add.", "input": "", "output": "4"}, Columns(), place=PLACE)
    assert ([message["content"] for message in bare.messages], bare.form) == (["Add.", "4"], "pair")


def test_two_system_messages_that_differ_are_refused():
    with pytest.raises(DataError, match=r"'system' says one thing and conversations\[0\] another"):
        conversation({"conversations": [SYSTEM, USER, ASSISTANT], "system": "be long"}, Columns(), place=PLACE)


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [{"from": "human", "value": "question"}]},
        {"instruction": "question", "output": None},
        {"instruction": "question", "system": "be brief"},
    ],
)
def test_an_answer_is_put_where_it_is_read_again(row):
    asked = prompt(row, Columns(), place=PLACE)
    again = conversation(with_answer(row, Columns(), "answer", place=PLACE), Columns(), place=PLACE)
    assert again.messages == (*asked.messages, ASSISTANT)
    assert asked.learn_from == len(asked.messages)


def test_text_has_no_prompt():
    for row, columns in (({"text": "t"}, Columns()), ({"body": "t", "prompt": "p"}, Columns(text="body"))):
        with pytest.raises(DataError, match="expected 'messages', 'conversations', 'prompt'"):
            prompt(row, columns, place=PLACE)


def test_what_a_row_gives_its_chat_template_is_an_object_of_the_templates_own_variables():
    for given in ({"enable_thinking": False}, '{"enable_thinking": false}'):
        row = {"messages": CHAT, "chat_template_kwargs": given}
        assert conversation(row, Columns(), place=PLACE).variables == {"enable_thinking": False}
    for given, complaint in (
        ("{", "is a string but not valid JSON"),
        ([1], "is a list; expected an object."),
        ({"tokenize": True}, "sets 'tokenize', which is not the template's own variable."),
        ({"messages": []}, "sets 'messages', which is not the template's own variable."),
        ({"documents": "d"}, "has 'documents', which must be a list of objects."),
    ):
        with pytest.raises(DataError, match=f"'chat_template_kwargs' {complaint}"):
            conversation({"messages": CHAT, "chat_template_kwargs": given}, Columns(), place=PLACE)
