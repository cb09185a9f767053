import json
import re

import pytest

from bridgegarden.data import Columns, conversation, prompt, with_answer
from bridgegarden.data.chat import Messages, Pair, Text, content_of
from bridgegarden.errors import ConfigError, DataError

USER = {"role": "user", "content": "question"}
ASSISTANT = {"role": "assistant", "content": "answer"}
PLACE = "train rows.jsonl, row 17"


def read(row, **columns):
    return conversation(row, Columns(**columns), place=PLACE)


def test_messages_are_learnt_from_the_first_assistant_turn_on():
    chat = read({"messages": [USER, ASSISTANT, USER, ASSISTANT]})
    assert chat.messages == (USER, ASSISTANT, USER, ASSISTANT)
    assert (chat.form, chat.learn_from) == ("chat", 0)


def test_assistant_turns_of_a_prompt_are_not_learnt():
    chat = read({"prompt": [USER, ASSISTANT, USER], "completion": [ASSISTANT]})
    assert chat.messages == (USER, ASSISTANT, USER, ASSISTANT)
    assert (chat.form, chat.learn_from) == ("chat", 3)


def test_plain_strings_stay_text_and_mapped_strings_become_turns():
    row = {"prompt": "question", "completion": "answer"}
    assert read(row).form == "text"
    assert read(row, prompt="prompt").form == "pair"
    assert read({"q": "question", "a": "answer"}, prompt="q", completion="a").messages == (USER, ASSISTANT)


def test_named_columns_are_read_although_others_have_the_usual_names():
    row = {"messages": [USER, ASSISTANT], "chat": [USER, {"role": "assistant", "content": "other"}], "q": "Q", "a": "A"}
    assert read(row, messages="chat").messages[1]["content"] == "other"
    assert read(row, prompt="q", completion="a").messages[0]["content"] == "Q"
    assert read(row).messages[1]["content"] == "answer"


def test_a_null_in_a_message_is_an_absent_key_but_one_in_a_call_is_an_argument():
    call = {"function": {"name": "add", "arguments": {"x": 1, "y": None}}}
    messages = [{**USER, "tool_calls": None}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    chat = read({"messages": messages})
    assert chat.messages[0] == USER
    assert chat.messages[1] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "add", "arguments": {"x": 1, "y": None}}}],
    }


@pytest.mark.parametrize("encode", [lambda tools: tools, json.dumps])
def test_tools_are_read_as_objects_or_as_json(encode):
    tools = [{"type": "function", "function": {"name": "add"}}]
    assert read({"messages": [USER, ASSISTANT], "tools": encode(tools)}).tools == tuple(tools)
    assert read({"messages": [USER, ASSISTANT], "tools": None}).tools is None
    assert read({"messages": [USER, ASSISTANT], "tools": []}).tools is None


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (
            {"body": "t"},
            ": has columns 'body'; expected 'messages', 'conversations', 'prompt' and 'completion', 'ins",
        ),
        ({"text": "  "}, ": 'text' is empty; expected the text to learn."),
        ({"text": 4}, ": 'text' is int 4; expected a string."),
        ({"messages": [USER]}, ": 'messages' has no assistant message to learn from (roles: user)."),
        ({"messages": []}, ": 'messages' has no assistant message to learn from (roles: none)."),
        ({"messages": "hello"}, ": 'messages' is str 'hello'; expected a list of messages."),
        ({"messages": [USER, "hi"]}, ": messages[1] is str 'hi'; expected an object with 'role' and 'content'."),
        ({"messages": [ASSISTANT]}, ": the conversation begins with the assistant; expected a user or system message"),
        (
            {"messages": [{"from": "human", "value": "hi"}]},
            ": 'messages' has no assistant message to learn from (roles: user).",
        ),
        (
            {"conversations": [{"from": "function_call", "value": "{}"}]},
            ": conversations[0].role: unknown role 'function_call'.",
        ),
        (
            {"messages": [{"speaker": "human", "value": "hi"}]},
            ": messages[0] has keys 'speaker', 'value'; expected 'role' and 'content', or 'from' and 'value'.",
        ),
        (
            {"messages": [{"role": "human", "content": "hi"}]},
            ": messages[0].role: unknown role 'human'. Did you mean 'user'? Known: system, developer, user, assistant",
        ),
        (
            {"messages": [{"role": "assitant", "content": "hi"}]},
            ": messages[0].role: unknown role 'assitant'. Did you mean 'assistant'?",
        ),
        ({"messages": [USER, {"role": "assistant"}]}, ": messages[1].content is null; expected a string."),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]},
            ": messages[0].content is a list; expected a string.",
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": " \n"}]},
            ": messages[1].content is empty; expected the assistant's text.",
        ),
        ({"prompt": [USER, ASSISTANT], "completion": [USER]}, ": 'completion' has no assistant message to learn from"),
        ({"prompt": [], "completion": [ASSISTANT]}, ": the conversation begins with the assistant"),
        ({"prompt": "p", "completion": "  "}, ": 'completion' is empty; expected the text to learn."),
        ({"prompt": "p", "completion": None}, ": 'completion' is null; expected text or messages."),
        ({"prompt": "p", "completion": 4}, ": 'prompt' is str 'p' and 'completion' is int 4; expected two strings, or"),
        ({"prompt": "p", "completion": [ASSISTANT]}, ": 'prompt' is str 'p' and 'completion' is a list; expected two"),
        ({"messages": [USER, ASSISTANT], "tools": "[{"}, ": 'tools' is a string but not valid JSON"),
        ({"messages": [USER, ASSISTANT], "tools": [3]}, ": 'tools' is a list; expected a list of JSON schemas."),
    ],
)
def test_a_bad_row_is_refused_with_its_place(row, complaint):
    with pytest.raises(DataError, match="^" + re.escape(PLACE + complaint)):
        read(row)


