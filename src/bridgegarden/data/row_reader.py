"""One row of any shape to token ids and labels, by rules."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from bridgegarden.data.chat import Columns, Conversation, conversation
from bridgegarden.data.encode import IGNORED, Keep, RowTokeniser, TokenisedRow, vocabulary_size
from bridgegarden.data.teacher_prompt import (
    TEACHER_IDS,
    TEACHER_LABELS,
    TEACHER_NUMBER,
    OtherTokens,
    TeacherByRow,
    TeacherPrompt,
    as_asked,
)
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
    teacher_prompt: TeacherPrompt | None = None
    """What the teacher reads in place of the row's own prompt: ``teacher_ids`` and ``teacher_labels`` are made, too."""
    teacher_by: TeacherByRow | None = None
    """Which of several teachers reads a row: ``teacher_number`` is made, too; None where there is one."""
    teacher_tokens: OtherTokens | None = None
    """The teacher's own tokens where they are not the student's: ``teacher_ids`` and ``teacher_labels`` are in them."""

    def __post_init__(self) -> None:
        if self.teacher_tokens is not None:
            self._check_translated()
        if self.teacher_prompt is not None and (self.learns_everything or self.formatting is not None):
            raise ConfigError(
                "teacher.prompt: the teacher reads another prompt, so answers alone can be learnt; leave out "
                "completion_only_loss: false and formatting_func."
            )
        if self.max_length is not None and self.max_length < 2:
            raise ConfigError(
                f"max_length must be at least 2 (a token to read and one to learn), got {self.max_length}."
            )

    def _check_translated(self) -> None:
        if self.learns_everything or self.formatting is not None:
            raise ConfigError(
                "the teacher has another tokenizer and its own chat template, so answers alone can be learnt: leave "
                "out training.completion_only_loss: false and formatting_func."
            )
        if self.keep == "end":
            raise ConfigError(
                "training.truncation_mode: 'keep_end' cuts a row at one place in the student's tokens and at another "
                "in those of a teacher with another tokenizer. Leave it out."
            )
        if self.teacher_by is not None:
            raise ConfigError(
                "teacher.by: several teachers need the student's tokenizer, and one of them has another. Train from "
                "one teacher, or from teachers with the student's tokenizer."
            )

    @property
    def learns_everything(self) -> bool:
        """Whether what others than the assistant say is learnt."""
        return self.completion_only is False and not self.assistant_only


