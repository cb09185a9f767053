"""What a run reads and computes: rows in numbers, tokens, and operations by what they are spent on."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bridgegarden.errors import ConfigError
from bridgegarden.preflight.activations import Batch
from bridgegarden.preflight.flops import ForwardFlops, StepFlops, forward_flops
from bridgegarden.teacher.cache.shard import documents_of

if TYPE_CHECKING:
    from datasets import Dataset

    from bridgegarden.preflight import ModelFacts
    from bridgegarden.training.on_policy import OnPolicy

MOST_ROWS = 2**53
"""Rows read in a run, up to which they can be counted one by one in floating point."""
MOST_TOKENS = 2**26
"""Tokens of a batch."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Token counts of tokenised rows, in ascending order of length."""

    lengths: np.ndarray
    """``(n,)`` tokens of each row."""
    supervised: np.ndarray
    """``(n,)`` positions of it that have a loss."""

    @classmethod
    def of(cls, data: "Dataset", *, teacher: bool = False) -> "Rows":
        """Count tokenised rows, as the student reads them or as the teacher does."""
        documents = [document.as_read if teacher else document for document in documents_of(data)]
        lengths = np.array([len(document.ids) for document in documents])
        supervised = np.array([document.positions for document in documents])
        order = np.argsort(lengths, kind="stable")
        return cls(lengths=lengths[order], supervised=supervised[order])

    @property
    def count(self) -> int:
        """Rows."""
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        """Of all rows."""
        return int(self.lengths.sum())

    @property
    def positions(self) -> int:
        """Supervised positions of all rows."""
        return int(self.supervised.sum())

    def packed(self, length: int) -> "Rows":
        """As they are when several share a row of `length` tokens; what is left over at its end is neglected."""
        count = max(1, math.ceil(self.tokens / length))
        share = np.full(count, self.positions / count)
        return Rows(lengths=np.full(count, min(length, self.tokens)), supervised=share)

    def largest_batch(self, rows: int, *, extra: int = 0) -> Batch:
        """The longest rows together: as much as a step can need.

        Args:
            rows: of a batch.
            extra: tokens that the student may write on top.

        Raises:
            ConfigError: the batch is beyond any memory, and beyond what its tensors' sizes can be counted with.
        """
        chosen = slice(-min(rows, self.count), None)
        longest = int(self.lengths[-1])
        if rows * (longest + extra) > MOST_TOKENS:
            written = f" and {extra:,} written ones (on_policy.max_new_tokens)" if extra else ""
            raise ConfigError(
                f"training.per_device_train_batch_size: {rows:,} rows of {longest:,} tokens{written} are more than the "
                f"{MOST_TOKENS:,} tokens that a batch can be planned with, and than any device can hold."
            )
        return Batch(
            rows=rows,
            length=longest + extra,
            # Rows of a smaller data set than a batch are read again.
            supervised=math.ceil(self.supervised[chosen].mean() * rows) + extra * rows,
        )

    def padded_mean(self, batch: int, cost: Callable[[float], float]) -> float:
        r"""The mean of `cost` of the length that a row is padded to, when `batch` random rows share a batch.

        The longest of B rows drawn from n is the i-th shortest with probability C(i - 1, B - 1) / C(n, B).
        """
        size = min(batch, self.count)
        ranks = np.arange(size, self.count + 1)
        log_choose = np.array([_log_choose(int(rank) - 1, size - 1) for rank in ranks])
        chance = np.exp(log_choose - _log_choose(self.count, size))
        values, groups = np.unique(self.lengths[size - 1 :], return_inverse=True)
        weights = np.bincount(groups, weights=chance)
        return float(sum(weight * cost(float(value)) for value, weight in zip(values, weights, strict=True)))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How often rows are read."""

    batch: int
    """Rows a process reads at once."""
    accumulation: int
    """Batches behind a step of the optimiser."""
    processes: int
    steps: int
    """Of the optimiser."""
    rows_read: float
    """Of all processes, over the whole run."""

    @classmethod
    def of(cls, arguments: Any, count: int, processes: int) -> "Schedule":
        """As the trainer makes it of its arguments and so many rows."""
        batch, accumulation = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
        if arguments.max_steps > 0:
            steps = int(arguments.max_steps)
            rows = float(steps * batch * accumulation * processes)
        else:
            batches = math.ceil(count / (batch * processes))
            epochs = arguments.num_train_epochs
            if epochs * count > MOST_ROWS:
                raise ConfigError(
                    f"training.num_train_epochs: {epochs:g} epochs of {count:,} rows are too many to plan with; at "
                    f"most {MOST_ROWS:,} rows are."
                )
            steps = math.ceil(epochs * max(1, math.ceil(batches / accumulation)))
            rows = epochs * count
        return cls(batch=batch, accumulation=accumulation, processes=processes, steps=steps, rows_read=rows)


@dataclass(frozen=True, kw_only=True)
class Work:
    """Tokens and operations of a run, all processes together."""

    tokens: float
    """Read by the student while it trains, padding included."""
    positions: float
    """Of these, supervised."""
    padding: float
    """Share of `tokens` that is padding."""
    flops: Mapping[str, float]
    """By what they are spent on."""

    @property
    def total(self) -> float:
        """Operations."""
        return sum(self.flops.values())


def training_work(
    student: StepFlops,
    teacher: "ModelFacts | None",
    rows: Rows,
    schedule: Schedule,
    *,
    on_policy: "OnPolicy | None",
    ranks: bool = False,
    read: Rows | None = None,
) -> Work:
    """What training takes; what a cache or an evaluation takes is not in it.

    Args:
        student: what a step of it costs.
        teacher: the model that is asked at every step; None where what it said is on disk.
        rows: of the data, packed if they are.
        schedule: how often they are read.
        on_policy: which batches the student answers itself.
        ranks: whether the objective ranks the positions of a batch first, by a walk over both heads without gradients.
        read: what the teacher reads of the rows, behind another prompt; None where it reads them as they are.

    Raises:
        ModelError: the teacher has layers whose operations cannot be counted.
    """
    once = rows.padded_mean(schedule.batch, lambda length: length)
    tokens, positions = schedule.rows_read * once, schedule.rows_read * rows.positions / rows.count
    flops: dict[str, float] = {}
    asked = None if teacher is None else forward_flops(teacher.config)
    if asked is not None:
        flops["teacher"] = _read(asked, read or rows, schedule, positions)
    row = rows.padded_mean(schedule.batch, lambda length: length * student.layers((length + 1) / 2))
    flops["student"] = schedule.rows_read * row + student.head * positions
    if ranks:
        flops["ranking of positions"] = (student.forward.head + (0.0 if asked is None else asked.head)) * positions
    if on_policy is not None and on_policy.lmbda > 0:
        flops["student's own texts"] = on_policy.lmbda * _written(
            student.forward, rows, schedule, on_policy.max_new_tokens
        )
    return Work(
        tokens=tokens,
        positions=positions,
        padding=1 - rows.tokens / rows.count / once,
        flops=flops,
    )


def cache_work(teacher: "ModelFacts", rows: Rows) -> float:
    """Operations of asking the teacher once about every row; padding, which is little there, is not counted."""
    parts = forward_flops(teacher.config)
    layers = rows.count * rows.padded_mean(1, lambda length: length * parts.layers((length + 1) / 2))
    return layers + parts.head * rows.positions


def _read(parts: ForwardFlops, rows: Rows, schedule: Schedule, positions: float) -> float:
    row = rows.padded_mean(schedule.batch, lambda length: length * parts.layers((length + 1) / 2))
    return schedule.rows_read * row + parts.head * positions


def _written(parts: ForwardFlops, rows: Rows, schedule: Schedule, most: int) -> float:
    """If texts are as long as the data's answers, or are cut: prompt and new tokens, each once, with a cache."""
    answer = min(rows.positions / rows.count, most)
    prompt = (rows.tokens - rows.positions) / rows.count
    reading = prompt * parts.layers((prompt + 1) / 2)
    writing = answer * (parts.layers(prompt + (answer + 1) / 2) + parts.head)
    return schedule.rows_read * (reading + writing)
