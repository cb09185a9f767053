"""The trainer: the objective it optimises is the one of the slow path, whatever is done to the batches."""

import math

import pytest
import torch
from datasets import Dataset
from torch.utils.data import SequentialSampler

from bridgegarden.errors import ConfigError, NonFiniteError
from bridgegarden.objective.hybrid import PRESETS, HybridObjective, hybrid_loss_from_logits
from bridgegarden.objective.soft_weight import TrainProgress
from bridgegarden.teacher.live import LiveTeacher
from tests.tiny import VOCABULARY, tiny_model
from tests.training.conftest import token_rows


def history(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def in_order(trainer):
    """The same rows in the same order, however they are batched."""
    trainer._get_train_sampler = lambda dataset=None: SequentialSampler(trainer.train_dataset)
    return trainer


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_loss_and_gradient_are_those_of_the_slow_path(make_trainer, preset, family):
    objective = HybridObjective.preset(preset)
    trainer = make_trainer(objective, family=family, max_steps=10)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(5)])
    trainer.state.global_step, trainer.state.max_steps = 1, 10
    loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    student, teacher = trainer.model(**inputs).logits, trainer.teacher.model(**inputs).logits
    slow = hybrid_loss_from_logits(
        student, teacher, batch["labels"], objective, TrainProgress(1, 10), vocab_size=VOCABULARY
    ).mean()
    torch.testing.assert_close(loss, slow)
    fast = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}
    trainer.model.zero_grad()
    slow.backward()
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(fast[name], parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("preset", ["static", "risk_guided"])
def test_accumulated_micro_batches_train_exactly_as_one_batch(make_trainer, preset):
    objective = HybridObjective.preset(preset, hard_target="data")
    whole = in_order(make_trainer(objective, per_device_train_batch_size=8))
    parts = in_order(make_trainer(objective, per_device_train_batch_size=2, gradient_accumulation_steps=4))
    whole.train()
    parts.train()
    assert history(parts, "grad_norm") == pytest.approx(history(whole, "grad_norm"), rel=1e-4)
    for name in ("loss", "soft_loss", "hard_loss", "risk_loss", "soft_weight"):
        assert history(parts, name) == pytest.approx(history(whole, name), rel=1e-4), name
    for one, many in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(many, one, rtol=1e-4, atol=2e-5)


def test_packed_rows_train_exactly_as_rows_on_their_own(make_trainer):
    """Teacher and student must see each document alone, and every position its own teacher."""
    objective = HybridObjective.preset("risk_guided", hard_target="data")
    rows = token_rows()
    plain = make_trainer(objective, train=rows, max_steps=1, per_device_train_batch_size=16)
    packed = make_trainer(
        objective, train=rows, max_steps=1, per_device_train_batch_size=16, packing=True, max_length=48
    )
    assert len(packed.train_dataset) < len(plain.train_dataset)
    plain.train()
    packed.train()
    for name in ("loss", "soft_loss", "risk_loss", "risk_share", "supervised_tokens"):
        assert history(packed, name) == pytest.approx(history(plain, name), rel=1e-4), name
    assert history(packed, "grad_norm") == pytest.approx(history(plain, "grad_norm"), rel=1e-3)


def test_planted_rows_keep_their_numbers_through_shuffling_and_packing(make_trainer):
    """Row r holds only the token r: whatever the order, a token's row number must say so."""
    rows = Dataset.from_list(
        [{"input_ids": [r] * (3 + r % 5), "labels": [-100] + [r] * (2 + r % 5), "row": r} for r in range(40)]
    )
    for packing in (False, True):
        trainer = make_trainer(train=rows, packing=packing, max_length=16)
        for batch in trainer.get_train_dataloader():
            real = batch["row"] >= 0
            assert (batch["row"][real] == batch["input_ids"][real]).all()
            assert real.sum() > 0


def test_log_has_every_term_and_evaluation_the_same(make_trainer):
    trainer = make_trainer(HybridObjective.preset("risk_guided", hard_target="data"), evaluate=token_rows(6))
    trainer.train()
    metrics = trainer.evaluate()
    terms = ("loss", "soft_loss", "hard_loss", "risk_loss", "soft_weight", "teacher_entropy", "student_entropy")
    for name in (*terms, "captured_mass", "risk_share"):
        assert math.isfinite(history(trainer, name)[0]), name
        assert math.isfinite(metrics[f"eval_{name}"]), name
    assert history(trainer, "tokens_per_second")[0] > 0


def test_evaluation_averages_over_positions_and_not_over_batches(make_trainer):
    few, many = (make_trainer(evaluate=token_rows(7), per_device_eval_batch_size=size).evaluate() for size in (2, 7))
    for name in ("eval_loss", "eval_soft_loss", "eval_hard_loss", "eval_student_entropy"):
        assert few[name] == pytest.approx(many[name], rel=1e-5), name


def test_training_lowers_the_loss_on_its_rows(make_trainer):
    trainer = make_trainer(HybridObjective.preset("soft"), max_steps=40, learning_rate=5e-3)
    trainer.train()
    losses = history(trainer, "loss")
    assert losses[-1] < 0.7 * losses[0]


def test_top_k_teacher_reports_what_it_captures(make_trainer):
    trainer = make_trainer(teacher=LiveTeacher(tiny_model("llama", 264, seed=1), top_k=8))
    trainer.train()
    assert 0 < history(trainer, "captured_mass")[0] < 0.9


def test_adapters_are_trained_and_nothing_else(make_trainer):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    trainer = make_trainer(HybridObjective.preset("risk_guided"), peft_config=config, learning_rate=1e-2)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    changed = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
    assert changed
    assert all("lora" in name for name in changed)


def test_chat_rows_are_tokenised_and_their_end_of_turn_is_supervised(make_trainer):
    rows = Dataset.from_list(
        [{"messages": [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "four"}]}] * 4
    )
    trainer = make_trainer(train=rows, max_steps=1)
    tokenizer = trainer.processing_class
    row = trainer.train_dataset[0]
    learned = [token for token in row["labels"] if token != -100]
    assert tokenizer.decode(learned) == "four<|im_end|>"
    trainer.train()


