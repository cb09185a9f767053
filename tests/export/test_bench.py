"""Size and speed of models side by side."""

import json

import pytest

from bridgegarden.errors import ConfigError, ModelError
from bridgegarden.export import bench as benching
from bridgegarden.export.bench import BenchOptions, bench, bench_table
from bridgegarden.export.gguf_file import gguf_export
from tests.run.served import run
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

SMALL = BenchOptions(prompt=8, decode=4, rounds=2)


@pytest.fixture
def models(tmp_path):
    """The same model for transformers and for llama.cpp."""
    model = tiny_model("llama", hidden_size=64)
    gguf_export("tiny", model, tiny_tokenizer(), [258]).write(tmp_path / "tiny.gguf", "F32")
    return [str(save_tiny(tmp_path / "tiny", model)), str(tmp_path / "tiny.gguf")]


def test_each_is_run_by_its_own_program_in_a_process_of_its_own(models):
    pytest.importorskip("xllamacpp")
    done = run("bench", *models, "--prompt", 8, "--decode", 4, "--rounds", 2, "--json")
    assert done.exit_code == 0, done.output
    ours, theirs = json.loads(done.stdout)
    assert [ours["runtime"], theirs["runtime"]] == ["transformers", "llama.cpp"]
    for one in (ours, theirs):
        assert [len(one["prompt"]), len(one["decode"])] == [2, 2]
        assert min(*one["prompt"], *one["decode"]) > 0
    # Of a process that has PyTorch, and of one that has not.
    assert ours["memory"] > theirs["memory"] > 20e6
    assert 0.4e6 < theirs["size"] < ours["size"]


def test_what_is_not_installed_is_named_in_its_row_and_the_others_are_measured(models, monkeypatch):
    real = benching.find_spec
    monkeypatch.setattr(benching, "find_spec", lambda name: None if name == "xllamacpp" else real(name))
    found = bench([models[1], models[0]], SMALL)
    assert found[0].missing == "pip install xllamacpp"
    assert len(found[1].decode) == 2
    text = bench_table(found, SMALL).markdown()
    assert "| tiny.gguf | llama.cpp | 0." in text
    assert "pip install xllamacpp" in text
    assert text.count("1.00x") == 2


def test_ratios_are_of_the_same_round_to_the_first_model(models):
    def one(*speeds: float) -> benching.Measured:
        return benching.Measured(model="m", runtime="transformers", size=1, prompt=speeds, decode=speeds)

    # The machine became ten times as slow in the middle of the second round's end.
    cells = bench_table([one(10, 100, 1), one(20, 200, 2)], SMALL).rows[1]
    assert cells[-1] == "2.00x"


def test_models_that_cannot_be_measured_are_refused_by_name(models, tmp_path):
    with pytest.raises(ConfigError, match=r"is neither a GGUF file, nor a folder with model.onnx or config.json"):
        bench([str(tmp_path)], SMALL)
    with pytest.raises(ModelError, match=r"tiny: has room for 512 tokens, and 500 \+ 32 are"):
        bench(models[:1], BenchOptions(prompt=500))
    with pytest.raises(ModelError, match=r"tiny.gguf: has room for 512 tokens"):
        bench(models[1:], BenchOptions(prompt=500))
    with pytest.raises(ConfigError, match="--rounds: 0; expected 1 or more"):
        BenchOptions(rounds=0)
    (tmp_path / "tiny" / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"tiny: cannot be run \("):
        bench(models[:1], SMALL)
