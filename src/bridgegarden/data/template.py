"""Conversations through a tokenizer's chat template, as text that is to be learnt and text that is not.

A template only says how a whole conversation looks. Some mark what the assistant generates (``{% generation %}``).
Elsewhere the beginning of an assistant turn is found by rendering what came before it with the generation prompt,
exactly as it is done when the student answers, and its end by the token with which the template closes such turns. A
template that writes earlier turns otherwise than it wrote them when they were answered has no one text that shows all
of them; where TRL has a variant for training that does, and marks them, that one writes such rows.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from bridgegarden.data.chat import Conversation, Message
from bridgegarden.data.render import (
    ANSWER,
    ANSWERED,
    ASKED,
    FOUND,
    QUESTION,
    RESULT,
    VALUE,
    MessageForms,
    Rendered,
    TemplateRefusal,
    agreement,
    called,
    has_marks,
    message_forms,
    render,
    training_template,
    unsaid,
    written,
)
from bridgegarden.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ADVICE = (
    "Give one row per assistant turn, with earlier turns as the template leaves them, "
    "or use a template that keeps earlier turns unchanged (data.chat_template)."
)


MANY = 100
"""Messages up to which all of a conversation is cut and checked, however much of it is needed."""
Taken = TypeVar("Taken")
LOST = (
    "Write it into the message's content as the model is to say it, take it out of the row, or use a template that "
    "writes it (data.chat_template)."
)


class Segment(NamedTuple):
    """A stretch of a rendered conversation."""

    text: str
    supervised: bool


class Ends(NamedTuple):
    """The tokens with which a template closes an assistant turn, as text."""

    answer: str
    call: str
    """Of a turn with tool calls; often that of any other turn."""


@dataclass(frozen=True, kw_only=True)
class ChatFormat:
    """A chat template, and the token with which it closes an assistant turn."""

    tokenizer: "PreTrainedTokenizerBase"
    template: str | None
    """What writes rows; None is the tokenizer's own. Prompts are written by that one always."""
    ends: Ends
    """What the model must learn to say when it is done; often not the tokenizer's ``eos_token``."""
    openings: dict[str, str]
    """What the template writes between the text of a last message, by its role, and an answer."""
    forms: MessageForms
    """How tool calls and reasoning have to be handed to the template."""
    in_training: "ChatFormat | None" = None
    """The format of TRL's variant of the template, for rows that this one cannot write."""
    opened_otherwise: Counter[str] = field(default_factory=Counter)
    """Of the rows so far, how many answers do not begin as the generation prompt (the key) makes the model begin."""

    @property
    def stop(self) -> str:
        """The end of an ordinary turn, as text."""
        return self.ends.answer

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Every token that ends a turn, that of an ordinary one first."""
        ids = {token.content: index for index, token in self.tokenizer.added_tokens_decoder.items()}
        return tuple(dict.fromkeys(ids[end] for end in self.ends))

    @property
    def prints_the_date(self) -> bool:
        """Whether the text depends on the day, in a way that cannot be prevented."""
        template = str(self.tokenizer.chat_template)
        return "strftime_now" in template and "date_string" not in template

    def write(self, chat: Conversation, take: Callable[[Iterator[Segment]], Taken], *, place: str) -> Taken:
        """What `take` makes of `chat` as text, cut where the assistant begins and ceases to speak; context and speech
        alternate.

        Each speech ends with the token that ends a turn, and contains all that the message says. What follows the last
        one (often a newline) is left out: the model is never asked to write it.

        Cutting takes time that grows with the square of the turns. So of a conversation of very many, what `take` does
        not ask for is neither cut nor checked. `take` may be called twice.

        Raises:
            DataError: when the template refuses the conversation, leaves out part of what is to be learnt, or writes
                earlier turns differently once later ones follow (some strip reasoning), so that no one text is what
                the model sees each time it speaks.
        """
        if self._marks(chat):
            return take(iter(self._marked(chat, place)))
        if self.in_training is None:
            return take(self._cut(chat, place))
        try:
            return take(self._cut(chat, place))
        except DataError:
            taken = self.in_training.write(chat, take, place=place)
        self.opened_otherwise.update(self.in_training.opened_otherwise)
        self.in_training.opened_otherwise.clear()
        return taken

    def prompt(self, chat: Conversation, *, place: str) -> str:
        """All of `chat` as text, up to where the assistant begins to speak.

        Raises:
            DataError: when the template refuses the conversation.
        """
        own = replace(self, template=None)
        chat = replace(chat, messages=self.forms.with_arguments(chat))
        return own._render(chat, len(chat.messages), place, generation_prompt=True).text

    def _marks(self, chat: Conversation) -> bool:
        return has_marks(self.template or _source(self.tokenizer, chat))

    def _cut(self, chat: Conversation, place: str) -> Iterator[Segment]:
        """By rendering each turn with what came before it; of not too many turns, all of them at once."""
        cuts = self._each_cut(chat, place)
        return cuts if len(chat.messages) > MANY else iter(list(cuts))

    def _each_cut(self, chat: Conversation, place: str) -> Iterator[Segment]:
        chat = replace(chat, messages=self.forms.with_arguments(chat))
        whole = self._render(chat, len(chat.messages), place).text
        done = 0
        for index, message in _learnt(chat):
            self._check_without_end(message, index, place)
            start = self._start_of_turn(chat, index, whole, place)
            end = self._end_of_turn(chat, index, whole, start, place)
            self._check_said(chat, index, whole[start:end], whole[:start], place)
            yield Segment(whole[done:start], False)
            yield Segment(whole[start:end], True)
            done = end

    def _marked(self, chat: Conversation, place: str) -> list[Segment]:
        """By the template's own marks, less what the generation prompt writes, up to the end of the turn."""
        chat = replace(chat, messages=self.forms.with_arguments(chat))
        rendered = self._render(chat, len(chat.messages), place)
        speakers = [message for message in chat.messages if message["role"] == "assistant"]
        spans = _merged(rendered.marks, len(speakers))
        if len(spans) != len(speakers):
            raise DataError(
                f"{place}: the chat template marks {len(spans)} stretches as the assistant's (generation blocks), but "
                f"the conversation has {len(speakers)} assistant messages; expected one for each."
            )
        learnt = list(_learnt(chat))
        cuts: list[Segment] = []
        done = 0
        for (index, message), (start, end) in zip(learnt, spans[len(spans) - len(learnt) :], strict=True):
            self._check_without_end(message, index, place)
            start = self._after_opening(rendered.text, start, end, self._opening(chat, index))
            speech = self._speech(rendered.text, start, end, message)
            if speech is None and index == len(chat.messages) - 1:
                raise DataError(
                    f"{place}: the chat template does not close assistant message {index} with "
                    f"{self._end_of(message)!r}; it writes {rendered.text[start:][-50:]!r}. {ADVICE}"
                )
            speech = self._without_end(rendered.text[start:end]) if speech is None else speech
            self._check_said(chat, index, speech, rendered.text[:start], place)
            cuts += [Segment(rendered.text[done:start], False), Segment(speech, True)]
            done = start + len(speech)
        return cuts

    def _opening(self, chat: Conversation, index: int) -> str:
        return self.openings.get(chat.messages[index - 1]["role"], self.openings["user"])

    def _after_opening(self, text: str, start: int, end: int, opening: str) -> int:
        """Where the model begins to write in ``text[start:end]``: the generation prompt may reach into a mark."""
        before = next(size for size in range(len(opening), -1, -1) if text.endswith(opening[:size], 0, start))
        rest = opening[before:]
        shared = agreement(text[start:end], rest)
        if shared < len(rest):
            self.opened_otherwise[rest] += 1
            # Within a token, the two only happen to look alike.
            ends = [match.end() for match in _tokens_in(rest, self.tokenizer)]
            shared = max((at for at in ends if at <= shared), default=0)
        return start + shared

    def _speech(self, text: str, start: int, end: int, message: Message) -> str | None:
        """``text[start:end]`` up to where the turn ends, which may be right behind it; None if it does not end."""
        stop = self._end_of(message)
        at = text.find(stop, start, end)
        if at >= 0:
            return text[start : at + len(stop)]
        gap = len(text[end:]) - len(text[end:].lstrip())
        if text.startswith(stop, end + gap):
            return text[start : end + gap + len(stop)]
        return None

    def _without_end(self, speech: str) -> str:
        """`speech` without a token that closes it otherwise than a model does, as gpt-oss's earlier turns are closed.

        Taught to write it, the student would not know whether its turn is over.
        """
        bare = speech.rstrip()
        last = next((match for match in _tokens_in(bare, self.tokenizer) if match.end() == len(bare)), None)
        return speech if last is None else bare[: last.start()]

    def _end_of(self, message: Message) -> str:
        return self.ends.call if message.get("tool_calls") else self.ends.answer

    def _check_without_end(self, message: Message, index: int, place: str) -> None:
        stop = self._end_of(message)
        if stop in message["content"]:
            raise DataError(
                f"{place}: the text of assistant message {index} holds the end-of-turn token {stop!r}; "
                "expected text without the chat template's tokens, which are added here."
            )

    def _check_said(self, chat: Conversation, index: int, speech: str, before: str, place: str) -> None:
        """One check for all that templates drop: tool calls, reasoning, text beside calls."""
        opening = before[max(len(before) - len(self._opening(chat, index)), 0) :]
        lost = unsaid(chat.messages[index], speech, opening)
        if lost is not None:
            last = index == len(chat.messages) - 1
            raise DataError(
                f"{place}: the chat template leaves out {lost} of assistant message {index}, so it would not be "
                f"learnt. {LOST if last else ADVICE}"
            )

    def _start_of_turn(self, chat: Conversation, index: int, whole: str, place: str) -> int:
        prompt = self._render(chat, index, place, generation_prompt=True).text
        if whole.startswith(prompt):
            return len(prompt)
        at = agreement(whole, prompt)
        around = slice(max(at - 20, 0), at + 30)
        raise DataError(
            f"{place}: the chat template writes what precedes message {index} as {prompt[around]!r} when the model is "
            f"to answer, but as {whole[around]!r} in the whole conversation (from character {around.start}), so the "
            f"model would be trained on a prompt that it never sees. {ADVICE}"
        )

    def _end_of_turn(self, chat: Conversation, index: int, whole: str, start: int, place: str) -> int:
        last = index == len(chat.messages) - 1
        through = whole if last else self._render(chat, index + 1, place).text
        shared = whole[: agreement(whole, through)]
        # A template may close the whole conversation with one more token (Phi-3's does): the first one ends the turn.
        stop = self._end_of(chat.messages[index])
        at = shared.find(stop, start)
        if at < 0:
            raise DataError(
                f"{place}: the chat template does not close assistant message {index} with {stop!r}, or rewrites "
                f"the message when later ones follow; it writes {whole[start:][:50]!r}. {ADVICE}"
            )
        return at + len(stop)

    def _render(self, chat: Conversation, count: int, place: str, *, generation_prompt: bool = False) -> Rendered:
        """The first `count` messages of `chat` as the template writes them."""
        messages = chat.messages[:count]
        try:
            return render(
                self.forms.handed(messages),
                self.tokenizer,
                template=self.template,
                tools=_tools(chat),
                generation_prompt=generation_prompt,
                variables=chat.variables,
            )
        except TemplateRefusal as error:
            roles = ", ".join(message["role"] for message in messages)
            raise DataError(
                f"{place}: the chat template refuses the roles {roles} ({error}). "
                "Reorder or merge the messages to what the model was trained on."
            ) from error


