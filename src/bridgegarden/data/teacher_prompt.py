"""What of a row is its teacher's: which of several reads it; and another prompt, which the student does not see.

A teacher that knows the solution, the rubric or a system message says more about an answer than one that does not; the
student learns to say as much from the bare prompt (context distillation; with the same model for both,
self-distillation). The answer is the same: its token ids are the student's, copied and never tokenised again, so that
the i-th supervised token of one sequence is the i-th of the other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from string import Formatter
from typing import TYPE_CHECKING, Any, Protocol

from bridgegarden.data.chat import Conversation, Message
from bridgegarden.data.encode import IGNORED, TokenisedRow
from bridgegarden.errors import ConfigError, DataError, unknown_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEACHER_IDS, TEACHER_LABELS = "teacher_ids", "teacher_labels"
"""Columns of tokenised rows: what the teacher reads, where it is not what the student reads, and its labels."""
TEACHER_NUMBER = "teacher_number"
"""Column of tokenised rows: which of several teachers reads the row, from 0; per token in packed rows."""


class OtherTokens(Protocol):
    """A teacher's tokenizer that is not the student's, with its own chat template."""

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The teacher's."""
        ...

    def check(self, row: TokenisedRow, place: str) -> None:
        """Make sure that both read the same text to learn in `row`, whose `teacher` is in the teacher's tokens.

        Raises:
            DataError: they do not; begins with `place`.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class TeacherByRow:
    """How a row says which of several teachers reads it."""

    column: str
    """Column whose text is the name of one."""
    names: tuple[str, ...]
    """Of the teachers, in the order of their numbers."""

    def number(self, row: Mapping[str, Any], place: str) -> int:
        """Which of them reads `row`.

        Args:
            row: as it was written.
            place: where it is, for messages.

        Raises:
            DataError: it names none of them.
        """
        if self.column not in row:
            raise DataError(f"{place}: {unknown_name(self.column, row, field='teacher.by', kind='column')}")
        value = row[self.column]
        if value is None:
            names = ", ".join(sorted(self.names))
            raise DataError(
                f"{place}: the column {self.column!r} (teacher.by) is null; expected the name of a teacher ({names})."
            )
        if value not in self.names:
            of = f"the column {self.column!r} (teacher.by)"
            raise DataError(f"{place}: {unknown_name(value, self.names, field=of, kind='teacher')}")
        return self.names.index(value)


def check_number(number: int | None, count: int, place: str) -> int:
    """`number`, if it is that of one of `count` teachers.

    Raises:
        DataError: it is not; begins with `place`.
    """
    if number is None or not 0 <= number < count:
        got = "missing" if number is None else number
        raise DataError(
            f"{place}: {TEACHER_NUMBER!r} is {got}; with {count} teachers every row needs one, from 0 to {count - 1} "
            "(RowRules.teacher_by makes it)."
        )
    return number


@dataclass(frozen=True, kw_only=True)
class TeacherPrompt:
    """What the teacher reads in place of the row's own prompt. The student reads the row as it is, and both the same
    answer."""

    system: str | None = None
    """System message of the teacher's conversation, in place of the row's own; the text as it stands. Needs rows that a
    chat template writes."""
    prefix: str | None = None
    """Put before the last user turn, or a plain prompt: columns of the row in braces (``{solution}``), ``{{`` for a
    brace. Nothing is put between: end it with a line break or a space where one is wanted."""
    suffix: str | None = None
    """Put after it, likewise."""

    def __post_init__(self) -> None:
        if not any((self.system, self.prefix, self.suffix)):
            raise ConfigError("teacher.prompt: changes nothing; give system, prefix or suffix, or leave it out.")
        if self.system is not None and not self.system.strip():
            raise ConfigError("teacher.prompt.system is empty; give the text of a system message, or leave it out.")
        for name in ("prefix", "suffix"):
            _fields(getattr(self, name) or "", f"teacher.prompt.{name}")

    def __str__(self) -> str:
        """All of it, on one line."""
        given = ((name, getattr(self, name)) for name in ("system", "prefix", "suffix"))
        return ", ".join(f"{name} {text!r}" for name, text in given if text is not None)

    def apply(self, chat: Conversation, row: Mapping[str, Any], place: str) -> Conversation:
        """`chat` as the teacher is asked it.

        Args:
            chat: what `row` says.
            row: whose columns the templates name.
            place: where it is, for messages.

        Raises:
            DataError: the row has no prompt, no user turn, or no such column.
        """
        if chat.form == "document":
            raise DataError(
                f"{place}: is text with no prompt, and teacher.prompt changes the prompt. Give prompt and completion, "
                "or messages; or leave teacher.prompt out."
            )
        answers = [index for index, message in enumerate(chat.messages) if message["role"] == "assistant"]
        last = answers[-1] if chat.learn_from < len(chat.messages) else len(chat.messages)
        asked = [index for index, message in enumerate(chat.messages[:last]) if message["role"] == "user"]
        if not asked and (self.prefix or self.suffix):
            raise DataError(
                f"{place}: has no user turn before the assistant's last one, and teacher.prompt.prefix and suffix go "
                "around it. Use teacher.prompt.system, or leave the row out."
            )
        messages = list(chat.messages)
        if self.prefix or self.suffix:
            turn = messages[asked[-1]]
            around = [_filled(getattr(self, name), row, place, name) for name in ("prefix", "suffix")]
            messages[asked[-1]] = {**turn, "content": around[0] + turn["content"] + around[1]}
        if self.system is None:
            return replace(chat, messages=tuple(messages))
        return self._with_system(replace(chat, messages=tuple(messages)), place)

    def _with_system(self, chat: Conversation, place: str) -> Conversation:
        if chat.form == "text":
            raise DataError(
                f"{place}: is a prompt that is read as it stands, with no turns, so there is no place for "
                "teacher.prompt.system. Write it into teacher.prompt.prefix, or name the columns (data.prompt, "
                "data.completion) so that a chat template writes turns."
            )
        message: Message = {"role": "system", "content": self.system}
        has_one = chat.messages[0]["role"] in ("system", "developer")
        messages = (message, *chat.messages[1 if has_one else 0 :])
        return replace(chat, messages=messages, learn_from=chat.learn_from + (0 if has_one else 1))


def _fields(template: str, name: str) -> list[tuple[str, str | None]]:
    """The texts of `template`, each with the column that follows it."""
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(f"{name}: {error}. Write a column in braces, {{solution}}, and {{{{ for a brace.") from error
    for _, column, form, conversion in parts:
        if column is not None and (not column.strip() or form or conversion):
            raise ConfigError(
                f"{name}: braces hold {column!r}{' and a format' if form or conversion else ''}; expected the name of "
                "a column alone, {solution}, or {{ for a brace."
            )
    return [(text, column) for text, column, _, _ in parts]


def _filled(template: str | None, row: Mapping[str, Any], place: str, name: str) -> str:
    made = []
    for text, column in _fields(template or "", name):
        made.append(text)
        if column is None:
            continue
        if column not in row:
            raise DataError(f"{place}: teacher.prompt.{unknown_name(column, row, field=name, kind='column')}")
        value = row[column]
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            raise DataError(
                f"{place}: teacher.prompt.{name} takes the column {column!r}, which is "
                f"{'null' if value is None else type(value).__name__}; expected text or a number."
            )
        made.append(str(value))
    return "".join(made)


def as_asked(row: TokenisedRow, asked: TokenisedRow, place: str) -> TokenisedRow:
    """What the teacher reads: the contexts of `asked`, and between them the tokens that `row` is to learn, copied.

    Args:
        row: what the student reads, not yet cut; maybe only the beginning of it, or without its last end token.
        asked: the same conversation, with the teacher's prompt.
        place: where it is, for messages.

    Raises:
        DataError: the row has no prompt, or a chat template writes the two with other turns.
    """
    ours, theirs = learnt_stretches(row.labels), learnt_stretches(asked.labels)
    if not ours:  # the prompt alone fills the row, which is left out as without teacher.prompt
        return TokenisedRow(input_ids=list(asked.input_ids), labels=[IGNORED] * len(asked.input_ids))
    if not theirs or not ours[0][0].stop:
        raise DataError(
            f"{place}: has an empty prompt, so its first token is learnt from nothing, and teacher.prompt would have "
            "the teacher judge it. Give it a prompt, or leave teacher.prompt out."
        )
    if len(ours) > len(theirs) or (len(ours) < len(theirs) and not row.goes_on):
        raise DataError(
            f"{place}: has {len(ours)} answers to learn, and with teacher.prompt the chat template writes "
            f"{len(theirs)}, so the teacher's tokens cannot be told to be the student's. Give one row per answer."
        )
    ids: list[int] = []
    labels: list[int] = []
    for (_, learnt), (context, _) in zip(ours, theirs, strict=False):
        ids += [*asked.input_ids[context], *row.input_ids[learnt]]
        labels += [*[IGNORED] * (context.stop - context.start), *row.input_ids[learnt]]
    return TokenisedRow(input_ids=ids, labels=labels)


def learnt_stretches(labels: Sequence[int]) -> list[tuple[slice, slice]]:
    """Of one row the stretches that are learnt, each behind the context before it: ``(context, stretch)``."""
    found: list[tuple[slice, slice]] = []
    at = 0
    for ignored, group in groupby(labels, key=lambda label: label == IGNORED):
        end = at + len(list(group))
        if not ignored:
            start = found[-1][1].stop if found else 0
            found.append((slice(start, at), slice(at, end)))
        at = end
    return found
