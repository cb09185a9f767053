"""What a row of data says: which messages, which of them are to be learnt, in whatever shape it was written."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bridgegarden.errors import ConfigError, DataError
from bridgegarden.registry import unknown_name

Message = dict[str, Any]
"""At least ``role`` and ``content``; further keys (``tool_calls``, ``name``) are the chat template's business."""

ROLES = ("system", "developer", "user", "assistant", "tool")
REASONING = ("reasoning_content", "thinking", "reasoning")
"""Keys under which a message's reasoning is known; Qwen's and OpenAI's, gpt-oss's, OpenRouter's."""
LONGEST_ROLE = 60
"""Characters that a message about a role quotes."""
FOREIGN_ROLES = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant", "function": "tool"}
EXPECTED = "'messages', or 'prompt' and 'completion', or columns named by data.prompt and data.completion"
EXPECTED_PROMPT = "'messages', 'prompt', or a column named by data.prompt"


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Where the user's rows keep what we need, when the columns are not called so."""

    prompt: str | None = None
    """Column of the question. A string there becomes a user turn, if the tokenizer has a chat template."""
    completion: str | None = None
    """Column of the answer. A string there becomes an assistant turn, if the tokenizer has a chat template."""
    messages: str | None = None
    """Column of whole conversations, as lists of ``{"role": ..., "content": ...}``."""

    def __post_init__(self) -> None:
        for field in ("prompt", "completion", "messages"):
            if getattr(self, field) == "":
                raise ConfigError(f"data.{field}: must name a column, got an empty string.")
        if self.messages is not None and self.names_a_pair:
            raise ConfigError("data.messages excludes data.prompt and data.completion: give one or the other.")

    @property
    def names_a_pair(self) -> bool:
        """Whether prompt or completion was named explicitly."""
        return self.prompt is not None or self.completion is not None


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """One row: messages, of which the assistant's from `learn_from` on are to be learnt."""

    messages: tuple[Message, ...]
    """In order. For text, one user message (the prompt) and one assistant message (the completion)."""
    learn_from: int
    """Index of the first message that may be learnt; earlier assistant turns are context only. The number of messages
    where the answer is still to be given."""
    form: Literal["chat", "pair", "text"]
    """``chat`` needs a chat template, ``pair`` uses one where there is one, ``text`` never does."""
    tools: tuple[dict[str, Any], ...] | None = None
    """JSON schemas of the tools that the assistant may call."""


def conversation(row: Mapping[str, Any], columns: Columns, *, place: str) -> Conversation:
    """Read one row.

    Without named columns a row has ``messages``, or ``prompt`` and ``completion`` as TRL defines them: two lists of
    messages, or two strings that are joined as they stand. Strings in columns named by `columns` are a question and
    its answer instead, and get the chat template's turns.

    Args:
        row: one row of a data set.
        columns: which columns to read.
        place: where the row is, for messages: ``"train rows.jsonl, row 17"``.

    Raises:
        DataError: when a column is missing, of the wrong type, empty, or no assistant turn is left to learn.
    """
    if _holds_conversations(row, columns):
        key = columns.messages or "messages"
        messages = _messages(_field(row, key, place), key, place)
        return _checked(messages, 0, key, _tools(row, place), place)
    if not columns.names_a_pair and not ("prompt" in row and "completion" in row):
        raise DataError(f"{place}: has columns {_listing(row)}; expected {EXPECTED}.")
    return _pair(row, columns, place)


def reasoning_of(message: Message) -> str | None:
    """What an assistant message says before its answer; None where it has no such key."""
    return next((message[name] for name in REASONING if isinstance(message.get(name), str)), None)


