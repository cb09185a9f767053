"""What is learnt of a row, for a human to read before a long run."""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple, Protocol

from bridgegarden.data.encode import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPEN, CLOSE = "«", "»"
INVISIBLE = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Unicode categories that a terminal would act on or not show."""


class Tokens(Protocol):
    """A row with ids and labels, such as :class:`bridgegarden.data.TokenisedRow`."""

    @property
    def input_ids(self) -> Sequence[int]: ...
    @property
    def labels(self) -> Sequence[int]: ...


class Span(NamedTuple):
    """Consecutive tokens that are all learnt or all not."""

    text: str
    """As the tokenizer decodes it, special tokens included, nothing escaped."""
    supervised: bool
    tokens: int


@dataclass(frozen=True, kw_only=True)
class MaskAudit:
    """Which text of a row is learnt."""

    spans: tuple[Span, ...]
    tokens: int
    """In the row."""
    supervised: int
    """Of them, how many are learnt. The first token of a row never is, whatever its label: nothing precedes it."""

    @property
    def summary(self) -> str:
        """The counts, as one line."""
        return f"{self.supervised} of {self.tokens} tokens supervised"


def audit_spans(row: Tokens, tokenizer: "PreTrainedTokenizerBase") -> MaskAudit:
    """Cut `row` where supervision begins and ends, and decode the pieces."""
    learnt = [label != IGNORED for label in row.labels]
    learnt[:1] = [False] * len(learnt[:1])
    spans = tuple(_spans(list(row.input_ids), learnt, tokenizer))
    return MaskAudit(spans=spans, tokens=len(learnt), supervised=sum(learnt))


def audit_text(row: Tokens, tokenizer: "PreTrainedTokenizerBase") -> str:
    """`row` as plain text, what is learnt between « and », after a line with the counts.

    Line breaks are shown as ``\\n`` and broken there too; other control and invisible characters, terminal escapes
    and guillemets of the text itself are shown escaped, so that a row cannot disguise what it holds.
    """
    audit = audit_spans(row, tokenizer)
    shown = [f"{OPEN}{visible(span.text)}{CLOSE}" if span.supervised else visible(span.text) for span in audit.spans]
    return f"{audit.summary}\n{''.join(shown)}"


def visible(text: str) -> str:
    """`text` with everything escaped that a terminal would act on, or not show."""
    return "".join(map(_visible_character, text))


def _visible_character(character: str) -> str:
    if character == "\n":
        return "\\n\n"
    if character in (OPEN, CLOSE) or unicodedata.category(character) in INVISIBLE:
        return character.encode("unicode_escape").decode()
    return character


def _spans(ids: list[int], learnt: list[bool], tokenizer: "PreTrainedTokenizerBase") -> Iterator[Span]:
    start, before = 0, ""
    for supervised, group in groupby(learnt):
        count = len(list(group))
        end = start + count
        # As a difference, since SentencePiece drops the first space of whatever it decodes.
        through = _decode(ids[:end], tokenizer)
        text = through[len(before) :] if through.startswith(before) else _decode(ids[start:end], tokenizer)
        yield Span(text, supervised, count)
        start, before = end, through


def _decode(ids: list[int], tokenizer: "PreTrainedTokenizerBase") -> str:
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text
