"""One row of data, of any shape, to token ids and labels: the way of every row, whatever it is kept in."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from bridgegarden.data.chat import Conversation, conversation
from bridgegarden.data.columns import Columns
from bridgegarden.data.encode import IGNORED, Keep, RowTokeniser, TokenisedRow, vocabulary_size
from bridgegarden.data.template import ChatFormat
from bridgegarden.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

MASKS = ("completion_mask", "assistant_masks")
"""Columns of ones where a token that was made elsewhere is to be learnt, as TRL calls them."""

FINISH_REASON, CUT_OFF = "finish_reason", "length"
"""Column and value by which a row says that its answer was cut off, as OpenAI's servers say it and ``generate`` keeps
it."""


@dataclass(frozen=True, kw_only=True)
class RowRules:
    """What is read of a row, what of it is learnt, and how much of it is kept."""

    columns: Columns = field(default_factory=Columns)
    """Which columns are read."""
    completion_only: bool | None = None
    """False learns every token, prompts too. None and True learn answers alone: completions, and in conversations every
    assistant turn; True refuses rows that have no answer, of which None learns every token."""
    assistant_only: bool = False
    """Refuse rows that are no conversations. With `completion_only` false, earlier assistant turns are learnt too and
    still nothing that others say."""
    max_length: int | None = None
    """Tokens that a row is cut to, >= 2; None cuts none."""
    keep: Keep = "start"
    """Which part of a longer row stays."""
    formatting: Callable[[dict[str, Any]], str] | None = None
    """Makes a text of a row, all of which is learnt, in place of its columns."""
    ends_with: str | None = None
    """The end token that was asked for; conversations whose chat template closes a turn with another are refused."""
    skip_bad: bool = False
    """Leave out rows that cannot be used, and say which, instead of stopping at the first."""

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 2:
            raise ConfigError(
                f"max_length must be at least 2 (a token to read and one to learn), got {self.max_length}."
            )

    @property
    def learns_everything(self) -> bool:
        """Whether what others than the assistant say is learnt."""
        return self.completion_only is False and not self.assistant_only


class RowReader:
    """Reads rows by rules; what has to be found out about the tokenizer is found out once."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", rules: RowRules, name: str) -> None:
        """
        Args:
            tokenizer: the student's, which must also be the teacher's.
            rules: how rows are read.
            name: what to call the data in messages: a split, a file.
        """
        self.tokenizer, self.rules, self.name = tokenizer, rules, name
        self._told_of_everything, self._cut_off = False, 0
        self._format: ChatFormat | None = None

    def read(self, row: Mapping[str, Any], place: str) -> TokenisedRow:
        """`row` as ids and labels, not yet cut; of one that is far longer than what is kept, the beginning.

        Raises:
            DataError: it cannot be used; begins with `place`.
            ModelError: as in :func:`bridgegarden.data.encode.tokenise_row`.
        """
        rules = self.rules
        if self._is_tokenised(row):
            if rules.formatting is not None:
                raise DataError(
                    f"{place}: has 'input_ids', so there is nothing for formatting_func to format; leave one of them "
                    "out."
                )
            return self._given(row, place)
        if rules.formatting is not None:
            text = rules.formatting(dict(row))
            if not isinstance(text, str):
                raise DataError(f"{place}: formatting_func returned {type(text).__name__}; expected a string.")
            chat = conversation({"text": text}, Columns(text="text"), place=place)
        else:
            chat = conversation(row, rules.columns, place=place)
        made = self._new(chat, place)
        if row.get(FINISH_REASON) != CUT_OFF:
            return made
        self._cut_off += 1
        return self._tokeniser.unended(made)

    def report(self) -> None:
        """Say what was noticed of the rows so far."""
        if self._cut_off:
            logger.warning(
                "%s: answers that were cut off when they were written (%s: %s): %d; they are learnt without an end.",
                *(self.name, FINISH_REASON, CUT_OFF, self._cut_off),
            )
        if self._format is None:
            return
        for opening, count in self._format.opened_otherwise.items():
            logger.warning(
                "%s: when it is to answer, the model is made to begin with %r, but %d answers do not begin so. It is "
                "trained on them as they are.",
                self.name,
                opening,
                count,
            )

    def _is_tokenised(self, row: Mapping[str, Any]) -> bool:
        named = self.rules.columns.named
        return row.get("input_ids") is not None and not (named and all(name in row for name in named))

    def _new(self, chat: Conversation, place: str) -> TokenisedRow:
        rules = self.rules
        if rules.assistant_only and chat.form in ("text", "document"):
            raise DataError(
                f"{place}: is plain text, of which training.assistant_only_loss cannot tell what the assistant says; "
                "give messages, or leave it out."
            )
        if rules.completion_only and chat.form == "document":
            raise DataError(
                f"{place}: is text with no completion, which training.completion_only_loss asks for; give prompt and "
                "completion, or leave it out."
            )
        if rules.assistant_only and rules.completion_only is False:
            chat = replace(chat, learn_from=0)
        if chat.form in ("chat", "pair"):
            self._check_end()
        made = self._tokeniser.row(chat, place, room=rules.max_length if rules.keep == "start" else None)
        return replace(made, labels=list(made.input_ids)) if rules.learns_everything else made

    def _check_end(self) -> None:
        asked, found = self.rules.ends_with, self._tokeniser.format
        if asked is not None and found is not None and found.stop != asked:
            raise ConfigError(
                f"training.eos_token: is {asked!r}, but the chat template closes a turn with {found.stop!r}, so no row "
                f"would end with the token that the saved tokenizer names. Set it to {found.stop!r}, or leave it out."
            )

    @cached_property
    def _tokeniser(self) -> RowTokeniser:
        tokeniser = RowTokeniser.of(self.tokenizer)
        if tokeniser.format is not None and tokeniser.format.prints_the_date:
            logger.warning(
                "%s: the chat template prints today's date, so the token ids, and what is cached for them, hold for a "
                "day.",
                self.name,
            )
        self._format = tokeniser.format
        return tokeniser

    @cached_property
    def _vocabulary(self) -> int:
        return vocabulary_size(self.tokenizer)

    def _given(self, row: Mapping[str, Any], place: str) -> TokenisedRow:
        """A row that was tokenised elsewhere, checked for mistakes that would train on something else in silence."""
        ids = _integers(row["input_ids"], "input_ids", place)
        outside = next((index for index in ids if not 0 <= index < self._vocabulary), None)
        if outside is not None:
            last = self._vocabulary - 1
            raise DataError(f"{place}: 'input_ids' holds {outside}; expected ids of the tokenizer, from 0 to {last}.")
        if row.get("labels") is not None:
            labels = _given_labels(row["labels"], ids, place)
        else:
            labels = self._masked_labels(row, ids, place)
        if _is_padded_or_packed(row):
            raise DataError(
                f"{place}: is padded or packed; expected one unpadded text a row. Batches are padded, and with "
                "training.packing packed, later."
            )
        return TokenisedRow(input_ids=ids, labels=labels)

    def _masked_labels(self, row: Mapping[str, Any], ids: list[int], place: str) -> list[int]:
        masks = {name: row[name] for name in MASKS if row.get(name) is not None}
        for name, mask in masks.items():
            if not isinstance(mask, list) or len(mask) != len(ids) or not all(bit in (0, 1) for bit in mask):
                raise DataError(f"{place}: {name!r} must hold a 0 or 1 for each of the {len(ids)} 'input_ids'.")
        bare = not masks
        if self.rules.completion_only is False:
            masks.pop("completion_mask", None)
        for wanted, needed in (
            (self.rules.completion_only, "completion_mask"),
            (self.rules.assistant_only, "assistant_masks"),
        ):
            if wanted and needed not in masks:
                raise DataError(
                    f"{place}: has neither 'labels' nor {needed!r}, so what training.{needed.split('_')[0]}_only_loss "
                    "asks for cannot be told; give one of them."
                )
        if bare:
            self._tell_of_everything()
        return [index if all(bits) else IGNORED for index, *bits in zip(ids, *masks.values(), strict=True)]

    def _tell_of_everything(self) -> None:
        if not self._told_of_everything:
            self._told_of_everything = True
            names = ", ".join(MASKS)
            logger.warning(
                "%s: has 'input_ids' but neither 'labels' nor masks (%s): every token is learnt.", self.name, names
            )


def _given_labels(given: object, ids: list[int], place: str) -> list[int]:
    labels = _integers(given, "labels", place)
    if len(ids) != len(labels):
        raise DataError(f"{place}: {len(ids)} 'input_ids' but {len(labels)} 'labels'; expected as many.")
    for position, (index, label) in enumerate(zip(ids, labels, strict=True)):
        if label not in (IGNORED, index):
            raise DataError(
                f"{place}: the label at position {position} is {label}, the id {index}; expected the id itself or "
                "-100: labels are not shifted, the model does that."
            )
    return labels


def _is_padded_or_packed(row: Mapping[str, Any]) -> bool:
    mask, positions, lengths = (row.get(name) for name in ("attention_mask", "position_ids", "seq_lengths"))
    return (
        (isinstance(mask, list) and 0 in mask)
        or (isinstance(positions, list) and positions != list(range(len(positions))))
        or (isinstance(lengths, list) and len(lengths) > 1)
    )


def _integers(value: object, key: str, place: str) -> list[int]:
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        raise DataError(f"{place}: {key!r} is {type(value).__name__} {str(value)[:60]}; expected a list of integers.")
    return value
