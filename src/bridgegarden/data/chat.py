"""What a row of data says: which columns are read, which messages they hold, which of them are to be learnt."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from bridgegarden.errors import ConfigError, DataError, unknown_name

Message = dict[str, Any]
"""At least ``role`` and ``content``; further keys (``tool_calls``, ``name``) are the chat template's business."""

ROLES = ("system", "developer", "user", "assistant", "tool")
REASONING = ("reasoning_content", "thinking", "reasoning")
"""Keys under which a message's reasoning is known; Qwen's and OpenAI's, gpt-oss's, OpenRouter's."""
LONGEST_ROLE = 60
"""Characters that a message about a role quotes."""
FOREIGN_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "function": "tool",
    "observation": "tool",
}
TEMPLATE_ARGUMENTS = (
    *("messages", "conversations", "tools", "chat_template", "tokenize", "add_generation_prompt"),
    *("continue_final_message", "return_assistant_tokens_mask"),
)
"""What a row must not set beside the chat template's own variables."""
EXPECTED = (
    "'messages', 'conversations', 'prompt' and 'completion', 'instruction' and 'output', 'text', or columns named by "
    "data.messages, data.prompt and data.completion, or data.text"
)
EXPECTED_PROMPT = "'messages', 'conversations', 'prompt', 'instruction', or a column named by data.prompt"
CONVERSATIONS = ("messages", "conversations")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Where the user's rows keep what we need, when the columns are not called so."""

    prompt: str | None = None
    """Column of the question. A string there becomes a user turn, if the tokenizer has a chat template."""
    completion: str | None = None
    """Column of the answer. A string there becomes an assistant turn, if the tokenizer has a chat template."""
    messages: str | None = None
    """Column of whole conversations, as lists of ``{"role": ..., "content": ...}``."""
    text: str | None = None
    """Column of plain text, all of which is learnt."""

    def __post_init__(self) -> None:
        for name in ("prompt", "completion", "messages", "text"):
            if getattr(self, name) == "":
                raise ConfigError(f"data.{name}: must name a column, got an empty string.")
        if self.messages is not None and self.names_a_pair:
            raise ConfigError("data.messages excludes data.prompt and data.completion: give one or the other.")
        if self.text is not None and (self.messages is not None or self.names_a_pair):
            raise ConfigError(
                "data.text excludes data.messages, data.prompt and data.completion: give one or the other."
            )

    @property
    def names_a_pair(self) -> bool:
        """Whether prompt or completion was named explicitly."""
        return self.prompt is not None or self.completion is not None

    @property
    def named(self) -> tuple[str, ...]:
        """The columns that were named."""
        return tuple(name for name in (self.prompt, self.completion, self.messages, self.text) if name is not None)


class Messages(NamedTuple):
    """A whole conversation."""

    key: str
    value: Any
    system: str | None = None
    """What a column of its own says before it."""


class Pair(NamedTuple):
    """What is asked, and the answer."""

    prompt_key: str
    prompt: Any
    completion_key: str
    completion: Any
    """None where the answer was not asked for."""
    as_turns: bool
    """Whether strings are a question and its answer, rather than a text in two parts."""
    system: str | None = None


class Text(NamedTuple):
    """A text with no prompt."""

    key: str
    value: Any


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """One row: messages, of which the assistant's from `learn_from` on are to be learnt."""

    messages: tuple[Message, ...]
    """In order. For text, one user message (the prompt) and one assistant message (the completion)."""
    learn_from: int
    """Index of the first message that may be learnt; earlier assistant turns are context only. The number of messages
    where the answer is still to be given."""
    form: Literal["chat", "pair", "text", "document"]
    """``chat`` needs a chat template, ``pair`` uses one where there is one, ``text`` never does, and a ``document`` is
    text with no prompt."""
    tools: tuple[dict[str, Any], ...] | None = None
    """JSON schemas of the tools that the assistant may call."""
    variables: Mapping[str, Any] = field(default_factory=dict)
    """What the chat template gets beside the messages, such as ``{"enable_thinking": False}``."""