def prompt(row: Mapping[str, Any], columns: Columns, *, place: str) -> Conversation:
    """What a teacher is asked by one row, which needs no answer: :func:`conversation` without what is to be learnt.

    Of whole conversations an assistant message at the end is left out; earlier ones are context.

    Args:
        row: one row of a data set.
        columns: which columns to read; the one of the answer need not exist.
        place: where the row is, for messages.

    Returns:
        Messages up to where the assistant is to speak: `learn_from` is their number.

    Raises:
        DataError: when a column is missing, of the wrong type, or there is nothing to answer.
    """
    if _holds_conversations(row, columns):
        key = columns.messages or "messages"
        messages = _messages(_field(row, key, place), key, place)
        messages = messages[:-1] if messages and messages[-1]["role"] == "assistant" else messages
        return _to_answer(messages, key, _tools(row, place), place)
    key = columns.prompt or "prompt"
    if not columns.names_a_pair and key not in row:
        raise DataError(f"{place}: has columns {_listing(row)}; expected {EXPECTED_PROMPT}.")
    value = _field(row, key, place)
    if isinstance(value, str):
        if not value.strip():
            raise DataError(f"{place}: {key!r} is empty; expected the text to answer.")
        messages = ({"role": "user", "content": value},)
        return Conversation(messages=messages, learn_from=1, form="pair" if columns.names_a_pair else "text")
    if _is_list(value):
        return _to_answer(_messages(value, key, place), key, _tools(row, place), place)
    raise DataError(f"{place}: {key!r} is {_kind(value)}; expected a string, or a list of messages.")


def with_answer(row: Mapping[str, Any], columns: Columns, answer: str, *, place: str) -> dict[str, Any]:
    """`row` with `answer` for the assistant's words, in the columns from which :func:`conversation` reads them.

    Raises:
        DataError: as in :func:`prompt`.
    """
    asked = prompt(row, columns, place=place)
    message: Message = {"role": "assistant", "content": answer}
    if _holds_conversations(row, columns):
        return {**row, columns.messages or "messages": [*asked.messages, message]}
    return {**row, columns.completion or "completion": [message] if asked.form == "chat" else answer}


def _to_answer(
    messages: tuple[Message, ...], key: str, tools: tuple[dict[str, Any], ...] | None, place: str
) -> Conversation:
    if not messages or messages[0]["role"] == "assistant":
        got = "begins with the assistant" if messages else "has nothing before the assistant speaks"
        raise DataError(f"{place}: {key!r} {got}; expected a user or system message first.")
    return Conversation(messages=messages, learn_from=len(messages), form="chat", tools=tools)


def _holds_conversations(row: Mapping[str, Any], columns: Columns) -> bool:
    return columns.messages is not None or (not columns.names_a_pair and row.get("messages") is not None)


def _pair(row: Mapping[str, Any], columns: Columns, place: str) -> Conversation:
    prompt_key, completion_key = columns.prompt or "prompt", columns.completion or "completion"
    prompt, completion = _field(row, prompt_key, place), _field(row, completion_key, place)
    if isinstance(prompt, str) and isinstance(completion, str):
        if not completion.strip():
            raise DataError(f"{place}: {completion_key!r} is empty; expected the text to learn.")
        messages = ({"role": "user", "content": prompt}, {"role": "assistant", "content": completion})
        return Conversation(messages=messages, learn_from=1, form="pair" if columns.names_a_pair else "text")
    if _is_list(prompt) and _is_list(completion):
        before = _messages(prompt, prompt_key, place)
        after = _messages(completion, completion_key, place)
        return _checked(before + after, len(before), completion_key, _tools(row, place), place)
    raise DataError(
        f"{place}: {prompt_key!r} is {_kind(prompt)} and {completion_key!r} is {_kind(completion)}; "
        "expected two strings, or two lists of messages."
    )


def _checked(
    messages: tuple[Message, ...], learn_from: int, key: str, tools: tuple[dict[str, Any], ...] | None, place: str
) -> Conversation:
    if all(message["role"] != "assistant" for message in messages[learn_from:]):
        roles = ", ".join(message["role"] for message in messages[learn_from:]) or "none"
        raise DataError(f"{place}: {key!r} has no assistant message to learn from (roles: {roles}).")
    if messages[0]["role"] == "assistant":
        raise DataError(
            f"{place}: the conversation begins with the assistant; expected a user or system message first."
        )
    return Conversation(messages=messages, learn_from=learn_from, form="chat", tools=tools)


