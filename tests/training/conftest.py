"""Trainers on tiny pairs, with everything that makes noise turned off."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl.trainer.sft_config import SFTConfig

from bridgegarden.objective.hybrid import HybridObjective
from bridgegarden.training.on_policy import OnPolicy
from bridgegarden.training.trainer import HybridDistillationTrainer
from tests.tiny import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def token_rows(count: int = 16) -> Dataset:
    """Rows of different lengths; each supervised in its second half, with its number in ``row``."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number in range(count):
        length = int(torch.randint(4, 20, (), generator=generator))
        ids = torch.randint(0, 250, (length,), generator=generator).tolist()
        rows.append({"input_ids": ids, "labels": [-100] * (length // 2) + ids[length // 2 :], "row": 100 + number})
    return Dataset.from_list(rows)


@pytest.fixture
def make_trainer(tmp_path: Path):
    """A trainer on a tiny Llama pair; keyword arguments are `SFTConfig` fields, or the names below."""

    def make(
        objective: HybridObjective | None = None,
        *,
        family: str = "llama",
        student: Any = None,
        teacher: Any = None,
        train: Dataset | None = None,
        evaluate: Dataset | None = None,
        peft_config: Any = None,
        on_policy: OnPolicy | None = None,
        tokenizer: Any = None,
        trainer: Mapping[str, Any] | None = None,
        **arguments: Any,
    ) -> HybridDistillationTrainer:
        defaults: dict[str, Any] = {
            "output_dir": str(tmp_path / "trainer"),
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": [],
            "bf16": False,
            "gradient_checkpointing": False,
            "use_cpu": True,
            "disable_tqdm": True,
            "max_length": 64,
            "seed": 0,
        }
        return HybridDistillationTrainer(
            student or tiny_model(family, 264, seed=2),
            teacher or tiny_model(family, 270, hidden_size=48, seed=1),
            objective,
            SFTConfig(**(defaults | arguments)),
            train_dataset=train or token_rows(),
            eval_dataset=evaluate,
            processing_class=tokenizer or tiny_tokenizer(),
            peft_config=peft_config,
            on_policy=on_policy,
            **(trainer or {}),
        )

    return make