USUAL_RULES = RowRules()
"""Answers alone are learnt, and nothing is cut."""


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
        self._told_of_everything, self._cut_off, self._bare = False, 0, 0
        self._format: ChatFormat | None = None

    def read(self, row: Mapping[str, Any], place: str) -> TokenisedRow:
        """`row` as ids and labels, not yet cut; of one that is far longer than what is kept, the beginning.

        Raises:
            DataError: it cannot be used; begins with `place`.
            ModelError: as in :func:`bridgegarden.data.encode.tokenise_row`.
        """
        made, by = self._read(row, place), self.rules.teacher_by
        if by is not None:
            return replace(made, teacher_number=by.number(row, place))
        number = row.get(TEACHER_NUMBER) if self._is_tokenised(row) else None
        if number is not None and (type(number) is not int or number < 0):
            raise DataError(f"{place}: {TEACHER_NUMBER!r} is {str(number)[:60]}; expected a number from 0.")
        return replace(made, teacher_number=number)

    def _read(self, row: Mapping[str, Any], place: str) -> TokenisedRow:
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
        if rules.assistant_only and rules.completion_only is False:
            chat = replace(chat, learn_from=0)
        made = self._new(chat, place)
        if row.get(FINISH_REASON) == CUT_OFF:
            self._cut_off += 1
            made = self._tokeniser.unended(made)
        if rules.teacher_prompt is None and rules.teacher_tokens is None:
            return made
        told = chat if rules.teacher_prompt is None else rules.teacher_prompt.apply(chat, row, place)
        if rules.teacher_tokens is not None:
            return self._translated(made, told, rules.teacher_tokens, row.get(FINISH_REASON) == CUT_OFF, place)
        asked = self._asker.row(told, place)
        return replace(made, teacher=as_asked(made, asked, place))

    def _translated(
        self, made: TokenisedRow, told: Conversation, tokens: OtherTokens, cut_off: bool, place: str
    ) -> TokenisedRow:
        """`made`, and beside it the conversation `told` in the teacher's tokens and chat template."""
        if told.form == "document":
            raise DataError(
                f"{place}: is text with no prompt, and a teacher with another tokenizer is asked about answers alone. "
                "Give prompt and completion, or messages."
            )
        asked = self._asker.row(told, place, room=self.rules.max_length)
        if cut_off:
            asked = self._asker.unended(asked)
        both = replace(made, teacher=asked, translated=True)
        tokens.check(both, place)
        return both

    def report(self) -> None:
        """Say what was noticed of the rows so far."""
        if self._cut_off:
            logger.warning(
                "%s: answers that were cut off when they were written (%s: %s): %d; they are learnt without an end.",
                *(self.name, FINISH_REASON, CUT_OFF, self._cut_off),
            )
        if self._bare:
            logger.warning(
                "%s: texts that are taken as they stand, without the chat template that the tokenizer has: %d. The "
                "model learns to continue them, and not to answer in a chat. For turns give messages, or name the "
                "columns (data.prompt: prompt, data.completion: completion).",
                *(self.name, self._bare),
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
        if chat.form in ("chat", "pair"):
            self._check_end()
        self._bare += self._is_bare(chat)
        made = self._tokeniser.row(chat, place, room=rules.max_length if rules.keep == "start" else None)
        return replace(made, labels=list(made.input_ids)) if rules.learns_everything else made

    def _is_bare(self, chat: Conversation) -> bool:
        """Whether a prompt stands outside of the chat template that there is; some hold the template's text already."""
        written_by = self._tokeniser.format
        return (
            chat.form == "text"
            and written_by is not None
            and (written_by.openings["user"].strip() not in chat.messages[0]["content"])
        )

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
        self._warn_of_the_date(tokeniser, "the chat template")
        self._format = tokeniser.format
        return tokeniser

    def _warn_of_the_date(self, tokeniser: RowTokeniser, what: str) -> None:
        if tokeniser.format is not None and tokeniser.format.prints_the_date:
            logger.warning(
                "%s: %s prints today's date, so the token ids, and what is cached for them, hold for a day.",
                *(self.name, what),
            )

    @cached_property
    def _asker(self) -> RowTokeniser:
        """What writes the teacher's prompts: apart, because what is noticed of the student's rows is counted."""
        tokens = self.rules.teacher_tokens
        if tokens is None:
            return RowTokeniser.of(self.tokenizer)
        tokeniser = RowTokeniser.of(tokens.tokenizer)
        self._warn_of_the_date(tokeniser, "the teacher's chat template")
        return tokeniser

    @cached_property
    def _vocabulary(self) -> int:
        return vocabulary_size(self.tokenizer)

    def _given_ids(self, row: Mapping[str, Any], key: str, place: str, size: int | None = None) -> list[int]:
        ids, size = _integers(row[key], key, place), size or self._vocabulary
        outside = next((index for index in ids if not 0 <= index < size), None)
        if outside is not None:
            raise DataError(f"{place}: {key!r} holds {outside}; expected ids of the tokenizer, from 0 to {size - 1}.")
        return ids

    def _given(self, row: Mapping[str, Any], place: str) -> TokenisedRow:
        """A row that was tokenised elsewhere, checked for mistakes that would train on something else in silence."""
        ids = self._given_ids(row, "input_ids", place)
        if row.get("labels") is not None:
            labels = _given_labels(row["labels"], ids, place)
        else:
            labels = self._masked_labels(row, ids, place)
        if _is_padded_or_packed(row):
            raise DataError(
                f"{place}: is padded or packed; expected one unpadded text a row. Batches are padded, and with "
                "training.packing packed, later."
            )
        made = TokenisedRow(input_ids=ids, labels=labels)
        if row.get(TEACHER_IDS) is not None:
            asked, translated = self._given_teacher(row, made, place), self.rules.teacher_tokens is not None
            return replace(made, teacher=asked, translated=translated)
        if self.rules.teacher_prompt is not None:
            raise DataError(
                f"{place}: has 'input_ids', so there is no prompt for teacher.prompt to change. Give the text, or the "
                f"teacher's ids as {TEACHER_IDS!r} and {TEACHER_LABELS!r}."
            )
        if self.rules.teacher_tokens is not None:
            raise DataError(
                f"{place}: has 'input_ids' of the student's tokenizer, and the teacher has another one. Give the text, "
                f"or the teacher's own ids as {TEACHER_IDS!r} and {TEACHER_LABELS!r}."
            )
        return made

    def _given_teacher(self, row: Mapping[str, Any], made: TokenisedRow, place: str) -> TokenisedRow:
        """What the teacher reads of a row that was tokenised elsewhere: another prompt, the same tokens to learn."""
        tokens = self.rules.teacher_tokens
        ids = self._given_ids(row, TEACHER_IDS, place, None if tokens is None else vocabulary_size(tokens.tokenizer))
        if row.get(TEACHER_LABELS) is None:
            raise DataError(f"{place}: has {TEACHER_IDS!r} but no {TEACHER_LABELS!r}; give both.")
        labels = _given_labels(row[TEACHER_LABELS], ids, place, TEACHER_IDS, TEACHER_LABELS)
        theirs = TokenisedRow(input_ids=ids, labels=labels)
        if tokens is not None:
            # As long as rows may be, either may have been cut to that: the one then goes on where the other ends.
            size = max(len(made.input_ids), len(ids))
            cut = self.rules.max_length is not None and size >= self.rules.max_length
            tokens.check(replace(made, teacher=theirs, translated=True, goes_on=cut), place)
            return theirs
        if theirs.learnt != made.learnt:
            raise DataError(
                f"{place}: {TEACHER_LABELS!r} has {theirs.supervised} tokens to learn and 'labels' {made.supervised}, "
                "or other ones; expected the same tokens in the same order, since the teacher judges them one by one."
            )
        return theirs

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


def _given_labels(
    given: object, ids: list[int], place: str, ids_key: str = "input_ids", key: str = "labels"
) -> list[int]:
    labels = _integers(given, key, place)
    if len(ids) != len(labels):
        raise DataError(f"{place}: {len(ids)} {ids_key!r} but {len(labels)} {key!r}; expected as many.")
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
