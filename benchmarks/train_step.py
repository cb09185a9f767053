"""A whole training step, distilled and plainly fine-tuned, side by side: time and peak memory.

    python benchmarks/train_step.py [--sizes small qwen] [--rounds 3] [--steps 6] [--objective static] [--prompt 0.5]
        [--markdown FILE]
    python benchmarks/train_step.py --device cuda --sizes qwen-0.5b --rounds 2 --steps 12

Everybody trains the same student on the same batches (random tokens, the first half of every row a prompt) with the
``train()`` of their trainer: data loader, collator, forward, backward, clipping, AdamW. On a CPU in float32 with one
thread; on a GPU under bfloat16 autocast, the teacher's weights in bfloat16. Each runs in a process of its own, round by
round, so that what else the machine does falls on all alike. A step lasts from the
end of the one before, so that loading its batch counts; figures are medians over the steps of all rounds after the
warm-up. Memory is the peak of the resident set while training, and that peak above what stood when training began
(libraries, tokenizer, data, weights, a live teacher's too); on a GPU it is what PyTorch allocated there, and seconds
are those of the clock. Waiting is the share of a step between asking for its batches and having them where they are
read: loading, decoding, copying; on a GPU, with two workers that load ahead, it is the time between two events there,
and so how long it had nothing to do. The contestants:

* ``HF Trainer SFT``: the model's own forward with labels, so dense logits.
* ``TRL SFTTrainer``: TRL's fused head.
* ``hybrid, cached``: ``HybridDistillationTrainer`` from a cache of the teacher's 64 likeliest tokens.
* ``hybrid, live top-64`` and ``hybrid, live dense``: the same with the teacher in memory.

Afterwards the batches of the training are read from the cache once more, by themselves, and timed.
"""

import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Trainer,
    TrainerCallback,
)
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling, SFTTrainer

from bridgegarden.data import chat_template_fingerprint, tokenizer_fingerprint
from bridgegarden.objective.hybrid import HybridObjective
from bridgegarden.objective.methods import PRESETS
from bridgegarden.teacher.cache.reader import TeacherCache
from bridgegarden.teacher.cache.shard import documents_in
from bridgegarden.teacher.cache.spec import DEFAULT_EXPONENTS, CacheSpec, Support
from bridgegarden.teacher.cache.writer import OneTeacher, build_cache
from bridgegarden.teacher.live import LiveTeacher
from bridgegarden.training.trainer import HybridDistillationTrainer

K = 64
WARM_UP = 2
"""Steps before the first that counts: they fill the allocator and make the optimiser's state."""
SFT = ("HF Trainer SFT", "TRL SFTTrainer")
CACHED = "hybrid, cached"
CONTESTANTS = (*SFT, CACHED, "hybrid, live top-64", "hybrid, live dense")


QWEN = {
    (896, 24): (4864, 14, 2),
    (1536, 28): (8960, 12, 2),
    (2048, 36): (11008, 16, 2),
    (3584, 28): (18944, 28, 4),
}
"""Qwen2.5 0.5B, 1.5B, 3B and 7B: hidden size and layers to inner size, heads, key and value heads."""


def inner_sizes(shape: tuple[int, int]) -> tuple[int, int, int]:
    """Inner size, heads, and heads of keys and values of a model: Qwen2.5's where it has one of that shape."""
    heads = max(2, shape[0] // 64)
    return QWEN.get(shape, (4 * shape[0], heads, heads // 2))


@dataclass(frozen=True, kw_only=True)
class Size:
    """A pair of models and a batch."""

    config: Callable[..., Any]
    """Of both models."""
    vocab: int
    student: tuple[int, int]
    """Hidden size and layers."""
    teacher: tuple[int, int]
    """The same."""
    rows: int
    """A batch."""
    length: int
    """Tokens a row."""
    tied: bool
    """Whether the embedding is also the head."""

    def model(
        self, shape: tuple[int, int], seed: int, device: str, dtype: torch.dtype = torch.float32
    ) -> PreTrainedModel:
        """A random model."""
        hidden, layers = shape
        inner, heads, key_value_heads = inner_sizes(shape)
        config = self.config(
            vocab_size=self.vocab,
            hidden_size=hidden,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=key_value_heads,
            tie_word_embeddings=self.tied,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=0,
        )
        torch.manual_seed(seed)
        with torch.device(device):
            return AutoModelForCausalLM.from_config(config, dtype=dtype)

    def random_teacher(self, device: str) -> PreTrainedModel:
        """In the precision that teachers have on `device`."""
        return self.model(self.teacher, 1, device, torch.float32 if device == "cpu" else torch.bfloat16)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """As many words as the models have tokens."""
        words = models.WordLevel({f"w{number}": number for number in range(self.vocab)}, unk_token="w0")
        return PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(words), eos_token="w0", pad_token="w0", unk_token="w0"
        )

    def data(self, steps: int, prompt: float) -> Dataset:
        """Rows enough for `steps` steps of one epoch; the share `prompt` of each is not supervised."""
        ids = torch.randint(1, self.vocab, (self.rows * steps, self.length), generator=torch.Generator().manual_seed(0))
        labels = ids.clone()
        labels[:, : int(prompt * self.length)] = -100
        return Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})

    def __str__(self) -> str:
        student, teacher = (f"{hidden} x {layers}" for hidden, layers in (self.student, self.teacher))
        return (
            f"V = {self.vocab}, student {student}, teacher {teacher}, {'tied' if self.tied else 'untied'} embeddings, "
            f"batches of {self.rows} x {self.length} tokens"
        )


