import dataclasses
import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from click.testing import CliRunner
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from bridgegarden.cli.main import cli
from bridgegarden.data import Columns, RowRules, load_rows, tokenise
from bridgegarden.errors import NonFiniteError
from bridgegarden.recipe import load_recipe
from bridgegarden.run.train import train
from bridgegarden.training.trainer import HybridDistillationTrainer
from tests.tiny import END_OF_TEXT, TURN_END, tiny_tokenizer


def run(recipe, *arguments):
    return CliRunner().invoke(cli, ["train", str(recipe), *arguments])


def data_loss(model_folder, rows) -> float:
    """Cross-entropy of a saved model on the answers of `rows`."""
    model: Any
    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_folder), AutoTokenizer.from_pretrained(model_folder)
    columns = Columns(prompt="question", completion="answer")
    data: Any = tokenise(load_rows(str(rows)), tokenizer, RowRules(columns=columns))
    with torch.no_grad():
        losses = [
            model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss.item()
            for row in data
        ]
    return sum(losses) / len(losses)


def metrics(output):
    return [
        json.loads(line, parse_constant=pytest.fail) for line in (output / "metrics.jsonl").read_text().splitlines()
    ]


@pytest.mark.parametrize(
    ("family", "teacher_vocab", "student_vocab"),
    [("qwen2", 272, 264), ("llama", 264, 272), ("gemma2", 264, 264), ("deepseek", 259, 272)],
)
def test_the_student_learns_and_is_saved_as_an_ordinary_model(
    write_recipe, tmp_path, family, teacher_vocab, student_vocab
):
    recipe = write_recipe(family, teacher_vocab, student_vocab, training={"max_steps": 16})
    result = run(recipe)
    assert result.exit_code == 0, result.output
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    assert model.config.vocab_size == student_vocab
    assert model.config.use_cache
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "model")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "1 + 1 ="}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert model.generate(**prompt, max_new_tokens=4).shape[1] > prompt["input_ids"].shape[1]
    before, after = (
        data_loss(folder, tmp_path / "train.jsonl") for folder in (tmp_path / "student", model.name_or_path)
    )
    assert after < before - 0.5
    assert f"The student is in {tmp_path / 'out' / 'model'}" in result.stdout


class Broken(TrainerCallback):
    """Ends a run from outside, in one of its hooks."""

    def __init__(self, hook: str, step: int) -> None:
        self.step = step
        setattr(self, hook, self._end)

    def _end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def test_training_stops_early_also_when_it_was_resumed(write_recipe, tmp_path, capsys):
    """With a learning rate of zero nothing ever gets better: the second evaluation after the first is the last."""
    stopping = {"early_stopping": {"patience": 2}, "eval_strategy": "steps", "eval_steps": 1, "learning_rate": 0.0}
    recipe = load_recipe(
        write_recipe(data={"eval": str(tmp_path / "eval.jsonl")}, training={"max_steps": 10, **stopping})
    )
    summary = train(recipe)
    assert summary.steps == 3
    said = "stopping early at step 3: eval_loss has not fallen in 2 evaluations"
    assert said in " ".join(capsys.readouterr().err.split())
    assert summary.model.is_dir()
    for hook, step in (("on_step_begin", 2), ("on_train_end", 3)):
        again = dataclasses.replace(recipe, output=tmp_path / hook)
        with pytest.raises(KeyboardInterrupt):
            train(again, callbacks=[Broken(hook, step)])
        assert not (tmp_path / hook / "model").exists()
        resumed = train(again)
        assert resumed.steps == 3
        assert resumed.evaluation == pytest.approx(summary.evaluation)


