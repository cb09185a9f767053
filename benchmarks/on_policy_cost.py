"""What a training step costs when the student writes its own text, and when a cached teacher has judged the data's.

    python benchmarks/on_policy_cost.py [--size small] [--prompt 128] [--answers 128 256] [--steps 3] [--markdown FILE]
    python benchmarks/on_policy_cost.py --device cuda --size qwen-0.5b --answers 128 512

Everybody trains the same student from the same teacher on the same prompts (random tokens), as many of them a step,
with the ``train()`` of their trainer, one after the other in one process. An answer has the same number of tokens
whoever wrote it: random models draw an end token about once in V tokens, so what they write is cut at
``max_new_tokens``, and the data's answers are made as long. On a CPU in float32 with one thread, in processor seconds;
on a GPU under bfloat16 autocast, the teacher's weights in bfloat16, in seconds of the clock. Figures are means over the
steps after the warm-up.

* ``TRL GKD, on-policy``: ``trl.experimental.gkd.GKDTrainer`` with ``lmbda=1``, the peer that ratios are taken to.
* ``GKD, on-policy``: ours, the same divergence (Jensen-Shannon, whole vocabulary), every batch written by the student.
* ``hybrid, on-policy``: ours, half soft and half hard, from the live teacher's 64 likeliest tokens.
* ``hybrid, live teacher``: the same on the data's answers.
* ``hybrid, cached``: the same from the teacher's 64 likeliest tokens on disk. The cache is built once, for all the
  rows of the run, and its price is shown by itself and shared out over how often each row is then trained on.

At the end, texts that end by themselves: the student writes those of four micro-batches one after the other, and
together.
"""

import argparse
import gc
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from train_step import SIZES, K, Task, cache_spec
from transformers import PrinterCallback, Trainer, TrainerCallback
from trl.trainer.sft_config import SFTConfig

from bridgegarden.objective.alignment import IGNORE
from bridgegarden.objective.divergences import jensen_shannon
from bridgegarden.objective.hybrid import HybridObjective
from bridgegarden.objective.soft_weight import StaticWeight
from bridgegarden.teacher.cache.reader import TeacherCache
from bridgegarden.teacher.cache.writer import OneTeacher, build_cache
from bridgegarden.teacher.live import LiveTeacher
from bridgegarden.training.on_policy import OnPolicy
from bridgegarden.training.trainer import HybridDistillationTrainer

PEER, CACHED = "TRL GKD, on-policy", "hybrid, cached"
CONTESTANTS = (PEER, "GKD, on-policy", "hybrid, on-policy", "hybrid, live teacher", CACHED)
PHASES = ("generation", "teacher", "student", "optimiser", "rest")
"""Student: forward, head, loss and backward; in ours the teacher's head too, which is in the loss. Rest: data."""
ACCUMULATED = 4
"""Micro-batches of a step, where it is seen what writing them together is worth."""
WARM_UP = 1
"""Steps before the first that counts: it makes the optimiser's state."""
TARGET = 9.7
"""What the paper reports."""
USES = (1, 3, 10)
"""How often a row of the cache is trained on: epochs times objectives compared."""


class Watch:
    """Seconds by phase; a phase inside another counts for itself alone."""

    def __init__(self, device: str) -> None:
        self._on_gpu = device != "cpu"
        self.spent: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self._open: list[str] = []
        self._since = self.now()

    def now(self) -> float:
        if self._on_gpu:
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def switch(self) -> None:
        """Book the time since the last switch on the innermost phase."""
        now = self.now()
        self.spent[self._open[-1] if self._open else "rest"] += now - self._since
        self._since = now

    @contextmanager
    def phase(self, name: str) -> Any:
        self.switch()
        self._open.append(name)
        yield
        self.switch()
        self._open.pop()

    def wrap(self, owner: Any, method: str, name: str) -> None:
        """Have the time of a method counted."""
        inner: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return inner(*args, **kwargs)

        setattr(owner, method, timed)


