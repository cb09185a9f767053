"""A model folder from a stranger: nothing in it is run, and what cannot be used is one line."""

import json
import pickle
from collections.abc import Callable

import pytest
from click.testing import CliRunner

from bridgegarden.cli.main import cli
from bridgegarden.errors import BridgegardenError, ModelError
from bridgegarden.preflight import ModelReference, check_quantised, estimate_memory, load_facts, trial
from bridgegarden.preflight.models import load_tokenizer, meta_model
from bridgegarden.recipe import LoraSection, build_lora_config
from bridgegarden.run.models import load_model
from bridgegarden.terminal import one_line
from tests.tiny import save_tiny, tiny_model

PLANT = "import os; os.mkdir('planted')\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A good model; the working directory is where ``planted`` would be."""
    monkeypatch.chdir(tmp_path)
    return save_tiny(tmp_path / "model", tiny_model("llama", 264))


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def reference(folder) -> ModelReference:
    return ModelReference(role="student", model=str(folder))


def refusal(work: Callable[[], object]) -> str:
    """The one line with which `work` is refused; empty if it is not."""
    try:
        work()
    except BridgegardenError as error:
        return one_line(str(error))
    return ""


class Planted:
    def __reduce__(self):
        import os

        return os.mkdir, ("planted",)


def test_code_beside_a_model_is_never_run(folder, tmp_path):
    """In the model's, the configuration's, the tokenizer's and generation's own files, and in pickles beside them."""
    for name in ("modeling_evil", "configuration_evil", "tokenization_evil", "custom_generate/generate"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(PLANT)
    edit(
        folder / "config.json",
        auto_map={"AutoConfig": "configuration_evil.Evil", "AutoModelForCausalLM": "modeling_evil.Evil"},
    )
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_evil.Evil", None]})
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
        (folder / name).write_bytes(pickle.dumps(Planted()))
    said = refusal(lambda: load_model(load_facts(reference(folder))))
    assert said == "" or "needs Python code from its own repository, which is never run here" in said
    assert not (tmp_path / "planted").exists()


def test_a_tokenizer_of_a_class_of_its_own_is_refused(folder, tmp_path):
    (folder / "tokenization_evil.py").write_text(PLANT)
    edit(
        folder / "tokenizer_config.json",
        tokenizer_class="EvilTokenizer",
        auto_map={"AutoTokenizer": ["tokenization_evil.EvilTokenizer", None]},
    )
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError):
        load_tokenizer(reference(folder))
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal"])
def test_a_kernel_from_the_hub_is_not_fetched(folder, key):
    edit(folder / "config.json", **{key: "somebody/kernel"})
    loaded = []
    said = refusal(lambda: loaded.append(load_model(load_facts(reference(folder)))))
    assert "never run here" in said or "/" not in loaded[0].config._attn_implementation


def test_weights_that_are_pickles_alone_are_refused(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Planted()))
    with pytest.raises(ModelError, match="its weights are pickle files"):
        load_facts(reference(folder))
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.mkdir('planted') }}",
        "{% for i in range(10 ** 12) %}x{% endfor %}",
        "{% include '/etc/passwd' %}",
        "{{ messages",
    ],
)
def test_a_template_that_reaches_beyond_its_messages_is_one_line(folder, tmp_path, template):
    (folder / "chat_template.jinja").write_text(template)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "recipe.yaml").write_text(
        f"teacher: {{model: {folder}}}\nstudent: {{model: {folder}}}\ndata: {{train: rows.jsonl}}\noutput: out\n"
    )
    result = CliRunner().invoke(cli, ["train", "recipe.yaml", "--audit"])
    assert result.exit_code == 2, result.output
    assert not (tmp_path / "planted").exists()


VALUES = (None, "", "evil", -1, 0, 1.5, 2**40, 10**30, [], {}, ["x"], {"a": 1}, True, "\x1b[2J", "../..")


@pytest.mark.parametrize(
    "key", ["model_type", "vocab_size", "hidden_size", "num_hidden_layers", "dtype", "architectures", "auto_map"]
)
def test_any_value_in_a_configuration_is_read_or_one_line(folder, key):
    config = (folder / "config.json").read_text()
    for value in VALUES:
        (folder / "config.json").write_text(config)
        edit(folder / "config.json", **{key: value})
        assert len(refusal(lambda: load_facts(reference(folder)))) < 1000


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b"null", b"{", b"[" * 100_000, b'{"a": ' * 5000])
def test_damaged_files_are_read_or_one_line(folder, name, content):
    (folder / name).write_bytes(content)
    assert len(refusal(lambda: load_facts(reference(folder)))) < 1000


