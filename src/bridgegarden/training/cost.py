"""What a training costs: tokens through each model, and seconds by phase."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, cast

import torch
from accelerate import Accelerator
from torch import Tensor

Phase = Literal["generation", "teacher", "step"]

FILE = "cost.json"
"""In a checkpoint."""
LOGGED = ("teacher_tokens", "student_tokens", "generated_tokens")
"""Fields that every log has."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of a training since it began, resumptions included, summed over processes. Evaluations are not counted.

    Tokens are real ones: padding is not counted, although a device may work on it.
    """

    teacher_tokens: int = 0
    """Tokens through the teacher's forward; none with a cached teacher."""
    student_tokens: int = 0
    """Tokens through the student's forward and backward."""
    prompt_tokens: int = 0
    """Tokens through the student's forward before it began to write."""
    generated_tokens: int = 0
    """Tokens sampled from the student, one forward of a single position each."""
    answers: int = 0
    """Texts that the student wrote."""
    ended_answers: int = 0
    """Those of them that ended by themselves, before ``max_new_tokens``."""
    generation_seconds: float = 0.0
    """Wall time of writing."""
    teacher_seconds: float = 0.0
    """Wall time of the teacher's forward up to its final hidden states."""
    student_seconds: float = 0.0
    """Wall time of the student's forward and backward, head and loss included, and in them the teacher's head."""

    def since(self, before: "Cost") -> "Cost":
        """What came on top of `before`."""
        return Cost(**{f.name: getattr(self, f.name) - getattr(before, f.name) for f in fields(Cost)})


class CostLedger:
    """The books of one process; :meth:`total` adds up those of all.

    On a GPU phases are measured with events on its stream, which waits for nothing until somebody asks.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._before = Cost()
        self.logged = Cost()
        """What the last log told."""
        self._own = {f.name: 0 for f in fields(Cost) if f.type is int}
        self._seconds: dict[Phase, float] = dict.fromkeys(("generation", "teacher", "step"), 0.0)
        self._events: list[tuple[Phase, torch.cuda.Event, torch.cuda.Event]] = []

    def add(self, **counts: int) -> None:
        """Add to the counts of :class:`Cost`, by name."""
        for name, count in counts.items():
            self._own[name] += count

    @contextmanager
    def phase(self, phase: Phase, *, counted: bool = True) -> Iterator[None]:
        """The time of what runs inside; ``step`` is everything about a batch, so ``teacher`` lies within it."""
        if not counted:
            yield
        elif self._accelerator.device.type == "cuda":
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            began.record()
            yield
            ended.record()
            self._events.append((phase, began, ended))
            if len(self._events) >= 1000:
                self._settle()
        else:
            began_at = time.perf_counter()
            yield
            self._seconds[phase] += time.perf_counter() - began_at

    def total(self) -> Cost:
        """Of all processes. In a distributed run every one of them has to ask."""
        self._settle()
        seconds = {
            "generation_seconds": self._seconds["generation"],
            "teacher_seconds": self._seconds["teacher"],
            "student_seconds": self._seconds["step"] - self._seconds["teacher"],
        }
        # Whole microseconds, so that one sum of integers carries everything, exactly.
        numbers = [*self._own.values(), *(round(1e6 * value) for value in seconds.values())]
        if self._accelerator.num_processes > 1:
            mine = torch.tensor(numbers, device=self._accelerator.device)
            numbers = cast(Tensor, self._accelerator.reduce(mine, "sum")).tolist()
        counts = dict(zip(self._own, numbers, strict=False))
        spent = {name: value / 1e6 for name, value in zip(seconds, numbers[len(counts) :], strict=True)}
        own = {**counts, **spent}
        return Cost(**{name: value + getattr(self._before, name) for name, value in own.items()})

    def log(self, *, writes: bool) -> dict[str, float]:
        """What is logged: tokens so far, and how the student wrote since the last time. Every process has to call this.

        Args:
            writes: whether the student writes in this training.
        """
        total = self.total()
        new, self.logged = total.since(self.logged), total
        logs: dict[str, float] = {name: getattr(total, name) for name in LOGGED}
        if writes and new.answers:
            logs["answer_length"] = new.generated_tokens / new.answers
            logs["answers_ended"] = new.ended_answers / new.answers
            seconds = new.generation_seconds / self._accelerator.num_processes
            logs["generated_tokens_per_second"] = new.generated_tokens / seconds
        return logs

    def save(self, checkpoint: str) -> None:
        """Write the total into a checkpoint. In a distributed run every process has to call this."""
        total = self.total()
        if self._accelerator.is_main_process:
            (Path(checkpoint) / FILE).write_text(json.dumps(asdict(total), indent=2) + "\n", encoding="utf-8")

    def begin(self, checkpoint: str | None) -> None:
        """Start from nothing, or from what a checkpoint says; one without books counts as nothing."""
        self.__init__(self._accelerator)
        file = None if checkpoint is None else Path(checkpoint) / FILE
        if file is not None and file.is_file():
            self._before = self.logged = Cost(**json.loads(file.read_text(encoding="utf-8")))

    def _settle(self) -> None:
        for phase, began, ended in self._events:
            ended.synchronize()
            self._seconds[phase] += began.elapsed_time(ended) / 1000
        self._events.clear()