def test_everything_about_the_run_is_beside_the_model(write_recipe, tmp_path, monkeypatch, capsys):
    recipe = write_recipe(data={"eval": str(tmp_path / "eval.jsonl")}, training={"gradient_accumulation_steps": 2})
    summary = train(load_recipe(recipe))
    output = tmp_path / "out"
    assert load_recipe(output / "recipe.yaml") == load_recipe(recipe)
    logs = metrics(output)
    assert [line["step"] for line in logs if "loss" in line] == [2, 4]
    (held_out,) = [line for line in logs if "eval_loss" in line]
    assert summary.training["loss"] == [line["loss"] for line in logs if "loss" in line][-1]
    assert summary.evaluation["soft_loss"] == held_out["eval_soft_loss"]
    assert summary.steps == 4
    assert summary.peak_memory > 1e8
    record = json.loads((output / "run.json").read_text())
    assert record["finished"] >= record["started"]
    assert (record["rows"], record["seed"]) == ({"train": 30, "eval": 6}, 42)
    assert record["packages"]["torch"] == version("torch")
    assert record["evaluation"] == dict(summary.evaluation)
    assert sorted(path.name for path in output.iterdir()) == ["metrics.jsonl", "model", "recipe.yaml", "run.json"]
    files = {path.name for path in (output / "model").iterdir()}
    assert {"model.safetensors", "tokenizer.json", "chat_template.jinja", "generation_config.json"} <= files
    assert not any(name.endswith((".bin", ".pt")) for name in files)
    card = (output / "model" / "README.md").read_text()
    assert record["data"]["train"] in card
    assert "`teacher` (local)" in card
    assert "hard_target=data" in card
    assert "\nbridgegarden export . --to gguf --quantise Q8_0 --output gguf\n" in card
    (code,) = re.findall("```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(output / "model")
    capsys.readouterr()
    exec(code.replace("max_new_tokens=100", "max_new_tokens=5"), {})  # the card's own
    assert capsys.readouterr().out.startswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")


def test_the_saved_model_stops_at_the_end_of_its_turn_and_of_the_text(write_recipe, tmp_path):
    recipe = write_recipe(student_tokenizer=tiny_tokenizer(chat_template=False))
    result = run(recipe)
    assert "the student's tokenizer has no chat template; the teacher's is used" in result.stderr
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "model")
    assert tokenizer.chat_template == tiny_tokenizer().chat_template
    stops = [tokenizer.convert_tokens_to_ids(token) for token in (TURN_END, END_OF_TEXT)]
    assert model.generation_config.eos_token_id == stops


def test_generation_settings_that_cannot_be_saved_do_not_cost_the_run(write_recipe, tmp_path):
    recipe = write_recipe()
    path = tmp_path / "student" / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"temperature": 0.6, "do_sample": False}))
    assert run(recipe).exit_code == 0
    settings = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model").generation_config
    assert (settings.temperature, settings.do_sample) == (0.6, True)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # by PEFT
def test_adapters_are_saved_alone_and_merged(write_recipe, tmp_path):
    recipe = write_recipe("qwen2", student={"lora": {"r": 4}}, training={"max_steps": 8, "learning_rate": 2e-2})
    result = run(recipe)
    assert result.exit_code == 0, result.output
    output = tmp_path / "out"
    merged = AutoModelForCausalLM.from_pretrained(output / "model")
    ids = torch.arange(20)[None]
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    plain = base(ids).logits
    adapted = PeftModel.from_pretrained(base, output / "adapter")
    torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, atol=1e-5, rtol=1e-5)
    assert (merged(ids).logits - plain).abs().max() > 1e-3
    assert not (output / "model" / "adapter_config.json").exists()
    assert "merged" in (output / "adapter" / "README.md").read_text()


def test_a_student_with_a_temperature_and_top_k_teacher_trains_with_packing_off(write_recipe):
    recipe = write_recipe(teacher={"top_k": 8, "dtype": "bfloat16"}, objective={"preset": "risk_guided"})
    result = run(recipe, "--set", "objective.temperature=2.0")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("answer", "place"),
    [("2", "train.jsonl:18: 'answer' is int 2"), ('" "', "train train.jsonl, row 17: 'answer' is empty")],
)
def test_a_bad_row_is_named_and_nothing_is_begun(write_recipe, tmp_path, monkeypatch, answer, place):
    recipe = write_recipe()
    rows = (tmp_path / "train.jsonl").read_text().splitlines()
    rows[17] = f'{{"question": "1 + 1 =", "answer": {answer}}}'
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *args, **kwargs: pytest.fail("weights loaded"))
    result = run(recipe)
    assert result.exit_code == 2
    assert place in result.stderr
    assert not (tmp_path / "out").exists()


