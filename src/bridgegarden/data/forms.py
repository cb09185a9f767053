"""In which form a chat template takes what a message holds: found by handing it each, and looking what it writes.

The same call has its arguments as an object or as JSON text (OpenAI's form), and a template that takes one may write
the other wrongly: encoded twice, or not at all.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from bridgegarden.data.chat import REASONING, Conversation, Message, reasoning_of
from bridgegarden.data.render import TemplateRefusal, render
from bridgegarden.data.said import unsaid

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUESTION, ANSWER, RESULT = "bridgegarden asks", "bridgegarden answers", "bridgegarden found"
"""Words that no template holds."""
KEY, VALUE = "gardenkey", "bridgevalue"
THOUGHT = re.compile(r"\s*<think>\n*(.*?)\n*</think>\n*(.*)", re.DOTALL)
"""A reasoning and the answer after it."""
Arguments = Literal["object", "text"]

ASKED: Message = {"role": "user", "content": QUESTION}
ANSWERED: Message = {"role": "assistant", "content": ANSWER}
FOUND: Message = {"role": "tool", "name": "bridgetool", "tool_call_id": "bridge001", "content": RESULT}
TOOL = {
    "type": "function",
    "function": {
        "name": "bridgetool",
        "description": "A tool.",
        "parameters": {"type": "object", "properties": {KEY: {"type": "string", "description": "A key."}}},
    },
}


def called(arguments: Arguments) -> Message:
    """A message that calls a tool."""
    given = {KEY: VALUE} if arguments == "object" else json.dumps({KEY: VALUE})
    function = {"name": "bridgetool", "arguments": given}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "bridge001", "type": "function", "function": function}],
    }


@dataclass(frozen=True, kw_only=True)
class MessageForms:
    """How messages have to be handed to a chat template."""

    content_as_parts: bool = False
    """As a list of parts, as templates of vision-language models take it."""
    arguments: tuple[Arguments, ...] = ("object",)
    """The forms of a tool call's arguments that the template writes rightly; none if it writes no calls."""
    reasoning_in_content: bool = False
    """Between <think> and </think> before the answer, as the template knows of no other place."""
    reasoning_apart: bool = False
    """As a key of its own, since the template would write an empty <think></think> before one in the content."""

    def with_arguments(self, chat: Conversation) -> tuple[Message, ...]:
        """The messages of `chat` with tool calls' arguments in a form that the template writes."""
        return tuple(self._with_arguments(message) if "tool_calls" in message else message for message in chat.messages)

    def handed(self, messages: Sequence[Message]) -> list[Message]:
        """`messages` as the template takes them."""
        if self.reasoning_apart:
            messages = [_with_reasoning_apart(message) for message in messages]
        if self.reasoning_in_content:
            messages = [_with_reasoning_in_content(message) for message in messages]
        if self.content_as_parts:
            messages = [message | {"content": [{"type": "text", "text": message["content"]}]} for message in messages]
        return list(messages)

    def _with_arguments(self, message: Message) -> Message:
        return {**message, "tool_calls": [self._call(call) for call in message["tool_calls"]]}

    def _call(self, call: Mapping[str, Any]) -> dict[str, Any]:
        if isinstance(call.get("function"), Mapping):
            return {**call, "function": self._call(call["function"])}
        given = call.get("arguments")
        if isinstance(given, str) and "text" not in self.arguments:
            return {**call, "arguments": _decoded(given)}
        if isinstance(given, Mapping) and self.arguments == ("text",):
            return {**call, "arguments": json.dumps(given, ensure_ascii=False)}
        return dict(call)


def message_forms(tokenizer: "PreTrainedTokenizerBase", template: str | None) -> MessageForms:
    """The forms in which `template` (None: the tokenizer's own) takes messages."""

    def writes(message: Message, forms: MessageForms) -> bool:
        text = written([ASKED, message], tokenizer, template, forms)
        return text is not None and unsaid(message, text) is None and f'\\"{KEY}' not in text

    plain, parts = MessageForms(), MessageForms(content_as_parts=True)
    as_parts = not writes(ANSWERED, plain) and writes(ANSWERED, parts)
    forms = parts if as_parts else plain
    calls: tuple[Arguments, ...] = tuple(kind for kind in ("object", "text") if writes(called(kind), forms))
    reasoned = {**ANSWERED, REASONING[0]: "bridgegarden thinks"}
    has_key = writes(reasoned, forms)
    in_content = replace(forms, reasoning_in_content=True)
    tagged = written([ASKED, _with_reasoning_in_content(reasoned)], tokenizer, template, forms) or ""
    source = template or str(tokenizer.chat_template)
    return replace(
        forms,
        arguments=calls,
        reasoning_in_content=not has_key and "</think>" in source and writes(reasoned, in_content),
        reasoning_apart=has_key and tagged.rpartition(QUESTION)[2].count("</think>") > 1,
    )


def written(
    messages: Sequence[Message],
    tokenizer: "PreTrainedTokenizerBase",
    template: str | None,
    forms: MessageForms,
    *,
    generation_prompt: bool = False,
) -> str | None:
    """`messages` as a template writes them; None where it refuses them."""
    handed = forms.handed(messages)
    try:
        return render(handed, tokenizer, template=template, generation_prompt=generation_prompt).text
    except TemplateRefusal:
        return None


def _decoded(arguments: str) -> Any:
    """`arguments` as an object; text that is none stays."""
    try:
        decoded = json.loads(arguments)
    except ValueError:
        return arguments
    return decoded if isinstance(decoded, dict) else arguments


def _with_reasoning_in_content(message: Message) -> Message:
    reasoning = reasoning_of(message)
    if reasoning is None:
        return message
    bare = {key: value for key, value in message.items() if key not in REASONING}
    return bare | {"content": f"<think>\n{reasoning.strip(chr(10))}\n</think>\n\n{message['content']}"}


def _with_reasoning_apart(message: Message) -> Message:
    found = THOUGHT.fullmatch(message["content"]) if message["role"] == "assistant" else None
    if found is None or reasoning_of(message) is not None:
        return message
    return message | {REASONING[0]: found[1], "content": found[2]}
