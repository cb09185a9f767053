"""What the trainer has added up since it last logged: kept with a checkpoint, so that a resumed run logs the same."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bridgegarden.training.cost import Cost


@dataclass(frozen=True, kw_only=True)
class LogWindow:
    """The sums of one process."""

    loss_sum: float
    """Of the losses since the last log."""
    loss_sum_logged: float
    """Of those before."""
    last_logged_step: int
    terms: list[float] | None
    """Of the terms of the loss, as ``TermSums`` lists them; None where there are none."""
    cost_logged: Cost
    """What had been spent at the last log."""
    seconds: float | None
    """Since the last log; None before the first step."""

    def save(self, checkpoint: Path, process: int) -> None:
        """Write it beside the rest of `checkpoint`."""
        _path(checkpoint, process).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, checkpoint: Path, process: int) -> "LogWindow | None":
        """What :meth:`save` wrote; None in a checkpoint that was written without it."""
        path = _path(checkpoint, process)
        if not path.is_file():
            return None
        window: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        cost = Cost(**window.pop("cost_logged"))
        return cls(cost_logged=cost, **window)


def _path(checkpoint: Path, process: int) -> Path:
    return checkpoint / f"log_window_{process}.json"
