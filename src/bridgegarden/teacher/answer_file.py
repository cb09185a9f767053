"""Answers on disk while they are being generated: a run that is killed at any moment goes on where it was.

Beside the answers, which are rows to train on, lie three files whose names no data loader takes for data:
``ANSWERS.errors`` (requests without an answer, and why), ``ANSWERS.truncated`` (answers that were cut off) and
``ANSWERS.settings`` (what the answers depend on).
"""

import json
import math
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bridgegarden.errors import ConfigError, DataError
from bridgegarden.files import AppendedLines, line_of, partial, write_json, write_whole
from bridgegarden.teacher.foreign_values import Unfit, mapping, number, shown, whole

MAY_GROW = "max_new_tokens"
"""The one setting that may change: whole answers are the same under a higher limit, and cut ones are made anew."""
BESIDE = ("errors", "truncated", "settings")
"""What lies beside the answers, by the end of its name."""
LONGEST_NAME = 255
"""Bytes that file systems take."""
LARGEST_COUNT = 2**63 - 1


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