def conversation(row: Mapping[str, Any], columns: Columns, *, place: str) -> Conversation:
    """Read one row.

    Strings in ``prompt`` and ``completion`` are joined as they stand, as TRL does it. Strings in columns named by
    `columns`, and in Alpaca's, are a question and its answer instead, and get the chat template's turns. Which columns
    are read, :func:`bridgegarden.data.chat.content_of` says.

    Args:
        row: one row of a data set.
        columns: which columns to read.
        place: where the row is, for messages: ``"train rows.jsonl, row 17"``.

    Raises:
        DataError: when a column is missing, of the wrong type, empty, or no assistant turn is left to learn.
    """
    found = content_of(row, columns, place=place)
    if isinstance(found, Messages):
        return _checked(_whole(found, place), 0, found.key, row, place)
    if isinstance(found, Text):
        return _document(found, place)
    return _pair(found, row, place)


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
    found = content_of(row, columns, place=place, answered=False)
    if isinstance(found, Messages):
        messages = _whole(found, place)
        messages = messages[:-1] if messages and messages[-1]["role"] == "assistant" else messages
        return _to_answer(messages, found.key, row, place)
    assert isinstance(found, Pair)
    value = found.prompt
    if isinstance(value, str):
        if not value.strip():
            raise DataError(f"{place}: {found.prompt_key!r} is empty; expected the text to answer.")
        asked = _question(found)
        if len(asked) > 1:
            return _to_answer(asked, found.prompt_key, row, place)
        form = "pair" if found.as_turns else "text"
        return Conversation(messages=asked, learn_from=1, form=form, variables=_variables(row, place))
    if _is_list(value):
        return _to_answer(_messages(value, found.prompt_key, place), found.prompt_key, row, place)
    raise DataError(f"{place}: {found.prompt_key!r} is {_kind(value)}; expected a string, or a list of messages.")


def with_answer(row: Mapping[str, Any], columns: Columns, answer: str, *, place: str) -> dict[str, Any]:
    """`row` with `answer` for the assistant's words, in the columns from which :func:`conversation` reads them.

    Raises:
        DataError: as in :func:`prompt`.
    """
    asked = prompt(row, columns, place=place)
    message: Message = {"role": "assistant", "content": answer}
    found = content_of(row, columns, place=place, answered=False)
    if isinstance(found, Messages):
        return {**row, found.key: [*asked.messages, message]}
    assert isinstance(found, Pair)
    return {**row, found.completion_key: answer if isinstance(found.prompt, str) else [message]}


def content_of(
    row: Mapping[str, Any], columns: Columns, *, place: str, answered: bool = True
) -> Messages | Pair | Text:
    """What of `row` is read. The first of these that it has:

    1. the columns that `columns` names,
    2. ``messages``, or ``conversations`` (with a column ``system``, if there is one),
    3. ``prompt`` and ``completion``,
    4. ``instruction``, ``input`` and ``output`` (with ``system``): Alpaca's; instruction and input are one question,
    5. ``text``.

    Further columns are not read. A row with half of a pair, or a null for what comes first, is refused rather than
    read as something further down.

    Args:
        row: of a data set.
        columns: those that were named.
        place: where the row is, for messages.
        answered: whether the answer is needed; else text alone is refused, which has no prompt.

    Raises:
        DataError: there is no such column, or it is null.
    """
    if columns.messages is not None:
        return Messages(columns.messages, value_in(row, columns.messages, place))
    if columns.text is not None:
        if not answered:
            raise DataError(f"{place}: {columns.text!r} is text with no prompt; expected {EXPECTED_PROMPT}.")
        return Text(columns.text, value_in(row, columns.text, place))
    if columns.names_a_pair:
        return _pair_in(row, columns.prompt or "prompt", columns.completion or "completion", True, place, answered)
    for key in CONVERSATIONS:
        if row.get(key) is not None:
            return Messages(key, row[key], _system(row, place) if key == "conversations" else None)
    if "prompt" in row and ("completion" in row or not answered):
        return _pair_in(row, "prompt", "completion", False, place, answered)
    if "instruction" in row and ("output" in row or not answered):
        return _alpaca(row, place, answered)
    for key in CONVERSATIONS:
        if key in row:
            value_in(row, key, place)
    if answered and "text" in row and "prompt" not in row and "completion" not in row:
        return Text("text", value_in(row, "text", place))
    raise DataError(f"{place}: has columns {listing(row)}; expected {EXPECTED if answered else EXPECTED_PROMPT}.")


