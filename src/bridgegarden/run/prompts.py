"""What models write from: the prompts of a recipe's rows, of any rows, or of a text file."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridgegarden.data import Columns, Source, conversation, load_mix, place, prompt
from bridgegarden.data.encode import IGNORED, RowTokeniser
from bridgegarden.diagnostics.diagnosis import PromptsUsed
from bridgegarden.diagnostics.label_losses import Answer
from bridgegarden.errors import DataError
from bridgegarden.recipe import DataSection
from bridgegarden.run.rows import columns_of
from bridgegarden.terminal import counted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


DEFAULT_LIMIT = 64
"""Prompts, unless another number is asked for."""


TEXT = ".txt"
"""A file of this kind has a prompt on every line."""


@dataclass(frozen=True, kw_only=True)
class PromptSource:
    """Where prompts are."""

    sources: tuple[Source, ...]
    """Files, folders or data sets on the hub."""
    kind: str
    """What to call them in messages."""
    columns: Columns
    """Which columns to read."""
    seed: int = 0
    """Decides which rows of sources with weights are drawn."""
    skip_bad: bool | None = None
    """Whether what is no JSON is left out; None where nothing says so."""

    @classmethod
    def of_recipe(cls, data: DataSection) -> "PromptSource":
        """The evaluation rows, or the training rows where there are none."""
        return cls(
            sources=data.eval_sources or data.sources,
            kind="train" if data.eval is None else "eval",
            columns=columns_of(data),
            seed=data.seed or 0,
            skip_bad=data.skip_bad_rows,
        )

    @property
    def shown(self) -> str:
        """The sources, for a person."""
        return ", ".join(source.path for source in self.sources)


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """What the models write from."""

    ids: tuple[tuple[int, ...], ...]
    """Token ids, each prompt once."""
    answers: tuple[Answer, ...]
    """Of the rows that have one."""
    used: PromptsUsed
    """The same in numbers."""
    teacher_ids: tuple[tuple[int, ...], ...] = ()
    """Each prompt as a teacher with another tokenizer reads it; empty where it reads `ids`."""
    teacher_answers: tuple[Answer, ...] = ()
    """`answers` as it reads them."""


def read_prompts(
    source: PromptSource,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    room: int | None,
    vocab_size: int,
    limit: int | None = None,
    asked: "PreTrainedTokenizerBase | None" = None,
) -> Prompts:
    """The first prompts of `source`. Repeated ones are taken once: they would not be independent.

    Args:
        source: a text file has a prompt a line; anything else rows as for training, whose answers are kept where there
            are any.
        tokenizer: of all models.
        room: most tokens of a prompt; longer ones are left out. None is no limit.
        vocab_size: of which ids may be.
        limit: most prompts.
        asked: of the teacher, where it is another one: it reads the prompts, too, and for it they must not be longer,
            either.

    Raises:
        DataError: a row has no prompt, or fewer than two prompts are left.
        ModelError: the tokenizer has no chat template and needs one.
    """
    tokeniser = RowTokeniser.of(tokenizer)
    asker = None if asked is None else RowTokeniser.of(asked)
    found: dict[tuple[int, ...], Answer | None] = {}
    teachers: list[tuple[tuple[int, ...], Answer | None]] = []
    left_out: list[str] = []
    rows, columns = _rows(source)
    for where, row in rows:
        ids = _ids(row, columns, tokeniser, where)
        if not ids or max(ids) >= vocab_size:
            raise DataError(f"{where}: {'an id outside the shared vocabulary' if ids else 'the prompt has no tokens'}.")
        theirs = () if asker is None else _as_asked(row, columns, asker, where)
        longest = max(len(ids), len(theirs))
        if room is not None and longest > room:
            left_out.append(f"{where}: {longest} tokens, where {room} fit")
            continue
        if ids not in found:
            found[ids] = _answer(row, columns, tokeniser, where, vocab_size)
            if asker is not None:
                teachers.append((theirs, _answer(row, columns, asker, where, None)))
        if len(found) == (limit or DEFAULT_LIMIT):
            break
    _check_enough(source.shown, len(found), left_out)
    used = PromptsUsed(source=source.shown, used=len(found), left_out=tuple(left_out), tokens=sum(map(len, found)))
    if asker is None:
        return Prompts(ids=tuple(found), answers=tuple(one for one in found.values() if one is not None), used=used)
    both = [(own, other) for own, (_, other) in zip(found.values(), teachers, strict=True) if own is not None and other]
    return Prompts(
        ids=tuple(found),
        answers=tuple(own for own, _ in both),
        used=used,
        teacher_ids=tuple(ids for ids, _ in teachers),
        teacher_answers=tuple(other for _, other in both),
    )


def _as_asked(row: Mapping[str, Any], columns: Columns, asker: RowTokeniser, where: str) -> tuple[int, ...]:
    """The prompt of `row` for a teacher with another tokenizer."""
    if isinstance(row.get("input_ids"), list):
        raise DataError(
            f"{where}: has 'input_ids' of the student's tokenizer, which a teacher with another tokenizer cannot read. "
            "Give prompts as text or messages."
        )
    return _ids(row, columns, asker, where)


def _check_enough(name: str, count: int, left_out: list[str]) -> None:
    if count >= 2:
        return
    long = (
        f" {len(left_out)} are too long ({left_out[0]}): lower --max-new-tokens, or shorten them." if left_out else ""
    )
    raise DataError(
        f"{name}: {counted(count, 'prompt')} to write from; an error needs at least 2 different ones, "
        f"and 20 or more tell something.{long}"
    )


def _rows(source: PromptSource) -> tuple[Iterator[tuple[str, Mapping[str, Any]]], Columns]:
    """Each row with where it is, and which columns of it to read."""
    path = Path(source.sources[0].path).expanduser()
    if len(source.sources) == 1 and path.suffix.lower() == TEXT and path.is_file():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start}).") from error
        # A line is what a user says: it gets the chat template's turn, where there is one.
        said = enumerate(line for line in lines if line.strip())
        name = place(source.kind, str(path))
        return ((f"{name}, line {n}", {"prompt": line}) for n, line in said), Columns(prompt="prompt")
    mix = load_mix(source.sources, kind=source.kind, seed=source.seed, skip_bad=source.skip_bad)
    return ((mix.place(n), row) for n, row in enumerate(mix)), source.columns


def _ids(row: Mapping[str, Any], columns: Columns, tokeniser: RowTokeniser, where: str) -> tuple[int, ...]:
    if isinstance(row.get("input_ids"), list):
        labels = row.get("labels") or [IGNORED] * len(row["input_ids"])
        first = next((at for at, label in enumerate(labels) if label != IGNORED), len(labels))
        return tuple(row["input_ids"][:first])
    return tuple(tokeniser.prompt(prompt(row, columns, place=where), where))


def _answer(
    row: Mapping[str, Any], columns: Columns, tokeniser: RowTokeniser, where: str, size: int | None
) -> Answer | None:
    """What the row would have a student learn; None where it has no answer, or one with ids from `size` on."""
    if isinstance(row.get("input_ids"), list):
        ids, labels = row["input_ids"], row.get("labels") or []
    else:
        try:
            written = tokeniser.row(conversation(row, columns, place=where), where)
        except DataError:
            # A prompt needs no answer, and one that nothing can be learnt from is as good as none.
            return None
        ids, labels = written.input_ids, written.labels
    places = [at for at, label in enumerate(labels) if at and label != IGNORED]
    if not places or (size is not None and max(ids) >= size):
        return None
    behind = slice(places[0], places[-1] + 1)
    learnt = tuple(label != IGNORED for label in labels[behind])
    return Answer(prompt=tuple(ids[: places[0]]), tokens=tuple(ids[behind]), learnt=learnt)
