"""``training.quantised``, from the recipe to the file: what is trained, saved, said and refused."""

import dataclasses
import json

import pytest
import torch
from accelerate.utils import DistributedType
from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainerCallback
from trl.trainer.sft_config import SFTConfig

from bridgegarden.errors import ConfigError, ModelError
from bridgegarden.recipe import Recipe, load_recipe
from bridgegarden.run.pair import recipe_pair
from bridgegarden.run.teachers import teacher_of
from bridgegarden.run.train import train
from bridgegarden.training.models import learn_rounded
from bridgegarden.training.trainer import HybridDistillationTrainer
from tests.run.killed import weights
from tests.run.served import run
from tests.tiny import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture
def path(write_recipe, tmp_path):
    changes = {"quantised": {"kind": "int4"}, "use_cpu": True, "save_steps": 2, "save_total_limit": 3}
    return write_recipe(data={"eval": str(tmp_path / "eval.jsonl")}, training=changes)


def test_the_recipe_is_read_written_and_told_as_it_is_meant(path):
    recipe = load_recipe(path, ["training.quantised.kind=Q8_0"])
    assert recipe.to_dict()["training"]["quantised"] == {"kind": "Q8_0"}
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert load_recipe(path).training.quantised.kind == "Q4_0"
    with pytest.raises(ConfigError, match=r"training.quantised.kind: unknown value 'int3'"):
        load_recipe(path, ["training.quantised.kind=int3"])
    with pytest.raises(ConfigError, match=r"training: unknown key 'quantized'. Did you mean 'quantised'"):
        load_recipe(path, ["training.quantized.kind=Q8_0"])
    with pytest.raises(ConfigError, match=r"training.quantised: unknown key 'group'"):
        load_recipe(path, ["training.quantised.group=128"])
    with pytest.raises(ConfigError, match=r"training.quantised: .*adapters.*Leave out training.quantised or student.l"):
        load_recipe(path, ["student.lora={}"])


def test_a_run_that_ends_early_goes_on_to_the_same_weights_and_says_what_it_is_for(path, tmp_path):
    recipe = load_recipe(path)
    whole = train(dataclasses.replace(recipe, output=tmp_path / "whole"))

    class Ends(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, callbacks=[Ends()])
    resumed = train(recipe)
    assert weights(resumed.output) == weights(whole.output)
    unrounded = dataclasses.replace(recipe.training, quantised=None)
    plain = train(dataclasses.replace(recipe, training=unrounded, output=tmp_path / "plain"))
    assert weights(plain.output) != weights(whole.output)
    assert json.loads((resumed.output / "run.json").read_text())["quantised"] == "Q4_0"
    card = (resumed.output / "model" / "README.md").read_text()
    assert "trained as a GGUF file of type Q4_0" in card
    assert "bridgegarden export . --to gguf --quantise Q4_0 --output gguf" in card
    assert "trained as a GGUF file" not in (plain.output / "model" / "README.md").read_text()
    # A plain folder, with whole weights: more different numbers than sixteen steps of a block allow.
    saved = AutoModelForCausalLM.from_pretrained(resumed.output / "model").model.layers[0].mlp.up_proj.weight
    assert len(saved[0, :32].unique()) > 16
    done = run("export", path, "--to", "gguf")
    assert done.exit_code == 0, done.output
    assert (resumed.output / "export" / "out-Q4_0.gguf").is_file()
    other = run("export", resumed.output / "model", "--to", "gguf", "--quantise", "Q8_0", "--output", tmp_path / "x")
    assert "note: it was trained for a GGUF file of type Q4_0" in other.stderr


def test_the_last_evaluation_is_that_of_the_exported_file(path, tmp_path):
    """The loss of labels, by a reader of files that knows nothing of training."""
    recipe = load_recipe(path, ["objective.preset=hard", "training.learning_rate=0.05"])
    summary = train(recipe)
    assert run("export", path, "--to", "gguf").exit_code == 0
    file = AutoModelForCausalLM.from_pretrained(
        summary.output / "export", gguf_file="out-Q4_0.gguf", dtype=torch.float32
    )
    assert summary.evaluation["student_label_loss"] == pytest.approx(held_out_loss(file, recipe), rel=2e-6)
    whole = AutoModelForCausalLM.from_pretrained(summary.model)
    assert summary.evaluation["student_label_loss"] != pytest.approx(held_out_loss(whole, recipe), rel=1e-4)


