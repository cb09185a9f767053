"""Trains the counting student on-policy and prints what came of it; alone, or as one process of several.

python -m tests.training.on_policy_processes ROWS_A_PROCESS
"""

import json
import sys
import tempfile
from dataclasses import asdict
from typing import Any

from torch.utils.data import SequentialSampler
from trl.trainer.sft_config import SFTConfig

from bridgegarden.objective.hybrid import HybridObjective
from bridgegarden.training.on_policy import OnPolicy
from bridgegarden.training.trainer import HybridDistillationTrainer
from tests.tiny import tiny_model, tiny_tokenizer
from tests.training.counting import counting_rows, counting_student


def main(rows: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        trainer: Any = HybridDistillationTrainer(
            counting_student(),
            tiny_model("llama", 270, hidden_size=48, seed=1),
            HybridObjective.preset("confidence"),
            SFTConfig(
                folder,
                max_steps=2,
                per_device_train_batch_size=rows,
                gradient_accumulation_steps=2,
                learning_rate=1e-4,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                bf16=False,
                gradient_checkpointing=False,
                use_cpu=True,
                dataloader_pin_memory=False,
                disable_tqdm=True,
                ddp_find_unused_parameters=False,
                max_length=64,
            ),
            train_dataset=counting_rows(),
            processing_class=tiny_tokenizer(),
            on_policy=OnPolicy(lmbda=1.0, max_new_tokens=6),
        )
        trainer._get_train_sampler = lambda dataset=None: SequentialSampler(trainer.train_dataset)
        trainer.train()
        cost = asdict(trainer.cost)
        if trainer.accelerator.is_main_process:
            keys = ("loss", "grad_norm", "supervised_tokens", "generated_tokens")
            history = {key: [entry[key] for entry in trainer.state.log_history if key in entry] for key in keys}
            print(json.dumps({"processes": trainer.accelerator.num_processes, "cost": cost, **history}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
