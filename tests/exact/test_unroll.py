"""Which rows a text can be at, and what they are called."""

import pytest
import torch
from hypothesis import given

from bridgegarden import exact
from bridgegarden.exact import TablePolicy
from bridgegarden.exact.unroll import reachable_layers
from tests.exact.enumeration import prefixes, random_process, state_after
from tests.exact.test_kappa import small_worlds


@given(small_worlds)
def test_layers_hold_the_states_of_all_prefixes_of_their_length(world):
    process, _ = world
    layers = reachable_layers(process.following, process.terminal, process.initial, process.horizon)
    by_length = {}
    for prefix in prefixes(process):
        by_length.setdefault(len(prefix), set()).add(state_after(process, prefix))
    assert [set(layer.tolist()) for layer in layers] == [by_length[length] for length in sorted(by_length)]


def test_a_row_is_called_by_its_state_and_a_prefix_by_its_tokens():
    process, student = random_process(8, 5, 3, 5)
    assert exact.solve(process, student).unrolled.name(0) == "state 0"
    by_prefix = exact.solve(process, TablePolicy(process, student))
    row = int(by_prefix.nodes.row[by_prefix.node_of((0, 1))])
    assert by_prefix.unrolled.prefix(row) == (0, 1)
    assert by_prefix.unrolled.name(row) == f"prefix [0, 1] (state {state_after(process, (0, 1))})"


def test_entropies_and_losses_of_rows_are_those_of_their_distributions():
    process, student = random_process(2, 7, 4, 6)
    unrolled = exact.solve(process, student).unrolled
    for row in torch.cat(unrolled.layers).unique().tolist():
        for logp, entropy in (
            (process.table[row], unrolled.teacher_entropy[row]),
            (student[row], unrolled.student_entropy[row]),
        ):
            wanted = -sum(x.exp() * x for x in logp if x > -torch.inf)
            assert entropy.item() == pytest.approx(wanted.item())
