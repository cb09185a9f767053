"""A chat template run on messages: the text it writes, the marks in it, and what it raises."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from traceback import walk_tb
from typing import TYPE_CHECKING, Any, NamedTuple

from bridgegarden.data.chat import REASONING, Message, reasoning_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FIXED_DATE = "26 Jul 2024"
"""Llama 3's templates print today's date unless given one, and ids must not depend on the day. Llama 3.1's default."""
MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")


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