SIZES = {
    "small": Size(config=LlamaConfig, vocab=32_000, student=(256, 4), teacher=(512, 6), rows=4, length=256, tied=False),
    "qwen": Size(config=Qwen2Config, vocab=151_936, student=(128, 4), teacher=(256, 6), rows=4, length=256, tied=True),
    "qwen-0.5b": Size(
        config=Qwen2Config, vocab=151_936, student=(896, 24), teacher=(2048, 36), rows=8, length=1024, tied=True
    ),
    "qwen-1.5b": Size(
        config=Qwen2Config, vocab=151_936, student=(1536, 28), teacher=(2048, 36), rows=8, length=1024, tied=True
    ),
    "qwen-3b": Size(
        config=Qwen2Config, vocab=151_936, student=(2048, 36), teacher=(3584, 28), rows=8, length=1024, tied=True
    ),
    "tiny": Size(config=LlamaConfig, vocab=512, student=(64, 1), teacher=(64, 2), rows=2, length=32, tied=False),
}
CPU_SIZES = ("small", "qwen")


@dataclass(frozen=True, kw_only=True)
class Task:
    """What everybody does."""

    size: Size
    steps: int
    """Of each training, the warm-up included."""
    objective: HybridObjective
    prompt: float
    """Share of every row that is not supervised."""
    folder: Path
    """Of the cache."""
    device: str
    """``cpu`` or ``cuda``."""

    def data(self) -> Dataset:
        """The rows."""
        return self.size.data(self.steps, self.prompt)


class Clock(TrainerCallback):
    """When each step ended, and how much memory there was when training began."""

    def __init__(self, device: str) -> None:
        self.on_gpu = device != "cpu"
        self.ends: list[tuple[float, float]] = []
        self.waits: list[tuple[Any, Any]] = []
        self.start_kib = 0

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        self.start_kib = torch.cuda.memory_allocated() // 1024 if self.on_gpu else reset_peak()

    def watch(self, trainer: Trainer) -> None:
        """Time how `trainer` gets the batches of a step."""
        get = trainer.get_batch_samples

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = self._mark()
            found = get(*args, **kwargs)
            self.waits.append((began, self._mark()))
            return found

        trainer.get_batch_samples = timed

    def _mark(self) -> Any:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def waiting(self) -> float:
        """Seconds of the clock from asking for the batches of a step to having them; the median after the warm-up."""
        pairs = self.waits[WARM_UP : len(self.ends)]
        if self.on_gpu:
            return statistics.median(began.elapsed_time(ended) / 1000 for began, ended in pairs)
        return statistics.median(ended - began for began, ended in pairs)

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()
        self.ends.append((time.perf_counter() if self.on_gpu else time.process_time(), time.perf_counter()))

    def peak_kib(self) -> int:
        """Since training began."""
        return torch.cuda.max_memory_allocated() // 1024 if self.on_gpu else resident("VmHWM")

    def steps(self) -> list[list[float]]:
        """CPU (on a GPU again wall) and wall seconds of each step after the warm-up."""
        pairs = list(zip(self.ends, self.ends[1:], strict=False))[WARM_UP - 1 :]
        return [[after[0] - before[0], after[1] - before[1]] for before, after in pairs]


