"""What a solution says of roles, of success, and of a text's place; its sums are tested in test_exposure_bias.py."""

import pytest
import torch

from bridgegarden import exact
from bridgegarden.errors import DataError
from bridgegarden.exact import Role
from bridgegarden.exact.off_script import OffScript
from tests.exact.enumeration import random_process
from tests.exact.test_solver import PROCESS, smoothed


def test_every_shipped_kind_of_position_is_told_by_its_role():
    solution = exact.solve(PROCESS, smoothed)
    by_state = {solution.state(node): role for node, role in enumerate(solution.roles)}
    assert by_state[PROCESS.initial] == Role.GARDEN
    assert set(by_state.values()) == set(Role)
    shares = solution.by_role
    assert sum(share.nodes for share in shares.values()) == len(solution)
    assert sum(share.student_visits for share in shares.values()) == pytest.approx(solution.student_length)
    # All wordings of this world are equally long, so nothing depends on which one is chosen.
    gardens = torch.tensor([role == Role.GARDEN for role in solution.roles])
    assert solution.state_kappa[gardens].abs().max() < 1e-10
    assert solution.state_kappa[~gardens].abs().max() > 0.01


def test_success_is_the_callers_question():
    right = PROCESS.process.problem.result
    solution = exact.solve(PROCESS, smoothed)

    def succeeds(state):
        return PROCESS.is_terminal(state) and state is not OffScript.ENDED and state.memory.value == right

    assert 0 < solution.student_probability(succeeds) < solution.teacher_probability(succeeds) < 1


def test_a_text_is_followed_to_its_node_until_it_is_over():
    process, student = random_process(3, 40, 4, 40, acyclic=True)
    solution = exact.solve(process, student)
    assert solution.state(solution.node_of(())) == 0
    assert solution.prefix(solution.node_of(())) is None
    with pytest.raises(DataError, match=r"the text is over after token \d+ .* Give fewer tokens"):
        solution.node_of([0] * 40)


def test_rows_of_a_few_nodes_are_those_of_the_whole_table():
    process, student = random_process(4, 12, 5, 9)
    solution = exact.solve(process, student)
    some = torch.randperm(len(solution), generator=torch.Generator().manual_seed(0))[:7]
    assert torch.equal(solution.q_at(some), solution.q[some])
    assert torch.equal(solution.kappa_at(some), solution.kappa[some])
    assert torch.allclose(solution.q_bar[some], (solution.q[some] - solution.kappa[some])[:, 0], atol=1e-12)
