"""Training from a mixture of teachers: loss and gradient from the definition, with the models in memory."""

import pytest
import torch

from bridgegarden.errors import DataError, ModelError
from bridgegarden.objective.hybrid import HybridObjective
from bridgegarden.teacher.live import LiveTeacher
from bridgegarden.teacher.mixture import MixedTeacher
from bridgegarden.training.on_policy import OnPolicy
from tests.tiny import VOCABULARY, tiny_model
from tests.training.conftest import token_rows
from tests.training.test_batches import learned_positions, rows_of

WEIGHTS = (0.7, 0.3)


def members():
    return [tiny_model("llama", VOCABULARY, hidden_size=48, seed=seed) for seed in (1, 5)]


def mixed():
    return MixedTeacher([LiveTeacher(model) for model in members()], WEIGHTS)


def test_loss_and_gradient_are_those_of_the_definition(make_trainer):
    student = tiny_model("llama", VOCABULARY, seed=2)
    trainer = make_trainer(HybridObjective.preset("soft"), student=student, teacher=mixed(), shuffle_dataset=False)
    examples = [trainer.train_dataset[i] for i in range(5)]
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(examples))
    loss.backward()
    exact = tiny_model("llama", VOCABULARY, seed=2).double()
    teachers = [model.double() for model in members()]
    want, count = torch.zeros((), dtype=torch.float64), 0
    for row in examples:
        ids = torch.tensor([row["input_ids"]])
        q = exact(ids).logits[0].log_softmax(-1)
        with torch.no_grad():
            p = sum(w * model(ids).logits[0].softmax(-1) for w, model in zip(WEIGHTS, teachers, strict=True))
        for t, label in enumerate(row["labels"][1:]):
            if label != -100:
                want = want + (p[t] * (p[t].log() - q[t])).sum()
                count += 1
    want = want / count
    want.backward()
    torch.testing.assert_close(loss.double(), want.detach(), rtol=1e-4, atol=1e-6)
    for name, parameter in exact.named_parameters():
        got = dict(trainer.model.named_parameters())[name].grad
        torch.testing.assert_close(got.double(), parameter.grad, rtol=1e-3, atol=1e-6)


def test_every_teacher_of_a_mixture_is_counted_and_checked(make_trainer):
    rows = token_rows(8)
    trainer = make_trainer(teacher=mixed(), train=rows, max_steps=1, per_device_train_batch_size=8)
    trainer.train()
    assert trainer.cost.teacher_tokens == 2 * trainer.cost.student_tokens
    short = MixedTeacher([LiveTeacher(learned_positions(size)) for size in (64, 16)], WEIGHTS)
    with pytest.raises(DataError, match=r"row 1: has 20 tokens, but the teacher 2, GPT2.*a table of 16"):
        make_trainer(student=learned_positions(64, 1), teacher=short, train=rows_of(8, 20))
    shared = mixed()
    with pytest.raises(ModelError, match=r"^teacher and student are one model"):
        make_trainer(student=shared.models[1], teacher=shared)


def test_the_student_answers_itself_before_a_mixture(make_trainer):
    trainer = make_trainer(
        HybridObjective.preset("soft"), teacher=mixed(), on_policy=OnPolicy(lmbda=1, max_new_tokens=4), max_steps=1
    )
    trainer.train()
    assert trainer.cost.generated_tokens > 0
