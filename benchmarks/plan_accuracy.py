"""What `bridgegarden plan` says beside what real trainings take: memory, operations, the cache's bytes.

    python benchmarks/plan_accuracy.py [--device cpu|cuda] [--cases NAME ...] [--steps 2] [--markdown FILE]

Every case trains a random student for a few steps with ``HybridDistillationTrainer``, in a process of its own, from a
recipe that ``plan`` reads too. Measured are

* on a CPU the peak of the resident set above what stood before the models were made (libraries, tokenizer and data),
  with one thread; on a GPU ``torch.cuda.max_memory_allocated``;
* the operations of one more step under ``FlopCounterMode``;
* of the cached cases, the bytes of the cache's shards.

The error is (planned - measured) / measured.
"""

import argparse
import ctypes
import dataclasses
import gc
import json
import math
import multiprocessing
import os
import platform
import random
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Whether there is a GPU is asked without making this process one that must not fork.
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from train_step import inner_sizes
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Qwen2Config,
)

from bridgegarden.plan import Machine, Plan, machine_of, plan_recipe
from bridgegarden.preflight import ModelFacts
from bridgegarden.recipe import Recipe, build_lora_config, build_objective, build_sft_config, load_recipe
from bridgegarden.run.cache import CacheOptions, build_recipe_cache
from bridgegarden.run.pair import recipe_pair
from bridgegarden.run.teachers import teacher_of
from bridgegarden.teacher.cache.reader import TeacherCache
from bridgegarden.teacher.live import LiveTeacher
from bridgegarden.training.trainer import HybridDistillationTrainer

FAMILIES = {"llama": LlamaConfig, "qwen2": Qwen2Config, "gemma2": Gemma2Config}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A training."""

    name: str
    family: str = "llama"
    vocab: int = 32_000
    student: tuple[int, int] = (256, 4)
    """Hidden size and layers."""
    teacher: tuple[int, int] = (512, 6)
    rows: int = 4
    """A batch."""
    length: int = 256
    """Tokens a row; half of them are learnt."""
    signals: str = "cached"
    """``dense`` and ``top_k`` of a teacher in memory, or ``cached``."""
    lora: bool = False
    varied: bool = False
    """Whether lengths differ, from a quarter of `length` up to it."""
    training: tuple[tuple[str, Any], ...] = ()
    """Further settings."""


CPU_CASES = (
    Case(name="256x4, whole teacher", signals="dense"),
    Case(name="256x4, teacher's top 64", signals="top_k"),
    Case(name="256x4, cached"),
    Case(name="512x8, cached", student=(512, 8)),
    Case(name="512x8, cached, checkpointing", student=(512, 8), training=(("gradient_checkpointing", True),)),
    Case(name="256x4, cached, 4 x 768", length=768),
    Case(name="256x4, cached, 4 x 768, checkpointing", length=768, training=(("gradient_checkpointing", True),)),
    Case(name="256x4 tied, cached, varied lengths", family="qwen2", varied=True),
    Case(name="512x8, cached, adapters", student=(512, 8), lora=True),
    Case(name="512x8, cached, accumulation 2", student=(512, 8), training=(("gradient_accumulation_steps", 2),)),
    Case(name="256x4 Gemma 2, cached", family="gemma2"),
    Case(name="256x4, cached, bf16 autocast", training=(("bf16", True),)),
)
_BIG = {"family": "qwen2", "vocab": 151_936, "student": (1024, 16), "teacher": (2048, 16), "rows": 8, "length": 512}
CUDA_CASES = (
    Case(name="1024x16, whole teacher", **{**_BIG, "signals": "dense"}),
    Case(name="1024x16, teacher's top 64", **{**_BIG, "signals": "top_k"}),
    Case(name="1024x16, teacher's top 64, float32", **{**_BIG, "signals": "top_k"}, training=(("bf16", False),)),
    Case(
        name="1024x16, teacher's top 64, checkpointing",
        **{**_BIG, "signals": "top_k"},
        training=(("gradient_checkpointing", True),),
    ),
    Case(name="1024x16, teacher's top 64, adapters", **{**_BIG, "signals": "top_k"}, lora=True),
    Case(name="1024x16, teacher's top 64, varied lengths", **{**_BIG, "signals": "top_k"}, varied=True),
    *(
        Case(name=f"Qwen2.5 {size}, teacher's top 64", **{**_BIG, "signals": "top_k", "student": student, "rows": 4})
        for size, student in (("0.5B", (896, 24)), ("1.5B", (1536, 28)), ("3B", (2048, 36)))
    ),
)


def tokenizer_of(vocab: int) -> PreTrainedTokenizerFast:
    """As many words as the models have tokens."""
    words = models.WordLevel({"<end>": 0} | {f"w{number}": number for number in range(1, vocab)}, unk_token="<end>")
    backend = Tokenizer(words)
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    backend.add_special_tokens([AddedToken("<end>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", pad_token="<end>", unk_token="<end>")


def config_of(case: Case, shape: tuple[int, int]) -> Any:
    """A model's configuration."""
    hidden, layers = shape
    inner, heads, key_value_heads = inner_sizes(shape)
    own: dict[str, Any] = {"head_dim": 64, "sliding_window": 128} if case.family == "gemma2" else {}
    return FAMILIES[case.family](
        vocab_size=case.vocab,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        tie_word_embeddings=case.family != "llama",
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
        dtype="float32",
        **own,
    )


