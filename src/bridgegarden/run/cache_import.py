"""A teacher's signals that somebody else wrote, to the cache of a recipe: ``bridgegarden cache import``.

Signals are matched with the recipe's rows by their token ids (or their key), and nothing is imported that is not about
exactly those tokens.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from bridgegarden.data import chat_template_fingerprint, end_of_turn_ids, load_rows, tokenizer_fingerprint
from bridgegarden.data.encode import IGNORED
from bridgegarden.data.json_rows import RowsAsWritten
from bridgegarden.errors import ConfigError, DataError
from bridgegarden.preflight import Pair
from bridgegarden.recipe import Recipe
from bridgegarden.run.output import check_writable
from bridgegarden.run.pair import check_kept, filed_rows, recipe_pair
from bridgegarden.run.quiet import quiet_libraries
from bridgegarden.run.recipe_teacher import cache_folder
from bridgegarden.run.served_cache import shared_vocabulary, spec_of_lists
from bridgegarden.run.teachers import teacher_of
from bridgegarden.terminal import counted

if TYPE_CHECKING:
    from datasets import Dataset

    from bridgegarden.teacher.answers import Position
    from bridgegarden.teacher.cache.captures import Alignment, CaptureReader, Lists, Unfit
    from bridgegarden.teacher.cache.forward import AnswersEngine
    from bridgegarden.teacher.cache.shard import Document
    from bridgegarden.teacher.cache.spec import Bits, CacheSpec
    from bridgegarden.teacher.cache.writer import BuildResult

LOOKED_AT = 20_000
"""Positions whose labels decide where the lists of a file stand."""
CUT = "a row as long as max_length, which may have been cut"
ROWS_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """What the command line says beside the recipe and the file."""

    kind: Literal["auto", "export", "axolotl", "distillkit"] = "auto"
    """Format of the file; ``auto`` goes by its columns."""
    column: str | None = None
    """Column with Axolotl's lists, where it is not called as usual."""
    shift: int = 0
    """Tokens by which the file's lists are about a later token than its format says."""
    top_k: int | None = None
    """Tokens kept a position; None is as many as are listed."""
    bits: "Bits" = 8
    """Bits of a log-probability."""
    replace: bool = False
    """Remove the cache that is there first."""
    skip_unusable: bool = False
    """Leave out rows that give no signal."""


@dataclass(kw_only=True)
class ImportResult:
    """What was found in a file, and what was kept of it."""

    path: Path
    kind: str
    built: "BuildResult | None" = None
    unknown: int = 0
    """Rows of the file that are none of the recipe's."""
    missing: int = 0
    """Rows of the recipe that the file does not have."""
    unusable: dict[str, list[str]] = field(default_factory=dict)
    """Rows that give no signal, as the first of them says, by reason."""
    means: Mapping[int, float] = field(default_factory=dict)
    """The labels' mean log-probability, by shift."""
    counts: Counter[str] = field(default_factory=Counter)
    """Positions of which something is not known."""

    @property
    def complaint(self) -> str:
        """How many rows give no signal, why, and which are the first."""
        parts = [
            f"{len(rows)} for {reason} ({'; '.join(rows[:ROWS_NAMED])}{'; ...' if len(rows) > ROWS_NAMED else ''})"
            for reason, rows in self.unusable.items()
        ]
        return f"{counted(sum(map(len, self.unusable.values())), 'row')} of {self.path}: {', '.join(parts)}"

    def __str__(self) -> str:
        """For a person."""
        built = self.built
        assert built is not None
        kept = f", {built.kept:,} were there" if built.kept else ""
        size = f"{built.bytes / max(built.positions, 1):.1f} bytes each, {built.bytes:,} in all"
        lines = [
            f"{built.folder}: {counted(built.documents, 'row')} added of {self.path} ({self.kind}){kept}; "
            f"{built.positions:,} positions, {size}"
        ]
        if self.means:
            earlier, here, later = (self.means[shift] for shift in sorted(self.means))
            lines.append(
                f"alignment: the labels have {here:.2f} nats on average where the lists are taken to stand, "
                f"{earlier:.2f} one token earlier, {later:.2f} one later"
            )
        if self.unusable:
            lines.append(f"left out: {self.complaint}")
        if self.unknown:
            lines.append(f"left out: {counted(self.unknown, 'row')} of the file that the recipe does not have")
        if self.missing:
            lines.append(f"missing: {counted(self.missing, 'row')} of the recipe are not in the file; train needs them")
        lines += [f"{count:,} positions {what}" for what, count in self.counts.items() if count]
        return "\n".join(lines)


