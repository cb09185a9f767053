"""The rows of a recipe as token ids and labels: of files, or of a server's answers, in the ids that it wrote."""

import hashlib
import logging
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from bridgegarden.data import (
    Columns,
    Mix,
    RowRules,
    RowsAsWritten,
    TokenisedRow,
    load_mix,
    tokenise,
    vocabulary_size,
)
from bridgegarden.data.teacher_prompt import TEACHER_IDS, TEACHER_LABELS, TEACHER_NUMBER, OtherTokens, TeacherByRow
from bridgegarden.errors import ConfigError, DataError
from bridgegarden.preflight import Pair
from bridgegarden.recipe import DataSection, Recipe
from bridgegarden.teacher.answers import ADVICE, AnsweredRow, AnswerReader, Unusable, read_settings

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)
ROWS_NAMED = 5
AT_LEAST = 1
"""Tokens to keep a position where only the ids of a row are asked for."""


class RunData(NamedTuple):
    """Token ids and labels."""

    train: "Dataset"
    evaluation: "Dataset | None"
    mix: str | None = None
    """How many training rows were taken of each source; None where there is one."""

    @property
    def by_name(self) -> "dict[str, Dataset]":
        """Those that there are, by what they are for."""
        return {"train": self.train} | ({} if self.evaluation is None else {"evaluation": self.evaluation})

    @property
    def longest_asked(self) -> int | None:
        """Tokens of the longest row as the teacher reads it; None where it reads the rows' own prompts."""
        parts = [rows for rows in self.by_name.values() if TEACHER_IDS in rows.column_names]
        return max((longest(rows, TEACHER_IDS) for rows in parts), default=None)

    @property
    def fingerprints(self) -> dict[str, str | None]:
        """Hashes of the content, by name."""
        held_out = None if self.evaluation is None else _fingerprint(self.evaluation)
        return {"train": _fingerprint(self.train), "eval": held_out}


def _fingerprint(rows: "Dataset") -> str:
    """Of the token ids and labels of `rows`, the teacher's too, and of which one reads each, in order: equal exactly
    where they are."""
    import numpy as np

    digest = hashlib.sha256(b"ids")
    names = [name for name in ("input_ids", "labels", TEACHER_IDS, TEACHER_LABELS) if name in rows.column_names]
    for batch in rows.select_columns(names).with_format("arrow").iter(1000):
        table = cast("pa.Table", batch)
        for name in names:
            column = table[name].combine_chunks()
            for part in (column.value_lengths(), column.flatten()):
                digest.update(np.asarray(part, dtype="<i8").tobytes())
    if TEACHER_NUMBER in rows.column_names:
        digest.update(np.asarray(rows.with_format("numpy")[TEACHER_NUMBER], dtype="<i8").tobytes())
    return digest.hexdigest()


def longest(rows: "Dataset", name: str) -> int:
    """The longest list in a column."""
    tables = rows.select_columns([name]).with_format("arrow").iter(1000)
    return max(cast("pa.Table", table)[name].combine_chunks().value_lengths().to_numpy().max() for table in tables)


def columns_of(section: DataSection) -> Columns:
    """Which columns the recipe names."""
    return Columns(prompt=section.prompt, completion=section.completion, messages=section.messages, text=section.text)


def rules_of(recipe: Recipe, tokens: OtherTokens | None = None, *, cut: bool = True) -> RowRules:
    """How the rows of a recipe are read, by a teacher with another tokenizer in its own `tokens`; without `cut` none is
    cut."""
    arguments, by = recipe.training.arguments, recipe.teacher.by
    return RowRules(
        columns=columns_of(recipe.data),
        max_length=arguments["max_length"] if cut else None,
        keep="end" if arguments.get("truncation_mode") == "keep_end" else "start",
        ends_with=arguments.get("eos_token"),
        skip_bad=recipe.data.skip_bad_rows,
        teacher_prompt=recipe.teacher.prompt,
        teacher_by=None if by is None else TeacherByRow(column=by, names=tuple(recipe.teacher.of or ())),
        teacher_tokens=tokens,
    )


def training_rows(section: DataSection, limit: int | None = None) -> Mix:
    """The training rows of a recipe, or the first `limit` of them.

    Raises:
        DataError: they cannot be read.
    """
    limits = [most for most in (section.limit, limit) if most is not None]
    return load_mix(
        section.sources, limit=min(limits, default=None), seed=section.seed or 0, skip_bad=section.skip_bad_rows
    )


