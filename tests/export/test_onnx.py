"""ONNX graphs, as onnxruntime runs them."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bridgegarden.errors import ConfigError, ModelError
from bridgegarden.export import onnx_model
from bridgegarden.export.onnx_model import check_onnx_kind, run_session, session_of, write_onnx
from bridgegarden.export.runtimes import opened
from tests.export.models import random_model
from tests.run.served import run
from tests.tiny import VOCABULARY, save_tiny, tiny_tokenizer

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "export.md"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model, and the folder of its graph, written by the command."""
    folder = tmp_path_factory.mktemp("onnx")
    model = random_model("llama")
    model.set_attn_implementation("sdpa")
    save_tiny(folder / "tiny", model)
    done = run("export", folder / "tiny", "--to", "onnx", "--output", folder)
    assert done.exit_code == 0, done.output
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
    return model, folder / "tiny-onnx-F32"


def test_a_row_is_as_likely_to_onnxruntime_as_to_the_model(exported):
    model, folder = exported
    ids, places = list(range(60, 90)), [1, 4, 17, 29]
    with torch.no_grad():
        logp = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    expected = -sum(logp[place - 1, ids[place]].item() for place in places)
    assert opened(folder, 1, 64).score(ids, places) == pytest.approx(expected, abs=1e-4)


def greedy(model, ids, count):
    with torch.no_grad():
        for _ in range(count):
            ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
    return ids


@pytest.mark.slow
def test_onnxruntime_gives_the_logits_of_torch_token_by_token(exported):
    model, folder = exported
    session, kept = session_of(folder / "model.onnx"), None
    ids = torch.randint(0, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = model(ids).logits.numpy()
    for at in range(9):
        mask = np.ones((2, at + 1), np.int64)
        logits, kept = run_session(session, ids[:, at : at + 1].numpy(), mask, kept)
        np.testing.assert_allclose(logits[:, 0], wanted[:, at], atol=1e-4)


def test_the_loop_of_the_page_writes_what_torch_writes(exported, monkeypatch, capsys):
    model, folder = exported
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert {line.split()[1] for line in code.splitlines() if line.startswith("import")} == {
        "numpy",
        "onnxruntime",
        "tokenizers",
    }
    monkeypatch.chdir(folder)
    scope: dict = {}
    exec(code, scope)  # the page's own
    start = scope["tokenizer"].encode("Once upon a time").ids
    assert len(scope["ids"]) > len(start) + 10
    assert scope["ids"] == greedy(model, start, len(scope["ids"]) - len(start))


def test_the_card_in_the_folder_says_how_it_is_run(exported, monkeypatch, capsys):
    model, folder = exported
    card = (folder / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    monkeypatch.chdir(folder)
    scope: dict = {}
    exec(code, scope)  # the card's own
    ids: Any = tiny_tokenizer().apply_chat_template(
        [{"role": "user", "content": "Hello"}], add_generation_prompt=True, return_dict=False
    )
    wanted = greedy(model, ids, 100)
    wanted = wanted[: wanted.index(258, len(ids))] if 258 in wanted[len(ids) :] else wanted
    assert scope["ids"] == wanted
    assert len(wanted) > len(ids) + 5


def test_a_graph_can_be_measured_in_a_bench(exported):
    prompt, decode = opened(exported[1], 1, 64).run(8, 4)
    assert 0 < prompt < 10
    assert 0 < decode < 10


def test_a_graph_that_computes_something_else_is_refused_and_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_model, "_difference", lambda *a: 0.5)
    save_tiny(tmp_path / "tiny", random_model("llama"))
    monkeypatch.setattr(onnx_model, "_traced", lambda model, past: Nothing())
    done = run("export", tmp_path / "tiny", "--to", "onnx", "--output", tmp_path / "out")
    assert done.exit_code == 2
    assert "the logits of onnxruntime are 0.5 of their spread away" in done.stderr
    assert not list((tmp_path / "out").iterdir())


class Nothing:
    def save(self, path, external_data):
        path.write_bytes(b"")


def test_an_exporter_that_fails_is_one_line(tmp_path, monkeypatch):
    def fail(model, past):
        raise RuntimeError("no such operator")

    monkeypatch.setattr(onnx_model, "_traced", fail)
    with pytest.raises(ModelError, match=r"'llama' cannot be written as ONNX here .no such operator.. Without keys"):
        write_onnx(random_model("llama"), tmp_path, "F32", past=True)


def test_a_kind_that_onnx_does_not_have_is_refused():
    with pytest.raises(ConfigError, match="'Q8_0' is no type of weights for --to onnx; it has F32, int8"):
        check_onnx_kind("Q8_0")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2", "gemma2"])
def test_eight_bits_are_fewer_bytes_and_nearly_the_same_distribution(name, tmp_path):
    model = random_model(name, hidden_size=128, intermediate_size=1024)
    off = {}
    for kind in ("F32", "int8"):
        (tmp_path / kind).mkdir()
        write_onnx(model, tmp_path / kind, kind, past=name == "gemma2")
        ids = np.arange(20)[None]
        logits, _ = run_session(session_of(tmp_path / kind / "model.onnx"), ids, np.ones_like(ids))
        with torch.no_grad():
            wanted = model(torch.from_numpy(ids)).logits.log_softmax(-1)
        off[kind] = (torch.from_numpy(logits).log_softmax(-1) - wanted).abs().mean().item()
    assert off["F32"] < 1e-4
    assert 1e-4 < off["int8"] < 0.5
    sizes = [(tmp_path / kind / "model.onnx").stat().st_size for kind in ("int8", "F32")]
    assert sizes[0] < 0.7 * sizes[1]