def spoil(folder, change):
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def test_a_teacher_that_is_not_finite_stops_the_run_with_the_rows(write_recipe, tmp_path):
    recipe = write_recipe()
    spoil(tmp_path / "teacher", lambda weights: weights["model.embed_tokens.weight"][-6:].fill_(float("nan")))
    result = run(recipe, "--set", "training.max_length=64")
    assert result.exit_code == 2
    assert "step 1: teacher_entropy is nan" in result.stderr
    assert "rows of the data: " in result.stderr
    assert "The teacher's own distribution is not finite" in result.stderr
    assert not (tmp_path / "out" / "model").exists()


def test_a_row_on_which_the_teacher_is_not_finite_is_named_and_no_other(write_recipe, tmp_path):
    """The teacher knows no finite embedding for one byte, which only row 17 has."""
    recipe = write_recipe(training={"max_steps": 20})
    rows = (tmp_path / "train.jsonl").read_text().splitlines()
    rows[17] = json.dumps({"question": "1 ~ 1 =", "answer": "2"})
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    (odd,) = tiny_tokenizer()("~", add_special_tokens=False)["input_ids"]
    spoil(tmp_path / "teacher", lambda weights: weights["model.embed_tokens.weight"][odd].fill_(float("nan")))
    result = run(recipe)
    assert result.exit_code == 2
    assert re.search(
        r"step \d+: teacher_entropy is nan at \d+ of \d+ positions, rows of the data: 17 \(", result.stderr
    )
    assert result.stderr.splitlines()[-1].startswith("Error: ")
    assert not (tmp_path / "out" / "model").exists()


def test_missing_weights_are_refused_rather_than_random(write_recipe, tmp_path):
    recipe = write_recipe()
    spoil(tmp_path / "student", lambda weights: weights.pop("model.layers.1.mlp.down_proj.weight"))
    result = run(recipe)
    assert result.exit_code == 2
    assert "lack 1 weights (model.layers.1.mlp.down_proj.weight), which would be random" in result.stderr


def test_a_torn_weights_file_is_one_line(write_recipe, tmp_path):
    recipe = write_recipe()
    path = tmp_path / "student" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    result = run(recipe)
    assert result.exit_code == 2
    assert "its weights cannot be loaded" in result.stderr


def interrupt_at(monkeypatch, step: int):
    training_step = HybridDistillationTrainer.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == step:
            raise KeyboardInterrupt
        return training_step(self, *args, **kwargs)

    monkeypatch.setattr(HybridDistillationTrainer, "training_step", interrupted)


def test_an_interrupted_run_leaves_no_model_and_refuses_another_recipe(write_recipe, tmp_path, monkeypatch):
    recipe = write_recipe(training={"max_steps": 6, "save_steps": 2, "save_total_limit": 1})
    with monkeypatch.context() as patch:
        interrupt_at(patch, step=5)
        result = run(recipe)
    assert result.exit_code == 130
    output = tmp_path / "out"
    assert not (output / "model").exists()
    assert json.loads((output / "run.json").read_text())["finished"] is None
    refused = run(recipe, "--set", "training.max_steps=8")
    assert refused.exit_code == 2
    assert "training.max_steps was 6, is 8" in refused.stderr
    assert (output / "checkpoints" / "checkpoint-4").is_dir()


@pytest.mark.slow
def test_a_student_that_answers_itself_is_recorded_and_resumed_with_its_costs(write_recipe, tmp_path, monkeypatch):
    recipe = write_recipe(
        objective={"preset": "confidence", "hard_target": "teacher_argmax"},
        training={"max_steps": 6, "save_steps": 2, "logging_steps": 1},
        on_policy={"lmbda": 0.5, "max_new_tokens": 5},
    )
    whole = train(dataclasses.replace(load_recipe(recipe), output=tmp_path / "whole"))
    with monkeypatch.context() as patch:
        interrupt_at(patch, step=5)
        run(recipe)
    result = run(recipe)
    assert result.exit_code == 0, result.output
    assert "the student answers batches itself: lmbda=0.5, temperature=1.0, max_new_tokens=5" in result.stderr
    assert f"{whole.cost.generated_tokens:,} written by the student" in result.stdout
    assert re.search(r"[\d,]+ written/s", result.stderr)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["on_policy"] == "lmbda=0.5, temperature=1.0, max_new_tokens=5"
    counts = {name: value for name, value in dataclasses.asdict(whole.cost).items() if isinstance(value, int)}
    assert {name: record["cost"][name] for name in counts} == counts
    assert 0 < counts["answers"] < 24
    assert 0 < counts["generated_tokens"] <= 5 * counts["answers"]
    assert [line["generated_tokens"] for line in metrics(tmp_path / "out") if "loss" in line][-1] == (
        counts["generated_tokens"]
    )
    assert "lmbda=0.5" in (tmp_path / "out" / "model" / "README.md").read_text()


