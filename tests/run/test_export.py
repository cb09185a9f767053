"""``bridgegarden export``, from the command to files that llama.cpp runs."""

import json
import resource
import signal
from itertools import product

import pytest
import torch
import yaml

from bridgegarden.errors import ConfigError, ModelError
from bridgegarden.quickstart import TEACHER
from bridgegarden.run import export
from bridgegarden.run.export import ExportTarget, export_model
from tests.run.killed import ended, in_child
from tests.run.served import run
from tests.tiny import save_tiny, tiny_model


@pytest.fixture
def folder(tmp_path):
    return save_tiny(tmp_path / "tiny", tiny_model("llama", hidden_size=64))


def test_a_recipe_stands_for_the_model_that_it_trained(folder, tmp_path):
    (tmp_path / "run").mkdir()
    recipe = tmp_path / "recipe.yaml"
    tree = {
        "teacher": {"model": str(folder)},
        "student": {"model": str(folder)},
        "data": {"train": "rows.jsonl"},
        "output": str(tmp_path / "run"),
    }
    recipe.write_text(yaml.safe_dump(tree))
    refused = run("export", recipe, "--to", "gguf")
    assert refused.exit_code == 2
    assert "has no trained model yet. Train it" in refused.stderr
    folder.rename(tmp_path / "run" / "model")
    done = run("export", recipe, "--to", "gguf", "--quantise", "F32,Q8_0")
    assert done.exit_code == 0, done.output
    out = tmp_path / "run" / "export"
    names = [f"run-{kind}.{suffix}" for kind in ("F32", "Q8_0") for suffix in ("Modelfile", "gguf", "md")]
    assert sorted(path.name for path in out.iterdir()) == names
    assert f"{out / 'run-F32.gguf'}  0." in done.stdout
    assert (out / "run-Q8_0.Modelfile").read_text().startswith('FROM ./run-Q8_0.gguf\nTEMPLATE """')
    before = (out / "run-F32.gguf").read_bytes()
    again = run("export", recipe, "--to", "gguf", "--quantise", "F32")
    assert again.exit_code == 2
    assert "run-F32.gguf is there already" in again.stderr
    assert run("export", recipe, "--to", "gguf", "--quantise", "F32", "--overwrite").exit_code == 0
    assert (out / "run-F32.gguf").read_bytes() == before


def test_the_type_is_that_of_the_weights_where_none_is_given(folder, tmp_path):
    done = export_model(ExportTarget(source=str(folder), to="gguf", output=tmp_path / "out"))
    assert [file.kind for file in done.files] == ["F32"]
    done = export_model(ExportTarget(source=str(TEACHER), to="gguf", output=tmp_path / "out"))
    assert [file.path.name for file in done.files] == ["teacher-BF16.gguf"]


def test_what_ends_a_turn_is_written_as_generation_has_it(folder, tmp_path):
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": [258, 256]}))
    export_model(ExportTarget(source=str(folder), to="gguf", output=tmp_path / "out"))
    text = (tmp_path / "out" / "tiny-F32.Modelfile").read_text()
    assert 'PARAMETER stop "<|im_end|>"\nPARAMETER stop "<|endoftext|>"\n' in text


