"""How what was written is run, for the model's card: commands and code that are right for these very files."""

import json
import shlex
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from bridgegarden.errors import ModelError
from bridgegarden.export.gguf_model import family_of
from bridgegarden.export.gguf_tokenizer import vocabulary_of

BRIDGEGARDEN = "[bridgegarden](https://pypi.org/project/bridgegarden/)"
BEGINNING = "Once upon a time"
"""What a model without a chat template goes on with."""
QUESTION = [{"role": "user", "content": "Hello"}]
ANSWER = 100
"""Tokens that are written, at most."""
WITH_PAST = """nodes = [node for node in session.get_inputs() if node.name.startswith("past.")]
past = {{node.name: np.zeros((1, node.shape[1], 0, node.shape[3]), np.float32) for node in nodes}}
for _ in range({answer}):
    feed = {{"input_ids": np.array([new]), "attention_mask": np.ones((1, len(ids)), np.int64)}}
    logits, *kept = session.run(None, feed | past)
    past = {{node.name: value for node, value in zip(nodes, kept)}}
    new = [int(logits[0, -1].argmax())]
    if new[0] in {ends}:
        break
    ids = ids + new
"""
WITHOUT_PAST = """for _ in range({answer}):
    feed = {{"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)}}
    (logits,) = session.run(None, feed)
    new = [int(logits[0, -1].argmax())]
    if new[0] in {ends}:
        break
    ids = ids + new
"""


class Made(NamedTuple):
    """What an exported model was made of."""

    shown: str
    """The model, as Markdown."""
    base: str | None
    """Its name on the hub, if it has one."""
    kind: str
    """Type of the weights that were written."""


def block(language: str, *lines: str) -> str:
    """Lines of code as Markdown."""
    fence = "````" if any("```" in line for line in lines) else "```"
    return "\n".join([f"{fence}{language}", *lines, fence])


def with_transformers(source: str, *, chat: bool) -> str:
    """Python for a model's folder or its name on the hub.

    Args:
        source: as ``from_pretrained`` takes it.
        chat: whether it has a chat template.
    """
    prompt = f'tokenizer({json.dumps(BEGINNING)}, return_tensors="pt")'
    if chat:
        prompt = (
            f"tokenizer.apply_chat_template({json.dumps(QUESTION)}, add_generation_prompt=True, "
            'return_tensors="pt", return_dict=True)'
        )
    return block(
        "python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"tokenizer = AutoTokenizer.from_pretrained({json.dumps(source)})",
        f"model = AutoModelForCausalLM.from_pretrained({json.dumps(source)})",
        f"inputs = {prompt}",
        f"print(tokenizer.decode(model.generate(**inputs, max_new_tokens={ANSWER})[0]))",
    )


def with_onnxruntime(tokenizer: Any, ends: Sequence[int], *, past: bool) -> str:
    """Python for a folder with ``model.onnx``, without PyTorch and transformers.

    Args:
        tokenizer: of the model.
        ends: ids at which it stops.
        past: whether the graph takes keys and values of the tokens before.
    """
    text, special = BEGINNING, ""
    if tokenizer.chat_template is not None:
        text = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
        special = ", add_special_tokens=False"
    loop = (WITH_PAST if past else WITHOUT_PAST).format(answer=ANSWER, ends=list(ends))
    return block(
        "python",
        "import numpy as np",
        "import onnxruntime",
        "import tokenizers",
        "",
        'session = onnxruntime.InferenceSession("model.onnx")',
        'tokenizer = tokenizers.Tokenizer.from_file("tokenizer.json")',
        f"ids = new = tokenizer.encode({json.dumps(text, ensure_ascii=False)}{special}).ids",
        *loop.splitlines(),
        "print(tokenizer.decode(ids, skip_special_tokens=False))",
    )


