"""Size and speed of models side by side."""

import json
import sys
from pathlib import Path
from threading import Thread

import pytest
import torch

from bridgegarden.errors import ConfigError, DataError, ModelError
from bridgegarden.export import bench as benching
from bridgegarden.export.bench import BenchOptions, bench, bench_table, held_out, loss_table
from bridgegarden.export.gguf_file import gguf_export
from bridgegarden.export.runtimes import opened
from tests.run.served import run
from tests.tiny import VOCABULARY, save_tiny, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.slow

SMALL = BenchOptions(prompt=8, decode=4, rounds=2)


@pytest.fixture
def models(tmp_path):
    """The same model for transformers and for llama.cpp."""
    model = tiny_model("llama", hidden_size=64)
    gguf_export("tiny", model, tiny_tokenizer(), [258]).write(tmp_path / "tiny.gguf", "F32")
    return [str(save_tiny(tmp_path / "tiny", model)), str(tmp_path / "tiny.gguf")]


ROWS = [{"prompt": f"Say {word}", "completion": f"{word} é 👩!"} for word in ("one", "three", "seventeen")]


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_each_is_run_and_scored_by_its_own_program_in_a_process_of_its_own(models, rows):
    pytest.importorskip("xllamacpp")
    done = run("bench", *models, "--prompt", 8, "--decode", 4, "--rounds", 2, "--json", "--rows", rows)
    assert done.exit_code == 0, done.output
    ours, theirs = json.loads(done.stdout)
    assert [ours["runtime"], theirs["runtime"]] == ["transformers", "llama.cpp"]
    for one in (ours, theirs):
        assert [len(one["prompt"]), len(one["decode"])] == [2, 2]
        assert min(*one["prompt"], *one["decode"]) > 0
    # Of a process that has PyTorch, and of one that has not.
    assert ours["memory"] > theirs["memory"] > 20e6
    assert 0.4e6 < theirs["size"] < ours["size"]
    model, read = tiny_model("llama", hidden_size=64), held_out([Path(models[0])], BenchOptions(rows=str(rows)))
    answers = [tiny_tokenizer().decode([row.ids[place] for place in row.places]) for row in read]
    assert answers == [f"{row['completion']}<|im_end|>" for row in ROWS]
    wanted = [nats(model, *row) for row in read]
    for one in (ours, theirs):
        assert one["nats"] == pytest.approx(wanted, abs=0.02)
        assert one["tokens"] == [len(row.places) for row in read]


def nats(model, ids, places) -> float:
    """Minus the sum of log-probabilities, from the definition."""
    with torch.no_grad():
        logp = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return -sum(logp[place - 1, ids[place]].item() for place in places)


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


IDS = torch.randint(0, 259, (40,), generator=torch.Generator().manual_seed(0)).tolist()
"""Halves of characters and ends of turns, too."""
PLACES = [1, 2, *range(7, 40, 3)]


def test_a_row_is_as_likely_as_the_model_says_whatever_runs_it(models):
    expected = nats(tiny_model("llama", hidden_size=64), IDS, PLACES)
    assert opened(Path(models[0]), 1, 64).score(IDS, PLACES) == pytest.approx(expected, abs=1e-4)
    pytest.importorskip("xllamacpp")
    # Keys and values in 16 bits.
    assert opened(Path(models[1]), 1, 64).score(IDS, PLACES) == pytest.approx(expected, abs=1e-3 * len(PLACES))


def test_a_difference_is_of_the_same_rows():
    def one(*values: float) -> benching.Measured:
        return benching.Measured(model="m", runtime="transformers", size=1, nats=values, tokens=(10, 30))

    first, second = one(10, 60), one(12, 64)
    more = second.more_than(first)
    assert (more.mean, more.n) == (pytest.approx(6 / 40), 2)
    assert second.loss.mean == pytest.approx(76 / 40)
    assert second.loss.stderr > more.stderr
    table = loss_table([first, second])
    assert table is not None
    assert table.rows[0][2:] == [f"1.7500 ± {first.loss.stderr:.4f}", None]
    assert table.rows[1][3] == f"+0.1500 ± {more.stderr:.4f}"
    assert loss_table([benching.Measured(model="m", runtime="transformers", size=1)]) is None


def test_rows_that_cannot_be_scored_are_refused(models, rows, tmp_path):
    wanted = BenchOptions(rows=str(rows))
    with pytest.raises(ConfigError, match=r"--rows: are read with the tokenizer of a model's folder"):
        bench(models[1:], wanted)
    other = str(save_tiny(tmp_path / "other", tiny_model("llama", VOCABULARY + 1), tiny_tokenizer(chat_template=False)))
    with pytest.raises(ModelError, match=r"other: has another tokenizer than .*tiny"):
        bench([models[0], other], wanted)
    with pytest.raises(DataError, match=r"has one row with an answer"):
        bench(models[:1], BenchOptions(rows=str(rows), limit=1))


def test_a_program_that_logs_much_is_heard_all_the_same(models, tmp_path, monkeypatch):
    program = tmp_path / "program"
    program.write_text(f"#!{sys.executable}\nimport sys\nsys.stderr.write('x' * 10**6)\nprint('{{}}', flush=True)\n")
    program.chmod(0o755)
    monkeypatch.setattr(benching.sys, "executable", str(program))
    worker = benching._Worker(Path(models[0]), SMALL, 0)
    heard: list[dict[str, float]] = []
    hearing = Thread(target=lambda: heard.append(worker.hear()), daemon=True)
    hearing.start()
    hearing.join(30)
    worker.end()
    assert heard == [{}]
