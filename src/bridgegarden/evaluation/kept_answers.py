"""A model's answers on disk while tasks are run, so that none is asked for twice when a run dies."""

import hashlib
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bridgegarden.errors import DataError
from bridgegarden.files import AppendedLines

KINDS = ("generate_until", "loglikelihood", "loglikelihood_rolling")
"""What lm-eval asks a model for."""
SECONDS_BETWEEN_WRITES = 1.0
"""Likelihoods come by the thousand a second, and each write waits for the disk."""


class KeptAnswers:
    """The file of one evaluation's answers, open for one process at a time. A context manager.

    A line is a hash of everything that decides an answer, and the answer. Several to the same question (drawn ones) are
    several lines.
    """

    def __init__(self, path: Path, decides: Mapping[str, Any]) -> None:
        """
        Args:
            path: of the file; its folder is made.
            decides: what the answers depend on beside the question, as plain values. Others' are not used.

        Raises:
            ConfigError: another process is writing it.
            DataError: it is damaged, or cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._decides = _digest(decides)
        self._lines = AppendedLines(path, locked=True, first_key="key")
        self._kept: dict[str, list[Any]] = defaultdict(list)
        for number, record in self._lines.records():
            if set(record) != {"key", "answer"} or not isinstance(record["key"], str):
                self._lines.close()
                raise DataError(f"{path}:{number}: is no answer of an evaluation. Give another --output.")
            if record["key"].startswith(self._decides):
                self._kept[record["key"]].append(record["answer"])
        self.found = sum(map(len, self._kept.values()))
        """How many answers an earlier run has left."""
        self._new: list[dict[str, Any]] = []
        self._written = time.monotonic()

    def __enter__(self) -> "KeptAnswers":
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self._write()
        finally:
            self._lines.close()

    def attach(self, lm: Any) -> None:
        """Let `lm`, of lm-eval, be asked only for what is not kept, and keep what it answers."""
        lm.set_cache_hook(self)
        for kind in KINDS:
            setattr(lm, kind, self._answering(kind, getattr(lm, kind)))

    def add_partial(self, kind: str, question: Iterable[Any], answer: Any) -> None:
        """Keep an answer; lm-eval calls this as they come."""
        numbers = answer if isinstance(answer, tuple) else (answer,)
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            return  # JSON has no word for it
        self._new.append({"key": self._key(kind, question), "answer": answer})
        if time.monotonic() - self._written >= SECONDS_BETWEEN_WRITES:
            self._write()

    def remove(self) -> None:
        """Remove the file: what it is for is written elsewhere."""
        self._new.clear()
        self.path.unlink(missing_ok=True)

    def _write(self) -> None:
        self._lines.append(self._new)
        self._new.clear()
        self._written = time.monotonic()

    def _answering(self, kind: str, ask: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
        def answers(requests: Sequence[Any], disable_tqdm: bool = False) -> list[Any]:
            found = [self._take(self._key(kind, request.args)) for request in requests]
            missing = [request for request, answer in zip(requests, found, strict=True) if answer is None]
            fresh = iter(ask(missing, disable_tqdm=disable_tqdm) if missing else ())
            return [next(fresh) if answer is None else answer for answer in found]

        return answers

    def _take(self, key: str) -> Any:
        kept = self._kept.get(key)
        answer = kept.pop(0) if kept else None
        return tuple(answer) if isinstance(answer, list) else answer

    def _key(self, kind: str, question: Iterable[Any]) -> str:
        return f"{self._decides}-{_digest([kind, *question])}"


def _digest(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
