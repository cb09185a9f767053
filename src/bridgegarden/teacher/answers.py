"""A teacher's answers on disk: while they are being generated, and read again as what is trained on.

A run that is killed at any moment goes on where it was. Beside the answers, which are rows to train on, lie three files
whose names no data loader takes for data: ``ANSWERS.errors`` (requests without an answer, and why),
``ANSWERS.truncated`` (answers that were cut off) and ``ANSWERS.settings`` (what the answers depend on).

A row with a server's log-probabilities is trained on exactly the token ids that the teacher wrote, also where the
student's tokenizer would have cut the answer otherwise: the log-probabilities are about them and no others.
"""

import json
import math
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bridgegarden.data import Columns, conversation, prompt
from bridgegarden.data.encode import IGNORED, RowTokeniser
from bridgegarden.errors import ConfigError, DataError
from bridgegarden.files import AppendedLines, line_of, partial, write_json, write_whole
from bridgegarden.teacher.foreign_values import Unfit, mapping, number, shown, whole
from bridgegarden.teacher.server_logprobs import SMALLEST_TAIL, KeptLogprobs, TokenTexts, kept_logprobs, token_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAY_GROW = "max_new_tokens"
"""The one setting that may change: whole answers are the same under a higher limit, and cut ones are made anew."""
BESIDE = ("errors", "truncated", "settings")
"""What lies beside the answers, by the end of its name."""
LONGEST_NAME = 255
"""Bytes that file systems take."""
LARGEST_COUNT = 2**63 - 1
NO_LOGPROBS = "no log-probabilities"
MALFORMED = "log-probabilities of another form than generate writes"
NOT_TOLD_APART = "tokens that their text does not tell apart"
OTHER_TOKENS = "tokens that are not the student's"
TWICE = "a token listed twice"
OTHER_END = "an end at which the student does not stop"
ADVICE: Mapping[str, str] = {
    NO_LOGPROBS: "ask again with --top-logprobs, from a server that returns them",
    MALFORMED: "generate these rows again",
    NOT_TOLD_APART: "let the server say token ids (vLLM: --return-tokens-as-token-ids)",
    OTHER_TOKENS: "take a student with the teacher's tokenizer",
    TWICE: "the server repeats itself",
    OTHER_END: "give the student the teacher's chat template",
}
"""Why a row gives no signal, and what helps."""


class Key(NamedTuple):
    """What an answer answers."""

    row: int
    """Number of the row in its data set, from 0."""
    sample: int
    """Which of several answers to it, from 0."""