def test_a_named_column_that_is_not_there_is_refused_with_the_closest():
    with pytest.raises(DataError, match=r"columns: unknown column 'qestion'\. Did you mean 'question'\?"):
        read({"question": "q", "answer": "a"}, prompt="qestion", completion="answer")


def test_columns_name_messages_or_a_pair_but_not_both():
    with pytest.raises(ConfigError, match=r"data\.messages excludes data\.prompt"):
        Columns(messages="m", prompt="p")
    with pytest.raises(ConfigError, match=r"data\.prompt: must name a column, got an empty string"):
        Columns(prompt="")


# Prompts: rows whose answer is still to be given


def ask(row, **columns):
    return prompt(row, Columns(**columns), place=PLACE)


@pytest.mark.parametrize(
    ("row", "columns", "messages", "form"),
    [
        ({"prompt": "say "}, {}, ({"role": "user", "content": "say "},), "text"),
        ({"q": "question"}, {"prompt": "q", "completion": "a"}, (USER,), "pair"),
        ({"prompt": [USER]}, {}, (USER,), "chat"),
        ({"messages": [USER]}, {}, (USER,), "chat"),
        ({"messages": [USER, ASSISTANT]}, {}, (USER,), "chat"),
        ({"messages": [USER, ASSISTANT, USER, ASSISTANT]}, {}, (USER, ASSISTANT, USER), "chat"),
        ({"messages": None, "prompt": [USER]}, {}, (USER,), "chat"),
    ],
)
def test_a_prompt_ends_where_the_assistant_is_to_speak(row, columns, messages, form):
    chat = ask(row, **columns)
    assert (chat.messages, chat.form, chat.learn_from) == (messages, form, len(messages))


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        (
            {"text": "x"},
            {},
            r"has columns 'text'; expected 'messages', 'conversations', 'prompt', 'instruction', ",
        ),
        ({"x": "x"}, {"prompt": "q"}, "unknown column 'q'"),
        ({"prompt": "  "}, {}, "'prompt' is empty"),
        ({"prompt": 4}, {}, "'prompt' is int 4; expected a string, or a list of messages"),
        ({"messages": [ASSISTANT]}, {}, "'messages' has nothing before the assistant speaks"),
        ({"messages": [ASSISTANT, USER]}, {}, "'messages' begins with the assistant"),
    ],
)
def test_a_row_without_a_prompt_is_refused(row, columns, message):
    with pytest.raises(DataError, match=f"^{PLACE}: .*{message}"):
        ask(row, **columns)


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"prompt": "say "}, {}),
        ({"prompt": "say ", "completion": "old"}, {}),
        ({"q": "question"}, {"prompt": "q", "completion": "a"}),
        ({"prompt": [USER], "completion": [ASSISTANT]}, {}),
        ({"messages": [USER, ASSISTANT, USER]}, {}),
        ({"chat": [USER, ASSISTANT]}, {"messages": "chat"}),
    ],
)
def test_a_row_with_an_answer_is_read_as_its_prompt_and_the_answer(row, columns):
    row = row | {"id": 7}
    answered = with_answer(row, Columns(**columns), "new", place=PLACE)
    assert answered["id"] == 7
    chat, asked = read(answered, **columns), ask(row, **columns)
    assert chat.messages == (*asked.messages, {"role": "assistant", "content": "new"})
    assert chat.form == asked.form


SYSTEM = {"role": "system", "content": "be brief"}
CHAT = [USER, ASSISTANT]


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
