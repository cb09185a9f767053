"""What a model's card says of running it is done here, as it stands there."""

import contextlib
import io
import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard as HubCard
from tokenizers.normalizers import Lowercase
from transformers import AutoModelForCausalLM, AutoTokenizer

from bridgegarden.export.usage import Made, elsewhere, folder_card, with_ollama, with_onnxruntime
from bridgegarden.run.export import ExportTarget, export_model
from tests.run.served import run
from tests.tiny import save_tiny, tiny_config, tiny_model, tiny_tokenizer

CHAT = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(params=["chat", "text"])
def folder(request, tmp_path):
    tokenizer = tiny_tokenizer(chat_template=request.param == "chat")
    return save_tiny(tmp_path / "tiny", tiny_model("llama", hidden_size=64), tokenizer)


def blocks(card: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)\n```$", card, re.M | re.S)


def printed(code: str, monkeypatch, folder: Path) -> str:
    """What `code` prints in `folder`."""
    monkeypatch.chdir(folder)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code, {})
    return out.getvalue().removesuffix("\n")


def greedy(folder: Path, chat: bool) -> str:
    """The likeliest continuation of what cards begin with, special tokens included."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = tokenizer(CHAT if chat else "Once upon a time", return_tensors="pt").input_ids
    ends = tokenizer.eos_token_id
    made = model.generate(ids, do_sample=False, max_new_tokens=100, eos_token_id=ends, pad_token_id=256)[0].tolist()
    return tokenizer.decode(made[:-1] if made[-1] == ends else made)


def test_a_folder_for_transformers_says_how_and_does_so(folder, tmp_path, monkeypatch):
    (one,) = export_model(ExportTarget(source=str(folder), to="hf", output=tmp_path / "out")).files
    card = (one.path / "README.md").read_text()
    data = HubCard(card).data.to_dict()
    assert (data["library_name"], "base_model" in data) == ("transformers", False)
    (code,) = blocks(card, "python")
    chat = "apply_chat_template" in code
    begun, end = CHAT if chat else "Once upon a time", str(tiny_tokenizer(chat).eos_token)
    likeliest = printed(code.replace("max_new_tokens", "do_sample=False, max_new_tokens"), monkeypatch, one.path)
    assert likeliest.removesuffix(end) == greedy(one.path, chat)
    assert printed(code, monkeypatch, one.path).startswith(begun)
    assert str(tmp_path) not in card


@pytest.mark.parametrize("past", [True, False])
def test_the_loop_for_onnxruntime_writes_what_transformers_generates(folder, monkeypatch, past):
    onnxruntime = pytest.importorskip("onnxruntime")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda path: Graph(model, past=past))
    (code,) = blocks(with_onnxruntime(tokenizer, [tokenizer.eos_token_id], past=past), "python")
    assert "transformers" not in code
    assert "torch" not in code
    assert printed(code, monkeypatch, folder) == greedy(folder, tokenizer.chat_template is not None)


class Graph:
    """A model as onnxruntime would run it; test_onnx.py has the card of a real one. Its keys are the ids so far."""

    def __init__(self, model, *, past: bool) -> None:
        self.model, self.past = model, past

    def get_inputs(self):
        names = ["input_ids", "attention_mask", *(["past.0.key"] if self.past else [])]
        return [SimpleNamespace(name=name, shape=["batch", 1, "past", 1]) for name in names]

    def run(self, wanted, feed):
        assert feed.keys() == {node.name for node in self.get_inputs()}
        ids, before = feed["input_ids"], feed.get("past.0.key", np.zeros((1, 1, 0, 1), np.float32))
        whole = np.concatenate([before.reshape(1, -1).astype(np.int64), ids], 1)
        assert feed["attention_mask"].shape == whole.shape
        with torch.no_grad():
            logits = self.model(torch.tensor(whole)).logits[:, -ids.shape[1] :].numpy()
        return [logits, whole.reshape(1, 1, -1, 1).astype(np.float32)][: 1 + self.past]


def test_a_gguf_file_is_asked_as_its_card_says(folder, tmp_path):
    pytest.importorskip("xllamacpp")
    from tests.export.llama_cpp import LlamaCpp

    result = export_model(ExportTarget(source=str(folder), to="gguf", quantise=("F32",), output=tmp_path / "a b"))
    gguf = result.files[0].path
    assert [path.name for path in result.beside] == ["tiny-F32.Modelfile", "tiny-F32.md"]
    card = gguf.with_suffix(".md").read_text()
    llama, ollama = blocks(card, "bash")
    *started, curl = map(shlex.split, llama.splitlines())
    chat = started[0][0] == "llama-cli"
    assert started[-1][0] == "llama-server"
    for command in started:
        assert (gguf.parent / command[command.index("-m") + 1]).is_file()
    path = curl[1].removeprefix("http://127.0.0.1:8080/")
    reply = LlamaCpp(gguf).ask(path, json.loads(curl[-1]) | {"temperature": 0})
    said = reply["choices"][0]["message"]["content"] if chat else reply["content"]
    begun = CHAT if chat else "Once upon a time"
    wanted = greedy(folder, chat).removeprefix(begun)
    # A server gives no half characters.
    assert "\ufffd" in said or said.strip() == wanted.strip()
    assert len(said) > 0
    create = shlex.split(ollama)
    assert (gguf.parent / create[create.index("-f") + 1]).read_text().startswith("FROM ./tiny-F32.gguf")
    assert create[2] == create[-1] == "tiny-f32"
    assert str(tmp_path) not in card


def test_a_template_that_ollama_cannot_have_is_to_be_written_first():
    assert "write one into my.Modelfile first" in with_ollama("my.Modelfile", "FROM x\n# TEMPLATE ...", "my")
    assert "first" not in with_ollama("my.Modelfile", 'FROM x\nTEMPLATE "..."', "my")


def test_a_trained_student_s_commands_are_done_as_they_stand(tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    model = tiny_model("llama", hidden_size=64)
    folder = save_tiny(tmp_path / "model", model)
    (commands,) = blocks(elsewhere(".", model.config, tiny_tokenizer()), "bash")
    monkeypatch.chdir(folder)
    lines = commands.splitlines()
    words = shlex.split(lines[1], comments=True)
    assert words[:2] == ["bridgegarden", "export"]
    assert run(*words[1:]).exit_code == 0
    for line, command in zip(lines[2:4], ("llama-cli", "ollama"), strict=True):
        words = shlex.split(line, comments=True)
        assert words[0] == command
        (pattern,) = [word for word in words if "*" in word]
        assert len(list(folder.glob(pattern))) == 1
    assert "--to onnx --output onnx" in lines[4]


def test_llama_cpp_is_not_named_for_what_it_cannot_have(monkeypatch):
    config = tiny_config("llama")
    assert "gguf" in elsewhere(".", config, tiny_tokenizer())
    config.hidden_act = "relu"
    assert "gguf" not in elsewhere(".", config, tiny_tokenizer())
    assert "--to onnx" in elsewhere(".", config, tiny_tokenizer())
    odd = tiny_tokenizer()
    odd.backend_tokenizer.normalizer = Lowercase()
    assert "gguf" not in elsewhere("ada/small", tiny_config("llama"), odd)
    assert "bridgegarden export ada/small --to onnx" in elsewhere("ada/small", tiny_config("llama"), odd)


def test_what_a_template_writes_stays_code():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "```\n{{ messages[0]['content'] }}\"'\\ 😀\n"
    code = with_onnxruntime(tokenizer, [1], past=True)
    assert code.startswith("````python\n")
    line = next(line for line in code.splitlines() if "encode(" in line)
    assert eval(line[line.index("(") + 1 : line.rindex(", add_special")]) == "```\nHello\"'\\ 😀"
    card = folder_card("onnx", "x", Made("`big`", "ada/big", "int8"), code)
    assert HubCard(card).data.to_dict()["base_model"] == "ada/big"