def build(task: Task) -> None:
    """The cache that the cached contestant reads."""
    spec = cache_spec(task)
    build_cache(task.folder, OneTeacher(lambda: task.size.random_teacher(task.device), spec), [task.data()], spec)


def cache_spec(task: Task) -> CacheSpec:
    """What is in it."""
    size = task.size
    tokenizer = size.tokenizer()
    return CacheSpec(
        teacher="random",
        revision=None,
        weights=None,
        dtype="float32" if task.device == "cpu" else "bfloat16",
        tokenizer=tokenizer_fingerprint(tokenizer),
        chat_template=chat_template_fingerprint(tokenizer),
        max_length=None,
        vocab_size=size.vocab,
        teacher_width=size.vocab,
        support=Support(k=K),
        exponents=DEFAULT_EXPONENTS,
    )


def trainer_of(contestant: str, task: Task, output: str) -> Trainer:
    """Ready to train."""
    size = task.size
    arguments = SFTConfig(
        output,
        max_steps=task.steps,
        per_device_train_batch_size=size.rows,
        learning_rate=1e-4,
        max_length=None,
        bf16=task.device != "cpu",
        gradient_checkpointing=False,
        use_cpu=task.device == "cpu",
        dataloader_pin_memory=task.device != "cpu",
        # As `bridgegarden train` has it for a cache.
        dataloader_num_workers=0 if task.device == "cpu" else 2,
        logging_steps=1_000_000,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    student = size.model(size.student, 2, task.device)
    shared: dict[str, Any] = {"train_dataset": task.data(), "processing_class": size.tokenizer()}
    if contestant == "HF Trainer SFT":
        return Trainer(student, arguments, data_collator=DataCollatorForLanguageModeling(pad_token_id=0), **shared)
    if contestant == "TRL SFTTrainer":
        return SFTTrainer(student, args=arguments, **shared)
    if contestant == CACHED:
        teacher = TeacherCache(task.folder)
    else:
        top_k = K if contestant == "hybrid, live top-64" else None
        teacher = LiveTeacher(size.random_teacher(task.device), top_k=top_k)
    return HybridDistillationTrainer(student, teacher, task.objective, arguments, **shared)


def measure(contestant: str, task: Task) -> dict[str, Any]:
    """One contestant in this process."""
    clock = Clock(task.device)
    with tempfile.TemporaryDirectory() as output:
        trainer = trainer_of(contestant, task, output)
        trainer.add_callback(clock)
        clock.watch(trainer)
        trainer.train()
    peak = clock.peak_kib()
    result: dict[str, Any] = {
        "steps": clock.steps(),
        "waiting": clock.waiting(),
        "peak_mib": peak / 1024,
        "above_mib": (peak - clock.start_kib) / 1024,
    }
    if contestant == CACHED:
        result["reading"] = reading(task)
    return result


def reading(task: Task) -> float:
    """CPU seconds to get the signals of a batch: keys, lookup, decoding, tensors."""
    rows, cache, count = task.data(), TeacherCache(task.folder), task.size.rows
    batches = [[rows[start + index] for index in range(count)] for start in range(0, len(rows), count)]

    def read(batch: list[Any]) -> None:
        cache.said(document for row in batch for document in documents_in(row))

    read(batches[0])
    began = time.process_time()
    for _ in range(repeats := 10):
        for batch in batches:
            read(batch)
    return (time.process_time() - began) / (repeats * len(batches))


def resident(field: str) -> int:
    """KiB of resident memory of this process, now (``VmRSS``) or at its peak (``VmHWM``). Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def reset_peak() -> int:
    """Make the peak the present resident size, after giving back what was freed; returns it in KiB."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def compare(name: str, arguments: argparse.Namespace) -> list[str]:
    """The lines about one size."""
    size, found = SIZES[name], {contestant: [] for contestant in CONTESTANTS}
    with tempfile.TemporaryDirectory() as folder:
        in_a_process("build", name, arguments, folder)
        for number in range(arguments.rounds):
            for contestant in CONTESTANTS:
                result = json.loads(in_a_process(contestant, name, arguments, folder))
                found[contestant].append(result)
                cpu = statistics.median(step[0] for step in result["steps"])
                print(f"round {number + 1}, {contestant}: {cpu:.2f} CPU s a step", file=sys.stderr, flush=True)
    return [f"{size}:", "", *table(found), "", *budgets(found)]


def in_a_process(what: str, name: str, arguments: argparse.Namespace, folder: str) -> str:
    """The last line of what it prints."""
    command = [sys.executable, __file__, "--one", what, "--sizes", name, "--folder", folder]
    command += ["--device", arguments.device, "--steps", str(arguments.steps), "--objective", arguments.objective]
    command += ["--prompt", str(arguments.prompt)]
    ran = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if ran.returncode:
        raise SystemExit(f"{what}:\n{ran.stderr}")
    return ran.stdout.strip().rpartition("\n")[2]


def median_of(results: Sequence[Mapping[str, Any]], column: int) -> float:
    """Over the steps of all rounds; column 0 is CPU, 1 wall."""
    return statistics.median(step[column] for result in results for step in result["steps"])


def table(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Markdown."""
    lines = [
        "| contestant | CPU s a step | of the faster SFT's | wall s a step | waiting | peak MiB | while training |",
        "|---|---|---|---|---|---|---|",
    ]
    fastest = min(median_of(found[name], 0) for name in SFT)
    for name, results in found.items():
        cpu, wall = median_of(results, 0), median_of(results, 1)
        peak, above = (statistics.median(result[key] for result in results) for key in ("peak_mib", "above_mib"))
        share = statistics.median(result["waiting"] for result in results) / wall
        lines.append(
            f"| {name} | {cpu:.2f} | {cpu / fastest:.2f} | {wall:.2f} | {share:.1%} | {peak:.0f} | {above:.0f} |"
        )
    return lines


def budgets(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """What was promised, beside what was found."""
    fastest = min(SFT, key=lambda name: median_of(found[name], 0))
    ratios = [
        median_of([ours], 0) / median_of([theirs], 0)
        for ours, theirs in zip(found[CACHED], found[fastest], strict=True)
    ]
    time_ratio = median_of(found[CACHED], 0) / median_of(found[fastest], 0)
    peaks = {name: statistics.median(result["peak_mib"] for result in found[name]) for name in (*SFT, CACHED)}
    smaller = min(peaks[name] for name in SFT)
    read = statistics.median(result["reading"] for result in found[CACHED])
    faster = median_of(found[CACHED], 0) / read
    return [
        f"* cached hybrid against the faster SFT ({fastest}): {time_ratio:.2f} times its CPU time (round by round "
        f"{', '.join(f'{ratio:.2f}' for ratio in ratios)}); budget <= 1.0: {verdict(time_ratio <= 1.0)}",
        f"* its peak memory: {peaks[CACHED]:.0f} MiB, the smaller of the SFTs' {smaller:.0f} MiB; budget <= that: "
        f"{verdict(peaks[CACHED] <= smaller)}",
        f"* reading a batch from the cache: {1000 * read:.2f} ms of CPU, {faster:.0f} times faster than a step "
        f"consumes it; budget >= 20: {verdict(faster >= 20)}",
    ]


def where(device: str) -> str:
    """What it ran on, and in which precision."""
    if device == "cpu":
        return f"float32, one thread, {platform.machine()}"
    return f"bfloat16 autocast, {torch.cuda.get_device_name()} (its seconds under both headings)"


def verdict(met: bool) -> str:
    return "met" if met else "MISSED"


def options() -> argparse.ArgumentParser:
    """Of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(CPU_SIZES), choices=list(SIZES))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6, help="after the warm-up, in each round")
    parser.add_argument("--objective", default="static", choices=list(PRESETS))
    parser.add_argument("--prompt", type=float, default=0.5, help="share of every row that is not supervised")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser


def main() -> None:
    arguments = options().parse_args()
    if arguments.one:
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        task = Task(
            size=SIZES[arguments.sizes[0]],
            steps=arguments.steps + WARM_UP,
            objective=HybridObjective.preset(arguments.objective),
            prompt=arguments.prompt,
            folder=arguments.folder,
            device=arguments.device,
        )
        if arguments.one == "build":
            build(task)
        else:
            print(json.dumps(measure(arguments.one, task)))
        return
    lines = [
        f"Objective `{arguments.objective}`, {arguments.prompt:.0%} of each row prompt, K = {K}, "
        f"{where(arguments.device)}, torch {torch.__version__}; {arguments.rounds} rounds of {arguments.steps} steps "
        "each."
    ]
    print(lines[0], flush=True)
    for name in arguments.sizes:
        part = ["", *compare(name, arguments)]
        print("\n".join(part), flush=True)
        lines += part
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