def with_llama_cpp(gguf: str, *, chat: bool) -> str:
    """Commands for a GGUF file, as it is typed in its folder: a chat or a text, and a server that is asked.

    Args:
        gguf: its name, quoted as a shell needs it.
        chat: whether it holds a chat template.
    """
    path, body = ("v1/chat/completions", {"messages": QUESTION}) if chat else ("completion", {"prompt": BEGINNING})
    body |= {"max_tokens" if chat else "n_predict": ANSWER}
    asked = f"curl http://127.0.0.1:8080/{path} -H 'Content-Type: application/json' -d '{json.dumps(body)}'"
    return block("bash", *([f"llama-cli -m {gguf}"] if chat else []), f"llama-server -m {gguf} --port 8080", asked)


def with_ollama(gguf: str, modelfile: str, name: str) -> str:
    """Commands for a GGUF file with its Modelfile; `modelfile` is what that one says."""
    model = shlex.quote(name.lower())
    commands = block("bash", f"ollama create {model} -f {gguf} && ollama run {model}")
    if "# TEMPLATE" in modelfile:
        return f"Its chat template has no equal in Ollama's language; write one into {gguf} first.\n\n{commands}"
    return commands


def elsewhere(source: str, config: Any, tokenizer: Any, *, kind: str = "Q8_0", adapter: bool = False) -> str:
    """How a model's folder, or its name on the hub, becomes what llama.cpp, Ollama and onnxruntime run.

    Args:
        source: the folder or name.
        config: of the model.
        tokenizer: of the model.
        kind: type of the weights in a GGUF file.
        adapter: whether the same card lies beside adapters, too.
    """
    model = shlex.quote(source)
    lines = []
    if gguf_fault(config, tokenizer) is None:
        lines = [
            f"bridgegarden export {model} --to gguf --quantise {kind} --output gguf",
            f"llama-cli -m gguf/*-{kind}.gguf   # llama.cpp",
            f"ollama create student -f gguf/*-{kind}.Modelfile && ollama run student",
        ]
    lines.append(f"bridgegarden export {model} --to onnx --output onnx   # onnxruntime; the README.md there goes on")
    what = "For other programs, of the model with its adapters merged:" if adapter else "For other programs:"
    commands = block("bash", "pip install 'bridgegarden[export]'", *lines)
    return f"{what}\n\n{commands}"


def gguf_fault(config: Any, tokenizer: Any) -> str | None:
    """Why a model cannot be written as GGUF, as far as its configuration tells, and its tokenizer where the package
    ``gguf`` is there; None where nothing is known against it."""
    try:
        family_of(config, ModelError)
        if find_spec("gguf") is not None:
            vocabulary_of(tokenizer, config.get_text_config().vocab_size, [], ModelError)
    except ModelError as error:
        return str(error)
    return None


def gguf_card(gguf: Path, modelfile: str, made: "Made", notes: Sequence[str], *, chat: bool) -> str:
    """The card that lies beside a GGUF file.

    Args:
        gguf: the file.
        modelfile: what its Modelfile says.
        made: of what.
        notes: what is different in llama.cpp.
        chat: whether it holds a chat template.
    """
    name = shlex.quote(gguf.name)
    sections = [
        "## llama.cpp",
        with_llama_cpp(name, chat=chat),
        "## Ollama",
        with_ollama(shlex.quote(gguf.with_suffix(".Modelfile").name), modelfile, gguf.stem),
    ]
    if notes:
        sections += ["## What is different in llama.cpp", "\n".join(f"* {note}." for note in notes)]
    return _card("gguf", gguf.stem, made, sections)


def folder_card(library: str, name: str, made: "Made", code: str) -> str:
    """README.md of an exported folder that `library` runs with `code`."""
    return _card(library, name, made, ["In this folder:", code])


def _card(library: str, name: str, made: "Made", sections: Sequence[str]) -> str:
    front: dict[str, Any] = {"library_name": library, "pipeline_tag": "text-generation", "tags": ["bridgegarden"]}
    if made.base is not None:
        front |= {"base_model": made.base, "base_model_relation": "quantized"}
    what = f"{made.shown}, its weights in {made.kind}, written by {BRIDGEGARDEN}."
    lines = [f"# {name}", what, *sections]
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n" + "\n\n".join(lines) + "\n"