def _messages(value: Any, key: str, place: str) -> tuple[Message, ...]:
    if not _is_list(value):
        raise DataError(f"{place}: {key!r} is {_kind(value)}; expected a list of messages.")
    return tuple(_message(item, f"{place}: {key}[{index}]") for index, item in enumerate(value))


def _message(item: Any, place: str) -> Message:
    if not isinstance(item, Mapping):
        raise DataError(f"{place} is {_kind(item)}; expected an object with 'role' and 'content'.")
    # OpenAI's form writes an absent key as null; templates only ask whether it is there.
    message: Message = {key: value for key, value in item.items() if value is not None}
    role = message.get("role")
    if role is None:
        hint = " ('from' and 'value' must be renamed to 'role' and 'content')" if "from" in message else ""
        raise DataError(f"{place} has keys {_listing(message)}; expected 'role' and 'content'{hint}.")
    if not isinstance(role, str) or len(role) > LONGEST_ROLE:
        raise DataError(f"{place}.role is {_kind(role)}; expected one of {', '.join(ROLES)}.")
    if role not in ROLES:
        raise _unknown_role(role, f"{place}.role")
    if "tool_calls" in message:
        message = _with_tool_calls(message, place)
    content = message.setdefault("content", "" if message.get("tool_calls") else None)
    if not isinstance(content, str):
        raise DataError(f"{place}.content is {_kind(content)}; expected a string.")
    if role == "assistant" and not content.strip() and not message.get("tool_calls"):
        raise DataError(f"{place}.content is empty; expected the assistant's text.")
    return message


def _with_tool_calls(message: Message, place: str) -> Message:
    """`message` with its calls checked, which may be JSON text; without the key where it makes none."""
    calls = message["tool_calls"]
    if isinstance(calls, str):
        try:
            calls = json.loads(calls)
        except ValueError as error:
            raise DataError(f"{place}.tool_calls is a string but not valid JSON ({error}).") from error
    if not _is_list(calls):
        raise DataError(f"{place}.tool_calls is {_kind(calls)}; expected a list.")
    for call in calls:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise DataError(
                f"{place}.tool_calls holds {_kind(call)}; expected objects such as "
                '{"type": "function", "function": {"name": ..., "arguments": {...}}}.'
            )
    bare = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**bare, "tool_calls": list(calls)} if calls else bare


def _unknown_role(role: str, place: str) -> DataError:
    ours = FOREIGN_ROLES.get(role.lower())
    if ours is None:
        return DataError(str(unknown_name(role, ROLES, field=place, kind="role")))
    return DataError(f"{place}: unknown role {role!r}. Did you mean {ours!r}? Known: {', '.join(ROLES)}.")


def _tools(row: Mapping[str, Any], place: str) -> tuple[dict[str, Any], ...] | None:
    """The row's ``tools``: a list of JSON schemas, or that list as a JSON string, as TRL takes it."""
    tools = row.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise DataError(f"{place}: 'tools' is a string but not valid JSON ({error}).") from error
    if tools is None:
        return None
    if not _is_list(tools) or not all(isinstance(tool, Mapping) for tool in tools):
        raise DataError(f"{place}: 'tools' is {_kind(tools)}; expected a list of JSON schemas.")
    return tuple(dict(tool) for tool in tools) or None


def _field(row: Mapping[str, Any], key: str, place: str) -> Any:
    if key not in row:
        raise DataError(f"{place}: {unknown_name(key, row, field='columns', kind='column')}")
    if row[key] is None:
        raise DataError(f"{place}: {key!r} is null; expected text or messages.")
    return row[key]


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if _is_list(value):
        return "a list"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def _listing(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"
