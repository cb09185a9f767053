"""Chains of sums: what their teachers say, and that a wrong value is carried on."""

import pytest
import torch

from bridgegarden.errors import ConfigError
from bridgegarden.exact.process import Role, role, trace
from bridgegarden.exact.tasks.chain import OPERATIONS, TEACHERS, ChainWorld, Expression

WORLD = ChainWorld(teacher="unsure", seed=5)
PROBLEM = Expression(3, (0, 2, 1), (4, 2, 3))  # 3 + 4 = 2, * 2 = 4, - 3 = 1 (modulo 5)


def tokens(world, *words):
    return [world.ids[word] for word in words]


def test_an_answer_is_right_if_every_value_is():
    world = WORLD
    right = tokens(world, "so", "2", "then", "4", "so", "1", "<|end|>")
    assert world.succeeds(PROBLEM, right)
    assert world.prompt(PROBLEM, torch.Generator()) == "3 plus 4 times 2 minus 3"
    carried_on = tokens(world, "so", "0", "then", "0", "so", "2", "<|end|>")
    assert not world.succeeds(PROBLEM, carried_on)
    assert not world.succeeds(PROBLEM, right[:-1])
    back_again = tokens(world, "so", "0", "then", "4", "so", "1", "<|end|>")
    assert not world.succeeds(PROBLEM, back_again)


@pytest.mark.parametrize("teacher", TEACHERS)
def test_the_teacher_follows_the_value_that_was_written(teacher):
    world = ChainWorld(teacher=teacher, seed=5)
    process = world.process(PROBLEM)
    states = trace(process, tokens(world, "so", "0", "now", "3", "next", "1", "<|end|>"))
    for step, before in enumerate((3, 0, 3)):
        operation, operand = PROBLEM.operations[step], PROBLEM.operands[step] - 1
        wording, value = (process.log_probs(state).exp() for state in states[2 * step : 2 * step + 2])
        last = (0, 1, 5)[step]
        written = wording[world.first_wording : world.first_wording + 6]
        torch.testing.assert_close(written, world.wording_probs[operation, operand, before, last])
        torch.testing.assert_close(
            value[world.first_value : world.first_value + 5], world.value_probs[operation, operand, before]
        )
        assert wording.sum().item() == pytest.approx(1)
        assert value.sum().item() == pytest.approx(1)
    assert [role(process, state) for state in states] == [Role.GARDEN, Role.BRIDGE] * 3 + [Role.FORCED]


def test_teachers_are_wrong_in_the_way_that_they_say():
    """By hand, at every value of every operation."""
    wrong = 0
    for teacher in TEACHERS:
        world = ChainWorld(teacher=teacher, seed=2)
        for place, apply in enumerate(OPERATIONS.values()):
            for operand in range(1, 5):
                for value in range(5):
                    right = apply(value, operand) % 5
                    row = world.value_probs[place, operand - 1, value].tolist()
                    shifted = [row[(right + step) % 5] for step in range(5)]
                    match teacher:
                        case "perfect":
                            assert shifted == [1, 0, 0, 0, 0]
                        case "unsure":
                            assert shifted == pytest.approx([0.6, 0.3, 0, 0, 0.1])
                        case "slips":
                            assert shifted == pytest.approx([0.7] + [0.075] * 4)
                        case _:
                            usual, there = [0.9] + [0.025] * 4, [0.4, 0.1 / 3, 0.5, 0.1 / 3, 0.1 / 3]
                            is_wrong = shifted == pytest.approx(there)
                            assert is_wrong or shifted == pytest.approx(usual)
                            wrong += is_wrong
    assert 5 < wrong < 27  # of 60 cases, a quarter on average


def test_wordings_depend_on_everything_that_they_are_said_to_depend_on():
    probs = WORLD.wording_probs
    assert probs.shape == (3, 4, 5, 7, 6)
    for axis in range(4):
        first, second = probs.index_select(axis, torch.tensor([0])), probs.index_select(axis, torch.tensor([1]))
        assert (first - second).abs().amax(-1).min() > 1e-3
    assert not torch.equal(probs, ChainWorld(teacher="unsure", seed=6).wording_probs)
    assert torch.equal(probs, ChainWorld(teacher="slips", seed=5).wording_probs)


def test_splits_share_no_problem_and_sizes_are_checked():
    world = ChainWorld(steps=2)
    splits = [set(world.problems(50, 0, split=split)) for split in ("train", "validation", "test")]
    assert len(set.union(*splits)) == 150
    with pytest.raises(ConfigError, match="chain: asked for 5000 test problems, but 5 values and 3 steps give"):
        ChainWorld().problems(5000, 0, split="test")
    with pytest.raises(ConfigError, match="does not fit"):
        world.process(PROBLEM)
    with pytest.raises(ConfigError, match=r"chain.modulus must be a whole number from 3 to 10, got 2"):
        ChainWorld(modulus=2)
    with pytest.raises(ConfigError, match=r"chain.teacher: unknown name 'bad'"):
        ChainWorld(teacher="bad")
