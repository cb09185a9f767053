"""What student and teacher cannot read is said in one line before the first step; rows that weigh nothing."""

import copy
import logging
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DataLoaderConfiguration
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel

from bridgegarden.errors import ConfigError, DataError, ModelError
from bridgegarden.objective.hybrid import HybridObjective, hybrid_loss_from_logits
from bridgegarden.training import trainer as trainer_module
from bridgegarden.training.batches import copy_ahead, evened
from bridgegarden.training.models import check_loaded
from tests.architectures import tiny_architecture
from tests.tiny import VOCABULARY, tiny_model
from tests.training.conftest import token_rows


def learned_positions(positions: int, seed: int = 0) -> GPT2LMHeadModel:
    """A model that looks its positions up."""
    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=264, n_embd=32, n_layer=2, n_head=2, n_positions=positions, bos_token_id=None, eos_token_id=None
        )
    )


def rows_of(*lengths: int, token: int = 7) -> Dataset:
    return Dataset.from_list([{"input_ids": [token] * n, "labels": [-100] + [token] * (n - 1)} for n in lengths])


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_row_longer_than_a_table_of_positions_is_named(make_trainer, role):
    with pytest.raises(DataError, match=rf"train data, row 2: has 20 tokens, but the {role}, GPT2.*a table of 16"):
        make_trainer(**{role: learned_positions(16)}, train=rows_of(16, 3, 20, 17))


def test_a_student_whose_weights_have_no_numbers_is_refused_where_it_would_be_probed(make_trainer):
    with torch.device("meta"):
        student = tiny_model("llama", 264)
    with pytest.raises(ModelError, match=r"^student Llama.*: on the meta device.* Load it"):
        make_trainer(student=student)
    with pytest.raises(ModelError, match="on the meta device"):
        check_loaded(student, {"LOCAL_RANK": "0"})
    check_loaded(student, {"LOCAL_RANK": "1"})
    check_loaded(tiny_model("llama", 264), {})


def test_held_out_rows_are_looked_at_too(make_trainer):
    with pytest.raises(DataError, match="eval data, row 0: has 20 tokens"):
        make_trainer(teacher=learned_positions(16), train=rows_of(8), evaluate=rows_of(20))


def test_documents_packed_into_a_row_longer_than_the_table_are_trained_on(make_trainer):
    pair = {"student": learned_positions(16, 1), "teacher": learned_positions(16, 2)}
    trainer = make_trainer(**pair, train=rows_of(16, 15, 16, 14), packing=True, max_length=64)
    assert len(trainer.train_dataset) == 1
    trainer.train()
    with pytest.raises(DataError, match="row 1: has 17 tokens"):
        make_trainer(**pair, train=rows_of(16, 17), packing=True, max_length=64)


def test_a_token_that_the_teacher_has_no_row_for_is_named(make_trainer):
    rows = [{**row, "row": 40 + index} for index, row in enumerate(rows_of(5, 5, 5))]
    rows[1]["input_ids"][3] = rows[1]["labels"][3] = 258
    for packing in (False, True):
        with pytest.raises(DataError, match=r"row 41: holds token id 258, but the teacher, Llama.* of 257 rows"):
            make_trainer(teacher=tiny_model("llama", 257), train=Dataset.from_list(rows), packing=packing)


@pytest.mark.parametrize(
    ("teacher", "rows", "found"),
    [
        (learned_positions(16), rows_of(5, 20), "has 20 tokens"),
        (tiny_model("llama", 257), rows_of(5, token=258), "holds token id 258"),
    ],
    ids=["positions", "ids"],
)
def test_a_streamed_row_that_cannot_be_read_is_found_by_the_collator(make_trainer, teacher, rows, found):
    trainer = make_trainer(teacher=teacher, train=rows.to_iterable_dataset())
    with pytest.raises(DataError, match=found):
        trainer.train()


def test_a_student_that_mixes_packed_rows_is_trained_on_rows_alone(make_trainer):
    pair = {"student": tiny_architecture("bloom", 1), "teacher": tiny_architecture("bloom", 2)}
    make_trainer(**pair).train()
    for arguments in ({"packing": True}, {"padding_free": True, "max_length": None}):
        with pytest.raises(ModelError, match=r"student BloomForCausalLM \(bloom\): rows that are packed into one see"):
            make_trainer(**pair, **arguments)


def test_a_teacher_that_mixes_packed_rows_is_refused(make_trainer):
    with pytest.raises(ModelError, match=r"teacher OPTForCausalLM \(opt\): rows that are packed into one see"):
        make_trainer(teacher=tiny_architecture("opt"), packing=True)


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_model_that_sees_the_answer_is_refused(make_trainer, role):
    with pytest.raises(ModelError, match=r"XLNetLMHeadModel \(xlnet\): not causal"):
        make_trainer(**{role: tiny_architecture("xlnet")})