def evaluation_rows(section: DataSection) -> Mix | None:
    """The evaluation rows of a recipe; None where it has none.

    Raises:
        DataError: they cannot be read.
    """
    if section.eval is None:
        return None
    return load_mix(section.eval_sources, kind="eval", limit=section.eval_limit, skip_bad=section.skip_bad_rows)


def tokenised(mix: Mix, tokenizer: "PreTrainedTokenizerBase", rules: RowRules) -> "list[Dataset]":
    """The rows of each part of `mix` that has any, ready for the trainer. The column ``row`` counts on through parts.

    Raises:
        DataError: a row, or all those of a source, cannot be used.
        ModelError: the tokenizer cannot write the rows.
    """
    first = accumulate((part.total for part in mix.parts), initial=0)
    return [
        tokenise(part.rows, tokenizer, rules, name=part.name, numbers=part.numbers, first=before)
        for part, before in zip(mix.parts, first, strict=False)
        if len(part.rows)
    ]


def mix_text(mix: Mix) -> str | None:
    """A line on what is taken of each of several sources."""
    return f"training rows: {mix}" if len(mix.parts) > 1 else None


@dataclass(kw_only=True)
class Answers:
    """The rows of one file of answers, and what was found in them."""

    name: str
    """What to call them in messages."""
    rows: list[TokenisedRow] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    """Of `rows`, in the data."""
    unusable: dict[int, Unusable] = field(default_factory=dict)
    """Rows that give no signal, by their number."""
    too_long: int = 0
    """Rows of which nothing that is learnt is left."""
    models: set[str] = field(default_factory=set)
    """Who gave `rows`, as the server says."""
    ends_alone: int = 0
    """Ends of turn of which the server said that they came, but not with what probability."""
    floored: int = 0
    """Positions of which the server's numbers leave nothing for the tail."""
    unnamed: int = 0
    """Positions at which a listed token could not be told apart from others."""

    @property
    def total(self) -> int:
        """Rows that were read."""
        return len(self.rows) + len(self.unusable) + self.too_long

    @property
    def complaint(self) -> str:
        """How many rows give no signal, why, which, and what helps."""
        reasons: dict[str, list[int]] = {}
        for number, problem in self.unusable.items():
            reasons.setdefault(problem.reason, []).append(number)
        parts = []
        for reason, numbers in reasons.items():
            shown = ", ".join(map(str, numbers[:ROWS_NAMED])) + (", ..." if len(numbers) > ROWS_NAMED else "")
            first = self.unusable[numbers[0]].detail
            parts.append(f"{len(numbers)} for {reason} (row {shown}; the first: {first}; {ADVICE[reason]})")
        return f"{self.name}: {len(self.unusable)} of {self.total} rows give no signal: {', '.join(parts)}."

    def add(self, number: int, row: AnsweredRow) -> None:
        """Keep the ids of a row that gives a signal, and count the rest."""
        self.rows.append(TokenisedRow(input_ids=row.input_ids, labels=row.labels))
        self.numbers.append(number)
        self.ends_alone += row.end_is_label
        self.floored += sum(position.is_floored for position in row.positions)
        self.unnamed += sum(position.unnamed > 0 for position in row.positions)

    def dataset(self) -> "Dataset":
        """Token ids and labels, ready for the trainer.

        Raises:
            DataError: there are none.
        """
        import pyarrow as pa
        from datasets import Dataset

        if not self.rows:
            empty = f"{self.name}: no row has anything to learn within training.max_length tokens."
            raise DataError(self.complaint if self.unusable else empty)
        ids = pa.list_(pa.int32())
        columns = {
            "input_ids": pa.array([row.input_ids for row in self.rows], ids),
            "labels": pa.array([row.labels for row in self.rows], ids),
            "row": pa.array(self.numbers, pa.int64()),
        }
        return Dataset(pa.table(columns))


@dataclass(frozen=True, kw_only=True)
class AnswerSettings:
    """How the answers of a file were asked for, as ``generate`` notes it beside them."""

    temperature: float
    """Of sampling; 0 is greedy."""
    top_logprobs: int
    """Listed tokens a position."""


def usable_answers(recipe: Recipe, mix: Mix, pair: Pair, max_length: int | None) -> "list[Dataset]":
    """The rows of each part of `mix` that give a signal, ready for the trainer; a warning says which do not.

    Raises:
        DataError: a row is none of an answers file, or none gives a signal.
    """
    parts = read_answers(mix, answer_reader(recipe, pair, AT_LEAST), max_length)
    for part in parts:
        if part.unusable and part.rows:
            logger.warning("%s They are left out.", part.complaint)
    return [part.dataset() for part in parts]