def held_out_loss(model, recipe) -> float:
    rows = teacher_of(recipe).rows(recipe_pair(recipe)).evaluation
    total, count = 0.0, 0
    with torch.no_grad():
        for row in rows:
            logp = model(torch.tensor([row["input_ids"]])).logits[0].double().log_softmax(-1)
            for place, label in enumerate(row["labels"]):
                if label != -100:
                    total, count = total - float(logp[place - 1, label]), count + 1
    return total / count


def test_every_way_to_be_taught_computes_with_rounded_weights(path, tmp_path):
    """Cached, live and on the student's own texts; each ends with other weights than it would without."""
    changes = {
        "cached": ["teacher.cache=" + str(tmp_path / "cache"), "teacher.top_k=20"],
        "own texts": ["on_policy.lmbda=1", "on_policy.max_new_tokens=4", "objective.hard_target=teacher_argmax"],
    }
    for name, own in changes.items():
        found = []
        for kind in ("{kind: Q4_0}", "null"):
            output = tmp_path / f"{name} {len(found)}"
            overrides = [*own, f"training.quantised={kind}", f"output={output}"]
            if name == "cached" and kind != "null":
                assert run("cache", "build", path, *(word for one in own for word in ("--set", one))).exit_code == 0
            found.append(weights(train(load_recipe(path, overrides)).output))
        assert found[0] != found[1], name


def test_what_cannot_be_written_is_refused_before_weights_are_loaded(write_recipe, tmp_path, monkeypatch):
    path = write_recipe("qwen2", training={"quantised": {"kind": "Q4_0"}})
    config = tmp_path / "student" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"hidden_act": "relu"}))
    monkeypatch.setattr("bridgegarden.run.train.load_model", lambda *args, **kwargs: pytest.fail("loaded"))
    with pytest.raises(ModelError, match=r"training.quantised: the student .*no place for the activation 'relu'"):
        train(load_recipe(path))


def test_the_trainer_refuses_what_does_not_go_together(tmp_path, monkeypatch):
    def trainer(**kwargs):
        rows = Dataset.from_list([{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}])
        args = SFTConfig(output_dir=str(tmp_path), report_to=[], use_cpu=True, bf16=False, max_steps=1)
        models = tiny_model("llama", seed=2), tiny_model("llama", seed=1)
        return HybridDistillationTrainer(
            *models, args=args, train_dataset=rows, processing_class=tiny_tokenizer(), **kwargs
        )

    with pytest.raises(ConfigError, match=r"quantised: unknown name 'Q3_K'"):
        trainer(quantised="Q3_K")
    peft = pytest.importorskip("peft")
    with pytest.raises(ConfigError, match=r"peft_config: .*`quantised` would round"):
        trainer(quantised="Q4_0", peft_config=peft.LoraConfig(task_type="CAUSAL_LM"))
    made = trainer(quantised="Q4_0")
    monkeypatch.setattr(made.accelerator.state, "distributed_type", DistributedType.FSDP)
    with pytest.raises(ConfigError, match=r"training.quantised: the student is sharded"):
        learn_rounded(made.model, "Q4_0", made.accelerator, adapters=False)


def test_plan_counts_it(path):
    """Whole copies while the student writes, and of every matrix but the embedding from the forward to the backward."""
    told = []
    for kind in ("null", "{kind: int4}"):
        settings = [f"training.quantised={kind}", "on_policy.lmbda=1", "objective.hard_target=teacher_argmax"]
        done = run("plan", path, *(word for one in settings for word in ("--set", one)), "--json")
        assert done.exit_code == 0, done.output
        told.append(json.loads(done.stdout)["memory"])
    weights_ = told[0]["writing"]["student weights"]
    assert told[1]["writing"]["total"] - told[0]["writing"]["total"] == weights_
    extra = told[1]["backward"]["total"] - told[0]["backward"]["total"]
    assert 0.3 * weights_ < extra <= weights_
    assert "is trained as a Q4_0 file holds it" in run("plan", path).stdout
