"""Conversations through a tokenizer's chat template, as text that is to be learnt and text that is not.

A template only says how a whole conversation looks. Where an assistant turn begins is found by rendering what came
before it with the generation prompt, exactly as it is done when the student answers; where it ends, by the token with
which the template closes every assistant turn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from bridgegarden.data.chat import Conversation, Message
from bridgegarden.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = "bridgegarden"
FIXED_DATE = "26 Jul 2024"
"""Llama 3's templates print today's date unless given one, and ids must not depend on the day. Llama 3.1's default."""
ADVICE = (
    "Give one row per assistant turn, with earlier turns as the template leaves them, "
    "or use a template that keeps earlier turns unchanged."
)


class Segment(NamedTuple):
    """A stretch of a rendered conversation."""

    text: str
    supervised: bool


@dataclass(frozen=True, kw_only=True)
class ChatFormat:
    """A tokenizer's chat template, and the token with which it closes an assistant turn."""

    tokenizer: "PreTrainedTokenizerBase"
    stop: str
    """The token that the model must learn to say when it is done, as text; often not the tokenizer's ``eos_token``."""
    stop_id: int

    @property
    def prints_the_date(self) -> bool:
        """Whether the text depends on the day, in a way that cannot be prevented."""
        template = str(self.tokenizer.chat_template)
        return "strftime_now" in template and "date_string" not in template

    def segments(self, chat: Conversation, *, place: str) -> list[Segment]:
        """`chat` as text, cut where the assistant begins and ceases to speak; context and speech alternate.

        Each speech ends with the stop token. What follows the last one (often a newline) is left out: the model is
        never asked to write it.

        Raises:
            DataError: when the template refuses the conversation, or writes earlier turns differently once later
                ones follow (some strip reasoning), so that no one text is what the model sees each time it speaks.
        """
        whole = self._render(chat, len(chat.messages), place)
        cuts: list[Segment] = []
        done = 0
        for index, message in enumerate(chat.messages):
            if message["role"] == "assistant" and index >= chat.learn_from:
                start = self._start_of_turn(chat, index, whole, place)
                end = self._end_of_turn(chat, index, whole, start, place)
                cuts += [Segment(whole[done:start], False), Segment(whole[start:end], True)]
                done = end
        return cuts

    def prompt(self, chat: Conversation, *, place: str) -> str:
        """All of `chat` as text, up to where the assistant begins to speak.

        Raises:
            DataError: when the template refuses the conversation.
        """
        return self._render(chat, len(chat.messages), place, generation_prompt=True)

    def _start_of_turn(self, chat: Conversation, index: int, whole: str, place: str) -> int:
        prompt = self._render(chat, index, place, generation_prompt=True)
        if whole.startswith(prompt):
            return len(prompt)
        at = _agreement(whole, prompt)
        around = slice(max(at - 20, 0), at + 30)
        raise DataError(
            f"{place}: the chat template writes what precedes message {index} as {prompt[around]!r} when the model is "
            f"to answer, but as {whole[around]!r} in the whole conversation (from character {around.start}), so the "
            f"model would be trained on a prompt that it never sees. {ADVICE}"
        )

    def _end_of_turn(self, chat: Conversation, index: int, whole: str, start: int, place: str) -> int:
        content = chat.messages[index]["content"]
        if self.stop in content:
            raise DataError(
                f"{place}: the text of assistant message {index} holds the end-of-turn token {self.stop!r}; expected "
                "text without the chat template's tokens, which are added here."
            )
        last = index == len(chat.messages) - 1
        through = whole if last else self._render(chat, index + 1, place)
        shared = whole[: _agreement(whole, through)]
        # A template may close the whole conversation with one more token (Phi-3's does): the first one ends the turn.
        at = shared.find(self.stop, start)
        if at < 0:
            raise DataError(
                f"{place}: the chat template does not close assistant message {index} with {self.stop!r}, or rewrites "
                f"the message when later ones follow; it writes {whole[start:][:50]!r}. {ADVICE}"
            )
        return at + len(self.stop)

    def _render(self, chat: Conversation, count: int, place: str, *, generation_prompt: bool = False) -> str:
        """The first `count` messages of `chat` as the template writes them."""
        tools = None if chat.tools is None else list(chat.tools)
        messages = chat.messages[:count]
        try:
            return render(messages, self.tokenizer, tools=tools, generation_prompt=generation_prompt)
        except template_errors() as error:
            roles = ", ".join(message["role"] for message in messages)
            raise DataError(
                f"{place}: the chat template refuses the roles {roles} ({str(error).rstrip('.')}). "
                "Reorder or merge the messages to what the model was trained on."
            ) from error


def chat_format(tokenizer: "PreTrainedTokenizerBase") -> ChatFormat:
    """How `tokenizer` writes conversations, found by rendering a short one.

    Raises:
        ModelError: when there is no chat template, it fails, or it writes no added token after the assistant's words.
    """
    name = name_of(tokenizer)
    if tokenizer.chat_template is None:
        raise ModelError(
            f"{name} has no chat template, so conversations cannot be written as text. Use the tokenizer of an "
            "instruction-tuned model, set its chat_template, or give string columns 'prompt' and 'completion'."
        )
    probe: list[Message] = [{"role": "user", "content": "?"}, {"role": "assistant", "content": PROBE}]
    try:
        tail = render(probe, tokenizer).rpartition(PROBE)[2]
    except template_errors() as error:
        raise ModelError(f"{name}: its chat template refuses a question and an answer ({error}).") from error
    stops = {token.content: index for index, token in tokenizer.added_tokens_decoder.items() if token.content in tail}
    if not stops:
        raise ModelError(
            f"{name}: its chat template closes an assistant turn with {tail!r}, which holds no added token; a student "
            "trained on it would never learn to stop. Let the template write {{ eos_token }} after the content."
        )
    first = min(stops, key=lambda token: (tail.index(token), -len(token)))
    return ChatFormat(tokenizer=tokenizer, stop=first, stop_id=stops[first])


def name_of(tokenizer: "PreTrainedTokenizerBase") -> str:
    """What to call `tokenizer` in messages."""
    return f"tokenizer {tokenizer.name_or_path or type(tokenizer).__name__}"


def render(
    messages: Sequence[Message],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    tools: list[dict[str, Any]] | None = None,
    generation_prompt: bool = False,
) -> str:
    """`messages` as the chat template writes them; whatever the template raises is passed on."""
    text = tokenizer.apply_chat_template(
        list(messages),
        tools=tools,  # pyright: ignore[reportArgumentType]  list is invariant
        tokenize=False,
        add_generation_prompt=generation_prompt,
        date_string=FIXED_DATE,
    )
    assert isinstance(text, str)
    return text


def _agreement(one: str, other: str) -> int:
    """How many characters `one` and `other` begin with in common."""
    if one.startswith(other):
        return len(other)
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))


def template_errors() -> tuple[type[Exception], ...]:
    """What a chat template raises when it does not like its input."""
    from jinja2 import TemplateError

    return TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError
