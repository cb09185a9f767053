"""What a person sees while the trainer works, and the same as a file."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import IO, Any

from rich.console import Console, Group, RenderableType
from rich.text import Text
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from bridgegarden.terminal import Display, stderr_console

SHOWN = (
    ("loss", "loss", ".4g"),
    ("soft_loss", "soft", ".4g"),
    ("hard_loss", "hard", ".4g"),
    ("risk_loss", "risk", ".3g"),
    ("soft_weight", "soft weight", ".3f"),
    ("position_weight", "position weight", ".3f"),
    ("hard_only_share", "hard only", ".1%"),
    ("tokens_per_second", "tokens/s", ",.0f"),
    ("generated_tokens_per_second", "written/s", ",.0f"),
)
"""Terms on display: the trainer's name, ours, how it is written. A risk of zero is left out."""


def terms_text(logs: Mapping[str, Any], prefix: str = "") -> str:
    """The terms of `logs` in one line: ``loss 2.16  soft 0.119  hard 4.18  ...``."""
    parts = []
    for key, name, form in SHOWN:
        value = logs.get(prefix + key)
        if isinstance(value, (int, float)) and not (key == "risk_loss" and value == 0):
            parts.append(f"{value:{form}} {name}" if key.endswith("tokens_per_second") else f"{name} {value:{form}}")
    return "  ".join(parts)


class ProgressDisplay(TrainerCallback):
    """A live display on a terminal; elsewhere one plain line each time something is logged.

    A context manager, since the trainer tells its callbacks nothing when it is interrupted::

        with ProgressDisplay(console) as display:
            trainer.add_callback(display)
            trainer.train()
    """

    def __init__(self, console: Console | None = None) -> None:
        """
        Args:
            console: where to; stderr if None.
        """
        self._train_line, self._eval_line, self._own_line = Text(), Text(), Text()
        self._display = Display(console or stderr_console(), every=math.inf, frame=self._screen)
        self._evaluating = self._display.bar.add_task("evaluating", total=None, visible=False, left="")

    def __enter__(self) -> "ProgressDisplay":
        self._display.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._display.bar.update(self._evaluating, visible=False)
        self._display.__exit__(*exception)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._display.restart("training", state.max_steps, state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._display.update(state.global_step)

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        loader = kwargs.get("eval_dataloader")
        total = None if loader is None else len(loader)
        self._display.bar.update(self._evaluating, advance=1, total=total, visible=True)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs:
            return
        where = f"step {state.global_step}/{state.max_steps}"
        if "loss" in logs:
            self._train_line = Text(terms_text(logs))
            self._display.say(f"{where}  {self._train_line}  {self._display.left}".rstrip())
        if "eval_loss" in logs:
            self._display.bar.reset(self._evaluating, visible=False)
            self._eval_line = Text(f"evaluation at {where}: {terms_text(logs, 'eval_')}")
            self._display.say(str(self._eval_line))
        if "eval_free_running_loss" in logs:
            self._own_line = Text(
                f"own texts at {where}: loss {logs['eval_free_running_loss']:.4g}  exposure bias "
                f"{logs['eval_exposure_bias']:+.4g} nats a text"
            )
            self._display.say(str(self._own_line))

    def _screen(self, bar: RenderableType) -> Group:
        lines = (self._train_line, self._eval_line, self._own_line)
        return Group(bar, *(line for line in lines if line.plain))


class MetricsLog(TrainerCallback):
    """Every log as one line of JSON, on disk as soon as it is made; what is not finite is null.

    A resumed run keeps the lines that its checkpoint knows of, so that none is there twice or missing. The last step is
    always logged, whatever ``logging_steps`` is.
    """

    def __init__(self, path: Path) -> None:
        """
        Args:
            path: file to write, in a folder that exists when training begins.
        """
        self.path = path
        self._file: IO[str] | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        kept = _lines_of(state.log_history, self.path)
        self._file = self.path.open("w", encoding="utf-8")
        self._file.writelines(kept)
        self._file.flush()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_log = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if self._file is None or not logs:
            return
        line = {"step": state.global_step, "time": round(time.time(), 3)}
        line |= {name: _finite(value) for name, value in logs.items()}
        self._file.write(json.dumps(line, allow_nan=False, default=str) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; logs that come later are not written."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _finite(value: Any) -> Any:
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _lines_of(history: Sequence[Mapping[str, Any]], path: Path) -> list[str]:
    """A line for every entry of `history`: as an earlier attempt wrote it, or made anew where that is lost."""
    # A byte that is no UTF-8 spoils its own line, which is made anew.
    written = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    lines = []
    for entry, line in zip_longest(history, written[: len(history)]):
        logs = {name: _finite(value) for name, value in entry.items() if name != "step"}
        if line is None or not _is_of(line, entry["step"], logs):
            line = json.dumps({"step": entry["step"], "time": None, **logs}, allow_nan=False, default=str)
        lines.append(line + "\n")
    return lines


def _is_of(line: str, step: int, logs: Mapping[str, Any]) -> bool:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("step") == step and found.keys() == {"step", "time", *logs}
