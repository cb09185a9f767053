"""Processes as arrays, and what rows must be."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bridgegarden.errors import ConfigError, DataError
from bridgegarden.exact import Process, TabularProcess
from bridgegarden.exact.process import EndsOffScript, role
from bridgegarden.exact.tabular import chunks, expectation, normalised, tabulate
from bridgegarden.exact.tasks.arithmetic import ArithmeticWorld
from tests.exact.walk import reachable_states

WORLD = ArithmeticWorld(modulus=5, steps=1, wordings=3)
PROCESS = WORLD.process(WORLD.problems(1, seed=0)[0])


def arrays(**changed):
    half = torch.full((3, 2), 0.5).log()
    given = {"log_probs": half, "following": torch.tensor([[1, 2], [2, 2], [0, 0]]), "horizon": 2}
    return TabularProcess(**{**given, "terminal": torch.tensor([False, False, True]), **changed})


def test_it_is_a_process():
    assert isinstance(arrays(), Process)


@pytest.mark.parametrize("process", [PROCESS, EndsOffScript(PROCESS)], ids=["wandering on", "ending off script"])
def test_a_world_written_in_python_keeps_its_states_rows_and_steps(process):
    world = tabulate(process, max_states=1000)
    index = {state: row for row, state in enumerate(world.states)}
    assert set(reachable_states(process)) <= set(index)
    assert world.states[world.process.initial] == process.initial
    for state, row in index.items():
        assert world.process.is_terminal(row) == process.is_terminal(state)
        if process.is_terminal(state):
            continue
        assert torch.allclose(world.process.log_probs(row), process.log_probs(state))
        assert sorted(world.process.continuations(row)) == sorted(process.continuations(state))
        for token in range(process.vocab_size):
            assert world.process.step(row, token) == index[process.step(state, token)]


def test_roles_of_many_states_are_those_of_each():
    world = tabulate(PROCESS, max_states=1000)
    going_on = (~world.process.terminal).nonzero().squeeze(-1)
    assert world.process.roles(going_on) == [role(PROCESS, world.states[row]) for row in going_on.tolist()]


@given(st.integers(0, 2**32 - 1))
def test_roles_of_many_states_are_those_of_each_in_random_worlds(seed):
    generator = torch.Generator().manual_seed(seed)
    process = arrays(
        following=torch.randint(0, 3, (3, 2), generator=generator),
        continuations=torch.rand(3, 2, generator=generator) < 0.6,
        meanings=torch.randint(0, 2, (3,), generator=generator),
    )
    assert process.roles(torch.arange(3)) == [role(process, state) for state in range(3)]


def test_states_beyond_the_horizon_are_not_asked_about():
    class Endless:
        vocab_size, horizon, initial = 1, 4, 0

        def log_probs(self, state):
            assert state < 4
            return torch.zeros(1, dtype=torch.float64)

        def step(self, state, token):
            return state + 1

        def is_terminal(self, state):
            return False

        def continuations(self, state):
            return (0,)

        def meaning(self, state):
            return None

    assert tabulate(Endless(), max_states=10).states == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"log_probs": torch.zeros(3)}, r"log_probs: expected shape \(states, tokens\), got \(3,\)"),
        ({"following": torch.zeros(2, 2)}, r"following: expected shape \(3, 2\), got \(2, 2\)"),
        ({"terminal": torch.zeros(2)}, r"terminal: expected shape \(3,\), got \(2,\)"),
        ({"meanings": torch.zeros(2)}, r"meanings: expected shape \(3,\)"),
        ({"continuations": torch.zeros(3, 3)}, r"continuations: expected shape \(3, 2\)"),
        ({"following": torch.full((3, 2), 3)}, "must name states from 0 to 2"),
        ({"initial": 3}, "must name states from 0 to 2"),
        ({"horizon": 0}, "horizon must be >= 1, got 0"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changed, message):
    with pytest.raises(ConfigError, match=message):
        arrays(**changed)


def test_a_row_that_is_no_distribution_is_refused_unless_its_state_ends_the_text():
    rows = torch.full((3, 2), 0.5).log()
    rows[2] = torch.nan
    assert arrays(log_probs=rows).log_probs(1).exp().tolist() == pytest.approx([0.5, 0.5])
    rows[1] = 0.0
    with pytest.raises(DataError, match="process, state 1: the next-token distribution sums to 2; expected"):
        arrays(log_probs=rows)


def test_a_row_of_the_wrong_width_is_refused_by_the_name_of_its_state():
    class Narrow:
        vocab_size, horizon, initial = 2, 1, "start"
        log_probs = staticmethod(lambda state: torch.zeros(1))
        step = staticmethod(lambda state, token: "end")
        is_terminal = staticmethod(lambda state: state == "end")
        continuations = staticmethod(lambda state: (0,))
        meaning = staticmethod(lambda state: state)

    with pytest.raises(ConfigError, match=r"process, state 'start': log_probs has shape \(1,\), expected \(2,\)"):
        tabulate(Narrow(), max_states=10)


def name(row):
    return f"row {row}"


def test_float32_rows_sum_to_one_in_float64_afterwards():
    rows = torch.randn(5, 1000, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    assert (rows.double().exp().sum(-1) - 1).abs().max() > 1e-9
    got = normalised(rows, name)
    assert got.dtype == torch.float64
    assert (got.exp().sum(-1) - 1).abs().max() < 1e-14
    assert torch.allclose(got, rows.double(), atol=1e-5)


def test_no_mass_stays_no_mass_and_certainty_stays_certain():
    rows = torch.tensor([[0.0, -math.inf, -math.inf]])
    assert normalised(rows, name).tolist() == [[0.0, -math.inf, -math.inf]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([0.0, 0.0], "row 1: the next-token distribution sums to 2; expected"),
        ([-math.inf, -math.inf], "row 1: the next-token distribution sums to 0; expected"),
        ([math.nan, 0.0], "row 1: the next-token distribution contains NaN; expected"),
        ([math.inf, 0.0], "row 1: the next-token distribution sums to inf; expected"),
    ],
)
def test_a_row_that_does_not_sum_to_one_is_refused(row, message):
    with pytest.raises(DataError, match=message):
        normalised(torch.tensor([[math.log(0.5)] * 2, row]), name)


def test_a_float64_row_is_held_to_more_digits():
    row = torch.tensor([[math.log(0.5), math.log(0.5) + 1e-6]], dtype=torch.float64)
    with pytest.raises(DataError, match="sums to 1"):
        normalised(row, name)
    assert normalised(row.float(), name).exp().sum().item() == pytest.approx(1, abs=1e-15)


def test_an_infinite_value_counts_only_where_there_is_mass():
    prob = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    values = torch.tensor([[1.0, math.inf, math.inf], [2.0, math.inf, math.inf]], dtype=torch.float64)
    assert expectation(prob, values, finite=False).tolist() == [math.inf, 2.0]
    assert expectation(prob, torch.ones(2, 3).double(), finite=True).tolist() == [1.0, 1.0]


def test_pieces_are_bounded_and_lose_nothing():
    rows = torch.arange(1000)
    pieces = list(chunks(rows, 10_000))
    assert torch.equal(torch.cat(pieces), rows)
    assert max(map(len, pieces)) * 10_000 <= 1 << 18
    assert [len(piece) for piece in chunks(rows[:3], 10**9)] == [1, 1, 1]