class AnswerFile:
    """The four files of one run of generation, open for one process at a time. A context manager."""

    def __init__(self, path: Path, settings: Mapping[str, Any], *, keep_truncated: bool = False) -> None:
        """Open or create the files, and mend what a crash may have left.

        Args:
            path: of the answers; JSON lines.
            settings: what the answers depend on, as plain values. Answers of other settings are never added to.
            keep_truncated: whether answers that were cut off are rows like any other. Set aside earlier, they return.

        Raises:
            ConfigError: the file belongs to other settings, to something else, or to a process that is writing it.
            DataError: a file is damaged, or the disk is full.
        """
        self.path = path
        self.errors_path, self.truncated_path, self._settings_path = _beside(path)
        self.keep_truncated = keep_truncated
        check_answers_path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"{path}: its folder cannot be made ({error.strerror}). Give another --output."
            ) from error
        self._answers = AppendedLines(path, locked=True)
        try:
            self._apply(settings)
            self._truncated = AppendedLines(self.truncated_path)
            self._errors = AppendedLines(self.errors_path)
        except BaseException:
            self._answers.close()
            raise
        self._failed = {key_of(record, self.errors_path, line): record for line, record in self._errors.records()}

    def __enter__(self) -> "AnswerFile":
        return self

    def __exit__(self, *exception: object) -> None:
        """Keep only errors that still stand, and no empty file beside the answers."""
        for lines in (self._answers, self._truncated, self._errors):
            lines.close()
        write_whole(self.errors_path, map(line_of, self._failed.values()))
        for path in (self.errors_path, self.truncated_path):
            if path.stat().st_size == 0:
                path.unlink()

    def finished(self) -> Iterator[tuple[Key, str, dict[str, Any]]]:
        """Every answer there is: its key, its place for messages, its row. Those set aside as truncated come last."""
        for lines in (self._answers, self._truncated):
            for line, record in lines.records():
                key = key_of(record, lines.path, line)
                self._failed.pop(key, None)  # a crash may have come between an answer and the end of its error
                yield key, f"{lines.path}:{line}", record

    def add(self, answers: Sequence[Mapping[str, Any]], failures: Sequence[Mapping[str, Any]]) -> None:
        """Put a batch on disk; it is safe when this returns.

        Raises:
            DataError: it cannot be written. Batches before it are whole.
        """
        aside = [] if self.keep_truncated else [row for row in answers if row["finish_reason"] == "length"]
        self._answers.append([row for row in answers if self.keep_truncated or row["finish_reason"] != "length"])
        self._truncated.append(aside)
        self._errors.append(failures)
        for record in answers:
            self._failed.pop(Key(record["row"], record["sample"]), None)
        self._failed |= {Key(record["row"], record["sample"]): record for record in failures}

    def sort(self) -> None:
        """Bring the answers into the order of the rows, however often the run was resumed."""
        self._answers.sort(key_of)

    def _apply(self, settings: Mapping[str, Any]) -> None:
        if self._settings_path.exists():
            before = read_settings(self._settings_path)
            _compare(self.path, before, settings)
            if settings[MAY_GROW] > before[MAY_GROW]:
                # Before the settings: if the two are torn apart, this is done again, not left out.
                self.truncated_path.unlink(missing_ok=True)
        write_json(self._settings_path, settings)
        if self.keep_truncated and self.truncated_path.exists():
            there = {key_of(record, self.path, line) for line, record in self._answers.records()}
            aside = AppendedLines(self.truncated_path)
            self._answers.append([r for n, r in aside.records() if key_of(r, aside.path, n) not in there])
            aside.close()
            self.truncated_path.unlink()


def key_of(record: Mapping[str, Any], path: Path, number: int) -> Key:
    row, sample = record.get("row"), record.get("sample")
    if type(row) is not int or type(sample) is not int:
        raise DataError(f"{path}:{number}: has no whole numbers 'row' and 'sample', so it was not generated here.")
    return Key(row, sample)


def check_can_be_written(row: Mapping[str, Any], place: str) -> None:
    """Whether a row of the source can be kept as JSON.

    Raises:
        DataError: names the column that cannot.
    """
    for name, value in row.items():
        try:
            line_of({name: value})
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{place}: column {name!r} cannot be kept as JSON ({error}). Remove the column, or turn it into text."
            ) from error


def check_answers_path(path: Path) -> None:
    """Whether answers may be written to `path`, so far as that can be known before they are there.

    Raises:
        ConfigError: it, or what would lie beside it, is no file; it was not written here; or no file can be made there.
    """
    files = (path, *_beside(path))
    longest = max(len(os.fsencode(partial(file).name)) for file in files)
    if longest > LONGEST_NAME:
        raise ConfigError(
            f"{path.parent}: the name for the answers is {longest - LONGEST_NAME} bytes too long, since those of the "
            "files beside it are longer. Give another --output."
        )
    for file in files:
        try:
            mode = os.stat(file).st_mode
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ConfigError(f"{file}: cannot be looked at ({error.strerror}). Give another --output.") from error
        if not stat.S_ISREG(mode):
            what = "a folder" if stat.S_ISDIR(mode) else "a device, a pipe or the like"
            raise ConfigError(f"{file}: is {what}; expected a file name for the answers, such as answers.jsonl.")
    if path.exists() and path.stat().st_size and not files[-1].exists():
        raise ConfigError(
            f"{path}: exists, and was not generated here ({files[-1].name} is missing). Give another --output."
        )
    there = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{path}: no file can be written in {there}. Give another --output.")


