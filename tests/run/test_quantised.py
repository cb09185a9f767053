"""A teacher whose weights are rounded as they are loaded."""

import json
import sys
from dataclasses import asdict
from importlib.util import find_spec
from inspect import signature

import pytest
import torch
from click.testing import CliRunner
from transformers import BitsAndBytesConfig, TorchAoConfig

from bridgegarden.cli.main import cli
from bridgegarden.errors import ModelError
from bridgegarden.preflight import ModelReference, check_quantised, load_facts
from bridgegarden.preflight.memory import weight_bytes
from bridgegarden.recipe.teacher import QuantizationSection
from bridgegarden.run.models import load_model
from tests.tiny import save_tiny, tiny_model

needs_it = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
needs_ao = pytest.mark.skipif(find_spec("torchao") is None, reason="needs torchao")
AO = {"quant_type": "int8_weight_only"}
FOUR, EIGHT = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, {"load_in_8bit": True}


def run(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def changed(*settings):
    return [part for setting in settings for part in ("--set", setting)]


def facts_of(folder, **settings):
    section = QuantizationSection(**settings).settings if settings else None
    return load_facts(ModelReference(role="teacher", model=str(folder), quantization=section))


@pytest.fixture
def recipe(write_recipe, tmp_path):
    path = write_recipe(teacher={"cache": str(tmp_path / "cache"), "quantization": FOUR})
    # Its kernels for the CPU take multiples of 32.
    save_tiny(tmp_path / "teacher", tiny_model("llama", 264, hidden_size=64, seed=1))
    return path


@needs_it
@pytest.mark.parametrize(("settings", "most"), [(FOUR, 0.3), (EIGHT, 0.05)])
def test_its_layers_are_rounded_to_that_and_its_head_and_embeddings_are_not(tmp_path, settings, most):
    model = tiny_model("llama", 264, hidden_size=64, seed=1)
    save_tiny(tmp_path, model)
    rounded = load_model(facts_of(tmp_path, **settings))
    weight = rounded.get_submodule("model.layers.0.mlp.down_proj").weight
    assert weight.dtype == (torch.uint8 if settings is FOUR else torch.int8)
    for name in ("model.embed_tokens", "lm_head"):
        torch.testing.assert_close(rounded.get_submodule(name).weight, model.get_submodule(name).weight)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        off = (rounded(ids).logits.float() - model.eval()(ids).logits).abs().max()
    assert 1e-6 < off < most


@needs_it
def test_it_is_announced_fills_a_cache_and_teaches_as_it_does_live(recipe, tmp_path):
    built = run("cache", "build", recipe)
    assert built.exit_code == 0, built.output
    settings = "bnb_4bit_compute_dtype float32, bnb_4bit_quant_type nf4, bnb_4bit_use_double_quant False, load_in_4bit"
    assert f"the teacher is quantised (bitsandbytes, {settings} True). Soft labels" in built.stderr
    assert f"quantised ({settings} True)" in run("cache", "info", recipe).stdout
    trained = run("train", recipe)
    assert trained.exit_code == 0, trained.output
    live = run("train", recipe, *changed("teacher.cache=null", f"output={tmp_path}/live"))
    assert live.exit_code == 0, live.output
    assert "the teacher is quantised (bitsandbytes" in live.stderr


@needs_it
def test_a_cache_of_it_is_not_that_of_the_whole_model_nor_of_other_bits(recipe):
    assert run("cache", "build", recipe).exit_code == 0
    for other, words in (
        ("null", "not none"),
        ("{load_in_8bit: true}", "not llm_int8_threshold 6.0, load_in_8bit True"),
    ):
        refused = run("cache", "check", recipe, *changed(f"teacher.quantization={other}"))
        assert refused.exit_code == 2
        assert "quantization bnb_4bit_compute_dtype float32" in refused.stderr
        assert words in refused.stderr
    same = changed("teacher.quantization={load_in_4bit: true, bnb_4bit_quant_type: nf4, llm_int8_threshold: 6.0}")
    assert run("cache", "check", recipe, *same).exit_code == 0


@needs_ao
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # as it is imported
def test_torchao_rounds_layers_alone_and_its_cache_teaches_as_it_does_live(recipe, tmp_path):
    whole = tiny_model("llama", 264, hidden_size=64, seed=1).eval()
    facts = facts_of(tmp_path / "teacher", **AO)
    rounded = load_model(facts)
    weight = rounded.get_submodule("model.layers.0.mlp.down_proj").weight
    assert weight.qdata.dtype == torch.int8
    want = whole.get_submodule("model.layers.0.mlp.down_proj").weight
    scale = want.abs().amax(1, keepdim=True) / 127.5
    torch.testing.assert_close(weight.dequantize(), (want / scale).round().clamp(-128, 127) * scale, atol=2e-3, rtol=0)
    for name in ("model.embed_tokens", "lm_head"):
        torch.testing.assert_close(rounded.get_submodule(name).weight, whole.get_submodule(name).weight)
    parts = [(w.qdata, w.scale) if hasattr(w, "qdata") else (w,) for w in rounded.parameters()]
    assert weight_bytes(facts) == sum(part.numel() * part.element_size() for one in parts for part in one)
    by_ao = changed("teacher.quantization={quant_type: int8_weight_only}")
    built = run("cache", "build", recipe, *by_ao, "--top-k", "264", "--bits", "16")
    assert built.exit_code == 0, built.output
    assert "the teacher is quantised (torchao, quant_type int8_weight_only). Soft labels" in built.stderr
    losses = []
    for name, cache in (("cached", []), ("live", changed("teacher.cache=null"))):
        trained = run("train", recipe, *by_ao, *cache, *changed(f"output={tmp_path / name}"))
        assert trained.exit_code == 0, trained.output
        losses.append(json.loads((tmp_path / name / "run.json").read_text())["training"]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_torchao_is_named_where_it_is_missing(recipe, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    missing = run("cache", "build", recipe, *changed("teacher.quantization={quant_type: int8_weight_only}"))
    assert missing.exit_code == 2, missing.output
    assert "pip install torchao" in missing.stderr


@needs_it
@pytest.mark.parametrize("settings", [FOUR, FOUR | {"bnb_4bit_use_double_quant": True}, EIGHT])
def test_a_plan_counts_what_its_weights_take(tmp_path, settings):
    save_tiny(tmp_path, tiny_model("llama", 264, hidden_size=64, seed=1))
    facts, taken = facts_of(tmp_path, **settings), 0
    for weight in load_model(facts).parameters():
        state = getattr(weight, "quant_state", None)
        scales = [getattr(weight, "SCB", None)]
        if state is not None:
            scales += [state.absmax, state.state2.absmax if state.nested else None]
        taken += sum(part.numel() * part.element_size() for part in (weight, *scales) if part is not None)
    assert weight_bytes(facts) == taken


def test_what_it_is_read_with_is_named_where_it_is_missing_before_anything_is_loaded(recipe, monkeypatch):
    monkeypatch.setattr("transformers.quantizers.quantizer_bnb_4bit.is_bitsandbytes_available", lambda: False)
    for command in (("cache", "build", recipe), ("train", recipe, *changed("teacher.cache=null"))):
        missing = run(*command)
        assert missing.exit_code == 2, missing.output
        assert "are to be quantised (teacher.quantization), which cannot be used here" in missing.stderr
        assert "pip install -U bitsandbytes" in missing.stderr
        assert "leave teacher.quantization out" in missing.stderr


def test_a_checkpoint_that_is_quantised_already_is_not_rounded_again(tmp_path):
    save_tiny(tmp_path, tiny_model("llama", 264))
    facts = facts_of(tmp_path, **FOUR)
    facts.config.quantization_config = {"quant_method": "fp8"}
    with pytest.raises(ModelError, match=r"quantised already .fp8, as its config.json says.*Leave that out"):
        check_quantised(facts)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("{load_in_4bits: true}", "Did you mean 'load_in_4bit'?"),
        ("{}", "set one of load_in_4bit, load_in_8bit (true) and quant_type"),
        ("{load_in_4bit: true, quant_type: int8_weight_only}", "set one of load_in_4bit, load_in_8bit"),
        ("{quant_type: int8_weight_only, bnb_4bit_quant_type: nf4}", "goes with load_in_4bit, which is not set"),
        ("{quant_type: int4_weight_only}", "int8_weight_only"),
        ("{load_in_4bit: true, load_in_8bit: true}", "set one of load_in_4bit, load_in_8bit"),
        ("{load_in_8bit: true, bnb_4bit_quant_type: nf4}", "goes with load_in_4bit, which is not set"),
        ("{load_in_8bit: true, llm_int8_threshold: -1}", "llm_int8_threshold must be > 0, got -1"),
        ("{load_in_4bit: true, bnb_4bit_quant_type: nf5}", "bnb_4bit_quant_type"),
    ],
)
def test_settings_that_make_no_sense_are_refused(recipe, given, words):
    refused = run("train", recipe, *changed(f"teacher.quantization={given}"))
    assert refused.exit_code == 2
    assert words in refused.stderr


def test_it_is_refused_beside_a_file_that_is_rounded_a_server_and_a_mixture(recipe):
    for other, words in (
        (["teacher.gguf_file=a.gguf"], "those of teacher.gguf_file are rounded"),
        (["teacher.server=http://localhost:1/v1"], "does not go with teacher.server"),
        (["teacher.only_cache=true"], "does not go with teacher.only_cache"),
        (["teacher.model=''", "teacher.mix={a: 1}", "teacher.of={a: {model: x}}"], "does not go with teacher.mix"),
    ):
        assert words in run("train", recipe, *changed(*other)).stderr


def test_its_fields_and_their_defaults_are_those_of_transformers():
    theirs = BitsAndBytesConfig(load_in_4bit=True).to_dict()
    ours = asdict(QuantizationSection(load_in_4bit=True))
    assert ours.pop("quant_type") is None
    assert "quant_type" in signature(TorchAoConfig).parameters
    assert ours.items() <= theirs.items()