def import_recipe_cache(recipe: Recipe, path: Path, options: ImportOptions) -> ImportResult:
    """Make the cache of `recipe` of what is said in `path` about its rows.

    Args:
        recipe: tells rows, tokenizer and template. Of a teacher that is not here, ``teacher.only_cache`` is set.
        path: a file, or a folder of DistillKit's.
        options: how it is read.

    Raises:
        ConfigError: the file is of no known format, its lists stand elsewhere, or the folder holds something else.
        DataError: a row of the file is damaged, or none of them is the recipe's.
        ModelError: the models cannot be used.
    """
    from bridgegarden.teacher.cache.exchange import is_export
    from bridgegarden.teacher.cache.writer import build_cache, remove_cache

    if recipe.teacher.of is not None:
        how = "mix" if recipe.teacher.by is None else "by"
        raise ConfigError(
            f"teacher.{how}: what is imported is what one teacher said; import it for a recipe with teacher.model."
        )
    folder = cache_folder(recipe)
    if recipe.teacher.kind not in ("recorded", "cached"):
        raise ConfigError("teacher.server: what is imported has no server; leave teacher.server out.")
    if not path.exists():
        raise ConfigError(f"{path}: is not there; give the file, or the folder, to import.")
    check_writable(folder, "teacher.cache")
    with quiet_libraries(interactive=sys.stderr.isatty()):
        pair = recipe_pair(recipe, weights=False, translates=True)
        check_kept(pair)
        rows = _RecipeRows.of(filed_rows(teacher_of(recipe).rows(pair), pair))
        of_ours = options.kind == "export" or (options.kind == "auto" and is_export(path))
        read = _from_export if of_ours else _from_capture
        spec, engine, found, result = read(recipe, pair, rows, path, options)
        result.missing = len(rows.documents) - len(found)
        if result.unusable and not options.skip_unusable:
            raise DataError(f"{result.complaint}. To import the others, add --skip-unusable.")
        if not found:
            raise DataError(
                f"{path}: no row of it gives a signal. {result.complaint if result.unusable else ''}".strip()
            )
        if options.replace:
            remove_cache(folder)
        result.built = build_cache(folder, engine, [_dataset(found)], spec)
    return result


class _Read(NamedTuple):
    spec: "CacheSpec"
    engine: "AnswersEngine"
    found: "list[Document]"
    result: ImportResult


class _RecipeRows(NamedTuple):
    """The documents of a recipe, as its teacher reads them, to be found."""

    documents: "dict[bytes, Document]"
    """By key."""
    by_ids: "dict[bytes, list[Document]]"
    by_number: "dict[int, Document]"
    """Training rows, by their number in the data."""

    @classmethod
    def of(cls, by_name: "Mapping[str, Dataset]") -> "_RecipeRows":
        from bridgegarden.teacher.cache.shard import documents_of

        rows = cls({}, {}, {})
        for name, dataset in by_name.items():
            for document in documents_of(dataset):
                if name == "train":
                    rows.by_number[document.row] = document
                if rows.documents.setdefault(document.key, document) is document:
                    rows.by_ids.setdefault(document.ids.tobytes(), []).append(document)
        return rows

    def of_ids(self, ids: np.ndarray, max_length: int | None) -> "list[Document]":
        """Those with these tokens, or without the last one, which some programs add; or as cut to `max_length`."""
        lengths = {len(ids), len(ids) - 1} | ({max_length} if max_length is not None else set())
        whole = ids.astype(np.int32)
        found = (self.by_ids.get(whole[:length].tobytes(), []) for length in sorted(lengths) if length <= len(ids))
        return [document for documents in found for document in documents]

    def nearest(self, ids: np.ndarray) -> str:
        """Where the tokens of a row leave those of the recipe, for a message."""
        best, at = None, -1
        for document in self.documents.values():
            shared = min(len(ids), len(document.ids))
            differs = np.flatnonzero(ids[:shared] != document.ids[:shared])
            agreed = int(differs[0]) if len(differs) else shared
            if agreed > at:
                best, at = document, agreed
        assert best is not None
        theirs, ours = (str(part[at]) if at < len(part) else "its end" for part in (ids, best.ids))
        return f"the nearest row of the recipe, {best.row}, is the same for {at} tokens, then has {ours} for {theirs}"


