"""What the trainer has added up since it last logged: kept with a checkpoint, so that a resumed run logs the same."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bridgegarden.training.cost import Cost

if TYPE_CHECKING:
    from bridgegarden.training.trainer import HybridDistillationTrainer


def save_log_window(trainer: "HybridDistillationTrainer", checkpoint: Path) -> None:
    """Write the sums of this process beside the rest of `checkpoint`."""
    window = {
        "loss_sum": trainer._tr_loss.item(),
        "loss_sum_logged": trainer._total_loss_scalar,
        "last_logged_step": trainer._globalstep_last_logged,
        "terms": trainer._terms["train"].tolist(),
        "cost_logged": asdict(trainer._costs.logged),
        "seconds": None if trainer._clock is None else time.perf_counter() - trainer._clock,
    }
    _path(trainer, checkpoint).write_text(json.dumps(window), encoding="utf-8")


def restore_log_window(trainer: "HybridDistillationTrainer", checkpoint: Path) -> None:
    """Take up the sums where `checkpoint` left them; one that was written without them begins with none."""
    path = _path(trainer, checkpoint)
    if not path.is_file():
        return
    window: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    trainer._tr_loss = torch.tensor(window["loss_sum"], device=trainer.args.device)
    trainer._total_loss_scalar = window["loss_sum_logged"]
    trainer._globalstep_last_logged = window["last_logged_step"]
    trainer._terms["train"].restore(window["terms"], trainer.args.device)
    trainer._costs.logged = Cost(**window["cost_logged"])
    if window["seconds"] is not None:
        trainer._clock = time.perf_counter() - window["seconds"]


def _path(trainer: "HybridDistillationTrainer", checkpoint: Path) -> Path:
    return checkpoint / f"log_window_{trainer.args.process_index}.json"