def chat_format(tokenizer: "PreTrainedTokenizerBase") -> ChatFormat:
    """How `tokenizer` writes conversations, found by rendering short ones.

    Raises:
        ModelError: when there is no chat template, it fails, or it writes no added token after the assistant's words.
    """
    if tokenizer.chat_template is None:
        raise ModelError(
            f"{name_of(tokenizer)} has no chat template, so conversations cannot be written as text. Use the tokenizer "
            "of an instruction-tuned model, set its chat_template, or give string columns 'prompt' and 'completion'."
        )
    marked = has_marks(_source(tokenizer))
    variant = None if marked else training_template(tokenizer)
    if variant is None:
        return _format(tokenizer, None, None)
    in_training = _format(tokenizer, variant, None)
    try:
        return _format(tokenizer, None, in_training)
    except ModelError:  # one that does not close the last turn, as GLM's
        return in_training


def _format(tokenizer: "PreTrainedTokenizerBase", template: str | None, in_training: ChatFormat | None) -> ChatFormat:
    forms = message_forms(tokenizer, template)
    arguments = forms.arguments[0] if forms.arguments else "object"

    def between(messages: list[Message], before: str, after: str | None = None, **prompt: bool) -> str | None:
        """What is written between two texts, or after the first."""
        text = written(messages, tokenizer, template, forms, **prompt)
        if text is None or before not in text:
            return None
        rest = text.rpartition(before)[2]
        return rest if after is None else rest.partition(after)[0]

    tail = between([ASKED, ANSWERED], ANSWER)
    if tail is None:
        raise _refusal(tokenizer, template, forms)
    answer = _end(tokenizer, tail, between([ASKED, ANSWERED, {**ASKED, "content": RESULT}], ANSWER, RESULT))
    if answer is None:
        raise ModelError(
            f"{name_of(tokenizer)}: its chat template closes an assistant turn with {tail!r}, which holds no added "
            "token; a student trained on it would never learn to stop. Let the template write {{ eos_token }} after "
            "the content."
        )
    call = called(arguments)
    tail = between([ASKED, call], VALUE) if forms.arguments else None
    end_of_call = None if tail is None else _end(tokenizer, tail, between([ASKED, call, FOUND], VALUE, RESULT))
    opening = between([ASKED], QUESTION, generation_prompt=True) or ""
    after_tool = between([ASKED, call, FOUND], RESULT, generation_prompt=True)
    return ChatFormat(
        tokenizer=tokenizer,
        template=template,
        ends=Ends(answer, end_of_call or answer),
        openings={"user": opening} | ({} if after_tool is None else {"tool": after_tool}),
        forms=forms,
        in_training=in_training,
    )


