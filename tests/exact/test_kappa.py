"""Q and kappa against texts written out one by one."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bridgegarden import exact
from bridgegarden.exact import TablePolicy, TabularProcess
from tests.exact.enumeration import (
    loss_of,
    override,
    prefixes,
    random_process,
    texts,
    total_loss,
    writer_of,
)

CLOSE = {"abs": 1e-10, "rel": 1e-10}

small_worlds = st.builds(
    random_process,
    seed=st.integers(0, 2**32 - 1),
    states=st.integers(2, 6),
    tokens=st.integers(2, 3),
    horizon=st.integers(1, 4),
    acyclic=st.booleans(),
)
larger_worlds = st.builds(
    random_process,
    seed=st.integers(0, 2**32 - 1),
    states=st.integers(2, 12),
    tokens=st.integers(2, 5),
    horizon=st.integers(1, 12),
    acyclic=st.booleans(),
)


@given(small_worlds)
def test_q_of_every_token_after_every_prefix_is_what_written_out_texts_lose(world):
    process, student = world
    solution = exact.solve(process, student)
    loss, teacher = loss_of(process, student), writer_of(process, process.table)
    for prefix in prefixes(process):
        node = solution.node_of(prefix)
        for token in range(process.vocab_size):
            after = (*prefix, token)
            assert solution.q[node, token].item() == pytest.approx(
                total_loss(process, teacher, loss, after, since=len(after)), **CLOSE
            )


@given(small_worlds, st.data())
def test_taking_one_token_once_costs_kappa_times_the_chance_of_being_there(world, data):
    process, student = world
    solution = exact.solve(process, student)
    loss, teacher = loss_of(process, student), writer_of(process, process.table)
    as_taught = total_loss(process, teacher, loss)
    prefix = data.draw(st.sampled_from(prefixes(process)))
    chance = sum(prob for text, prob in texts(process, teacher) if text[: len(prefix)] == prefix)
    for token in range(process.vocab_size):
        overridden = total_loss(process, override(process, prefix, token), loss)
        kappa = solution.kappa[solution.node_of(prefix), token].item()
        assert overridden - as_taught == pytest.approx(chance * kappa, **CLOSE)


@given(larger_worlds)
def test_kappa_has_mean_zero_under_the_teacher(world):
    solution = exact.solve(*world)
    teacher = solution.unrolled.teacher[solution.nodes.row]
    assert (teacher * solution.kappa).sum(-1).abs().max() < 1e-10


@given(small_worlds)
def test_merging_positions_and_texts_changes_no_kappa(world):
    process, student = world
    merged = exact.solve(process, student)
    by_prefix = exact.solve(process, TablePolicy(process, student))
    assert len(merged) <= len(by_prefix) == len(prefixes(process))
    for node in range(len(by_prefix)):
        other = merged.node_of(by_prefix.prefix(node))
        assert torch.allclose(by_prefix.kappa[node], merged.kappa[other], atol=1e-10)


def test_a_world_whose_longest_text_fits_has_one_node_per_state():
    process, student = random_process(3, 40, 4, 40, acyclic=True)
    solution = exact.solve(process, student)
    states = [solution.state(node) for node in range(len(solution))]
    assert len(set(states)) == len(states)
    # Several positions come to one of them, so there was something to merge.
    assert len(solution.nodes.visit_node) > 1.5 * len(states)


def test_a_horizon_that_cuts_texts_gives_a_state_several_nodes():
    half = torch.tensor([[0.5, 0.5], [0.5, 0.5]], dtype=torch.float64).log()
    process = TabularProcess(half, torch.tensor([[0, 1], [1, 1]]), torch.tensor([False, True]), horizon=3)
    solution = exact.solve(process, torch.tensor([[0.25, 0.75], [0.5, 0.5]], dtype=torch.float64).log())
    loss = -0.5 * torch.tensor(0.25 * 0.75 * 4, dtype=torch.float64).log().item()
    assert len(solution) == 3
    assert solution.loss.tolist() == pytest.approx([loss] * 3)
    # With 3, 2 and 1 tokens left: going on costs what is still to come.
    assert solution.q.tolist() == [pytest.approx([1.5 * loss, 0]), pytest.approx([loss, 0]), [0, 0]]


def test_an_infinite_loss_where_the_teacher_never_comes_is_the_cost_of_going_there_alone():
    only_first = torch.tensor([[0.0, -torch.inf]], dtype=torch.float64).expand(5, 2)
    following = torch.tensor([[1, 1], [2, 3], [4, 4], [4, 4], [4, 4]])
    process = TabularProcess(only_first, following, torch.arange(5) == 4, horizon=4)
    student = torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.5, 0.5], [0.0, 1.0], [0.5, 0.5]], dtype=torch.float64).log()
    solution = exact.solve(process, student)
    assert solution.teacher_loss == pytest.approx(math.log(2) + math.log(4) + math.log(2))
    assert solution.exposure_bias == math.inf
    assert solution.q[solution.node_of(())].tolist() == pytest.approx([math.log(8)] * 2)
    assert solution.kappa[solution.node_of((0,))].tolist() == [0.0, math.inf]


def test_a_state_near_the_horizon_is_split_only_where_a_token_of_it_is_cut():
    # Off-script tokens lead to a state that ends at once: only where no token is left for that does Q differ.
    certain = torch.eye(3, dtype=torch.float64).log()
    following = torch.tensor([[1, 3, 3], [3, 2, 3], [2, 2, 2], [3, 3, 2]])
    terminal = torch.tensor([False, False, True, False])
    process = TabularProcess(certain[[0, 1, 0, 2]], following, terminal, horizon=2)
    student = torch.full((4, 3), 1 / 3, dtype=torch.float64).log()
    solution = exact.solve(process, student)
    at = {tokens: solution.q[solution.node_of(tokens)].tolist() for tokens in ((), (0,), (1,))}
    third = -student[0, 0].item()
    assert at[()] == pytest.approx([third] * 3)
    assert at[0,] == at[1,] == [0, 0, 0]


@pytest.mark.parametrize(
    ("actions", "tokens"), [("continuations", [0, 1]), ("teacher_support", [0]), ("all", [0, 1, 2])]
)
def test_state_kappa_sums_over_the_named_tokens(actions, tokens):
    process, student = random_process(5, 6, 3, 5)
    table = process.table.clone()
    table[0] = torch.tensor([0.0, -torch.inf, -torch.inf], dtype=torch.float64)
    on_script = torch.tensor([[True, True, False]]).expand(6, 3)
    process = TabularProcess(table, process.following, process.terminal, horizon=5, continuations=on_script)
    solution = exact.solve(process, student, actions=actions)
    start = solution.node_of(())
    assert solution.state_kappa[start].item() == pytest.approx(solution.kappa[start, tokens].sum().item(), **CLOSE)