def read_settings(path: Path) -> dict[str, Any]:
    """What the answers beside `path` depend on, as :class:`AnswerFile` writes it.

    Raises:
        ConfigError: it is damaged.
    """
    try:
        settings = dict(mapping(json.loads(path.read_bytes()), "it"))
        whole(settings.get(MAY_GROW), MAY_GROW, LARGEST_COUNT)
        whole(settings.get("top_logprobs", 0), "top_logprobs", LARGEST_COUNT)
        number(settings.get("temperature"), "temperature", 0, math.inf)
    except (ValueError, RecursionError) as error:  # Unfit is one of the former
        reason = error if isinstance(error, Unfit) else "it is not JSON"
        raise ConfigError(
            f"{path}: is damaged ({reason}), so what its answers were asked for with is not known. Restore it, or give "
            "another --output."
        ) from error
    return settings


def _beside(path: Path) -> tuple[Path, ...]:
    return tuple(path.with_name(f"{path.name}.{kind}") for kind in BESIDE)


def _compare(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for name in {**now, **before}:
        was, is_now = before.get(name), now.get(name)
        if was != is_now and not (name == MAY_GROW and now[name] > before[name]):
            raise ConfigError(
                f"{path}: its answers were generated with {shown(name)[1:-1]} {shown(was)}, now it is {shown(is_now)}. "
                "Give another --output, or the setting as it was."
            )


class Unusable(NamedTuple):
    """Why a row gives no signal."""

    reason: str
    """A key of :data:`ADVICE`."""
    detail: str


class Position(NamedTuple):
    """What the teacher said at one token, in nats."""

    ids: tuple[int, ...]
    """Kept tokens, likeliest first; all different."""
    logp: tuple[float, ...]
    """Their log-probabilities. With the tail they sum to one."""
    log_tail: float
    """Log of all other mass, at least that of :data:`SMALLEST_TAIL`."""
    entropy: float
    """A lower bound of the teacher's entropy; see :func:`least_entropy`."""
    label_logp: float
    """Log-probability of the token that was written, whether it is kept or not."""
    is_floored: bool
    """Whether the server's numbers left less than :data:`SMALLEST_TAIL` for the tail."""
    unnamed: int
    """Listed tokens whose ids are not known; their mass is in the tail."""


@dataclass(frozen=True, kw_only=True)
class AnsweredRow:
    """A row as it is trained on, with what the teacher said."""

    input_ids: list[int]
    labels: list[int]
    """The ids where the teacher wrote them, -100 elsewhere."""
    positions: list[Position]
    """One for each label, in order."""
    end_is_label: bool
    """Whether the server said that the teacher ended here, but not with what probability."""

    def truncated(self, max_length: int | None) -> "AnsweredRow":
        """The first `max_length` tokens."""
        if max_length is None or len(self.input_ids) <= max_length:
            return self
        labels = self.labels[:max_length]
        kept = len(labels) - labels.count(IGNORED)
        return replace(
            self,
            input_ids=self.input_ids[:max_length],
            labels=labels,
            positions=self.positions[:kept],
            end_is_label=False,
        )


@dataclass(frozen=True, kw_only=True)
class AnswerReader:
    """Reads the rows of an answers file."""

    tokenizer: "PreTrainedTokenizerBase"
    """The student's, with the chat template that is used."""
    stops: tuple[int, ...]
    """Ids at which the student's generation stops, the one that it is taught first."""
    vocab_size: int
    """Tokens of the student; ids from there on are the tail's."""
    k: int
    """Tokens kept a position, >= 1."""
    columns: Columns = field(default_factory=Columns)
    """Where prompt and answer are."""

    def read(self, row: Mapping[str, Any], *, place: str) -> AnsweredRow | Unusable:
        """One row: the prompt as the student's template writes it, then the ids that the teacher wrote.

        Only the generated answer is supervised: nothing is known of what the teacher thinks of earlier turns.

        Args:
            row: as ``generate`` writes it.
            place: where the row is, for messages.

        Raises:
            DataError: a column is missing or of the wrong type, or the template refuses the conversation.
        """
        try:
            said = kept_logprobs(row.get("top_logprobs"))
        except Unfit as error:
            return Unusable(MALFORMED, str(error))
        if said is None:
            return Unusable(NO_LOGPROBS, "there are none")
        asked = self._tokeniser.prompt(prompt(row, self.columns, place=place), place)
        ids = self._written(said, row, asked, place)
        if isinstance(ids, Unusable):
            return ids
        positions = self._positions(said, ids)
        if isinstance(positions, Unusable):
            return positions
        problem = self._problem(ids, row, place)
        if problem is not None:
            return problem
        end_is_label = row.get("finish_reason") != "length" and ids[-1] not in self.stops
        if end_is_label:
            ids, positions = [*ids, self.stops[0]], [*positions, label_alone(self.stops[0])]
        return AnsweredRow(
            input_ids=asked + ids,
            labels=[IGNORED] * len(asked) + ids,
            positions=positions,
            end_is_label=end_is_label,
        )

    @cached_property
    def _tokeniser(self) -> RowTokeniser:
        return RowTokeniser.of(self.tokenizer)

    @cached_property
    def _texts(self) -> TokenTexts:
        return TokenTexts(self.tokenizer, self.vocab_size)

    def _written(
        self, said: KeptLogprobs, row: Mapping[str, Any], asked: list[int], place: str
    ) -> list[int] | Unusable:
        """The ids that the teacher wrote: as the server says, or else as far as their text tells."""
        if said.token_ids is not None:
            outside = next((index for index in said.token_ids if index >= self.vocab_size), None)
            return list(said.token_ids) if outside is None else Unusable(OTHER_TOKENS, f"id {outside}")
        found = [self._texts.ids(token_bytes(name)) for name in said.tokens]
        for name, ids in zip(said.tokens, found, strict=True):
            if not ids:
                return Unusable(OTHER_TOKENS, repr(name))
        if all(len(ids) == 1 for ids in found):
            return [ids[0] for ids in found]
        # Ambiguous texts are settled if the student's tokenizer cuts the answer just so.
        whole = self._tokeniser.row(conversation(row, self.columns, place=place), place).input_ids
        usual = whole[len(asked) :]
        fits = whole[: len(asked)] == asked and len(found) in (len(usual), len(usual) - 1)
        if fits and all(index in ids for index, ids in zip(usual, found, strict=False)):
            return usual[: len(found)]
        first = next(name for name, ids in zip(said.tokens, found, strict=True) if len(ids) > 1)
        return Unusable(NOT_TOLD_APART, repr(first))

    def _positions(self, said: KeptLogprobs, ids: Sequence[int]) -> list[Position] | Unusable:
        positions = []
        for at, (index, label_logp) in enumerate(zip(ids, said.logprobs, strict=True)):
            names, logps = said.top_tokens[at], said.top_logprobs[at]
            if said.top_token_ids is not None:
                listed = [i if i < self.vocab_size else None for i in said.top_token_ids[at]]
            else:
                own = said.tokens[at], label_logp
                listed = [
                    index if (name, logp) == own else self._only(name) for name, logp in zip(names, logps, strict=True)
                ]
            named = [i for i in listed if i is not None]
            if len(set(named)) < len(named):
                return Unusable(TWICE, repr(self.tokenizer.convert_ids_to_tokens(max(named, key=named.count))))
            if listed[0] is None:
                ambiguous = self._texts.ids(token_bytes(names[0])) if said.top_token_ids is None else ()
                return Unusable(NOT_TOLD_APART if ambiguous else OTHER_TOKENS, repr(names[0]))
            positions.append(kept_position(listed, logps, label_logp, self.k))
        return positions

    def _only(self, name: str) -> int | None:
        ids = self._texts.ids(token_bytes(name))
        return ids[0] if len(ids) == 1 else None

    def _problem(self, ids: list[int], row: Mapping[str, Any], place: str) -> Unusable | None:
        """Whether `ids` spell the answer and end it: those of another vocabulary do not."""
        text = conversation(row, self.columns, place=place).messages[-1]["content"]
        end = self._spelt(ids[-1:])
        before_end = self._spelt(ids[:-1]).strip()
        if ids[-1] in self.stops:
            return None if before_end in (text.strip(), text.removesuffix(end).strip()) else _not_spelt(before_end)
        if self._spelt(ids).strip() == text.strip():
            return None
        return Unusable(OTHER_END, repr(end)) if before_end == text.strip() else _not_spelt(self._spelt(ids))

    def _spelt(self, ids: list[int]) -> str:
        text = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text


def kept_position(ids: Sequence[int | None], logps: Sequence[float], label_logp: float, k: int) -> Position:
    """What is kept of one position.

    A server gives no tail: it is one minus the kept mass, in float64. Its log-probabilities are float32 at best, so
    less than :data:`SMALLEST_TAIL` is rounding, of either sign. The tail is taken to be that then, and all masses are
    divided by their sum.

    Args:
        ids: of the listed tokens, likeliest first; None where it is not known. The first is.
        logps: their log-probabilities, nats.
        label_logp: that of the token that was written.
        k: how many tokens to keep at most.
    """
    named = [(index, logp) for index, logp in zip(ids, logps, strict=True) if index is not None]
    kept = named[:k]
    mass = math.fsum(math.exp(logp) for _, logp in kept)
    tail = max(1 - mass, SMALLEST_TAIL)
    excess = math.log(mass + tail) if tail > 1 - mass else 0.0
    return Position(
        ids=tuple(index for index, _ in kept),
        logp=tuple(logp - excess for _, logp in kept),
        log_tail=math.log(tail) - excess,
        entropy=least_entropy(logps, label_logp),
        label_logp=min(label_logp, 0.0),
        is_floored=tail > 1 - mass,
        unnamed=len(ids) - len(named),
    )


def label_alone(index: int) -> Position:
    """A position of which no more is known than the token that the teacher wrote there.

    Its forward KL is the hard label's loss, whatever the soft weight. Drawn at temperature 1 the token is an unbiased
    estimate of the teacher's distribution, and chosen greedily the teacher's likeliest one.
    """
    return kept_position([index], [0.0], 0.0, 1)._replace(is_floored=False)


def least_entropy(logps: Sequence[float], label_logp: float) -> float:
    r"""The least entropy that a teacher with these likeliest tokens can have, about.

    .. math:: -\sum_{listed} p \log p - r \log \min(r, m)

    with r the mass of all others and m the probability of the least likely listed token: each of the others has at most
    m, and at most r. The token that was drawn may be listed whatever its probability, so it is left out of m.

    Args:
        logps: log-probabilities of the listed tokens, nats.
        label_logp: that of the token that was drawn.

    Returns:
        Nats, at most r log(V - K) below the teacher's entropy.
    """
    masses = [math.exp(logp) for logp in logps]
    rest = max(1 - math.fsum(masses), SMALLEST_TAIL)
    total = math.fsum(masses) + rest
    least = min((logp for logp in logps if logp != label_logp), default=0.0)
    of_listed = math.fsum(mass / total * math.log(mass / total) for mass in masses if mass > 0)
    return -of_listed - rest / total * min(math.log(rest / total), least)


def _not_spelt(text: str) -> Unusable:
    return Unusable(OTHER_TOKENS, f"spelt by the student's tokenizer they are {text[:40]!r}")
