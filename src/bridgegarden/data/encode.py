"""One conversation to token ids and labels: what the student reads, and what it is to learn. Also fingerprints.

They are SHA-256 in hexadecimal, equal exactly when token ids would mean the same thing. None depends on paths, file
formats, or settings that do not change the ids.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from bridgegarden.data.chat import Conversation
from bridgegarden.data.template import ChatFormat, Segment, chat_format, name_of
from bridgegarden.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

IGNORED = -100
"""Label of a position that is not to be learnt; PyTorch's and Hugging Face's convention."""
ANCHORS = ("\n", "a")
"""Texts that seldom merge with what follows them; see `_ids_after`."""
SEAM = 64
"""How many characters before a seam may have a say in how the text after it is encoded."""
CHARACTERS, AT_LEAST, MARGIN = 12, 4104, 64
"""Of a text that will be cut so much is encoded: characters a token, characters at least (twelves, see `_beginning`),
tokens beyond the cut."""


Keep = Literal["start", "end"]
"""Which part of a row that is too long stays."""


@dataclass(frozen=True, kw_only=True)
class TokenisedRow:
    """One row as a causal language model is trained on it."""

    input_ids: list[int]
    labels: list[int]
    """As long as `input_ids` and not shifted: the id itself where it is to be learnt, -100 elsewhere."""
    goes_on: bool = False
    """Whether this is only the beginning of a row, which ends with tokens to learn."""
    teacher: "TokenisedRow | None" = None
    """The same tokens to learn behind another prompt, where the teacher reads one; None where it reads this."""
    teacher_number: int | None = None
    """Which of several teachers reads it, from 0; None where there is one for all rows."""
    translated: bool = False
    """Whether `teacher` is in the tokens of another vocabulary: the same text to learn in other tokens."""

    @property
    def learnt(self) -> list[int]:
        """The tokens that are learnt. The first token of a row never is: nothing comes before it."""
        return [label for label in self.labels[1:] if label != IGNORED]

    @property
    def supervised(self) -> int:
        """How many tokens are learnt."""
        return sum(label != IGNORED for label in self.labels[1:])

    def truncated(self, max_length: int | None, keep: Keep = "start") -> "TokenisedRow":
        """The first `max_length` tokens, or the last ones.

        What the teacher reads instead is not cut to a length: it keeps its whole prompt, and of the tokens to learn
        those that are left here. Only tokens of another vocabulary are cut for themselves, to the same number.
        """
        if self.translated and self.teacher is not None:
            plain = replace(self, teacher=None, translated=False).truncated(max_length, keep)
            return replace(plain, teacher=self.teacher.truncated(max_length, keep), translated=True)
        if max_length is None or len(self.input_ids) <= max_length:
            return self
        kept = slice(max_length) if keep == "start" else slice(-max_length, None)
        row = TokenisedRow(input_ids=self.input_ids[kept], labels=self.labels[kept], teacher_number=self.teacher_number)
        return row if self.teacher is None else replace(row, teacher=self.teacher.learning(row.supervised, keep))

    def learning(self, count: int, keep: Keep = "start") -> "TokenisedRow":
        """The row with its first `count` tokens to learn and nothing behind them; or whole, with its last `count`."""
        places = [at for at, label in enumerate(self.labels) if at and label != IGNORED]
        if keep == "start":
            end = places[count - 1] + 1 if count else 0
            return TokenisedRow(input_ids=self.input_ids[:end], labels=self.labels[:end])
        first = places[len(places) - count] if count else len(self.labels)
        labels = [IGNORED] * first + self.labels[first:]
        return TokenisedRow(input_ids=self.input_ids, labels=labels)


def vocabulary_size(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The largest token id and one: as many ids as a model must have for every token.

    Not the number of tokens: ids may have holes (tokens reserved for later, a padding token far up), and the token that
    ends a turn often comes after one.
    """
    return max(tokenizer.get_vocab().values()) + 1


