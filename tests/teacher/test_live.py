"""A teacher in memory."""

import pytest
import torch

from bridgegarden.errors import ConfigError
from bridgegarden.objective.alignment import SupervisedPositions
from bridgegarden.teacher.live import LiveTeacher
from tests.tiny import tiny_model

X = -100
IDS = torch.randint(0, 30, (2, 6), generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([[X, X, 3, 4, 5, X], [X, 9, 8, X, X, X]])


@pytest.mark.parametrize("top_k", [None, 5])
def test_signal_is_the_models_distribution_where_a_token_is_supervised(top_k):
    model = tiny_model("gemma2", vocab_size=40)
    teacher = LiveTeacher(model, top_k=top_k)
    positions = SupervisedPositions.from_labels(LABELS)
    signal = teacher.at(positions, {"input_ids": IDS}, vocab_size=33, exponents=())[0 : len(positions)]
    logp = model(input_ids=IDS).logits.log_softmax(-1)
    expected = torch.stack([logp[0, 1], logp[0, 2], logp[0, 3], logp[1, 0], logp[1, 1]])
    if top_k is None:
        torch.testing.assert_close(signal.logp, expected[:, :33])
    else:
        torch.testing.assert_close(signal.logp, expected[:, :33].topk(5).values)
    torch.testing.assert_close(signal.cells().exp().sum(-1), torch.ones(5))


def test_teacher_is_frozen_and_in_evaluation_mode():
    model = tiny_model("llama").train()
    LiveTeacher(model)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_autocast_of_the_student_does_not_touch_the_teacher():
    teacher = LiveTeacher(tiny_model("llama", vocab_size=40))
    positions = SupervisedPositions.from_labels(LABELS)
    plain = teacher.at(positions, {"input_ids": IDS}, vocab_size=40, exponents=()).hidden
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = teacher.at(positions, {"input_ids": IDS}, vocab_size=40, exponents=()).hidden
    assert cast.dtype == torch.float32
    torch.testing.assert_close(cast, plain)


def test_top_k_below_one_is_refused():
    with pytest.raises(ConfigError, match="top_k must be >= 1 or null"):
        LiveTeacher(tiny_model("llama"), top_k=0)