def _dataset(documents: "Sequence[Document]") -> "Dataset":
    import pyarrow as pa
    from datasets import Dataset

    ids = pa.list_(pa.int32())
    columns = {
        "input_ids": pa.array([document.ids for document in documents], ids),
        "labels": pa.array([document.labels for document in documents], ids),
        "row": pa.array([document.row for document in documents], pa.int64()),
    }
    return Dataset(pa.table(columns))


def _from_export(recipe: Recipe, pair: Pair, rows: _RecipeRows, path: Path, options: ImportOptions) -> _Read:
    """What :func:`~bridgegarden.teacher.cache.exchange.export_cache` wrote: everything, with the spec it had."""
    from bridgegarden.teacher.cache.exchange import ExportReader
    from bridgegarden.teacher.cache.forward import AnswersEngine

    if options.shift or options.column or options.top_k is not None:
        raise ConfigError("cache import: --shift, --column and --top-k are for files of other programs.")
    reader = ExportReader(path)
    tokenizer = pair.read_by
    here = {
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "chat_template": chat_template_fingerprint(tokenizer),
        "max_length": recipe.training.arguments["max_length"],
    }
    for name, value in here.items():
        if getattr(reader.spec, name) != value:
            raise ConfigError(
                f"{path}: exported of rows with another {name.replace('_', ' ')} "
                f"({str(getattr(reader.spec, name))[:12]}) than the recipe's ({str(value)[:12]}). Token ids would not "
                f"mean the same. {_read_otherwise(recipe)}"
            )
    if reader.spec.teacher != recipe.teacher.model:
        raise ConfigError(
            f"teacher.model: {path} holds what {reader.spec.teacher!r} said, not {recipe.teacher.model!r}. Name that "
            f"one (--set teacher.model={reader.spec.teacher})."
        )
    engine, result = AnswersEngine(reader.spec), ImportResult(path=path, kind="export")
    found: dict[bytes, Document] = {}
    for number, exported in enumerate(reader):
        document = rows.documents.get(exported.key)
        if document is None:
            result.unknown += 1
            continue
        if len(exported.signals.logp) != document.positions:
            raise DataError(
                f"{path}, row {number}: has {len(exported.signals.logp)} positions, and {document.positions} tokens of "
                "this row are learnt."
            )
        engine.add_signals(exported.key, exported.signals)
        found[exported.key] = document
    if not found:
        raise DataError(f"{path}: none of its rows is a row of the recipe. Was it exported of other data?")
    return _Read(reader.spec, engine, list(found.values()), result)