def test_a_run_that_dies_leaves_no_file_of_the_final_name(folder, tmp_path, monkeypatch):
    def die(placed, kind):
        if placed.name == "blk.1.attn_q.weight":
            raise KeyboardInterrupt
        return real(placed, kind)

    from bridgegarden.export import gguf_file

    real = gguf_file._numbers
    monkeypatch.setattr(gguf_file, "_numbers", die)
    ended = run("export", folder, "--to", "gguf", "--output", tmp_path / "out")
    assert ended.exit_code == 130
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # fork, from Python 3.12
@pytest.mark.parametrize("to", ["gguf", "hf"])
def test_a_disk_that_is_full_is_named_and_leaves_nothing(folder, tmp_path, to):
    """At every size at which another write is the first to fail."""
    whole = export_model(ExportTarget(source=str(folder), to=to, output=tmp_path / "whole")).files[0].size

    def limited(room):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        found = run("export", folder, "--to", to, "--output", tmp_path / "out")
        assert found.exit_code == 2, found.output
        last = found.stderr.splitlines()[-1]
        assert last.startswith(f"Error: --output: nothing more can be written to {tmp_path / 'out'} ("), last
        assert not list((tmp_path / "out").iterdir())

    for room in {"gguf": (100, 9_000, whole // 2, whole - 40), "hf": (100, whole // 2)}[to]:
        assert ended(in_child(lambda room=room: limited(room))) == 0, room


def test_types_that_name_nothing_are_refused(folder):
    for empty in (",", "", " , "):
        refused = run("export", folder, "--to", "gguf", "--quantise", empty)
        assert refused.exit_code == 2
        assert "names nothing; expected types of weights separated by commas" in refused.stderr


@pytest.mark.parametrize("to", ["gguf", "onnx", "hf"])
def test_weights_that_are_not_finite_are_refused_whatever_they_are_written_as(tmp_path, to):
    model = tiny_model("llama", hidden_size=64)
    model.model.norm.weight.data[3] = float("nan")
    folder = save_tiny(tmp_path / "tiny", model)
    with pytest.raises(ModelError, match="holds a number that is not finite"):
        export_model(ExportTarget(source=str(folder), to=to, output=tmp_path / "out"))
    assert not list((tmp_path / "out").glob("*"))


def test_what_is_missing_or_wrong_is_told_before_a_model_is_loaded(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "load_model", lambda facts: pytest.fail("loaded"))
    with pytest.raises(ConfigError, match="'Q9' is no type of weights"):
        export_model(ExportTarget(source=str(folder), to="gguf", quantise=("Q9",)))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--output: .*file is a file"):
        export_model(ExportTarget(source=str(folder), to="gguf", output=tmp_path / "file"))
    with pytest.raises(ConfigError, match="--set changes a recipe"):
        export_model(ExportTarget(source=str(folder), to="gguf", overrides=("a=b",)))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"is an adapter, not a whole model. Give the model into which it is merged"):
        export_model(ExportTarget(source=str(adapter), to="gguf"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(ModelError, match=r"its weights are quantised .awq"):
        export_model(ExportTarget(source=str(folder), to="gguf", output=tmp_path / "out"))
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs gguf. Install the extra: pip install 'bridgegarden\[export\]'"):
        export_model(ExportTarget(source=str(folder), to="gguf"))


def test_llama_cpp_runs_the_packaged_teacher_as_transformers_does(tmp_path):
    pytest.importorskip("xllamacpp")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from bridgegarden.quickstart.student import ArithmeticWorld
    from tests.export.llama_cpp import LlamaCpp

    done = run("export", TEACHER, "--to", "gguf", "--quantise", "F32", "--output", tmp_path)
    assert done.exit_code == 0, done.output
    assert "note: llama.cpp knows no tokenizer of whole words" in done.stderr
    llama = LlamaCpp(tmp_path / "teacher-F32.gguf", 128)
    tokenizer, model = AutoTokenizer.from_pretrained(TEACHER), AutoModelForCausalLM.from_pretrained(TEACHER).float()
    words = [token for token in ArithmeticWorld().vocabulary if token not in tokenizer.all_special_tokens]
    marks = [word for word in words if not word.isalnum()]
    every = " ".join(word + mark for word, mark in product(words, ["", *marks]) if word not in marks)
    assert llama.ids(every) == tokenizer(every).input_ids
    assert tokenizer.unk_token_id not in llama.ids(every)
    ask = [{"role": "user", "content": "What is 3 plus 4 times 2?"}]
    prompt = tokenizer.apply_chat_template(ask, tokenize=False, add_generation_prompt=True)
    assert llama.rendered(ask) == prompt
    ids = tokenizer(prompt).input_ids
    assert llama.ids(prompt) == ids
    with torch.no_grad():
        wanted = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=60)[0, len(ids) :].tolist()
        logps = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    got = llama.greedy(ids, 60)
    assert len(got) > 20
    assert got == wanted
    assert llama.text(got).strip() == tokenizer.decode(wanted).replace(" <|end|>", "<|end|>")
    assert (torch.tensor(llama.logps(ids, len(tokenizer))) - logps).abs().max() < 2e-5
