"""Losses, exposure bias and its attribution against texts written out one by one."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bridgegarden import exact
from bridgegarden.errors import NonFiniteError
from bridgegarden.exact import TabularProcess
from bridgegarden.objective.divergences import jensen_shannon, reverse_kl, total_variation
from tests.exact.enumeration import loss_of, prefixes, random_process, random_rows, texts, total_loss, writer_of
from tests.exact.test_kappa import CLOSE, larger_worlds, small_worlds


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