def value_in(row: Mapping[str, Any], key: str, place: str) -> Any:
    """The value of a column, which must be there.

    Raises:
        DataError: it is not, or null.
    """
    if key not in row:
        raise DataError(f"{place}: {unknown_name(key, row, field='columns', kind='column')}")
    if row[key] is None:
        raise DataError(f"{place}: {key!r} is null; expected text or messages.")
    return row[key]


def listing(names: Iterable[str]) -> str:
    """Names of columns, for a message."""
    return ", ".join(repr(name) for name in names) or "none"


def reasoning_of(message: Message) -> str | None:
    """What an assistant message says before its answer; None where it has no such key."""
    return next((message[name] for name in REASONING if isinstance(message.get(name), str)), None)


def _to_answer(messages: tuple[Message, ...], key: str, row: Mapping[str, Any], place: str) -> Conversation:
    if not messages or messages[0]["role"] == "assistant":
        got = "begins with the assistant" if messages else "has nothing before the assistant speaks"
        raise DataError(f"{place}: {key!r} {got}; expected a user or system message first.")
    return _chat(messages, len(messages), row, place)


def _chat(messages: tuple[Message, ...], learn_from: int, row: Mapping[str, Any], place: str) -> Conversation:
    tools, variables = _tools(row, place), _variables(row, place)
    return Conversation(messages=messages, learn_from=learn_from, form="chat", tools=tools, variables=variables)


def _whole(found: Messages, place: str) -> tuple[Message, ...]:
    """A conversation, begun by what a column ``system`` says."""
    messages = _messages(found.value, found.key, place)
    if found.system is None:
        return messages
    if messages and messages[0]["role"] == "system":
        if messages[0]["content"] != found.system:
            raise DataError(f"{place}: 'system' says one thing and {found.key}[0] another; remove one of them.")
        return messages
    return ({"role": "system", "content": found.system}, *messages)


def _question(found: Pair) -> tuple[Message, ...]:
    system = () if found.system is None else ({"role": "system", "content": found.system},)
    return (*system, {"role": "user", "content": found.prompt})


def _document(found: Text, place: str) -> Conversation:
    if not isinstance(found.value, str):
        raise DataError(f"{place}: {found.key!r} is {_kind(found.value)}; expected a string.")
    if not found.value.strip():
        raise DataError(f"{place}: {found.key!r} is empty; expected the text to learn.")
    return Conversation(messages=({"role": "assistant", "content": found.value},), learn_from=0, form="document")


def _pair(found: Pair, row: Mapping[str, Any], place: str) -> Conversation:
    prompt, completion = found.prompt, found.completion
    if isinstance(prompt, str) and isinstance(completion, str):
        if not completion.strip():
            raise DataError(f"{place}: {found.completion_key!r} is empty; expected the text to learn.")
        messages = (*_question(found), {"role": "assistant", "content": completion})
        if found.system is not None:
            return _checked(messages, 0, found.completion_key, row, place)
        form = "pair" if found.as_turns else "text"
        return Conversation(messages=messages, learn_from=1, form=form, variables=_variables(row, place))
    if _is_list(prompt) and _is_list(completion):
        before = _messages(prompt, found.prompt_key, place)
        after = _messages(completion, found.completion_key, place)
        return _checked(before + after, len(before), found.completion_key, row, place)
    raise DataError(
        f"{place}: {found.prompt_key!r} is {_kind(prompt)} and {found.completion_key!r} is {_kind(completion)}; "
        "expected two strings, or two lists of messages."
    )


def _checked(
    messages: tuple[Message, ...], learn_from: int, key: str, row: Mapping[str, Any], place: str
) -> Conversation:
    if all(message["role"] != "assistant" for message in messages[learn_from:]):
        roles = ", ".join(message["role"] for message in messages[learn_from:]) or "none"
        raise DataError(f"{place}: {key!r} has no assistant message to learn from (roles: {roles}).")
    if messages[0]["role"] == "assistant":
        raise DataError(
            f"{place}: the conversation begins with the assistant; expected a user or system message first."
        )
    return _chat(messages, learn_from, row, place)


def _messages(value: Any, key: str, place: str) -> tuple[Message, ...]:
    if not _is_list(value):
        raise DataError(f"{place}: {key!r} is {_kind(value)}; expected a list of messages.")
    return tuple(_message(item, f"{place}: {key}[{index}]") for index, item in enumerate(value))