class Steps(TrainerCallback):
    """Forgets what was before the steps that count, and times the optimiser."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.wall = 0.0

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.watch.switch()
        self.watch._open.append("optimiser")

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.watch.switch()
        self.watch._open.pop()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.watch.switch()
        if state.global_step == WARM_UP:
            self.watch.spent = dict.fromkeys(PHASES, 0.0)
            self.wall = time.perf_counter()
        if state.global_step == state.max_steps:
            self.wall = time.perf_counter() - self.wall


def arguments_of(task: Task, output: str) -> dict[str, Any]:
    """Alike for everybody."""
    on_gpu = task.device != "cpu"
    return {
        "output_dir": output,
        "max_steps": task.steps,
        "per_device_train_batch_size": task.size.rows,
        "learning_rate": 1e-4,
        "max_length": None,
        "bf16": on_gpu,
        "gradient_checkpointing": False,
        "use_cpu": not on_gpu,
        "dataloader_pin_memory": on_gpu,
        "logging_steps": 1_000_000,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def peer(task: Task, answer: int, watch: Watch, output: str) -> Trainer:
    """TRL's trainer; its collator takes tokens as they are, with a mask that says where the answer begins."""
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    rows = [
        {
            "input_ids": row["input_ids"],
            "completion_mask": [int(label != -100) for label in row["labels"]],
            "prompt": "",
        }
        for row in cast(Iterable[dict[str, Any]], task.data())
    ]
    settings = GKDConfig(lmbda=1.0, beta=0.5, temperature=1.0, max_new_tokens=answer, **arguments_of(task, output))
    size = task.size
    trainer = GKDTrainer(
        size.model(size.student, 2, task.device),
        size.random_teacher(task.device),
        settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=size.tokenizer(),
    )
    watch.wrap(trainer, "generate_on_policy_outputs", "generation")
    watch.wrap(trainer.teacher_model, "forward", "teacher")
    return trainer


def ours(contestant: str, task: Task, answer: int, watch: Watch, output: str) -> Trainer:
    """One of our own."""
    size = task.size
    dense = contestant == "GKD, on-policy"
    teacher = (
        TeacherCache(task.folder)
        if contestant == CACHED
        else LiveTeacher(size.random_teacher(task.device), top_k=None if dense else K)
    )
    gkd = HybridObjective(divergence=jensen_shannon, soft_weight=StaticWeight(1.0))
    trainer = HybridDistillationTrainer(
        size.model(size.student, 2, task.device),
        teacher,
        gkd if dense else task.objective,
        SFTConfig(**arguments_of(task, output)),
        train_dataset=task.data(),
        processing_class=size.tokenizer(),
        on_policy=OnPolicy(lmbda=1.0, max_new_tokens=answer) if "on-policy" in contestant else None,
    )
    if trainer._writer is not None:
        watch.wrap(trainer._writer, "answer", "generation")
    watch.wrap(trainer.teacher, "at", "teacher")
    return trainer


def measure(contestant: str, task: Task, answer: int) -> dict[str, Any]:
    """Seconds a step of one contestant, by phase."""
    watch = Watch(task.device)
    with tempfile.TemporaryDirectory() as output:
        trainer = (
            peer(task, answer, watch, output) if contestant == PEER else ours(contestant, task, answer, watch, output)
        )
        # What is left of a training step is the student's; generation and the teacher are inside it, or before it.
        watch.wrap(trainer, "training_step", "student")
        watch.wrap(trainer, "_clip_grad_norm", "optimiser")
        steps = Steps(watch)
        trainer.add_callback(steps)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    counted = task.steps - WARM_UP
    generated = trainer.cost.generated_tokens if isinstance(trainer, HybridDistillationTrainer) else None
    return {
        "phases": {name: seconds / counted for name, seconds in watch.spent.items()},
        "wall": steps.wall / counted,
        "generated": generated,
    }


def measure_build(task: Task) -> float:
    """Seconds a step's rows take to be judged and written to disk; loading the model is not in them."""
    teacher, rows, spec = task.size.random_teacher(task.device), task.data(), cache_spec(task)
    watch = Watch(task.device)
    with watch.phase("teacher"):
        build_cache(task.folder, OneTeacher(lambda: teacher, spec), [rows], spec)
    return watch.spent["teacher"] / task.steps