def test_a_run_does_not_go_on_with_other_rows(write_recipe, tmp_path, monkeypatch):
    recipe = write_recipe(training={"save_steps": 2})
    with monkeypatch.context() as patch:
        interrupt_at(patch, step=3)
        run(recipe)
    rows = (tmp_path / "train.jsonl").read_text()
    (tmp_path / "train.jsonl").write_text(rows.replace("1 + 1 =", "1 - 1 ="))
    result = run(recipe)
    assert result.exit_code == 2
    assert "was trained on other rows" in result.stderr


def test_a_loss_that_is_not_finite_leaves_no_model(write_recipe, tmp_path):
    recipe = write_recipe("llama", training={"learning_rate": 1e30, "max_grad_norm": 1e30, "warmup_steps": 0})
    with pytest.raises(NonFiniteError, match="step 2"):
        train(load_recipe(recipe))
    assert not (tmp_path / "out" / "model").exists()


@pytest.mark.parametrize("save_steps", [1, 500])
def test_weights_that_the_last_update_made_infinite_are_never_saved(write_recipe, tmp_path, save_steps):
    training = {"learning_rate": 1e308, "max_steps": 1, "save_steps": save_steps, "warmup_steps": 0}
    result = CliRunner().invoke(cli, ["train", str(write_recipe(training=training))])
    assert result.exit_code == 2, result.output
    assert re.search(r"step 1: [\d,]+ of the [\d,]+ weights of \S+ are not finite after the update", result.stderr)
    assert not (tmp_path / "out" / "model").exists()
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_what_a_tracker_writes_beside_the_checkpoints_stays(write_recipe, tmp_path):
    class Tracker(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            self.folder = Path(os.environ.get("TENSORBOARD_LOGGING_DIR", args.output_dir)) / "runs"
            self.folder.mkdir()
            (self.folder / "events").write_text("a curve")

    train(load_recipe(write_recipe()), callbacks=[tracker := Tracker()])
    assert (tracker.folder / "events").read_text() == "a curve"
    assert [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()] == ["runs"]


def test_tensorboard_writes_beside_the_model_unless_told_otherwise(write_recipe, tmp_path, monkeypatch):
    made = []

    class Trainer(HybridDistillationTrainer):
        def __init__(self, *args, **kwargs):
            made.append(os.environ["TENSORBOARD_LOGGING_DIR"])
            raise KeyboardInterrupt

    monkeypatch.setattr("bridgegarden.training.trainer.HybridDistillationTrainer", Trainer)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    recipe = load_recipe(write_recipe())
    for given in (None, "elsewhere"):
        if given:
            monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", given)
        with pytest.raises(KeyboardInterrupt):
            train(recipe)
        assert os.environ.get("TENSORBOARD_LOGGING_DIR") == given
    assert made == [str(tmp_path / "out" / "logs"), "elsewhere"]


def test_checkpoints_without_an_optimiser_are_not_gone_on_from(write_recipe, tmp_path, monkeypatch):
    path = write_recipe(training={"save_steps": 2, "save_only_model": True})
    monkeypatch.setattr(
        sys.modules["bridgegarden.run.train"], "save_trained", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        train(load_recipe(path))
    monkeypatch.undo()
    result = CliRunner().invoke(cli, ["train", str(path)])
    assert result.exit_code == 0, result.output
    assert "checkpoints hold the weights alone (training.save_only_model): training begins anew" in result.stderr
    assert json.loads((tmp_path / "out" / "run.json").read_text())["went_on_from"] == []


def test_a_finished_run_is_not_run_again(write_recipe, tmp_path):
    recipe = write_recipe(training={"max_steps": 1})
    first = run(recipe)
    assert first.exit_code == 0
    weights = (tmp_path / "out" / "model" / "model.safetensors").read_bytes()
    result = run(recipe, "--set", "training.max_steps=2")
    assert result.exit_code == 2
    assert "already holds a finished model. It was made with another recipe: training.max_steps was 1" in result.stderr
    assert (tmp_path / "out" / "model" / "model.safetensors").read_bytes() == weights
    again = run(recipe)
    assert again.exit_code == 0
    assert "holds the finished model of this recipe" in again.stderr
    assert again.stdout == first.stdout
    assert (tmp_path / "out" / "model" / "model.safetensors").read_bytes() == weights


@pytest.mark.slow
def test_the_command_in_a_process_of_its_own_prints_plain_lines_and_a_summary(write_recipe, tmp_path):
    recipe = write_recipe(data={"eval": str(tmp_path / "eval.jsonl")})
    done = subprocess.run(
        [sys.executable, "-m", "bridgegarden", "train", str(recipe)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "FORCE_COLOR": "1", "COLUMNS": "80"},
    )
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stderr + done.stdout
    assert "\r" not in done.stderr
    lines = done.stderr.splitlines()
    assert len([line for line in lines if line.startswith("step ")]) == 2
    assert len([line for line in lines if line.startswith("evaluation at step 4/4: ")]) == 1
    assert not [line for line in lines if "Warning" in line or "[transformers]" in line]
    assert done.stdout.startswith("Trained 4 steps\n")
    assert done.stdout.endswith(f"The student is in {tmp_path / 'out' / 'model'}\n")


def test_qwen3_trains_on_turns_with_tools_by_a_template_of_the_recipe_that_is_saved_as_it_is(write_recipe, tmp_path):
    template = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text(encoding="utf-8")
    (tmp_path / "qwen3.jinja").write_text(template, encoding="utf-8")
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": 2}'}}
    turns = [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "4"},
        {"role": "assistant", "content": "four", "reasoning_content": "said so"},
    ]
    (tmp_path / "turns.jsonl").write_text(json.dumps({"messages": turns * 2}) + "\n")
    recipe = write_recipe(
        data={
            "train": str(tmp_path / "turns.jsonl"),
            "prompt": None,
            "completion": None,
            "chat_template": str(tmp_path / "qwen3.jinja"),
        },
        training={"max_steps": 1, "per_device_train_batch_size": 1},
    )
    audit = run(recipe, "--audit")
    assert "chat template: the recipe's" in audit.output
    assert audit.output.count('{"name": "add", "arguments": {"a": 2, "b": 2}}') == 2
    assert audit.output.count("said so") == 2
    result = run(recipe)
    assert result.exit_code == 0, result.output
    saved = AutoTokenizer.from_pretrained(tmp_path / "out" / "model")
    assert saved.chat_template == template
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (record["chat_template"], len(record["chat_template_sha256"])) == ("recipe", 64)


def test_whether_the_teacher_is_worse_on_the_rows_is_said_at_the_first_step(write_recipe, tmp_path):
    recipe = write_recipe(training={"per_device_train_batch_size": 16})
    silent = run(recipe, "--set", f"teacher.model={tmp_path / 'student'}")
    line = r"before training, on the first step's rows \(16 rows, \d+ supervised tokens\), the teacher's loss is (\S+) "
    same, *_ = re.search(line + r"nats a token and the student's \1\n", silent.stderr).groups()
    assert "warning: the teacher is worse" not in silent.stderr
    assert "teacher_label_loss" in silent.stdout
    weights = load_file(tmp_path / "teacher" / "model.safetensors")
    weights["lm_head.weight"] *= 40
    save_file(weights, tmp_path / "teacher" / "model.safetensors", {"format": "pt"})
    warned = run(recipe, "--set", f"output={tmp_path / 'other'}")
    found = re.search(line + rf"nats a token and the student's {same}\n", warned.stderr)
    assert float(found.group(1)) > float(same) + 0.5
    assert f"warning: the teacher is worse on these rows than the student before training: {found.group(1)}" in (
        warned.stderr
    )
