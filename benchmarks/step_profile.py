"""Where the time of one training step goes: the operations that take most of it.

    python benchmarks/step_profile.py [--size small] [--contestants "hybrid, cached" "TRL SFTTrainer"] [--markdown FILE]
    python benchmarks/step_profile.py --device cuda --size qwen-0.5b

The step after the warm-up of ``benchmarks/train_step.py``, under PyTorch's profiler: on a CPU by the time in each
operation itself, on a GPU by the time of its kernels there. The profiler slows what it watches; look at shares.
"""

import argparse
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from train_step import CACHED, CONTESTANTS, SIZES, WARM_UP, Task, build, trainer_of
from transformers import TrainerCallback

from bridgegarden.objective.hybrid import HybridObjective

SHOWN = 15
"""Operations, those that take most."""


class ProfiledStep(TrainerCallback):
    """Watches the step after the warm-up."""

    def __init__(self, device: str) -> None:
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
        self.profiler = profile(activities=activities)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == WARM_UP:
            self.profiler.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == WARM_UP + 1:
            self.profiler.stop()


def table(contestant: str, task: Task) -> list[str]:
    """Markdown."""
    watch = ProfiledStep(task.device)
    with tempfile.TemporaryDirectory() as output:
        trainer = trainer_of(contestant, task, output)
        trainer.add_callback(watch)
        trainer.train()
    on_gpu = task.device == "cuda"
    spent = [
        (event.self_device_time_total if on_gpu else event.self_cpu_time_total, event.count, event.key)
        for event in watch.profiler.key_averages()
    ]
    whole = max(sum(time for time, *_ in spent), 1)
    return [
        f"{contestant}, {whole / 1000:.1f} ms in all operations of a step:",
        "",
        "| operation | calls | ms | share |",
        "|---|---|---|---|",
        *(
            f"| `{name[:80]}` | {count} | {time / 1000:.2f} | {time / whole:.1%} |"
            for time, count, name in sorted(spent, reverse=True)[:SHOWN]
        ),
        "",
    ]


def options() -> argparse.ArgumentParser:
    """Of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="small", choices=list(SIZES))
    parser.add_argument("--contestants", nargs="+", default=[CACHED, "TRL SFTTrainer"], choices=CONTESTANTS)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--markdown", type=Path)
    return parser


def main() -> None:
    arguments = options().parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    lines = [f"{SIZES[arguments.size]}, {arguments.device}, torch {torch.__version__}.", ""]
    with tempfile.TemporaryDirectory() as folder:
        task = Task(
            size=SIZES[arguments.size],
            steps=WARM_UP + 1,
            objective=HybridObjective.preset("static"),
            prompt=0.5,
            folder=Path(folder),
            device=arguments.device,
        )
        if CACHED in arguments.contestants:
            build(task)
        for contestant in arguments.contestants:
            lines += table(contestant, task)
    print("\n".join(lines))
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