def test_a_batch_without_supervised_tokens_is_a_finite_zero(make_trainer):
    trainer = make_trainer()
    batch = trainer.data_collator([trainer.train_dataset[0]])
    batch["labels"][:] = -100
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    assert loss.item() == 0.0
    assert all((p.grad == 0).all() for p in trainer.model.parameters() if p.grad is not None)


def test_a_broken_teacher_stops_the_run_with_step_term_and_rows(make_trainer):
    teacher = tiny_model("llama", 264, seed=1)
    trainer = make_trainer(teacher=teacher, max_steps=1, per_device_train_batch_size=16)
    with torch.no_grad():
        teacher.model.norm.weight[0] = math.nan
    found = r"step 1: teacher_entropy is nan at \d+ of \d+ positions, rows of the data: 100"
    with pytest.raises(NonFiniteError, match=found):
        trainer.train()


def test_one_poisoned_row_is_named(make_trainer):
    rows = token_rows(8).to_list()
    rows[5]["input_ids"] = [7, 255, 7, 7]
    rows[5]["labels"] = [-100, -100, 7, 7]
    student = tiny_model("llama", 264, seed=2)
    with torch.no_grad():
        student.model.embed_tokens.weight[255] = math.inf
    trainer = make_trainer(student=student, train=Dataset.from_list(rows), per_device_train_batch_size=8)
    with pytest.raises(NonFiniteError, match=r"rows of the data: 105 \(first at position 1"):
        trainer.train()


def test_an_infinite_gradient_stops_the_run_before_the_student_is_changed(make_trainer):
    trainer = make_trainer(max_steps=1)
    weight = trainer.model.model.layers[0].mlp.up_proj.weight
    before = weight.detach().clone()
    weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(NonFiniteError, match=r"step 1: the gradient norm is .* rows of this step: \[1\d\d"):
        trainer.train()
    torch.testing.assert_close(weight, before)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"label_smoothing_factor": 0.1}, "training.label_smoothing_factor"),
        ({"loss_type": "dft"}, "training.loss_type"),
        ({"packing": True, "packing_strategy": "wrapped"}, "cuts documents in two"),
    ],
)
def test_arguments_that_contradict_the_objective_are_refused(make_trainer, arguments, match):
    with pytest.raises(ConfigError, match=match):
        make_trainer(**arguments)
