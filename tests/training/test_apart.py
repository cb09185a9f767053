"""Teacher and student that share weights: refused, or harmless."""

import copy

import pytest
import torch

from bridgegarden.errors import ModelError
from bridgegarden.teacher.live import LiveTeacher
from tests.tiny import tiny_model
from tests.training.conftest import token_rows

peft = pytest.importorskip("peft")


def lora(**options):
    return peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], **options)


def pair():
    return tiny_model("llama", 264, seed=2), tiny_model("llama", 264, seed=1)


def one_embedding(student, teacher):
    teacher.model.embed_tokens.weight = student.model.embed_tokens.weight


def one_storage(student, teacher):
    """Another Parameter, over the same numbers."""
    teacher.lm_head.weight = torch.nn.Parameter(student.lm_head.weight.data[:200], requires_grad=False)
    teacher.config.vocab_size = 200


def half_a_storage(student, teacher):
    """Another Parameter, over numbers that begin elsewhere."""
    teacher.lm_head.weight = torch.nn.Parameter(student.lm_head.weight.data[64:])


def one_layer(student, teacher):
    student.model.layers[0] = teacher.model.layers[0]


SHARING = {
    one_embedding: r"share weights \(model\.embed_tokens\.weight\)",
    one_storage: r"share weights \(lm_head\.weight\)",
    half_a_storage: r"share weights \(lm_head\.weight\)",
    one_layer: r"share layers \(model\.layers\.0 and \d+ more\)",
}


@pytest.mark.parametrize("share", SHARING)
def test_a_student_that_shares_with_its_teacher_is_refused_and_left_as_it_was(make_trainer, share):
    student, teacher = pair()
    share(student, teacher)
    with pytest.raises(ModelError, match=SHARING[share]):
        make_trainer(student=student, teacher=teacher)
    assert all(parameter.requires_grad for parameter in student.parameters())


@pytest.mark.parametrize("share", SHARING)
def test_a_teacher_that_was_frozen_before_is_refused_too(make_trainer, share):
    student, teacher = pair()
    share(student, teacher)
    with pytest.raises(ModelError, match=SHARING[share]):
        make_trainer(student=student, teacher=LiveTeacher(teacher))


@pytest.mark.parametrize("wrap", ["no adapters", "peft_config", "PeftModel", "PeftModel as both"])
def test_one_object_as_teacher_and_student_is_refused(make_trainer, wrap):
    model = tiny_model("llama", 264)
    options = {"peft_config": lora()} if wrap == "peft_config" else {}
    student = peft.get_peft_model(model, lora()) if wrap.startswith("PeftModel") else model
    teacher = student if wrap == "PeftModel as both" else model
    with pytest.raises(ModelError, match=r"teacher and student are one model.*Load the teacher a second time"):
        make_trainer(student=student, teacher=teacher, **options)


def test_adapters_may_stand_on_the_weights_that_the_teacher_reads(make_trainer):
    """Half the memory, and what a model learns is measured against what it was."""
    teacher = tiny_model("llama", 264)
    student = copy.deepcopy(teacher)
    for ours, theirs in zip(student.parameters(), teacher.parameters(), strict=True):
        ours.data = theirs.data
    before = [parameter.clone() for parameter in teacher.parameters()]
    trainer = make_trainer(student=student, teacher=teacher, peft_config=lora(), max_steps=4, learning_rate=0.1)
    trainer.train()
    soft = [entry["soft_loss"] for entry in trainer.state.log_history if "soft_loss" in entry]
    assert soft[0] == pytest.approx(0, abs=1e-6)
    assert soft[-1] > 1e-4
    for now, then in zip(teacher.parameters(), before, strict=True):
        assert torch.equal(now, then)


def test_shared_weights_that_adapters_train_are_refused(make_trainer):
    student, teacher = pair()
    one_storage(student, teacher)
    teacher.lm_head.weight.data = student.lm_head.weight.data
    student = peft.get_peft_model(student, lora())
    student.get_output_embeddings().weight.requires_grad_()
    with pytest.raises(ModelError, match=r"share weights \(.*lm_head\.weight\)"):
        make_trainer(student=student, teacher=teacher)


def test_two_models_of_one_folder_do_not_share(make_trainer, tmp_path):
    tiny_model("llama", 264).save_pretrained(tmp_path / "model")
    trainer = make_trainer(student=str(tmp_path / "model"), teacher=str(tmp_path / "model"), train=token_rows(4))
    trainer.train()
    assert trainer.state.log_history[0]["soft_loss"] == pytest.approx(0, abs=1e-6)
