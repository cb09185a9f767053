"""A chat template run on messages: the text it writes, whether all is said in it, and in which form it takes messages.

Nothing of a message may get lost between a row and what is learnt. The same call has its arguments as an object or as
JSON text (OpenAI's form), and a template that takes one may write the other wrongly: encoded twice, or not at all. So
the form is found by handing a template each, and looking what it writes.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from traceback import walk_tb
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from bridgegarden.data.chat import REASONING, Conversation, Message, reasoning_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FIXED_DATE = "26 Jul 2024"
"""Llama 3's templates print today's date unless given one, and ids must not depend on the day. Llama 3.1's default."""
MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
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


class TemplateRefusal(Exception):
    """A chat template does not like its input, or is itself no good; the error that it raised is the cause.

    It is a program of whoever made the model, run in Jinja's sandbox: any error of Python may come out of it.
    """


class Rendered(NamedTuple):
    """Messages as a chat template writes them."""

    text: str
    marks: tuple[tuple[int, int], ...]
    """Where ``{% generation %}`` blocks begin and end in `text`, without empty ones; none if the template has none."""


def render(
    messages: Sequence[Message],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    template: str | None = None,
    tools: Sequence[dict[str, Any]] | None = None,
    generation_prompt: bool = False,
    variables: Mapping[str, Any] | None = None,
) -> Rendered:
    """`messages` as a chat template writes them.

    Args:
        messages: in order.
        tokenizer: whose special tokens, and template unless there is another, are used.
        template: in place of the tokenizer's own.
        tools: JSON schemas.
        generation_prompt: whether the text goes on up to where the assistant is to speak.
        variables: the template's own variables, such as ``enable_thinking``.

    Raises:
        TemplateRefusal: whatever the template raises.
    """
    # Not apply_chat_template, which gives marks only as a mask over tokens of the whole text.
    from transformers.utils.chat_template_utils import render_jinja_template

    listed = None if tools is None else list(tools)
    source = template or tokenizer.get_chat_template(tools=listed)
    with _refusals():
        texts, marks = render_jinja_template(
            [[_both_names(message) for message in messages]],
            tools=listed,  # pyright: ignore[reportArgumentType]  list is invariant
            chat_template=source,
            return_assistant_tokens_mask=has_marks(source),
            add_generation_prompt=generation_prompt,
            **{**tokenizer.special_tokens_map, "date_string": FIXED_DATE, **(variables or {})},
        )
    text = texts[0]
    assert isinstance(text, str)
    spans = [(int(start), int(end)) for found in marks for start, end in found]
    return Rendered(text, tuple(span for span in spans if span[0] < span[1]))


def has_marks(template: str) -> bool:
    """Whether `template` says which part of a conversation the assistant generates."""
    return MARKS.search(template) is not None


def training_template(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """The variant of a published chat template with which TRL trains; None where it has none.

    It writes earlier turns as it writes the last one, and marks what the assistant generates.
    """
    from trl.chat_template_utils import get_training_chat_template

    try:
        with _refusals():
            return get_training_chat_template(tokenizer)
    # TRL raises a ValueError where it does not know the template, a KeyError where there are several with no default.
    except (TemplateRefusal, ValueError, KeyError):
        return None


def agreement(one: str, other: str) -> int:
    """How many characters `one` and `other` begin with in common."""
    low, high = 0, min(len(one), len(other))
    # By halves, since comparing slices is quick and comparing characters is not.
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _said(error: BaseException) -> str:
    """What a template's error says, on one line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    kind = "not enough memory" if isinstance(error, MemoryError) else lines[0]
    return kind[:200].rstrip(" .:")


@contextmanager
def _refusals() -> Iterator[None]:
    """Whatever is raised under Jinja's eyes becomes a :class:`TemplateRefusal`; other errors are nobody's refusal."""
    try:
        yield
    except Exception as error:
        modules = (frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__))
        if isinstance(error, MemoryError) or any(module.partition(".")[0] == "jinja2" for module in modules):
            raise TemplateRefusal(_said(error)) from error
        raise


def _both_names(message: Message) -> Message:
    """`message` with its reasoning under every name by which templates know it."""
    reasoning = reasoning_of(message)
    return message if reasoning is None else {**dict.fromkeys(REASONING[:2], reasoning), **message}


class _Part(NamedTuple):
    what: str
    """Such as "name of tool call 0"."""
    spellings: tuple[str, ...]
    """Any of which will do, as it stands in the row first."""


def unsaid(message: Message, text: str, opening: str = "") -> str | None:
    """The first part of `message` that `text` lacks, in words; None when it contains all of them.

    A message may begin with the last words of `opening`, which the generation prompt says for it (``<think>``).

    White space does not count, since templates trim and lay out. Nothing in `text` counts twice: an answer "4" does
    not stand for a reasoning "4". The values of a call may stand in any order, escaped as in JSON or written as Python
    writes them; arguments that are text themselves must stand there as they are.
    """
    content = message.get("content") or ""
    left = _Left(_overlap(opening, content) + text)
    parts = [_Part("text", (content,))] if content else []
    reasoning = reasoning_of(message)
    parts += [_Part("reasoning", (reasoning,))] if reasoning else []
    for number, call in enumerate(message.get("tool_calls") or ()):
        function = call.get("function") or call
        parts.append(_Part(f"name of tool call {number}", (str(function.get("name", "")),)))
        arguments, what = function.get("arguments"), f"arguments of tool call {number}"
        if isinstance(arguments, str):
            parts.append(_Part(what, (arguments,)))
        elif arguments is not None and not left.take(json.dumps(arguments, ensure_ascii=False)):
            parts += [_Part(what, tuple(_spellings(leaf))) for leaf in _leaves(arguments)]
    # Long ones first, so that a short one does not take a piece out of them.
    lost = [part for part in sorted(parts, key=lambda part: -len(part.spellings[0])) if not left.take(*part.spellings)]
    first = next((part for part in parts if part in lost), None)
    return None if first is None else f"the {first.what} {_short(first.spellings[0])}"


class _Left:
    """What is left of a text once parts of it have been found."""

    def __init__(self, text: str) -> None:
        self._text = _compact(text)

    def take(self, *spellings: str) -> bool:
        """Whether one of `spellings` is there; then it is not there any more."""
        for spelling in map(_compact, spellings):
            at = self._text.find(spelling)
            if at >= 0:
                self._text = f"{self._text[:at]}\0{self._text[at + len(spelling) :]}" if spelling else self._text
                return True
        return False


def _overlap(before: str, text: str) -> str:
    """With how much of `text` `before` ends."""
    before, text = _compact(before), _compact(text[: 2 * len(before)])
    return next((text[:size] for size in range(len(text), 0, -1) if before.endswith(text[:size])), "")


def _compact(text: str) -> str:
    return "".join(text.split())


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from _leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    else:
        yield value if isinstance(value, str) else json.dumps(value)


def _spellings(leaf: str) -> Iterator[str]:
    yield leaf
    yield json.dumps(leaf, ensure_ascii=False)[1:-1]
    yield json.dumps(leaf)[1:-1]
    yield repr(leaf)[1:-1]
    yield from {"true": ["True"], "false": ["False"], "null": ["None"]}.get(leaf, [])


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


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