def _message(item: Any, place: str) -> Message:
    if not isinstance(item, Mapping):
        raise DataError(f"{place} is {_kind(item)}; expected an object with 'role' and 'content'.")
    # OpenAI's form writes an absent key as null; templates only ask whether it is there.
    message: Message = {key: value for key, value in item.items() if value is not None}
    if "role" not in message and "from" in message:
        message = _from_value(message)
    role = message.get("role")
    if role is None:
        raise DataError(f"{place} has keys {listing(message)}; expected 'role' and 'content', or 'from' and 'value'.")
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
    calls = _decoded(message["tool_calls"], f"{place}.tool_calls")
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


def _from_value(message: Message) -> Message:
    """ShareGPT's names of keys and roles as everybody else's."""
    role, content = message.pop("from"), message.pop("value", None)
    role = FOREIGN_ROLES.get(str(role).lower(), role)
    return {"role": role, **({} if content is None else {"content": content}), **message}


def _unknown_role(role: str, place: str) -> DataError:
    ours = FOREIGN_ROLES.get(role.lower())
    if ours is None:
        return DataError(str(unknown_name(role, ROLES, field=place, kind="role")))
    return DataError(f"{place}: unknown role {role!r}. Did you mean {ours!r}? Known: {', '.join(ROLES)}.")


def _tools(row: Mapping[str, Any], place: str) -> tuple[dict[str, Any], ...] | None:
    """The row's ``tools``: a list of JSON schemas, or that list as a JSON string, as TRL takes it."""
    tools = _decoded(row.get("tools"), f"{place}: 'tools'")
    if tools is None:
        return None
    if not _is_list(tools) or not all(isinstance(tool, Mapping) for tool in tools):
        raise DataError(f"{place}: 'tools' is {_kind(tools)}; expected a list of JSON schemas.")
    return tuple(dict(tool) for tool in tools) or None


def _variables(row: Mapping[str, Any], place: str) -> Mapping[str, Any]:
    """The row's ``chat_template_kwargs``: an object, or one as a JSON string."""
    variables = _decoded(row.get("chat_template_kwargs"), f"{place}: 'chat_template_kwargs'")
    if variables is None:
        return {}
    if not isinstance(variables, Mapping):
        raise DataError(f"{place}: 'chat_template_kwargs' is {_kind(variables)}; expected an object.")
    for name in variables:
        if name in TEMPLATE_ARGUMENTS:
            raise DataError(f"{place}: 'chat_template_kwargs' sets {name!r}, which is not the template's own variable.")
    documents = variables.get("documents", [])
    if not _is_list(documents) or not all(isinstance(document, Mapping) for document in documents):
        raise DataError(f"{place}: 'chat_template_kwargs' has 'documents', which must be a list of objects.")
    return dict(variables)


def _decoded(value: Any, what: str) -> Any:
    """`value`, which may be written as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise DataError(f"{what} is a string but not valid JSON ({error}).") from error


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if _is_list(value):
        return "a list"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def _pair_in(
    row: Mapping[str, Any], prompt_key: str, completion_key: str, as_turns: bool, place: str, answered: bool
) -> Pair:
    prompt = value_in(row, prompt_key, place)
    completion = value_in(row, completion_key, place) if answered else None
    return Pair(prompt_key, prompt, completion_key, completion, as_turns)


def _alpaca(row: Mapping[str, Any], place: str, answered: bool) -> Pair:
    if row.get("history"):
        raise DataError(f"{place}: has earlier turns in 'history', which are not read; give them as 'messages'.")
    pair = _pair_in(row, "instruction", "output", True, place, answered)
    extra = row.get("input")
    for key, value in (("instruction", pair.prompt), ("input", extra or "")):
        if not isinstance(value, str):
            raise DataError(f"{place}: {key!r} is {type(value).__name__}; expected a string.")
    question = f"{pair.prompt}\n\n{extra}" if extra and extra.strip() else pair.prompt
    return pair._replace(prompt=question, system=_system(row, place))


def _system(row: Mapping[str, Any], place: str) -> str | None:
    system = row.get("system")
    if system is not None and not isinstance(system, str):
        raise DataError(f"{place}: 'system' is {type(system).__name__}; expected a string.")
    return system if system and system.strip() else None