def _from_capture(recipe: Recipe, pair: Pair, rows: _RecipeRows, path: Path, options: ImportOptions) -> _Read:
    """Likeliest tokens, as another program wrote them."""
    from bridgegarden.teacher.answers import AnsweredRow
    from bridgegarden.teacher.cache.captures import CaptureReader
    from bridgegarden.teacher.cache.forward import AnswersEngine
    from bridgegarden.teacher.cache.spec import Served

    if not recipe.teacher.only_cache:
        raise ConfigError(
            "teacher.only_cache: what another program kept cannot be told to be of the model that is here. Add --set "
            "teacher.only_cache=true, and keep it in the recipe for training."
        )
    if recipe.teacher.prompt is not None:
        raise ConfigError(
            "teacher.prompt: another program's lists are about the rows as the student reads them; leave it out."
        )
    table = load_rows(str(path))
    reader = CaptureReader.of(path, table.column_names, options.kind, options.column)
    source = _Capture(
        path=path,
        rows=rows,
        reader=reader,
        table=RowsAsWritten(table),
        is_data=_is_training_data(recipe, path),
        max_length=recipe.training.arguments["max_length"],
        advice=_read_otherwise(recipe),
    )
    result = ImportResult(path=path, kind=reader.kind)
    vocab_size = shared_vocabulary(pair)
    alignment, most = source.looked_through(vocab_size, options.shift, result)
    result.means = alignment.means
    _check_alignment(path, alignment, options.shift)
    k = min(options.top_k or most, most, vocab_size - 1)
    spec = spec_of_lists(recipe, pair, k, options.bits, Served(temperature=1.0, source="imported"))
    engine, found = AnswersEngine(spec), {}
    at = _PositionMaker(vocab_size=vocab_size, k=spec.support.k, stops=_stops(pair), reader=reader, shift=options.shift)
    for place, document, lists in source.matched():
        if document.key in found:
            continue
        said = source.problem(document, lists) or at.positions(document, lists, result.counts)
        if not isinstance(said, list):
            result.unusable.setdefault(said.reason, []).append(f"{place}: {said.detail}")
            continue
        engine.add(
            AnsweredRow(
                input_ids=document.ids.tolist(), labels=document.labels.tolist(), positions=said, end_is_label=False
            )
        )
        found[document.key] = document
    return _Read(spec, engine, list(found.values()), result)


def _read_otherwise(recipe: Recipe) -> str:
    """What to do about rows that the teacher has read in other tokens."""
    section = recipe.teacher
    if section.tokenizer is not None:
        return f"They were read with another tokenizer than {section.tokenizer!r}: name that one (teacher.tokenizer)."
    if section.only_cache:
        return "If the teacher has another tokenizer than the student, name it (--set teacher.tokenizer=NAME)."
    return f"They were not read by {section.model!r} in the recipe's chat template; take the recipe of that file."


def _stops(pair: Pair) -> tuple[int, ...]:
    """Ids at which the teacher ends a turn, in the tokens that it reads rows in."""
    if pair.tokens is None:
        return pair.endings.stops
    assert pair.teacher_tokens is not None
    return end_of_turn_ids(pair.read_by, pair.teacher_tokens.generation_config)


def _is_training_data(recipe: Recipe, path: Path) -> bool:
    sources = [Path(source.path).expanduser() for source in recipe.data.sources]
    return len(sources) == 1 and sources[0].exists() and sources[0].samefile(path)


def _check_alignment(path: Path, alignment: "Alignment", shift: int) -> None:
    better = alignment.better
    if better is None:
        return
    means = alignment.means
    raise ConfigError(
        f"{path}: its lists stand one token off: the labels have {means[0]:.2f} nats on average where the lists are "
        f"taken to stand, and {means[better]:.2f} one token {'later' if better > 0 else 'earlier'} (over "
        f"{alignment.positions:,} positions). Read them there with --shift {shift + better}."
    )


