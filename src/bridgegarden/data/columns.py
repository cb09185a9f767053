"""Which columns of a row are read, and as what: one decision, whatever the rows are kept in."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from bridgegarden.errors import ConfigError, DataError
from bridgegarden.registry import unknown_name

EXPECTED = (
    "'messages', 'conversations', 'prompt' and 'completion', 'instruction' and 'output', 'text', or columns named by "
    "data.messages, data.prompt and data.completion, or data.text"
)
EXPECTED_PROMPT = "'messages', 'conversations', 'prompt', 'instruction', or a column named by data.prompt"
CONVERSATIONS = ("messages", "conversations")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Where the user's rows keep what we need, when the columns are not called so."""

    prompt: str | None = None
    """Column of the question. A string there becomes a user turn, if the tokenizer has a chat template."""
    completion: str | None = None
    """Column of the answer. A string there becomes an assistant turn, if the tokenizer has a chat template."""
    messages: str | None = None
    """Column of whole conversations, as lists of ``{"role": ..., "content": ...}``."""
    text: str | None = None
    """Column of plain text, all of which is learnt."""

    def __post_init__(self) -> None:
        for field in ("prompt", "completion", "messages", "text"):
            if getattr(self, field) == "":
                raise ConfigError(f"data.{field}: must name a column, got an empty string.")
        if self.messages is not None and self.names_a_pair:
            raise ConfigError("data.messages excludes data.prompt and data.completion: give one or the other.")
        if self.text is not None and (self.messages is not None or self.names_a_pair):
            raise ConfigError(
                "data.text excludes data.messages, data.prompt and data.completion: give one or the other."
            )

    @property
    def names_a_pair(self) -> bool:
        """Whether prompt or completion was named explicitly."""
        return self.prompt is not None or self.completion is not None

    @property
    def named(self) -> tuple[str, ...]:
        """The columns that were named."""
        return tuple(name for name in (self.prompt, self.completion, self.messages, self.text) if name is not None)


class Messages(NamedTuple):
    """A whole conversation."""

    key: str
    value: Any
    system: str | None = None
    """What a column of its own says before it."""


class Pair(NamedTuple):
    """What is asked, and the answer."""

    prompt_key: str
    prompt: Any
    completion_key: str
    completion: Any
    """None where the answer was not asked for."""
    as_turns: bool
    """Whether strings are a question and its answer, rather than a text in two parts."""
    system: str | None = None


class Text(NamedTuple):
    """A text with no prompt."""

    key: str
    value: Any


def content_of(
    row: Mapping[str, Any], columns: Columns, *, place: str, answered: bool = True
) -> Messages | Pair | Text:
    """What of `row` is read. The first of these that it has:

    1. the columns that `columns` names,
    2. ``messages``, or ``conversations`` (with a column ``system``, if there is one),
    3. ``prompt`` and ``completion``,
    4. ``instruction``, ``input`` and ``output`` (with ``system``): Alpaca's; instruction and input are one question,
    5. ``text``.

    Further columns are not read. A row with half of a pair, or a null for what comes first, is refused rather than
    read as something further down.

    Args:
        row: of a data set.
        columns: those that were named.
        place: where the row is, for messages.
        answered: whether the answer is needed; else text alone is refused, which has no prompt.

    Raises:
        DataError: there is no such column, or it is null.
    """
    if columns.messages is not None:
        return Messages(columns.messages, field(row, columns.messages, place))
    if columns.text is not None:
        if not answered:
            raise DataError(f"{place}: {columns.text!r} is text with no prompt; expected {EXPECTED_PROMPT}.")
        return Text(columns.text, field(row, columns.text, place))
    if columns.names_a_pair:
        return _pair(row, columns.prompt or "prompt", columns.completion or "completion", True, place, answered)
    for key in CONVERSATIONS:
        if row.get(key) is not None:
            return Messages(key, row[key], _system(row, place) if key == "conversations" else None)
    if "prompt" in row and ("completion" in row or not answered):
        return _pair(row, "prompt", "completion", False, place, answered)
    if "instruction" in row and ("output" in row or not answered):
        return _alpaca(row, place, answered)
    for key in CONVERSATIONS:
        if key in row:
            field(row, key, place)
    if answered and "text" in row and "prompt" not in row and "completion" not in row:
        return Text("text", field(row, "text", place))
    raise DataError(f"{place}: has columns {listing(row)}; expected {EXPECTED if answered else EXPECTED_PROMPT}.")


def field(row: Mapping[str, Any], key: str, place: str) -> Any:
    """The value of a column, which must be there.

    Raises:
        DataError: it is not, or null.
    """
    if key not in row:
        raise DataError(f"{place}: {unknown_name(key, row, field='columns', kind='column')}")
    if row[key] is None:
        raise DataError(f"{place}: {key!r} is null; expected text or messages.")
    return row[key]


def listing(names: Iterable[str]) -> str:
    """Names of columns, for a message."""
    return ", ".join(repr(name) for name in names) or "none"


def _pair(
    row: Mapping[str, Any], prompt_key: str, completion_key: str, as_turns: bool, place: str, answered: bool
) -> Pair:
    prompt = field(row, prompt_key, place)
    completion = field(row, completion_key, place) if answered else None
    return Pair(prompt_key, prompt, completion_key, completion, as_turns)


def _alpaca(row: Mapping[str, Any], place: str, answered: bool) -> Pair:
    if row.get("history"):
        raise DataError(f"{place}: has earlier turns in 'history', which are not read; give them as 'messages'.")
    pair = _pair(row, "instruction", "output", True, place, answered)
    extra = row.get("input")
    for key, value in (("instruction", pair.prompt), ("input", extra or "")):
        if not isinstance(value, str):
            raise DataError(f"{place}: {key!r} is {type(value).__name__}; expected a string.")
    question = f"{pair.prompt}\n\n{extra}" if extra and extra.strip() else pair.prompt
    return pair._replace(prompt=question, system=_system(row, place))


def _system(row: Mapping[str, Any], place: str) -> str | None:
    system = row.get("system")
    if system is not None and not isinstance(system, str):
        raise DataError(f"{place}: 'system' is {type(system).__name__}; expected a string.")
    return system if system and system.strip() else None
