"""DeepSpeed's ZeRO-2 and ZeRO-3 in one CPU process: run as a program, since DeepSpeed changes torch for good."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from trl.trainer.sft_config import SFTConfig

from bridgegarden.objective.hybrid import HybridObjective
from bridgegarden.training.trainer import HybridDistillationTrainer
from tests.distributed.trainer_cases import rows, weights
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer


def train(output: Path, student: Any, deepspeed: dict[str, Any] | None) -> dict[str, Any]:
    """Two steps of two micro-batches each; with or without DeepSpeed."""
    # Before the arguments: what is made after them is made in pieces under ZeRO-3.
    teacher = tiny_model("llama", 270, hidden_size=48, seed=1)
    arguments = SFTConfig(
        str(output),
        max_steps=2,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        optim="sgd",
        learning_rate=0.1,
        lr_scheduler_type="constant",
        max_grad_norm=1e9,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        max_length=64,
        use_cpu=deepspeed is None,
        deepspeed=deepspeed,
    )
    trainer = HybridDistillationTrainer(
        student(),
        teacher,
        HybridObjective.preset("risk_guided", hard_target="data"),
        arguments,
        train_dataset=rows(16),
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    trainer.save_model(str(output))
    return {
        "wrapped": type(trainer.model_wrapped).__name__,
        "loss": [entry["loss"] for entry in trainer.state.log_history if "grad_norm" in entry],
    }


def zero(stage: int) -> dict[str, Any]:
    """A configuration for the CPU."""
    return {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_optimization": {
            "stage": stage,
            "stage3_gather_16bit_weights_on_model_save": True,
            # Else nothing of a tiny model is split.
            "stage3_param_persistence_threshold": 0,
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def main(folder: Path, stage: int) -> None:
    """Write what was found to ``zero.json`` in `folder`."""
    import deepspeed
    from transformers import AutoModelForCausalLM

    # Collectives in shared memory, which one process does not need: compiling them takes minutes.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    torch.set_num_threads(1)
    save_tiny(folder / "student", tiny_model("llama", 264, seed=2))
    alone = train(folder / "alone", lambda: tiny_model("llama", 264, seed=2), None)
    os.environ |= {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": sys.argv[3],
    }
    found = train(folder / "zero", lambda: AutoModelForCausalLM.from_pretrained(folder / "student"), zero(stage))
    expected, got = weights(folder / "alone"), weights(folder / "zero")
    error = max((got[name] - weight).abs().max().item() for name, weight in expected.items())
    start = weights(folder / "student")
    moved = max((weight - start[name]).abs().max().item() for name, weight in expected.items())
    (folder / "zero.json").write_text(json.dumps({"alone": alone, "zero": found, "error": error, "moved": moved}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
