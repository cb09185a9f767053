"""Whether a run was started as it was meant to be: what accelerate leaves out without a word is said here."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from bridgegarden.causal_lm import read_hidden
from bridgegarden.errors import ConfigError, ModelError
from bridgegarden.teacher.live import LiveTeacher

ASKED_BY = {"ACCELERATE_USE_FSDP": DistributedType.FSDP, "ACCELERATE_USE_DEEPSPEED": DistributedType.DEEPSPEED}
"""Variables by which ``accelerate launch`` asks for a way of sharding."""


def check_launch(accelerator: Accelerator, *, fsdp: bool = False, environment: Mapping[str, str] = os.environ) -> None:
    """Make sure that as many processes run, and shard as they were asked to.

    Args:
        accelerator: of the run.
        fsdp: whether the training arguments ask for FSDP.
        environment: variables of this process.

    Raises:
        ConfigError: they do not.
    """
    found, processes = accelerator.distributed_type, accelerator.num_processes
    asked = [kind for name, kind in ASKED_BY.items() if environment.get(name, "").lower() in ("true", "1")]
    for kind in [*asked, *([DistributedType.FSDP] if fsdp else [])]:
        if found != kind:
            raise ConfigError(
                f"launch: {kind.value} was asked for, but accelerate runs this as {found.value} on {processes} "
                f"process(es), device {accelerator.device}: each would hold everything. accelerate shards over several "
                "accelerators alone, and leaves it out elsewhere without a word. Start it on several GPUs, or ask for "
                "no sharding."
            )
    wanted = max(int(environment.get("WORLD_SIZE") or 1), launcher_processes(_parent()))
    if processes < wanted:
        raise ConfigError(
            f"launch: {wanted} processes were asked for, but this one runs alone ({found.value}, device "
            f"{accelerator.device}). `accelerate launch --cpu` starts one process whatever --num_processes says; "
            f"on CPUs use: torchrun --nproc_per_node {wanted} -m bridgegarden train RECIPE"
        )


def launcher_processes(command: Sequence[str]) -> int:
    """How many processes the command line of an ``accelerate launch`` asks for; 1 if it says nothing or is another."""
    if "launch" not in command or not any(Path(word).name.startswith("accelerate") for word in command):
        return 1
    for word, following in zip(command, [*command[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name.replace("-", "_") == "__num_processes":
            number = value if equals else following
            return int(number) if number.isdigit() else 1
    return 1


def check_same_teacher(teacher: object, accelerator: Accelerator) -> None:
    """Make sure that a teacher in memory says the same in every process.

    Raises:
        ModelError: it does not: its weights were loaded in some of them alone, say.
    """
    if accelerator.num_processes == 1 or not isinstance(teacher, LiveTeacher):
        return
    hidden, head = read_hidden(teacher.model, {"input_ids": torch.arange(4, device=teacher.model.device).unsqueeze(0)})
    said = head.logits(hidden[0]).double().square().mean().sqrt().float().to(accelerator.device)
    everywhere = accelerator.gather(said.reshape(1))
    assert isinstance(everywhere, torch.Tensor)
    # Machines with other processors round otherwise.
    if not torch.allclose(everywhere, everywhere[:1].expand_as(everywhere), rtol=1e-2, atol=0):
        raise ModelError(
            f"teacher {teacher.name}: it is not the same in every process: its logits on four tokens have the sizes "
            f"{', '.join(f'{value:.4g}' for value in everywhere.tolist())}. Load the same weights in every process, or "
            "train from a cache."
        )


def _parent() -> list[str]:
    """The command line of the process that started this one; empty where it cannot be read."""
    try:
        parent = psutil.Process().parent()
        return [] if parent is None else parent.cmdline()
    except psutil.Error:
        return []