def measure_places(task: Task, answer: int) -> str:
    """What it is worth that the next prompts take the places of texts that have ended, where texts do end."""
    watch, rows = Watch(task.device), task.size.rows
    with tempfile.TemporaryDirectory() as output:
        writer = cast(Any, ours("hybrid, on-policy", task, answer, watch, output))._writer
    # A random model draws any token alike: of these there is one in a third of `answer`.
    writer._policy.end_ids = tuple(range(0, writer._policy.shared_size, max(answer // 3, 1)))
    (prompt, *_) = cast(Iterable[dict[str, Any]], task.data())
    length = sum(label == IGNORE for label in prompt["labels"])
    prompts = [prompt["input_ids"][:length]] * (ACCUMULATED * rows)
    numbers = writer._uniforms(len(prompts), torch.Generator().manual_seed(0))
    writer._written(prompts[:rows], numbers[:rows], rows)  # what happens once
    spent, began = [], watch.now()
    together = writer._written(prompts, numbers, rows)
    spent.append(watch.now() - began)
    began = watch.now()
    for at in range(0, len(prompts), rows):
        writer._written(prompts[at : at + rows], numbers[at : at + rows], rows)
    spent.append(watch.now() - began)
    tokens = sum(len(text.tokens) for text in together)
    return (
        f"* {len(prompts)} texts of {tokens / len(prompts):.0f} tokens on average, {rows} at a time: "
        f"{tokens / spent[1]:,.0f} tokens a second one micro-batch after the other, {tokens / spent[0]:,.0f} where the "
        f"next prompts take the places of texts that have ended ({spent[1] / spent[0]:.2f} times)"
    )


def compare(arguments: argparse.Namespace, answer: int) -> list[str]:
    """The lines about one length of answers."""
    size = replace(SIZES[arguments.size], length=arguments.prompt + answer)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        task = Task(
            size=size,
            steps=arguments.steps + WARM_UP,
            objective=HybridObjective.preset("static"),
            prompt=arguments.prompt / size.length,
            folder=Path(folder) / "cache",
            device=arguments.device,
        )
        built = measure_build(task)
        for name in [name for name in CONTESTANTS if name in (PEER, CACHED, *arguments.trainers)]:
            found[name] = measure(name, task, answer)
            gc.collect()
            print(f"answers of {answer}, {name}: {total(found[name]):.2f} s a step", file=sys.stderr, flush=True)
        places = measure_places(task, answer)
    head = ["", f"Answers of {answer} tokens ({size}):", ""]
    return [*head, *table(found, built, size.rows * answer), "", *verdicts(found, built, arguments, answer), places]


def total(result: Mapping[str, Any]) -> float:
    """Seconds a step, all phases."""
    return sum(result["phases"].values())


def table(found: Mapping[str, Any], built: float, written: int) -> list[str]:
    """Markdown; seconds a step, of `written` tokens where the student writes."""
    base = total(found[PEER])
    lines = [
        f"| trainer | s a step | {' | '.join(PHASES)} | wall s | TRL GKD costs, times this | tokens written a s |",
        f"|---|---|{'---|' * len(PHASES)}---|---|---|",
    ]
    for name, result in found.items():
        phases = " | ".join(f"{result['phases'][phase]:.3f}" for phase in PHASES)
        whole, writing = total(result), result["phases"]["generation"]
        speed = f"{written / writing:,.0f}" if writing else ""
        lines.append(f"| {name} | {whole:.3f} | {phases} | {result['wall']:.2f} | {base / whole:.1f} | {speed} |")
    for uses in USES:
        whole = total(found[CACHED]) + built / uses
        what = f"{CACHED}, and building: rows used {uses} time{'s' if uses > 1 else ''}"
        dashes = " | ".join(f"{built / uses:.3f}" if phase == "teacher" else "" for phase in PHASES)
        lines.append(f"| {what} | {whole:.3f} | {dashes} | | {base / whole:.1f} | |")
    return lines


def verdicts(found: Mapping[str, Any], built: float, arguments: argparse.Namespace, answer: int) -> list[str]:
    ratio = total(found[PEER]) / total(found[CACHED])
    size = SIZES[arguments.size]
    expected = (WARM_UP + arguments.steps) * size.rows * answer
    wrote = ", ".join(
        f"{result['generated'] / expected:.1%} ({name})" for name, result in found.items() if result["generated"]
    )
    return [
        f"* cached hybrid against TRL's on-policy GKD: {ratio:.1f} times cheaper a step, target {TARGET}: "
        f"{'met' if ratio >= TARGET else 'MISSED'}",
        f"* building the cache: {built:.3f} s for the rows of a step",
        *([f"* written of what `max_new_tokens` allows: {wrote}"] if wrote else []),
    ]


def options() -> argparse.ArgumentParser:
    """Of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="small", choices=list(SIZES))
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--answers", type=int, nargs="+", default=[128, 256], help="tokens of an answer")
    parser.add_argument("--steps", type=int, default=3, help="that count, after the warm-up")
    parser.add_argument(
        "--trainers", nargs="*", default=CONTESTANTS, choices=CONTESTANTS, help="besides TRL's and the cached one"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--markdown", type=Path)
    return parser


def main() -> None:
    arguments = options().parse_args()
    warnings.simplefilter("ignore")
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    place = (
        f"float32, one thread, {platform.machine()}; processor seconds"
        if arguments.device == "cpu"
        else f"bfloat16, {torch.cuda.get_device_name()}; seconds of the clock"
    )
    lines = [
        f"Batches of {SIZES[arguments.size].rows} prompts of {arguments.prompt} tokens, {place}, torch "
        f"{torch.__version__}; {arguments.steps} steps."
    ]
    print(lines[0], flush=True)
    for answer in arguments.answers:
        part = compare(arguments, answer)
        print("\n".join(part), flush=True)
        lines += part
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
