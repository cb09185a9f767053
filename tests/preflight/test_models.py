import json
import shutil

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from bridgegarden.errors import ModelError
from bridgegarden.preflight import ModelReference, check_positions, load_facts
from tests.architectures import tiny_architecture
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer


@pytest.fixture
def saved(tmp_path):
    return save_tiny(tmp_path / "model", tiny_model("llama", 264))


def student(model, **fields) -> ModelReference:
    return ModelReference(role="student", model=str(model), **fields)


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_folder_is_known_without_its_weights_being_read(saved):
    (saved / "model.safetensors").write_bytes(b"not read")
    facts = load_facts(student(saved))
    assert (facts.width, facts.dtype, facts.commit) == (264, torch.float32, None)
    assert len(facts.tokenizer) == len(tiny_tokenizer())


def test_the_dtype_asked_for_wins_over_the_saved_one(saved):
    assert load_facts(student(saved, dtype="bfloat16")).dtype == torch.bfloat16


def test_a_folder_that_is_not_there_is_not_taken_for_a_name_on_the_hub(tmp_path):
    with pytest.raises(ModelError, match=r"student\.model '.*nothing': no such folder"):
        load_facts(student(tmp_path / "nothing"))


def test_a_folder_without_config_is_no_model(tmp_path):
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        load_facts(student(tmp_path))


def test_a_file_is_no_model(saved):
    with pytest.raises(ModelError, match="is a file; expected a folder"):
        load_facts(student(saved / "config.json"))


def test_an_unreachable_hub_is_one_line_with_the_name_and_what_to_do():
    with pytest.raises(ModelError, match="hub cannot be reached") as caught:
        load_facts(student("someone/some-model"))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("student.model 'someone/some-model': ")
    assert "hf download" in str(caught.value)


def test_pickled_weights_are_refused(saved):
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pickle files.*expected \*\.safetensors"):
        load_facts(student(saved))


def test_an_adapter_is_refused(saved):
    (saved / "model.safetensors").rename(saved / "adapter_model.safetensors")
    (saved / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="is an adapter, not a whole model"):
        load_facts(student(saved))


def test_a_folder_without_weights_is_refused(saved):
    (saved / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="holds no weights"):
        load_facts(student(saved))


def test_a_configuration_that_needs_code_from_its_repository_is_refused(saved):
    code = {"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": "modeling_x.XForCausalLM"}
    edit(saved / "config.json", model_type="x-net", auto_map=code)
    (saved / "configuration_x.py").write_text("raise SystemExit('this code ran')")
    with pytest.raises(ModelError, match="needs Python code from its own repository, which is never run"):
        load_facts(student(saved))


def test_a_known_architecture_does_not_run_the_code_beside_it(saved):
    edit(saved / "config.json", auto_map={"AutoModelForCausalLM": "modeling_x.XForCausalLM"})
    (saved / "modeling_x.py").write_text("raise SystemExit('this code ran')")
    assert load_facts(student(saved)).config.model_type == "llama"


def test_an_architecture_that_is_no_causal_language_model_is_refused(saved):
    edit(saved / "config.json", model_type="t5")
    with pytest.raises(ModelError, match="'t5' is not a causal language model"):
        load_facts(student(saved))


def test_a_damaged_configuration_is_one_line(saved):
    (saved / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json cannot be read") as caught:
        load_facts(student(saved))
    assert "\n" not in str(caught.value)


def test_a_missing_tokenizer_is_one_line(saved):
    for path in saved.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ModelError, match="its tokenizer cannot be read") as caught:
        load_facts(student(saved))
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_a_vocabulary_is_none(saved):
    for path in saved.glob("tokenizer*"):
        path.unlink()
    empty = Tokenizer(models.BPE(vocab={}, merges=[]))
    PreTrainedTokenizerFast(tokenizer_object=empty, eos_token="</s>", pad_token="<pad>").save_pretrained(saved)
    with pytest.raises(ModelError, match="its tokenizer cannot be read: it has only special tokens"):
        load_facts(student(saved))


def test_generation_settings_are_optional(saved):
    (saved / "generation_config.json").unlink(missing_ok=True)
    assert load_facts(student(saved)).generation_config is None


def test_a_home_folder_may_be_written_with_a_tilde(saved, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(saved, tmp_path / "mine")
    assert load_facts(student("~/mine")).width == 264


@pytest.mark.parametrize(("kind", "table"), [("gpt2", True), ("opt", True), ("biogpt", True), ("qwen2", False)])
def test_rows_longer_than_a_table_of_positions_are_refused_before_weights_are_read(tmp_path, kind, table):
    save_tiny(tmp_path, tiny_architecture(kind))
    facts = load_facts(student(tmp_path))
    check_positions(facts, 128)
    check_positions(facts, None)
    if not table:
        return check_positions(facts, 129)
    found = r"student\.model .*: looks positions up in a table of 128, but rows may have 129"
    with pytest.raises(ModelError, match=found):
        check_positions(facts, 129)
