"""Token ids as text for a human: what is learnt of a row, before a long run, and what each single token says."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from bridgegarden.data.encode import IGNORED, TokenisedRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPEN, CLOSE = "«", "»"
INVISIBLE = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Unicode categories that a terminal would act on or not show."""
UNFINISHED = "\ufffd"
"""What decoding puts where bytes do not (yet) make a character."""
OUTSIDE = "(outside)"
"""The text of what lies beyond the shared vocabulary."""
CONTEXT = 4
"""Tokens before a text that may have a say in how its first one is decoded."""


class Span(NamedTuple):
    """Consecutive tokens that are all learnt or all not."""

    text: str
    """As the tokenizer decodes it, special tokens included, nothing escaped."""
    supervised: bool
    tokens: int


def audit_spans(row: TokenisedRow, tokenizer: "PreTrainedTokenizerBase") -> list[Span]:
    """`row` cut where supervision begins and ends. Its first token is never learnt: nothing precedes it."""
    learnt = [label != IGNORED for label in row.labels]
    learnt[:1] = [False] * len(learnt[:1])
    spans: list[Span] = []
    start, before = 0, ""
    for supervised, group in groupby(learnt):
        end = start + len(list(group))
        # As a difference, since SentencePiece drops the first space of whatever it decodes.
        through = _decode(row.input_ids[:end], tokenizer)
        text = through[len(before) :] if through.startswith(before) else _decode(row.input_ids[start:end], tokenizer)
        spans.append(Span(text, supervised, end - start))
        start, before = end, through
    return spans


def audit_text(row: TokenisedRow, tokenizer: "PreTrainedTokenizerBase") -> str:
    """`row` as plain text, what is learnt between « and », after a line with the counts.

    Line breaks are shown as ``\\n`` and broken there too; other control and invisible characters, terminal escapes
    and guillemets of the text itself are shown escaped, so that a row cannot disguise what it holds.
    """
    spans = audit_spans(row, tokenizer)
    shown = [f"{OPEN}{visible(span.text)}{CLOSE}" if span.supervised else visible(span.text) for span in spans]
    learnt = sum(span.tokens for span in spans if span.supervised)
    return f"{learnt} of {len(row.labels)} tokens supervised\n{''.join(shown)}"


def visible(text: str) -> str:
    """`text` with everything escaped that a terminal would act on, or not show."""
    return "".join(map(_visible_character, text))


def _visible_character(character: str) -> str:
    if character == "\n":
        return "\\n\n"
    if character in (OPEN, CLOSE) or unicodedata.category(character) in INVISIBLE:
        return character.encode("unicode_escape").decode()
    return character


def _decode(ids: Sequence[int], tokenizer: "PreTrainedTokenizerBase") -> str:
    text = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


@dataclass(frozen=True)
class Piece:
    """The text of one token."""

    text: str
    """What it says; empty for a token that is only the beginning of a character, which the last one completes."""
    gap: str = ""
    """Space before it that no token holds, as between the words of a word-level tokenizer."""


class TokenTexts:
    """Token ids to text, one by one."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", *, shared_size: int) -> None:
        """
        Args:
            tokenizer: whose ids they are.
            shared_size: ids from here on are outside the vocabulary, and all called so.
        """
        self._tokenizer, self._size = tokenizer, shared_size
        anchor = tokenizer("a", add_special_tokens=False)["input_ids"]
        assert isinstance(anchor, list)
        self._anchor = tuple(anchor[-1:])
        self._special = frozenset(tokenizer.all_special_ids)
        self._alone = lru_cache(maxsize=None)(self._piece_alone)

    def text(self, ids: Sequence[int]) -> str:
        """The text of several tokens, special ones included."""
        known = self._decode([index for index in ids if index < self._size])
        return known + OUTSIDE * any(index >= self._size for index in ids)

    def token(self, index: int) -> Piece:
        """A token in the middle of a text."""
        return self._alone(index)

    def is_special(self, index: int) -> bool:
        """Whether it is no text but a sign, such as the end of one."""
        return index in self._special

    def pieces(self, before: Sequence[int], ids: Sequence[int]) -> list[Piece]:
        """Each of `ids`, which follow `before`; joined with their gaps they are the text.

        Bytes of one character may be spread over tokens: only a window is decoded at a time, which grows until it ends
        with a whole character.
        """
        context = [index for index in before[-CONTEXT:] if index < self._size]
        known = [index for index in ids if index < self._size]
        everything, start, read = [*context, *known], 0, len(context)
        found: list[Piece] = []
        for end in range(len(context) + 1, len(everything) + 1):
            old, new = self._decode(everything[start:read]), self._decode(everything[start:end])
            if new.endswith(UNFINISHED) and end < len(everything):
                found.append(Piece(""))
                continue
            found.append(self._piece(new.removeprefix(old), everything[end - 1]))
            start, read = read, end
        return [*found, *[Piece(OUTSIDE)] * (len(ids) - len(known))]

    def _piece_alone(self, index: int) -> Piece:
        if index >= self._size:
            return Piece(OUTSIDE)
        before = self._decode(self._anchor)
        after = self._decode((*self._anchor, index))
        return self._piece(after.removeprefix(before) if after.startswith(before) else self._decode([index]), index)

    def _piece(self, text: str, index: int) -> Piece:
        """`text`, whose first space is the token's own only if the vocabulary has it so."""
        raw = self._tokenizer.convert_ids_to_tokens(index)
        if text.startswith(" ") and isinstance(raw, str) and raw.strip() == text[1:]:
            return Piece(text[1:], " ") if raw[:1] != " " else Piece(text)
        return Piece(text)

    def _decode(self, ids: Sequence[int]) -> str:
        return _decode(ids, self._tokenizer)