def test_a_student_that_cannot_compute_activations_anew_is_refused(make_trainer):
    with pytest.raises(ConfigError, match=r"training.gradient_checkpointing: CTRLLMHeadModel .* Set it to false"):
        make_trainer(student=tiny_architecture("ctrl"), gradient_checkpointing=True)


def test_a_mixture_of_experts_is_trained_by_default_and_what_is_left_out_is_told(make_trainer, caplog):
    student = tiny_architecture("mixtral")
    with caplog.at_level(logging.WARNING, logger="bridgegarden"):
        trainer = make_trainer(student=student)
    assert "without its load-balancing loss (coefficient 0.001 in its config)" in caplog.text
    trainer.train()
    assert not student.config.output_router_logits
    assert student.config.router_aux_loss_coef == 0.001


def test_a_load_balancing_loss_that_was_asked_for_is_refused(make_trainer):
    with pytest.raises(ConfigError, match=r"training.router_aux_loss_coef: got 0\.02"):
        make_trainer(student=tiny_architecture("mixtral"), router_aux_loss_coef=0.02)


@pytest.mark.parametrize("method", ["PromptTuningConfig", "PromptEncoderConfig"])
def test_adapters_that_put_tokens_before_the_text_are_refused(make_trainer, method):
    peft = pytest.importorskip("peft")
    config = getattr(peft, method)(task_type="CAUSAL_LM", num_virtual_tokens=4)
    with pytest.raises(ModelError, match="puts virtual tokens before the text, which is not supported"):
        make_trainer(peft_config=config)


# peft hands keys and values over by the name that transformers 5.24 calls outdated.
@pytest.mark.filterwarnings("ignore:.*past_key_values.*:FutureWarning")
def test_prefix_tuning_trains(make_trainer):
    peft = pytest.importorskip("peft")
    make_trainer(peft_config=peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)).train()


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_a_few_trained_tokens_get_their_gradient_through_a_head_tied_or_not(make_trainer, family):
    peft = pytest.importorskip("peft")
    targets = [5, 6] if family == "qwen2" else {"embed_tokens": [5, 6], "lm_head": [5, 6]}
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], trainable_token_indices=targets)
    objective = HybridObjective.preset("static")
    rows = Dataset.from_list([{**row, "input_ids": [5, 6, *row["input_ids"][2:]]} for row in token_rows(4)])
    trainer = make_trainer(objective, family=family, peft_config=config, train=rows)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    trainer.compute_loss(trainer.model, dict(batch)).backward()
    fast = {name: copy.deepcopy(p.grad) for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.model.zero_grad()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    student, teacher = trainer.model(**inputs).logits, trainer.teacher.model(**inputs).logits
    hybrid_loss_from_logits(student, teacher, batch["labels"], objective, vocab_size=VOCABULARY).mean().backward()
    assert any("trainable_tokens_delta" in name for name in fast)
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(fast[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_rows_are_added_of_which_nothing_is_supervised():
    rows = token_rows(7)
    even = evened(rows, 4)
    assert even.to_list()[:7] == rows.to_list()
    assert len(even) == 8
    assert set(even[7]["labels"]) == {-100}
    assert len(even[7]["labels"]) == len(even[7]["input_ids"])
    assert even.features == rows.features


def test_rows_that_come_out_even_and_those_without_labels_stay_as_they_are():
    rows, plain = token_rows(8), Dataset.from_list([{"input_ids": [1, 2]}] * 3)
    assert evened(rows, 4) is rows
    assert evened(plain, 2) is plain


@pytest.mark.parametrize(
    ("device", "pinned", "ahead"), [("cuda", True, True), ("cuda", False, False), ("cpu", True, False)]
)
def test_batches_are_copied_to_a_gpu_while_it_computes_from_pinned_memory_alone(device, pinned, ahead):
    configuration = DataLoaderConfiguration()
    copy_ahead(SimpleNamespace(device=torch.device(device), dataloader_config=configuration), pinned=pinned)
    assert configuration.non_blocking is ahead


def test_a_trainer_s_loaders_copy_as_its_batches_were_said_to_be(make_trainer, monkeypatch):
    assert not make_trainer().get_train_dataloader()._non_blocking

    def copied(accelerator, pinned):
        # Training is on a CPU.
        assert pinned is False
        accelerator.dataloader_config.non_blocking = True

    monkeypatch.setattr(trainer_module, "copy_ahead", copied)
    assert make_trainer().get_train_dataloader()._non_blocking