def _refusal(tokenizer: "PreTrainedTokenizerBase", template: str | None, forms: MessageForms) -> ModelError:
    """Why the template cannot write a question and an answer."""
    name = name_of(tokenizer)
    try:
        text = render(forms.handed([ASKED, ANSWERED]), tokenizer, template=template).text
    except TemplateRefusal as error:
        return ModelError(f"{name}: its chat template refuses a question and an answer ({error}).")
    return ModelError(
        f"{name}: its chat template does not write what the assistant answers; of a question and the answer {ANSWER!r} "
        f"it makes {text[:100]!r}."
    )


def _end(tokenizer: "PreTrainedTokenizerBase", alone: str, followed: str | None) -> str | None:
    """The token that ends a turn.

    Args:
        tokenizer: whose added tokens count.
        alone: what a template writes after the last words of a turn at the end of a conversation.
        followed: what it writes there when another message follows; None if it refuses that.

    Returns:
        Of the tokens that are written in both cases, the tokenizer's end of text if it is among them, else the last:
        what goes before closes a part of the turn (Cohere's ``<|END_RESPONSE|>``), what comes after it closes the
        conversation (Phi's ``<|endoftext|>``), or opens the next turn.
    """
    closing = alone if followed is None else alone[: agreement(alone, followed)]
    for text in (closing, alone):
        found = [match.group() for match in _tokens_in(text, tokenizer)]
        if found:
            eos = tokenizer.eos_token
            return eos if isinstance(eos, str) and eos in found else found[-1]
    return None


