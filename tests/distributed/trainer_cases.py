"""The trainer on two processes: what one process trains on the joined batch."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from accelerate.state import DistributedType, PartialState
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils.data import SequentialSampler
from trl.trainer.sft_config import SFTConfig

from bridgegarden.objective.divergences import jensen_shannon, reverse_kl, total_variation
from bridgegarden.objective.hybrid import HybridObjective
from bridgegarden.recipe import load_recipe
from bridgegarden.run.train import train as run_train
from bridgegarden.teacher.cache.reader import TeacherCache
from bridgegarden.training.trainer import HybridDistillationTrainer
from tests.objective.presets import MECHANISMS
from tests.teacher.cache.conftest import build
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

CACHE = "teacher-cache"
"""Folder of the cache that whoever launches the processes has built, beside the results."""
RECIPE = "recipe.yaml"
"""A recipe there, with a batch of four for each of two processes."""
Sharding = Literal["ddp", "fsdp"]


@dataclass(frozen=True, kw_only=True)
class TrainerCase:
    """A training of two steps. `batch` is that of one of two processes."""

    objective: HybridObjective = field(
        default_factory=lambda: HybridObjective.preset("risk_guided", hard_target="data")
    )
    family: Literal["llama", "qwen2"] = "llama"
    batch: int = 4
    masked: bool = False
    """Whether what the second process reads in the first step has no supervised token."""
    cached: bool = False
    adapters: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)


def cases(sharding: Sharding) -> dict[str, TrainerCase]:
    """Every case by its name."""
    found = {
        "masked": TrainerCase(masked=True),
        "accumulated": TrainerCase(batch=2, arguments={"gradient_accumulation_steps": 2}),
        "packed": TrainerCase(batch=1, arguments={"packing": True, "max_length": 48}),
        "packed and accumulated": TrainerCase(
            batch=1, arguments={"packing": True, "max_length": 24, "gradient_accumulation_steps": 2}
        ),
        "autocast": TrainerCase(arguments={"bf16": True}),
        "adapters": TrainerCase(adapters=True, arguments={"gradient_checkpointing": True}),
        "tied": TrainerCase(family="qwen2"),
        "cached": TrainerCase(cached=True),
    }
    if sharding == "ddp":
        found |= {preset: TrainerCase(objective=HybridObjective.preset(preset)) for preset in MECHANISMS}
        for divergence in (reverse_kl, jensen_shannon, total_variation):
            found[divergence.__name__] = TrainerCase(objective=HybridObjective(divergence=divergence))
    return {f"{sharding}: {name}": case for name, case in found.items()}


def run(folder: Path, *shardings: Sharding) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every case's name and log, on every process alike; the weights are left in `folder`."""
    for sharding in shardings or ("ddp", "fsdp"):
        if sharding == "fsdp":
            _engage_fsdp()
        for name, case in cases(sharding).items():
            try:
                yield name, train(case, folder, folder / name.replace(": ", "-").replace(" ", "-"), processes=2)
            except Exception as error:
                yield name, {"error": f"{type(error).__name__}: {error}"}
        try:
            yield f"{sharding}: recipe", run_recipe(folder, folder / f"{sharding}-recipe", processes=2)
        except Exception as error:
            yield f"{sharding}: recipe", {"error": f"{type(error).__name__}: {error}"}


def run_recipe(folder: Path, output: Path, *, processes: int) -> dict[str, Any]:
    """``bridgegarden train`` on as many `processes`."""
    batch = f"training.per_device_train_batch_size={8 // processes}"
    summary = run_train(load_recipe(folder / RECIPE, [f"output={output}", batch]))
    return {"loss": summary.training["loss"], "evaluation": summary.evaluation, "is_main": summary.is_main}