def end_of_turn_ids(
    tokenizer: "PreTrainedTokenizerBase", generation_config: "GenerationConfig | None" = None
) -> tuple[int, ...]:
    """The ids at which generation stops, the one that training teaches first.

    Three places may name them and often disagree (a base model's ``eos_token`` is not what its chat template writes):
    the chat template, the model's generation settings and the tokenizer. All of them are meant here.

    Raises:
        ModelError: when none of them names one.
    """
    ids: list[int | None] = []
    if tokenizer.chat_template is not None:
        ids += chat_format(tokenizer).stop_ids
    configured = None if generation_config is None else generation_config.eos_token_id
    ids += configured if isinstance(configured, list | tuple) else [configured]
    ids.append(_eos_id(tokenizer))
    found = tuple(dict.fromkeys(index for index in ids if index is not None))
    if not found:
        raise ModelError(
            f"{name_of(tokenizer)} names no end-of-turn token: it has neither eos_token nor chat template, and the "
            "generation config has no eos_token_id. Set tokenizer.eos_token."
        )
    return found


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Of how `tokenizer` turns text into ids: vocabulary, merges, normaliser, added tokens, and its ends of text.

    Not of its chat template (:func:`chat_template_fingerprint`), nor of padding and truncation, which change while it
    is in use.

    Raises:
        ModelError: when it is not backed by the ``tokenizers`` library, and so cannot be read as a whole.
    """
    from transformers import PreTrainedTokenizerFast

    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(
            f"{name_of(tokenizer)} is not backed by the tokenizers library, so whether it agrees with another cannot "
            "be told. Use a model that has a tokenizer.json."
        )
    state: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    state = {key: value for key, value in state.items() if key not in ("padding", "truncation")}
    ends = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token}
    return _sha256([state, {name: None if token is None else str(token) for name, token in ends.items()}])


def chat_template_fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Of the chat template; the same for every tokenizer that has none."""
    return _sha256(tokenizer.chat_template)


def tokenise_row(chat: Conversation, tokenizer: "PreTrainedTokenizerBase", *, place: str = "row") -> TokenisedRow:
    """The ids of one conversation, and which of them are to be learnt.

    Only assistant turns are, each with its end-of-turn token, and all of a text with no prompt. The ids of a prompt are
    those that generation would see: a token never straddles the place where the assistant begins to speak.

    Raises:
        DataError: when the chat template or the text cannot be trained on; begins with `place`.
        ModelError: when the tokenizer has no chat template and needs one, or no end-of-turn token.
    """
    return RowTokeniser.of(tokenizer).row(chat, place)


@dataclass(frozen=True, kw_only=True)
class RowTokeniser:
    """A tokenizer with what was found out about its chat template, so that it is found out once."""

    tokenizer: "PreTrainedTokenizerBase"
    format: ChatFormat | None
    """None where there is no chat template."""

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase") -> "RowTokeniser":
        return cls(tokenizer=tokenizer, format=None if tokenizer.chat_template is None else chat_format(tokenizer))

    def row(self, chat: Conversation, place: str, *, room: int | None = None) -> TokenisedRow:
        """As :func:`tokenise_row`.

        Args:
            chat: the row.
            place: where it stands, for messages.
            room: tokens that are kept in the end. Of a row that is much longer only its beginning is made, more than
                `room` tokens, so that what is cut takes neither time nor memory; None makes all of it.
        """
        if chat.form == "document":
            return self._document_row(chat, place, room)
        if chat.form == "text" or (chat.form == "pair" and self.format is None):
            return self._text_row(chat, place, room)
        chat_writer = self.format or chat_format(self.tokenizer)  # the latter says why there is none
        self._check_not_rendered(chat, chat_writer, place)
        return chat_writer.write(chat, lambda segments: self._joined(segments, room), place=place)

    def _joined(self, segments: Iterator[Segment], room: int | None) -> TokenisedRow:
        ids: list[int] = []
        labels: list[int] = []
        before = ""
        for segment in segments:
            new = self._after(before, segment.text, None if room is None else room - len(ids))
            ids += new
            labels += new if segment.supervised else [IGNORED] * len(new)
            if room is not None and len(ids) > room:
                return TokenisedRow(input_ids=ids, labels=labels, goes_on=True)
            before = segment.text
        return TokenisedRow(input_ids=ids, labels=labels)

    def _after(self, before: str, text: str, room: int | None) -> list[int]:
        return _beginning(lambda part: _ids_after(before, part, self.tokenizer), text, room)

    def _prompt(self, text: str, room: int | None) -> list[int]:
        return _beginning(lambda part: _prompt_ids(part, self.tokenizer), text, room)

    def unended(self, row: TokenisedRow) -> TokenisedRow:
        """`row` without the token that ends its last answer, and what follows it, if one is learnt there.

        It is not in the mere beginning of a row, nor where a template's marks leave ends out.
        """
        ends = {_eos_id(self.tokenizer), *(() if self.format is None else self.format.stop_ids)}
        last = max((at for at, label in enumerate(row.labels) if label in ends), default=None)
        if row.goes_on or last is None:
            return row
        return TokenisedRow(input_ids=row.input_ids[:last], labels=row.labels[:last])

    def prompt(self, chat: Conversation, place: str) -> list[int]:
        """The ids after which the assistant speaks: those of :meth:`row` before what is learnt.

        Raises:
            DataError: when the chat template refuses the conversation; begins with `place`.
            ModelError: when the tokenizer has no chat template and needs one.
        """
        if chat.form == "text" or (chat.form == "pair" and self.format is None):
            return _prompt_ids(chat.messages[0]["content"], self.tokenizer)
        chat_writer = self.format or chat_format(self.tokenizer)
        return _encode(chat_writer.prompt(chat, place=place), self.tokenizer)

    def _check_not_rendered(self, chat: Conversation, chat_writer: ChatFormat, place: str) -> None:
        """A prompt in named columns gets the template's turns; one that has them already would get them twice."""
        opening = chat_writer.openings["user"].strip()
        if chat.form == "pair" and opening and chat.messages[chat.learn_from - 1]["content"].rstrip().endswith(opening):
            raise DataError(
                f"{place}: the prompt ends with {opening!r}, so a chat template has written it already, and it would "
                "be put into a user's turn once more. Call the columns 'prompt' and 'completion' and name no columns "
                "(data.prompt, data.completion): the texts are then taken as they stand."
            )

    def _text_row(self, chat: Conversation, place: str, room: int | None) -> TokenisedRow:
        prompt, completion = (message["content"] for message in chat.messages)
        eos, eos_id = self._end_of_text()
        completion = completion.removesuffix(eos)
        if not completion:
            raise DataError(f"{place}: the completion is only the token {eos!r}; expected the text to learn.")
        if eos in completion:
            raise DataError(f"{place}: the completion holds the end-of-text token {eos!r} before its end.")
        before = self._prompt(prompt, room)
        after = [*self._after(prompt, completion, None if room is None else max(room - len(before), 0)), eos_id]
        return TokenisedRow(input_ids=before + after, labels=[IGNORED] * len(before) + after)

    def _document_row(self, chat: Conversation, place: str, room: int | None) -> TokenisedRow:
        """Text as TRL takes it: with what the tokenizer puts before, and one end-of-text token after."""
        text: str = chat.messages[0]["content"]
        eos, eos_id = self._end_of_text()
        if not text.removesuffix(eos):
            raise DataError(f"{place}: the text is only the token {eos!r}; expected the text to learn.")
        ids = [*self._prompt(text.removesuffix(eos), room), eos_id]
        return TokenisedRow(input_ids=ids, labels=list(ids))

    def _end_of_text(self) -> tuple[str, int]:
        eos_id, eos = _eos_id(self.tokenizer), self.tokenizer.eos_token
        if eos_id is None or not isinstance(eos, str):
            raise ModelError(
                f"{name_of(self.tokenizer)} has no eos_token, so a student trained on plain text would never learn to "
                "stop. Set tokenizer.eos_token."
            )
        return eos, eos_id