def _tokens_in(text: str, tokenizer: "PreTrainedTokenizerBase") -> Iterator[re.Match[str]]:
    """The added tokens in `text`; those of white space only do not count."""
    names = [token.content for token in tokenizer.added_tokens_decoder.values() if token.content in text]
    names = sorted((name for name in names if name.strip()), key=len, reverse=True)
    return re.finditer("|".join(map(re.escape, names)), text) if names else iter(())


def _merged(marks: Sequence[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """`marks`, joined where they touch if there are more than `count`: a turn may be marked piece by piece."""
    if len(marks) <= count:
        return list(marks)
    merged: list[tuple[int, int]] = []
    for start, end in marks:
        if merged and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((start, end))
    return merged


def _learnt(chat: Conversation) -> Iterator[tuple[int, Message]]:
    """The messages to be learnt, with their places."""
    for index, message in enumerate(chat.messages):
        if message["role"] == "assistant" and index >= chat.learn_from:
            yield index, message


def _tools(chat: Conversation) -> list[dict[str, Any]] | None:
    return None if chat.tools is None else list(chat.tools)


def _source(tokenizer: "PreTrainedTokenizerBase", chat: Conversation | None = None) -> str:
    """The text of the tokenizer's own template, of which there may be one for rows with tools."""
    return tokenizer.get_chat_template(tools=None if chat is None else _tools(chat))


def name_of(tokenizer: "PreTrainedTokenizerBase") -> str:
    """What to call `tokenizer` in messages."""
    return f"tokenizer {tokenizer.name_or_path or type(tokenizer).__name__}"