def _engage_fsdp() -> None:
    """Make accelerate shard by FSDP2, which it leaves out on CPUs without a word: the processes get another name."""
    os.environ |= {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        # As in examples/launch: one process of the machine reads a student from disk, and checkpoints are in pieces.
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
        "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
    }
    original = PartialState.__init__

    def renamed(self: PartialState, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_HPU

    PartialState.__init__ = renamed


def train(case: TrainerCase, folder: Path, output: Path, *, processes: int) -> dict[str, Any]:
    """Two steps of `case` on as many `processes`; the student is saved in `output`."""
    trainer = _trainer(case, folder, output, 2 * case.batch // processes)
    assert trainer.accelerator.num_processes == processes
    trainer._get_train_sampler = lambda dataset=None: SequentialSampler(trainer.train_dataset)
    trainer.train()
    if trainer.is_fsdp_enabled:
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(str(output))
    metrics = trainer.evaluate()
    history = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    return {
        "log": {key: [entry[key] for entry in history] for key in ("loss", "soft_loss", "hard_loss", "grad_norm")},
        "supervised_tokens": [entry["supervised_tokens"] for entry in history],
        "evaluation": {key: value for key, value in metrics.items() if key.endswith("loss") or "entropy" in key},
        "wrapped": type(trainer.model_wrapped).__name__,
        "sharded": sum(isinstance(p, DTensor) for p in trainer.model.parameters()),
    }


def weights(output: Path) -> dict[str, Tensor]:
    """What :func:`train` saved."""
    return {name: tensor for file in sorted(output.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def _trainer(case: TrainerCase, folder: Path, output: Path, batch: int) -> HybridDistillationTrainer:
    arguments: dict[str, Any] = {
        "output_dir": str(output),
        "max_steps": 2,
        "per_device_train_batch_size": batch,
        "per_device_eval_batch_size": 2,
        # Plain descent: its steps are as large as the gradients, which is what is compared.
        "optim": "sgd",
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1e9,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "max_length": 64,
        "seed": 0,
    }
    torch.manual_seed(3)
    trainer = HybridDistillationTrainer(
        tiny_model(case.family, 264, seed=2),
        TeacherCache(folder / CACHE) if case.cached else tiny_model("llama", 270, hidden_size=48, seed=1),
        case.objective,
        SFTConfig(**(arguments | case.arguments)),
        train_dataset=rows(24),
        # Two processes cannot share them evenly.
        eval_dataset=rows(7),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        if case.adapters
        else None,
    )
    if case.masked:
        # Afterwards: rows of which nothing is supervised do not get past the trainer's door. Cut off, they may arise.
        trainer.train_dataset = rows(24, range(4, 8))
    return trainer


def rows(count: int, masked: Any = ()) -> Dataset:
    """Rows of different lengths, supervised in their second half; nothing supervised in those that are `masked`."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for number in range(count):
        length = int(torch.randint(4, 20, (), generator=generator))
        ids = torch.randint(0, 250, (length,), generator=generator).tolist()
        labels = [-100] * length if number in masked else [-100] * (length // 2) + ids[length // 2 :]
        found.append({"input_ids": ids, "labels": labels, "row": 100 + number})
    return Dataset.from_list(found)


def prepare(folder: Path) -> None:
    """What the cases read: a cache, and a recipe with its models and rows. Once, before the processes start."""
    build(folder / CACHE, rows=rows(24))
    save_tiny(folder / "student", tiny_model("llama", 264, seed=2))
    save_tiny(folder / "teacher", tiny_model("llama", 270, hidden_size=48, seed=1))
    data = [{"question": f"{a} + {b} =", "answer": str(a + b)} for a in range(6) for b in range(6)]
    for name, part in (("train", data[:29]), ("eval", data[29:])):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)))
    recipe = {
        "teacher": {"model": str(folder / "teacher")},
        "student": {"model": str(folder / "student")},
        "data": {
            "train": str(folder / "train.jsonl"),
            "eval": str(folder / "eval.jsonl"),
            "prompt": "question",
            "completion": "answer",
        },
        "objective": {"preset": "static", "hard_target": "data"},
        "training": {"max_steps": 3, "learning_rate": 0.1, "optim": "sgd", "logging_steps": 1, "use_cpu": True},
    }
    (folder / RECIPE).write_text(yaml.safe_dump(recipe))
