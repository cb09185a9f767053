"""Q, kappa, visitation and exposure bias against texts written out one by one."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bridgegarden import exact
from bridgegarden.errors import NonFiniteError
from bridgegarden.exact import TablePolicy, TabularProcess
from bridgegarden.objective.divergences import jensen_shannon, reverse_kl, total_variation
from tests.exact.enumeration import (
    loss_of,
    override,
    prefixes,
    random_process,
    random_rows,
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


@given(small_worlds)
def test_both_losses_are_those_of_texts_written_out(world):
    process, student = world
    solution = exact.solve(process, student)
    loss = loss_of(process, student)
    for writer, got, length in (
        (writer_of(process, process.table), solution.teacher_loss, solution.teacher_length),
        (writer_of(process, student), solution.student_loss, solution.student_length),
    ):
        assert got == pytest.approx(total_loss(process, writer, loss), **CLOSE)
        assert length == pytest.approx(sum(prob * len(text) for text, prob in texts(process, writer)), **CLOSE)
    assert solution.student_loss_per_token == pytest.approx(solution.student_loss / solution.student_length)
    assert solution.exposure_bias == pytest.approx(solution.student_loss - solution.teacher_loss)


@given(larger_worlds)
def test_the_contributions_sum_to_exposure_bias(world):
    solution = exact.solve(*world)
    assert solution.identity_applies
    assert solution.identity_error < 1e-10
    assert solution.contribution.sum().item() == pytest.approx(solution.exposure_bias, **CLOSE)
    by_position, by_role = solution.by_position, solution.by_role
    assert by_position.contribution.sum().item() == pytest.approx(solution.exposure_bias, **CLOSE)
    assert sum(share.contribution for share in by_role.values()) == pytest.approx(solution.exposure_bias, **CLOSE)
    for name in ("teacher_loss", "student_loss"):
        whole = getattr(solution, name)
        assert getattr(by_position, name).sum().item() == pytest.approx(whole, **CLOSE)
        assert sum(getattr(share, name) for share in by_role.values()) == pytest.approx(whole, **CLOSE)


@given(larger_worlds, st.sampled_from([reverse_kl, total_variation, jensen_shannon]))
def test_the_identity_holds_for_other_divergences(world, divergence):
    process, student = world
    # The reverse divergence is infinite where the teacher has no mass and the student has.
    table = process.table if divergence is not reverse_kl else process.table.logaddexp(student) - math.log(2)
    process = TabularProcess(table, process.following, process.terminal, horizon=process.horizon)
    solution = exact.solve(process, student, divergence=divergence)
    start = solution.node_of(())
    assert solution.loss[start].item() == pytest.approx(divergence(process.table[0], student[0]).item())
    assert solution.identity_error < 1e-10


@given(larger_worlds)
def test_a_student_that_is_the_teacher_has_neither_loss_nor_bias(world):
    process, _ = world
    solution = exact.solve(process, process.table)
    assert solution.student_loss == pytest.approx(0, abs=1e-12)
    assert solution.q.abs().max() < 1e-12


@given(small_worlds)
def test_visitation_is_the_frequency_of_a_node_in_the_texts(world):
    process, student = world
    solution = exact.solve(process, student)
    for table, got in ((process.table, solution.teacher_visitation), (student, solution.student_visitation)):
        wanted = torch.zeros(len(solution), dtype=torch.float64)
        node = {prefix: solution.node_of(prefix) for prefix in prefixes(process)}
        for text, prob in texts(process, writer_of(process, table)):
            for length in range(len(text)):
                wanted[node[text[:length]]] += prob
        assert torch.allclose(got, wanted, atol=1e-12)


@given(small_worlds)
def test_entropies_are_those_of_the_texts(world):
    process, student = world
    solution = exact.solve(process, student)
    for table, got in ((process.table, solution.teacher_entropy), (student, solution.student_entropy)):
        chances = [prob for _, prob in texts(process, writer_of(process, table))]
        assert got == pytest.approx(-sum(p * math.log(p) for p in chances), **CLOSE)


@given(small_worlds, st.integers(0, 2**32 - 1))
def test_the_violation_rate_is_the_chance_of_ever_leaving_the_script(world, seed):
    process, student = world
    on_script = torch.rand(process.table.shape, generator=torch.Generator().manual_seed(seed)) < 0.7
    process = TabularProcess(
        process.table, process.following, process.terminal, horizon=process.horizon, continuations=on_script
    )

    def leaves(text):
        states = [process.initial]
        for token in text:
            states.append(process.step(states[-1], token))
        return any(token not in process.continuations(s) for s, token in zip(states, text, strict=False))

    chance = sum(prob for text, prob in texts(process, writer_of(process, student)) if leaves(text))
    assert exact.solve(process, student).violation_rate == pytest.approx(chance, **CLOSE)


@given(small_worlds)
def test_texts_stop_in_each_state_as_often_as_written_out(world):
    process, student = world
    solution = exact.solve(process, student)
    for state in range(len(process.table)):
        chance = 0.0
        for text, prob in texts(process, writer_of(process, student)):
            last = process.initial
            for token in text:
                last = process.step(last, token)
            chance += prob * (last == state)
        assert solution.student_probability(lambda s, state=state: s == state) == pytest.approx(chance, **CLOSE)
    assert solution.teacher_probability(lambda _: True) == pytest.approx(1)


def branching(student_at_left):
    """Left (p = 1/2) goes to a state with two tokens, right ends the text."""
    half = torch.tensor([0.5, 0.5], dtype=torch.float64)
    following = torch.tensor([[1, 2], [2, 2], [2, 2]])
    process = TabularProcess(
        torch.stack([half, half, half]).log(), following, torch.tensor([False, False, True]), horizon=2
    )
    return process, torch.stack([half, torch.tensor(student_at_left).double(), half]).log()


def test_a_loss_that_is_infinite_stays_infinite_and_the_identity_is_not_claimed():
    solution = exact.solve(*branching([1.0, 0.0]))
    assert solution.teacher_loss == solution.student_loss == math.inf
    assert not solution.identity_applies
    assert solution.identity_error is None
    for quantity in ("exposure_bias", "exposure_bias_per_token", "contribution"):
        with pytest.raises(NonFiniteError, match=r"infinity minus infinity: the loss is infinite at state 1 .*bounded"):
            getattr(solution, quantity)
    assert solution.q[solution.node_of(())].tolist() == [math.inf, 0]
    assert solution.kappa[solution.node_of(()), 1].item() == -math.inf


def test_an_infinite_loss_that_only_the_student_meets_makes_its_exposure_bias_infinite():
    certain = torch.tensor([1.0, 0.0], dtype=torch.float64)
    process, student = branching([1.0, 0.0])
    table = torch.stack([1 - certain, process.table[1].exp(), certain]).log()
    process = TabularProcess(table, process.following, process.terminal, horizon=2)
    solution = exact.solve(process, student)
    assert math.isfinite(solution.teacher_loss)
    assert solution.exposure_bias == solution.contribution.sum().item() == math.inf
    assert not solution.identity_applies


def test_zero_mass_on_an_infinite_loss_costs_nothing():
    process, student = branching([1.0, 0.0])
    table = torch.tensor([[-math.inf, 0.0]] * 3, dtype=torch.float64)
    process = TabularProcess(table, process.following, process.terminal, horizon=2)
    solution = exact.solve(process, torch.stack([table[0], student[1], student[2]]))
    assert solution.q_bar[solution.node_of(())].item() == 0
    assert solution.exposure_bias == solution.student_loss == 0
    assert solution.identity_error == 0


def test_a_bounded_divergence_closes_where_the_student_has_zeros():
    process, _ = random_process(11, 8, 4, 9)
    student = random_rows(torch.Generator().manual_seed(1), 8, 4, 0.5)
    assert exact.solve(process, student, divergence=total_variation).identity_error < 1e-10
