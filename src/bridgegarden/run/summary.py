"""What came of a run, for a person."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bridgegarden.terminal import counted

if TYPE_CHECKING:
    from rich.table import Table

    from bridgegarden.training.cost import Cost

TERMS = (
    "loss",
    "soft_loss",
    "hard_loss",
    "risk_loss",
    "soft_weight",
    "teacher_entropy",
    "student_entropy",
    "captured_mass",
)
"""Rows of the table, by the trainer's names."""

FREE_RUNNING = ("free_running_loss", "free_running_loss_stderr", "exposure_bias", "exposure_bias_stderr")
"""What was measured on the student's own texts, nats a text."""


@dataclass(frozen=True, kw_only=True)
class TrainSummary:
    """A finished run."""

    steps: int
    """Optimiser steps, those before a resumption included."""
    training: Mapping[str, float]
    """Means per supervised position of the last steps that were logged together."""
    evaluation: Mapping[str, float]
    """The same on held-out rows, by the trained model; empty without any."""
    free_running: Mapping[str, float]
    """`FREE_RUNNING` of the trained model; empty where the recipe does not ask for it."""
    tokens_per_second: float | None
    """Tokens that the student read, the median over logs; None if nothing was logged."""
    wall_seconds: float
    """From reading the recipe to the saved model."""
    peak_memory: int
    """Bytes: of the GPU that trained, or of this process where there was none."""
    cost: "Cost"
    """Tokens and seconds by phase, those before a resumption included."""
    model: Path
    """The trained student, as a folder that ``from_pretrained`` loads."""
    output: Path
    """The folder with everything about the run."""
    is_main: bool = True
    """Whether this is the process that speaks for all of a distributed run."""

    def table(self) -> "Table":
        """For the terminal."""
        from rich import box
        from rich.table import Table

        from bridgegarden.preflight.memory import gigabytes
        from bridgegarden.terminal import duration

        table = Table(
            title=f"Trained {counted(self.steps, 'step')}",
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD,
        )
        table.add_column("per supervised token, nats")
        table.add_column("training, last log", justify="right")
        if self.evaluation:
            table.add_column("evaluation", justify="right")
        for term in TERMS:
            if term in self.training or term in self.evaluation:
                row = [_number(values.get(term)) for values in (self.training, self.evaluation)]
                table.add_row(term, *row[: len(table.columns) - 1])
        speed = "" if self.tokens_per_second is None else f"{self.tokens_per_second:,.0f} tokens/s, "
        table.caption = f"{speed}{duration(self.wall_seconds)} in all, peak memory {gigabytes(self.peak_memory)}"
        table.caption_justify, table.caption_style = "left", ""
        return table

    def _tokens(self) -> str:
        """What was worked on, in one line."""
        cost = self.cost
        written = f", {cost.generated_tokens:,} written by the student" if cost.answers else ""
        return (
            f"Tokens: {cost.student_tokens:,} through the student, {cost.teacher_tokens:,} through the teacher{written}"
        )

    def __str__(self) -> str:
        """The table and where the model is, as plain text."""
        from rich.console import Console

        text = io.StringIO()
        Console(file=text, width=100, force_terminal=False, color_system=None).print(self.table())
        lines = [line.rstrip() for line in text.getvalue().splitlines()]
        return "\n".join([*lines, *self._own_texts(), self._tokens(), f"The student is in {self.model}"])

    def _own_texts(self) -> list[str]:
        if not self.free_running:
            return []
        loss, loss_error, bias, bias_error = (self.free_running[name] for name in FREE_RUNNING)
        return [
            f"On texts of its own the student loses {loss:.4g} nats a text (standard error {loss_error:.2g}), "
            f"{bias:+.4g} ({bias_error:.2g}) against the teacher's texts"
        ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