def write_recipe(case: Case, folder: Path, steps: int) -> Path:
    """Configurations, tokenizers, rows and a recipe in `folder`."""
    tokenizer = tokenizer_of(case.vocab)
    for role, shape in (("teacher", case.teacher), ("student", case.student)):
        config_of(case, shape).save_pretrained(folder / role)
        tokenizer.save_pretrained(folder / role)
    draw = random.Random(0)
    with (folder / "rows.jsonl").open("w") as file:
        for _ in range(case.rows * steps * dict(case.training).get("gradient_accumulation_steps", 1)):
            length = draw.randint(case.length // 4, case.length) if case.varied else case.length
            words = [f"w{draw.randrange(1, case.vocab)}" for _ in range(length - 1)]
            row = {"prompt": " ".join(words[: length // 2]), "completion": " " + " ".join(words[length // 2 :])}
            file.write(json.dumps(row) + "\n")
    training = {
        "per_device_train_batch_size": case.rows,
        "max_steps": steps,
        "max_length": None,
        "logging_steps": 1_000_000,
        "save_strategy": "no",
    } | dict(case.training)
    tree: dict[str, Any] = {
        "teacher": {"model": "teacher"} | ({"top_k": 64} if case.signals == "top_k" else {}),
        "student": {"model": "student", "dtype": "float32"} | ({"lora": {}} if case.lora else {}),
        "data": {"train": "rows.jsonl"},
        "objective": {"preset": "static", "hard_target": "data"},
        "training": training,
        "output": str(folder / "output"),
    }
    if case.signals == "cached":
        tree["teacher"]["cache"] = str(folder / "cache")
    (folder / "recipe.yaml").write_text(json.dumps(tree))
    return folder / "recipe.yaml"


def random_model(facts: ModelFacts, seed: int, device: str = "cpu") -> Any:
    """Of its configuration, made on `device`: on a GPU that takes no time."""
    torch.manual_seed(seed)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(facts.config, dtype=facts.dtype)


def build_cache_of(recipe: Recipe) -> None:
    """The teacher's weights are needed on disk for it."""
    pair = recipe_pair(recipe, weights=False)
    assert pair.teacher is not None
    for seed, facts in enumerate((pair.teacher, pair.student), start=1):
        random_model(facts, seed).save_pretrained(facts.reference.location)
    build_recipe_cache(recipe, CacheOptions(top_k=64))


def trainer_of(recipe: Recipe, device: str, steps: int) -> Callable[[], HybridDistillationTrainer]:
    """What makes the models and a trainer of them; everything else has been read."""
    pair = recipe_pair(recipe, weights=False)
    teacher, student, endings = pair.teacher, pair.student, pair.endings
    assert teacher is not None
    data = teacher_of(recipe).rows(pair)
    section = recipe.training
    if device == "cpu":
        section = dataclasses.replace(section, arguments={**section.arguments, "use_cpu": True})
    section = dataclasses.replace(section, arguments={**section.arguments, "max_steps": steps})
    arguments = build_sft_config(section, Path(recipe.output))
    arguments.disable_tqdm = True
    arguments.dataloader_pin_memory = False

    def make() -> HybridDistillationTrainer:
        if recipe.teacher.cache is not None:
            source: Any = TeacherCache(Path(recipe.teacher.cache))
        else:
            source = LiveTeacher(random_model(teacher, 1, device), top_k=recipe.teacher.top_k)
        trainer = HybridDistillationTrainer(
            random_model(student, 2, device),
            source,
            build_objective(recipe.objective),
            arguments,
            train_dataset=data.train,
            processing_class=endings.tokenizer,
            peft_config=None if recipe.student.lora is None else build_lora_config(recipe.student.lora),
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    return make


def measure_memory(recipe: Recipe, device: str, steps: int) -> int:
    """Bytes at most, from before the models are made."""
    make = trainer_of(recipe, device, steps)
    before = 0 if device == "cuda" else reset_peak()
    trainer = make()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        reset_peak()
    trainer.train()
    return torch.cuda.max_memory_allocated() if device == "cuda" else resident("VmHWM") - before


def measure_flops(recipe: Recipe, device: str, steps: int) -> int:
    """Operations a step."""
    trainer = trainer_of(recipe, device, steps)()
    aten = torch.ops.aten
    # The counter knows neither the sum of products in place nor attention's kernel for CPUs.
    unknown = {
        aten.addmm_: lambda added, left, right, *_, **__: 2 * left[0] * left[1] * right[1],
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: (
            lambda g, q, k, v, *_, **__: sdpa_backward_flop_count(g, q, k, v)
        ),
    }
    with FlopCounterMode(display=False, custom_mapping=unknown) as counter:
        trainer.train()
    return counter.get_total_flops()


def resident(field: str) -> int:
    """Bytes of resident memory of this process, now (``VmRSS``) or at its peak (``VmHWM``). Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def reset_peak() -> int:
    """Make the peak the present resident size, after giving back what was freed; returns it."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def in_a_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function` returns in a child of this process."""
    context = multiprocessing.get_context("fork")
    with context.Pool(1) as pool:
        return pool.apply(function, arguments)


def plan_of(path: Path, device: str, steps: int) -> Plan:
    """For this device."""
    here = machine_of()
    gpu = device == "cuda"
    machine = Machine(name=here.name, processes=1, memory=here.memory, flops=here.flops, gpu=gpu)
    return plan_recipe(load_recipe(path, [f"training.max_steps={steps}"]), machine)


def found_of(case: Case, device: str, steps: int) -> dict[str, tuple[float, float]]:
    """Planned and measured, by what."""
    with tempfile.TemporaryDirectory() as name:
        path = write_recipe(case, Path(name), steps)
        plan = in_a_process(plan_of, path, device, 1)
        recipe = load_recipe(path)
        found: dict[str, tuple[float, float]] = {}
        if case.signals == "cached":
            in_a_process(build_cache_of, recipe)
            shards = sum(file.stat().st_size for file in (Path(name) / "cache" / "shards").glob("*.arrow"))
            assert plan.cache is not None
            found["cache"] = plan.cache.bytes, shards
        found["memory"] = plan.fullest.total, in_a_process(measure_memory, recipe, device, steps)
        found["operations"] = plan.work.total, in_a_process(measure_flops, recipe, device, 1)
        return found | {"moment": (plan.fullest.name, "")}  # pyright: ignore[reportReturnType]


def row_of(case: Case, found: dict[str, Any]) -> str:
    """Markdown."""

    def cells(what: str, unit: float, form: str) -> str:
        if what not in found:
            return " | | "
        planned, measured = found[what]
        return f"{planned / unit:{form}} | {measured / unit:{form}} | {planned / measured - 1:+.1%}"

    shown = cells("memory", 2**20, ".0f"), cells("operations", 1e9, ".1f"), cells("cache", 2**10, ".0f")
    return f"| {case.name} | {found['moment'][0]} | {' | '.join(shown)} |"


def summary(found: Sequence[dict[str, Any]]) -> str:
    """The mean and the largest error of each."""
    parts = []
    for what in ("memory", "operations", "cache"):
        errors = [one[what][0] / one[what][1] - 1 for one in found if what in one]
        if errors:
            worst = max(errors, key=abs)
            parts.append(f"{what}: mean |error| {math.fsum(map(abs, errors)) / len(errors):.1%}, worst {worst:+.1%}")
    return "; ".join(parts)


def options() -> argparse.ArgumentParser:
    """Of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--cases", nargs="+", help="names; all by default")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--markdown", type=Path)
    return parser


def main() -> None:
    arguments = options().parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    cases = CPU_CASES if arguments.device == "cpu" else CUDA_CASES
    chosen = [case for case in cases if not arguments.cases or case.name in arguments.cases]
    lines = [
        f"{arguments.device}, {platform.machine()}, torch {torch.__version__}, {arguments.steps} steps.",
        "",
        "| training | fullest moment | MiB planned | measured | error | GFLOP a step planned | counted | error "
        "| cache KiB planned | on disk | error |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    found = []
    for case in chosen:
        found.append(found_of(case, arguments.device, arguments.steps))
        lines.append(row_of(case, found[-1]))
        print(lines[-1], flush=True)
    lines += ["", summary(found)]
    print("\n" + lines[-1])
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