def without_rows(dataset: "Dataset", filed: "Dataset", keys: Container[str]) -> "Dataset":
    """The rows of `dataset` but those of which a document has one of `keys`, in hexadecimal; a warning says how many.

    Args:
        dataset: tokenised rows.
        filed: the same as they are filed in a cache.
        keys: of documents.

    Raises:
        DataError: none is left.
    """
    from bridgegarden.teacher.cache.shard import documents_in

    kept = [
        number
        for number, example in enumerate(filed)
        if not any(document.key.hex() in keys for document in documents_in(cast("dict", example)))
    ]
    if len(kept) == len(dataset):
        return dataset
    if not kept:
        raise DataError("the server scored no row of the data, so there is nothing to learn.")
    logger.warning("%d rows that the server did not score are left out.", len(dataset) - len(kept))
    return dataset.select(kept)


def answer_reader(recipe: Recipe, pair: Pair, k: int) -> AnswerReader:
    """What reads the answers of `recipe`, keeping `k` tokens a position."""
    return AnswerReader(
        tokenizer=pair.endings.tokenizer,
        stops=pair.endings.stops,
        vocab_size=min(vocabulary_size(pair.endings.tokenizer), pair.student.width),
        k=k,
        columns=columns_of(recipe.data),
    )


def read_answers(
    mix: Mix,
    reader: AnswerReader,
    max_length: int | None,
    on_row: Callable[[AnsweredRow], None] = lambda row: None,
) -> list[Answers]:
    """The answers in each part of `mix` that has any.

    Args:
        mix: rows that ``generate`` wrote with the log-probabilities of a server.
        reader: reads a row.
        max_length: tokens that rows are cut to.
        on_row: gets every row that gives a signal, as it is kept; only its ids stay in memory.

    Raises:
        DataError: a row is none of an answers file.
    """
    found, first = [], 0
    for part in mix.parts:
        answers = Answers(name=part.name)
        for number, row in zip(part.numbers, RowsAsWritten(part.rows), strict=True):
            _read(first, number, row, reader, max_length, answers, on_row)
        if answers.total:
            found.append(answers)
        first += part.total
    return found


def hold_logprobs(section: DataSection) -> bool:
    """Whether the rows of a recipe, or some of them, are answers with a server's log-probabilities.

    Raises:
        ConfigError: what lies beside answers is damaged.
    """
    paths = [Path(source.path).expanduser() for source in (*section.sources, *section.eval_sources)]
    beside = [path.with_name(f"{path.name}.settings") for path in paths if path.name]
    return any(read_settings(path).get("top_logprobs") for path in beside if path.is_file())


def answer_settings(sources: Sequence[str]) -> AnswerSettings:
    """How the answers in the files `sources` were asked for.

    Raises:
        ConfigError: that is not known, or they were asked for at different temperatures.
    """
    found = [_settings(Path(source).expanduser()) for source in sources]
    temperatures = {settings.temperature for settings in found}
    if len(temperatures) > 1:
        raise ConfigError(
            f"data.train and data.eval: sampled at different temperatures ({', '.join(map(str, temperatures))}), which "
            "one cache does not hold. Generate both at one temperature, or leave data.eval out."
        )
    return AnswerSettings(
        temperature=found[0].temperature, top_logprobs=min(settings.top_logprobs for settings in found)
    )


def _read(
    first: int,
    number: int,
    row: Mapping[str, object],
    reader: AnswerReader,
    max_length: int | None,
    answers: Answers,
    on_row: Callable[[AnsweredRow], None],
) -> None:
    found = reader.read(row, place=f"{answers.name}, row {number}")
    if isinstance(found, Unusable):
        answers.unusable[number] = found
        return
    found = found.truncated(max_length)
    if not found.positions:
        answers.too_long += 1
        return
    answers.add(first + number, found)
    if row.get("generated_by") is not None:
        answers.models.add(str(row["generated_by"]))
    on_row(found)


def _settings(path: Path) -> AnswerSettings:
    settings = path.with_name(f"{path.name}.settings")
    if not settings.is_file():
        raise ConfigError(
            f"{settings}: missing, so how the answers in {path.name} were asked for is not known. Give as data.train "
            "what `bridgegarden generate RECIPE --top-logprobs 20` wrote, with the files that lie beside it."
        )
    tree = read_settings(settings)
    if not tree.get("top_logprobs"):
        raise ConfigError(
            f"{path}: its answers were asked for without log-probabilities. Ask again: bridgegarden generate RECIPE "
            "--top-logprobs 20 --output ANOTHER_FILE"
        )
    return AnswerSettings(temperature=float(tree["temperature"]), top_logprobs=tree["top_logprobs"])