@dataclass(frozen=True, kw_only=True)
class _Capture:
    """A file and the rows of the recipe that it is about."""

    path: Path
    rows: _RecipeRows
    reader: "CaptureReader"
    table: Sequence[Mapping[str, Any]]
    is_data: bool
    """Whether the file is the recipe's training data, so that a row's number tells which it is."""
    max_length: int | None
    advice: str
    """What to do about token ids that are not the recipe's."""

    def matched(self, result: ImportResult | None = None) -> "Iterator[tuple[str, Document, Lists]]":
        """Every row of the file with the documents that it is about; others are counted in `result`.

        Raises:
            DataError: a row is damaged, or none is the recipe's.
        """
        found, first = 0, None
        for number, row in enumerate(self.table):
            place = f"row {number}"
            lists = self.reader.read(row, f"{self.path}, {place}")
            if lists.input_ids is not None:
                documents = self.rows.of_ids(lists.input_ids, self.max_length)
                first = lists.input_ids if first is None else first
            elif self.is_data:
                documents = [self.rows.by_number[number]] if number in self.rows.by_number else []
            else:
                raise DataError(
                    f"{self.path}: has no column input_ids, and is not the recipe's data, so which rows it is about is "
                    f"not known. Train on it (--set data.train={self.path}), or give it the column."
                )
            found += len(documents)
            if result is not None and not documents:
                result.unknown += 1
            yield from ((place, document, lists) for document in documents)
        if not found:
            why = (
                ""
                if first is None
                else f": {self.rows.nearest(first)}. Is it another tokenizer or chat template? {self.advice}"
            )
            raise DataError(f"{self.path}: none of its rows is a row of the recipe{why}")

    def looked_through(self, vocab_size: int, shift: int, result: ImportResult) -> "tuple[Alignment, int]":
        """Where the lists stand, and the most tokens that one has."""
        from bridgegarden.teacher.cache.captures import Alignment

        alignment, most = Alignment(vocab_size), 1
        for _, document, lists in self.matched(result):
            most = max((most, *map(len, lists.ids)))
            if alignment.positions < LOOKED_AT and self.problem(document, lists) is None:
                alignment.add(lists, document.ids, _supervised(document), shift)
        return alignment, most

    def problem(self, document: "Document", lists: "Lists") -> "Unfit | None":
        """Why nothing can be told of a row; None where something can."""
        from bridgegarden.teacher.cache.captures import Unfit

        if lists.from_end and len(document.ids) == self.max_length:
            return Unfit(CUT, f"{self.max_length} tokens, and its lists are counted from the end")
        return None


@dataclass(frozen=True, kw_only=True)
class _PositionMaker:
    """What a file says at the learnt tokens of a row."""

    vocab_size: int
    k: int
    stops: tuple[int, ...]
    reader: "CaptureReader"
    shift: int

    def positions(self, document: "Document", lists: "Lists", counts: Counter[str]) -> "list[Position] | Unfit":
        """In order, or the first reason why there are none."""
        from bridgegarden.teacher.answers import label_alone
        from bridgegarden.teacher.cache.captures import LOSSY_EXCESS, NOTHING, Unfit, position_at
        from bridgegarden.teacher.foreign_values import EXCESS

        first, supervised = lists.first(len(document.ids), self.shift), _supervised(document)
        found: list[Position] = []
        for at in supervised:
            label, place = int(document.ids[at]), at - first
            if not (0 <= place < len(lists.ids) and len(lists.ids[place])):
                if at == supervised[-1] and label in self.stops and found:
                    counts["are ends of turn without log-probabilities: the hard label stands there alone"] += 1
                    found.append(label_alone(label))
                    continue
                return Unfit(NOTHING, f"token {at}")
            ids, logp = lists.ids[place], lists.logp[place]
            excess = LOSSY_EXCESS if self.reader.is_lossy else EXCESS
            position = position_at(ids, logp, label, vocab_size=self.vocab_size, k=self.k, excess=excess)
            if isinstance(position, Unfit):
                return position._replace(detail=f"token {at}, {position.detail}")
            counts["whose listed tokens have all of the mass: the tail is 1e-7 there"] += position.is_floored
            counts["whose label is not listed: its log-probability is the most that it can be"] += label not in ids
            counts["with tokens that the student does not have: they are in the tail"] += position.unnamed > 0
            counts["whose tokens were not in the order of their probability"] += bool((np.diff(logp) > 0).any())
            found.append(position)
        return found


def _supervised(document: "Document") -> list[int]:
    return (np.flatnonzero(document.labels[1:] != IGNORED) + 1).tolist()
