"""A head sharded by FSDP2 over two processes: the loss, gradients and gathers."""

import pytest

from tests.distributed.sharded_cases import cases

pytestmark = pytest.mark.slow
CASES = cases()
TOLERANCE = {"float32": 2e-6, "autocast": 2e-2, "policy": 5e-2}
"""Relative, of loss and gradient. In 16 bits the two halves of a batch round otherwise than the whole."""


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_are_those_of_one_process_on_the_joined_batch(sharded, name):
    found, precision = sharded[name], CASES[name].precision
    assert "error" not in found, found["error"]
    first, second = found["positions"]
    assert first > second
    assert (second == 0) == CASES[name].masked
    assert found["loss"] == pytest.approx(found["expected_loss"], rel=TOLERANCE[precision])
    assert found["gradient_error"] < TOLERANCE[precision]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.counted])
def test_the_head_is_gathered_once_however_many_chunks_there_are(sharded, name):
    case = CASES[name]
    tied = case.family == "qwen2"
    groups = 2 + {"root": 1, "head alone": 2, "norm and head": 1 if tied else 2}[case.layout]
    for chunks in sharded[name]["gathers"]:
        assert chunks == [groups, groups]


def test_a_sharded_head_that_nobody_gathered_is_refused_where_its_gradient_is_wanted(sharded):
    assert "sharded over 2 processes and was not gathered. Train through" in sharded["outside the forward"]["error"]