def tokenizer_file(folder, **changes):
    edit(folder / "tokenizer.json", **changes)
    return refusal(lambda: load_tokenizer(reference(folder)))


@pytest.mark.parametrize(
    "normalizer", [{"type": "Precompiled", "precompiled_charsmap": "AAAA"}, {"type": "evil"}, {"type": "Replace"}]
)
def test_a_tokenizer_whose_parts_are_damaged_is_one_line(folder, normalizer):
    assert "tokenizer.json cannot be used" in tokenizer_file(folder, normalizer=normalizer)


def test_a_tokenizer_is_tried_once_and_then_known(folder, monkeypatch):
    load_tokenizer(reference(folder))
    monkeypatch.setattr("subprocess.run", None)
    monkeypatch.setattr("os.fork", None)
    load_tokenizer(reference(folder))
    load_tokenizer(reference(folder.rename(folder.with_name("moved"))))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("tokenizer_config.json", lambda path: edit(path, eos_token="<|endoftext|>")),
        ("chat_template.jinja", lambda path: path.write_text("{% for i in range(90000) %}x{% endfor %}")),
        ("tokenizer.json", lambda path: edit(path, normalizer={"type": "Lowercase"})),
    ],
)
def test_a_tokenizer_of_which_anything_differs_is_tried_again(folder, monkeypatch, name, change):
    monkeypatch.setattr(trial, "_harmless", set())
    load_tokenizer(reference(folder))
    tried = []
    monkeypatch.setattr(trial, "_status_of", lambda trial: tried.append(trial) or 0)
    change(folder / name)
    load_tokenizer(reference(folder))
    assert len(tried) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": "evil"},
        {"pad_token_id": 10_000},
        {"num_attention_heads": 0},
        {"rope_parameters": {"rope_type": "evil", "rope_theta": 1e4}},
    ],
)
def test_a_configuration_of_which_no_model_can_be_built_is_one_line(folder, changes):
    edit(folder / "config.json", **changes)
    said = refusal(lambda: meta_model(load_facts(reference(folder)).config))
    assert "config.json" in said


@pytest.mark.parametrize("changes", [{"num_hidden_layers": 100_000}, {"hidden_size": 2**31 - 1}, {"vocab_size": 2**30}])
def test_a_size_that_no_model_has_is_refused_before_it_is_built(folder, changes):
    edit(folder / "config.json", **changes)
    assert "config.json" in refusal(lambda: load_facts(reference(folder)))


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn"])
def test_a_type_in_which_no_model_computes_is_refused(folder, dtype):
    edit(folder / "config.json", dtype=dtype)
    assert f"dtype is {dtype}, in which PyTorch cannot compute" in refusal(lambda: load_facts(reference(folder)))


@pytest.mark.parametrize(
    "method", [{"quant_method": "bitsandbytes", "load_in_4bit": True}, {"quant_method": "gptq", "bits": 4}]
)
def test_a_quantised_model_without_what_reads_it_is_refused_before_it_is_loaded(folder, method, monkeypatch):
    monkeypatch.setattr("transformers.quantizers.quantizer_bnb_4bit.is_bitsandbytes_available", lambda: False)
    monkeypatch.setattr("transformers.quantizers.quantizer_gptq.is_optimum_available", lambda: False)
    edit(folder / "config.json", quantization_config=method)
    said = refusal(lambda: check_quantised(load_facts(reference(folder))))
    assert "its weights are quantised, and cannot be used here (" in said
    assert "pip install" in said


@pytest.mark.parametrize("name", ["../other.safetensors", "model-00002-of-00002.safetensors"])
def test_weights_outside_the_folder_or_missing_are_refused_before_any_is_read(folder, name):
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model.safetensors", "b": name}})
    )
    assert f"index.json names '{name}', which the folder does not hold" in refusal(
        lambda: load_facts(reference(folder))
    )


@pytest.mark.parametrize("modules", ["nope", "((", ("lm_head",)])
def test_adapters_that_would_go_nowhere_are_refused_before_any_weight_is_loaded(folder, modules):
    lora = build_lora_config(LoraSection(target_modules=modules))
    said = refusal(lambda: estimate_memory(None, load_facts(reference(folder)), positions=8, lora=lora))
    assert said.startswith("student.lora.target_modules: ")
