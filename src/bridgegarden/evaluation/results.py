"""What an evaluation found, how it is written down, and the model's answers on disk while it is under way."""

import hashlib
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bridgegarden.errors import ConfigError, DataError
from bridgegarden.files import AppendedLines
from bridgegarden.statistics import exact_share
from bridgegarden.table import Column, Table

SHARES = ("acc", "exact_match", "pass@", "math_verify", "em", "f1")
"""How the names of metrics begin that are shares."""

NOTE = (
    "Scores with their standard errors over problems; accuracies in per cent. Where all problems came out alike, the "
    "end of the exact 95 % interval."
)

REPORTED = (1, 5, 10, 100)
"""The k that are reported as far as there are answers enough, beside all of them."""

KINDS = ("generate_until", "loglikelihood", "loglikelihood_rolling")
"""What lm-eval asks a model for."""

SECONDS_BETWEEN_WRITES = 1.0
"""Likelihoods come by the thousand a second, and each write waits for the disk."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """One metric of one task."""

    task: str
    """Task, or group of lm-eval whose tasks are averaged."""
    metric: str
    """lm-eval's name of it."""
    filter: str
    """How the answer was read, where a task has several ways; else ``none``."""
    decoding: str
    """``greedy``, ``sampled`` or ``likelihood``: how the answer came about."""
    mean: float
    """Over problems."""
    stderr: float | None
    """Standard error of `mean` over problems, None where lm-eval gives none."""
    problems: int
    """How many."""
    part_of: str | None = None
    """The group that this task was run for."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores of one model, and what they depend on."""

    model: str
    """Name or folder."""
    scores: tuple[Score, ...]
    """In the order of the tasks."""
    problems: tuple[Mapping[str, Any], ...]
    """One entry a task, decoding, filter and problem: their names, ``problem`` (a hash of its content, the same for
    every model), ``scores`` by metric, and ``answers`` where the model wrote any."""
    settings: Mapping[str, Any]
    """Everything else that decided the scores, as plain values."""

    def to_dict(self) -> dict[str, Any]:
        """For a JSON file; `problems` are kept in one of their own."""
        return {
            "model": self.model,
            "scores": [_finite(asdict(score)) for score in self.scores],
            "settings": dict(self.settings),
        }

    def problem_lines(self) -> str:
        """`problems` as JSON lines."""
        return "".join(json.dumps(_finite(line), ensure_ascii=False, allow_nan=False) + "\n" for line in self.problems)

    def by_problem(
        self, task: str, metric: str, *, decoding: str = "greedy", filter_name: str = "none"
    ) -> dict[str, float]:
        """Scores by problem, for :func:`~bridgegarden.statistics.paired_difference`.

        Raises:
            DataError: there are none.
        """
        wanted = {"task": task, "decoding": decoding, "filter": filter_name}
        found = {
            line["problem"]: float(line["scores"][metric])
            for line in self.problems
            if wanted.items() <= line.items() and metric in line["scores"]
        }
        if not found:
            known = sorted({(score.task, score.decoding, score.metric, score.filter) for score in self.scores})
            raise DataError(f"{self.model}: no scores of {metric} for {wanted}. There are: {known}.")
        return found

    def shown(self) -> list[Score]:
        """Scores of what was asked for: groups rather than their tasks, where lm-eval averages them."""
        averaged = {score.task for score in self.scores}
        return [score for score in self.scores if score.part_of is None or score.part_of not in averaged]

    def to_markdown(self) -> str:
        """A page with every score."""
        settings = "\n".join(f"* {name}: {_plain(value)}" for name, value in self.settings.items())
        table = scores_table(self.scores)
        return f"# {self.model}\n\n{table.markdown()}\n\n{table.note}\n\n{settings}\n"


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


def scores_table(scores: Sequence[Score]) -> Table:
    """Every score with its error."""
    rows = []
    for score in scores:
        reading = "" if score.filter == "none" else f" ({score.filter})"
        rows.append([score.task, score.decoding, f"{score.metric}{reading}", shown_mean(score), score.problems])
    columns = ["task", Column("answers", words=True), Column("metric", words=True), "score", "problems"]
    return Table(columns=columns, rows=rows, note=NOTE)


def shown_mean(score: Score) -> str:
    """Accuracies in per cent; what is no share of problems as it is."""
    is_share = score.metric.startswith(SHARES)
    unit = 100.0 if is_share else 1.0
    if is_share and score.mean in (0.0, 1.0):
        low, high = exact_share(round(score.mean * score.problems), score.problems)
        return f"{unit * score.mean:.2f} (≥ {unit * low:.1f})" if score.mean else f"0.00 (≤ {unit * high:.1f})"
    if score.stderr is None:
        return f"{unit * score.mean:.2f}"
    return f"{unit * score.mean:.2f} ± {unit * score.stderr:.2f}"


def pass_at_k(answers: int, right: int, k: int) -> float:
    r"""The unbiased estimate of pass@k for one problem.

    .. math:: \mathrm{pass@}k = 1 - \binom{n - c}{k} \Big/ \binom{n}{k}

    The chance that k of the n answers, drawn without replacement, hold one of the c right ones.
    (The plug-in 1 - (1 - c/n)^k is biased downwards.)

    Args:
        answers: n >= k.
        right: c, from 0 to n.
        k: >= 1.

    Raises:
        ConfigError: k is not from 1 to n.

    References:
        Chen et al., 2021, arXiv:2107.03374, equation 1.
    """
    if not 1 <= k <= answers:
        raise ConfigError(f"pass@{k} needs at least {max(k, 1)} answers to a problem and k >= 1; there are {answers}.")
    assert 0 <= right <= answers
    return 1.0 - math.comb(answers - right, k) / math.comb(answers, k)


def reported_ks(answers: int) -> list[int]:
    """The k to report for so many answers: the usual ones up to there, and all of them."""
    return sorted({k for k in REPORTED if k <= answers} | {answers})


def passes(row: Mapping[str, Any], results: Sequence[Sequence[bool]]) -> dict[str, float]:
    """``pass@k`` of one problem, whose graded answers are the only entry of `results`."""
    (grades,) = results
    return {f"pass@{k}": pass_at_k(len(grades), sum(grades), k) for k in reported_ks(len(grades))}


def accuracy(row: Mapping[str, Any], results: Sequence[Sequence[bool]]) -> dict[str, float]:
    """As :func:`passes`, with the usual name for a single answer."""
    scores = passes(row, results)
    return {"acc": scores.pop("pass@1"), **scores}


def _finite(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Without numbers that JSON cannot write: some metrics of lm-eval are infinite for some models."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            value = _finite(value)
        found[name] = None if isinstance(value, float) and not math.isfinite(value) else value
    return found


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {item}" for name, item in value.items()) or "none"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def _digest(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