def _beginning(encode: Callable[[str], list[int]], text: str, room: int | None) -> list[int]:
    """``encode(text)``; of a text that has far more than `room` tokens, the first of them, one more than `room`.

    A part of the text does, if the tokens in question are those of a part twice as long, too: then they do not depend
    on where it was cut, as those of a number do whose digits are grouped from its end. One cut is at a multiple of
    twelve characters and the other one behind such, so that groups of two, three or four never agree by chance.
    """
    if room is None:
        return encode(text)
    size = CHARACTERS * room + AT_LEAST
    while 2 * size + 1 < len(text):
        part = encode(text[:size])
        if len(part) > room + MARGIN and part[: room + 1] == encode(text[: 2 * size + 1])[: room + 1]:
            return part[: room + 1]
        size *= 4
    return encode(text)


def _encode(text: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    # verbose=False: a row longer than the model's window is truncated later, by the user's own setting.
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _prompt_ids(prompt: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """A plain prompt with the tokens that the tokenizer puts before text, but not those it puts after.

    One that was rendered by a chat template begins with them already.
    """
    ids: list[int] = tokenizer(prompt, verbose=False)["input_ids"]
    plain = _encode(prompt, tokenizer)
    surplus = len(ids) - len(plain)
    for lead in range(surplus + 1):
        if ids[lead : lead + len(plain)] == plain:
            return plain if plain[:lead] == ids[:lead] else ids[:lead] + plain
    return ids


def _ids_after(before: str, text: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The ids of `text` where it follows `before`, of which no token straddles the seam.

    Text encoded alone may differ from text within a text: SentencePiece puts a space before the first word. So it is
    encoded behind `before`, if the two do not merge, else behind something with which it does not, else alone.
    """
    for anchor in (before[-SEAM:], *ANCHORS) if before else ():
        head = _encode(anchor, tokenizer)
        both = _encode(anchor + text, tokenizer)
        # An unknown word swallows whatever is glued to it without a trace.
        if both[: len(head)] == head and not (head and head[-1] == tokenizer.unk_token_id):
            return both[len(head) :]
    return _encode(text, tokenizer)


def _eos_id(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    index = tokenizer.eos_token_id
    return index if isinstance(index, int) else None


def _sha256(value: object) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"), default=repr)
    return hashlib.sha256(text.encode()).hexdigest()
