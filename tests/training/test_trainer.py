"""The trainer: the objective it optimises is the one of the slow path, whatever is done to the batches."""

import math
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from datasets import Dataset
from safetensors.torch import load_file
from torch.utils.data import SequentialSampler
from transformers import PhiConfig, PhiForCausalLM
from trl.trainer import base_trainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from bridgegarden.errors import ConfigError, NonFiniteError
from bridgegarden.objective.hybrid import HybridObjective, hybrid_loss_from_logits
from bridgegarden.objective.position_weight import EarlyPositions
from bridgegarden.objective.soft_weight import TrainProgress
from bridgegarden.recipe.training import MEASURED
from bridgegarden.teacher.live import LiveTeacher
from tests.objective.presets import MECHANISMS, RANKED
from tests.tiny import VOCABULARY, tiny_model, tiny_tokenizer
from tests.training.conftest import token_rows


def history(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def in_order(trainer):
    """The same rows in the same order, however they are batched."""
    trainer._get_train_sampler = lambda dataset=None: SequentialSampler(trainer.train_dataset)
    return trainer


@pytest.mark.parametrize("preset", [*MECHANISMS, *RANKED])
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


def test_the_weight_of_positions_is_logged_where_a_rule_gives_one(make_trainer):
    objective = HybridObjective(position_weight=EarlyPositions(share=0.5))
    trainer = in_order(make_trainer(objective, evaluate=token_rows(6), max_steps=1, logging_steps=1))
    trainer.train()
    for batches, logged in (
        ([next(iter(trainer.get_train_dataloader()))], history(trainer, "position_weight")[0]),
        (trainer.get_eval_dataloader(), trainer.evaluate()["eval_position_weight"]),
    ):
        lengths = [n for batch in batches for n in (batch["labels"][:, 1:] != -100).sum(1).tolist()]
        assert logged == pytest.approx(sum(math.ceil(n / 2) for n in lengths) / sum(lengths), rel=1e-6)
    without = make_trainer(evaluate=token_rows(6))
    without.train()
    assert not history(without, "position_weight")
    weighed, plain = trainer.evaluate(), without.evaluate()
    assert "eval_position_weight" not in plain
    for name in ("eval_teacher_entropy", "eval_captured_mass", "eval_teacher_label_loss"):
        assert plain[name] == pytest.approx(weighed[name], rel=1e-6), "of the teacher alone, whatever is weighed"


def test_a_weight_of_positions_that_is_no_number_is_said_to_be_the_cause(make_trainer):
    def broken(signal, student=None, position=None, progress=None):
        return torch.full_like(signal.entropy, math.nan)

    with pytest.raises(NonFiniteError, match=r"position_weight is nan .*The rule for the weight of a position gave no"):
        make_trainer(HybridObjective(position_weight=broken)).train()


def test_evaluation_averages_over_positions_and_not_over_batches(make_trainer):
    few, many = (make_trainer(evaluate=token_rows(7), per_device_eval_batch_size=size).evaluate() for size in (2, 7))
    for name in ("eval_loss", "eval_soft_loss", "eval_hard_loss", "eval_student_entropy"):
        assert few[name] == pytest.approx(many[name], rel=1e-5), name


def test_the_log_has_what_trl_logs_and_means_the_same(make_trainer):
    trainer = in_order(make_trainer(evaluate=token_rows(7), learning_rate=0.0, max_steps=3, logging_steps=2))
    trainer.train()
    batches = list(trainer.get_train_dataloader())
    read = [int(batch["attention_mask"].sum()) for batch in batches]
    assert history(trainer, "num_tokens") == [sum(read[:2]), sum(read[:3])]
    metrics = trainer.evaluate()
    assert metrics["eval_num_tokens"] == sum(read[:3])
    for batch, measured in [
        (batches[1], trainer.state.log_history[0]),
        (next(iter(trainer.get_eval_dataloader())), {}),
    ]:
        targets = batch["labels"][:, 1:]
        with torch.no_grad():
            read = {name: batch[name] for name in ("input_ids", "attention_mask")}
            logits, given = (model(**read).logits[:, :-1] for model in (trainer.model, trainer.teacher.model))
        supervised = targets != -100
        accuracy = (logits.argmax(-1) == targets)[supervised].float().mean().item()
        entropy = torch.distributions.Categorical(logits=logits).entropy()[supervised].mean().item()
        found = measured or {name.removeprefix("eval_"): value for name, value in metrics.items()}
        q, p = (one.softmax(-1)[supervised] for one in (logits, given))
        both = torch.minimum(p[:, :VOCABULARY], q[:, :VOCABULARY]).sum(-1)
        padding = torch.minimum(p[:, VOCABULARY:].sum(-1), q[:, VOCABULARY:].sum(-1))
        assert found["acceptance_least"] == pytest.approx(both.mean().item(), rel=1e-5)
        assert found["acceptance"] == pytest.approx((both + padding).mean().item(), rel=1e-5)
        assert 0.01 < found["acceptance"] < 0.99
        assert found["mean_token_accuracy"] == pytest.approx(accuracy, rel=1e-5)
        assert found["entropy"] == found["student_entropy"] == pytest.approx(entropy, rel=1e-5)


def test_what_was_computed_in_evaluation_mode_before_an_evaluation_is_no_part_of_it(make_trainer):
    trainer = make_trainer(evaluate=token_rows(7))
    expected = trainer.evaluate()
    trainer.model.eval()
    with torch.no_grad():
        trainer.compute_loss(trainer.model, trainer.data_collator([trainer.train_dataset[i] for i in range(4)]))
    assert trainer.evaluate()["eval_loss"] == expected["eval_loss"]


def test_nothing_about_a_run_is_reported_to_anybody(make_trainer, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    told: list[str] = []
    monkeypatch.setattr(base_trainer, "send_telemetry", lambda *args, **kwargs: told.append("told"))
    make_trainer().train()
    assert told == []


def test_a_best_model_can_be_chosen_by_whatever_is_measured(make_trainer):
    assert {f"eval_{name}" for name in MEASURED} <= make_trainer(evaluate=token_rows(4)).evaluate().keys()


def test_prediction_gives_the_metrics_of_rows_in_any_shape(make_trainer):
    trainer = make_trainer(evaluate=token_rows(7))
    expected = trainer.evaluate()
    output = trainer.predict(token_rows(7))
    assert output.predictions is None
    assert output.metrics["test_loss"] == pytest.approx(expected["eval_loss"], rel=1e-6)
    assert output.metrics["test_mean_token_accuracy"] == expected["eval_mean_token_accuracy"]
    rows = Dataset.from_list(
        [{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}]
    )
    assert math.isfinite(trainer.predict(rows).metrics["test_loss"])


def test_ids_above_a_hole_are_part_of_the_shared_vocabulary(make_trainer):
    """A teacher that always ends teaches a student to end, though fewer tokens than ids exist."""
    tokenizer = tiny_tokenizer(turn_ids=(300, 301))
    assert len(tokenizer) == VOCABULARY
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    ending = PhiForCausalLM(PhiConfig(vocab_size=304, **sizes, **ends))
    ending.lm_head.bias.data[301] = 30.0
    rows = Dataset.from_list(
        [{"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "world"}]}] * 4
    )
    trainer = make_trainer(
        HybridObjective.preset("hard"),
        student=tiny_model("llama", 304, seed=2),
        teacher=ending,
        tokenizer=tokenizer,
        train=rows,
        max_steps=30,
        learning_rate=1e-2,
    )
    assert trainer.vocab_size == 302
    trainer.train()
    ids = torch.tensor([trainer.train_dataset[0]["input_ids"]])
    with torch.no_grad():
        probabilities = trainer.model.eval()(input_ids=ids).logits[0, -3].softmax(-1)
    assert probabilities[301] > 0.9
    given = trainer.train_dataset.select_columns(["input_ids", "labels"])
    assert make_trainer(tokenizer=tokenizer, student=tiny_model("llama", 304), teacher=ending, train=given)


def test_a_pair_that_bfloat16_trainings_passed_by_is_what_it_was(make_trainer):
    """Mixed precision leaves itself around the forward of a model for good."""
    fresh = make_trainer()
    batch = fresh.data_collator([fresh.train_dataset[i] for i in range(5)])
    expected = fresh.compute_loss(fresh.model, dict(batch)).detach()
    student, teacher = tiny_model("llama", 264, seed=2), tiny_model("llama", 270, hidden_size=48, seed=1)
    rows = token_rows(4)
    make_trainer(student=student, teacher=LiveTeacher(teacher), train=rows, bf16=True, learning_rate=0.0).train()
    teacher.requires_grad_()
    arguments = {"output_dir": fresh.args.output_dir, "use_cpu": True, "bf16": True, "max_steps": 1, "report_to": []}
    other = SFTTrainer(
        teacher,
        SFTConfig(**arguments, learning_rate=0.0, disable_tqdm=True, save_strategy="no", gradient_checkpointing=False),
        train_dataset=rows.remove_columns("row"),
        processing_class=tiny_tokenizer(),
    )
    other.train()
    AcceleratorState._reset_state()
    trainer = make_trainer(student=student, teacher=teacher)
    torch.testing.assert_close(trainer.compute_loss(trainer.model, dict(batch)).detach(), expected, rtol=0, atol=0)
    trainer.train()


def test_training_lowers_the_loss_on_its_rows(make_trainer):
    trainer = make_trainer(HybridObjective.preset("soft"), max_steps=40, learning_rate=5e-3)
    trainer.train()
    losses = history(trainer, "loss")
    assert losses[-1] < 0.7 * losses[0]


def test_top_k_teacher_reports_what_it_captures(make_trainer):
    trainer = make_trainer(teacher=LiveTeacher(tiny_model("llama", 264, seed=1), top_k=8))
    trainer.train()
    assert 0 < history(trainer, "captured_mass")[0] < 0.9


@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_kernels_train_as_the_other_route_does(make_trainer, family):
    kernels = pytest.importorskip("bridgegarden.objective.kernels")
    if not kernels.INTERPRETED:
        pytest.skip("tests/objective/test_kernels.py runs them on the GPU that is here")
    objective = HybridObjective.preset("risk_guided", hard_target="data")
    teacher = tiny_model(family, 270, hidden_size=48, seed=1)
    plain, fast = (
        make_trainer(objective, family=family, teacher=LiveTeacher(teacher, top_k=8), trainer={"loss_kernel": asked})
        for asked in ("auto", "triton")
    )
    assert (plain.loss_route, fast.loss_route) == ("torch", "triton")
    plain.train()
    fast.train()
    for name in ("loss", "soft_loss", "hard_loss", "risk_loss", "grad_norm", "student_entropy", "mean_token_accuracy"):
        assert history(fast, name) == pytest.approx(history(plain, name), rel=1e-4), name


def test_kernels_that_cannot_run_are_refused_before_training(make_trainer, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"^training\.loss_kernel: triton needs the package triton, which is not"):
        make_trainer(trainer={"loss_kernel": "triton"})


@pytest.mark.parametrize("top_k", [None, 264])
def test_kernels_are_refused_where_the_teacher_gives_its_whole_vocabulary(make_trainer, top_k):
    kernels = pytest.importorskip("bridgegarden.objective.kernels")
    if not kernels.INTERPRETED:
        pytest.skip("the student would be on the CPU")
    teacher = LiveTeacher(tiny_model("llama", 270, hidden_size=48, seed=1), top_k=top_k)
    with pytest.raises(ConfigError, match=r"^training\.loss_kernel: .* this teacher gives the whole vocabulary"):
        make_trainer(teacher=teacher, trainer={"loss_kernel": "triton"})


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


def compiled_and_plain(make_trainer, tmp_path, backend: str, **arguments: Any) -> list[dict[str, Any]]:
    """Losses, weights and the names in what is saved of a training that is compiled and of the same that is not."""
    found = []
    for asked in ({"torch_compile_backend": backend}, {}):
        trainer = make_trainer(
            student=tiny_model("llama", 264, layers=1, seed=2),
            teacher=tiny_model("llama", 270, hidden_size=48, layers=1, seed=1),
            **{"max_steps": 4, "output_dir": str(tmp_path / str(len(found))), **arguments, **asked},
        )
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        trainer.train()
        trainer.save_model()
        counted = {name: dict(counts) for name, counts in torch._dynamo.utils.counters.items()}
        losses = [entry[name] for entry in trainer.state.log_history for name in ("loss", "eval_loss") if name in entry]
        saved = load_file(tmp_path / str(len(found)) / "model.safetensors")
        found.append({"losses": losses, "saved": saved, "counted": counted})
    return found


def check_same(compiled: dict[str, Any], plain: dict[str, Any]) -> None:
    assert compiled["losses"] == pytest.approx(plain["losses"], rel=1e-5)
    assert compiled["saved"].keys() == plain["saved"].keys()
    for name, weight in plain["saved"].items():
        torch.testing.assert_close(compiled["saved"][name], weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")
def test_decoders_are_compiled_whole_and_once_for_all_lengths_of_rows(make_trainer, tmp_path, checkpointing):
    runs = compiled_and_plain(make_trainer, tmp_path, "eager", gradient_checkpointing=checkpointing)
    check_same(*runs)
    assert not runs[0]["counted"].get("graph_break")
    # Student and teacher: rows of the first length, and of any.
    assert runs[0]["counted"]["stats"]["unique_graphs"] == 4
    assert "stats" not in runs[1]["counted"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_training_compiled_by_inductor_is_the_plain_one(make_trainer, tmp_path):
    rows = [{"input_ids": [n, *range(10)], "labels": [-100] * 4 + list(range(3, 10)), "row": n} for n in range(16)]
    runs = compiled_and_plain(make_trainer, tmp_path, "inductor", train=Dataset.from_list(rows))
    check_same(*runs)
    assert runs[0]["counted"]["inductor"]
    assert not runs[0]["counted"].get("graph_break")
    assert runs[0]["counted"]["stats"]["unique_graphs"] == 2
