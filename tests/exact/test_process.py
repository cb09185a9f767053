"""Roles, sampling and replay on worlds small enough to work out by hand, and processes as policies."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bridgegarden.errors import DataError
from bridgegarden.exact.process import (
    EndsOffScript,
    OffScript,
    Process,
    ProcessPolicy,
    Role,
    TablePolicy,
    count_prefixes,
    prefixes_by_length,
    role,
    sample,
    trace,
)
from bridgegarden.exact.tasks import WORLDS
from bridgegarden.exact.tasks.arithmetic import ArithmeticWorld
from bridgegarden.exact.world import END, LOST
from bridgegarden.policy import Decoding, Policy
from tests.exact.walk import reachable_states

STOP, LEFT, RIGHT, PLEASE, KINDLY = range(5)


class Fork:
    """A polite word, then a turn that decides where one ends, then the end."""

    vocab_size = 5
    horizon = 3
    initial = ("polite", "")

    def log_probs(self, state):
        prob = torch.zeros(5, dtype=torch.float64)
        prob[list(self.continuations(state))] = {
            "polite": torch.tensor([0.25, 0.75]),
            "turn": torch.tensor([0.1, 0.9]),
        }.get(state[0], torch.ones(1)).double()
        return prob.log()

    def step(self, state, token):
        if state[0] == "polite":
            return ("turn", "")
        return ("end", token) if state[0] == "turn" else ("done", state[1])

    def is_terminal(self, state):
        return state[0] == "done"

    def continuations(self, state):
        return {"polite": (PLEASE, KINDLY), "turn": (LEFT, RIGHT)}.get(state[0], (STOP,))

    def meaning(self, state):
        return state[1]


def test_a_plain_class_with_the_methods_is_a_process():
    assert isinstance(Fork(), Process)


def test_roles_follow_from_what_the_tokens_lead_to():
    states = trace(Fork(), [PLEASE, LEFT, STOP])
    assert [role(Fork(), state) for state in states] == [Role.GARDEN, Role.BRIDGE, Role.FORCED]


def test_samples_have_the_frequencies_of_the_process():
    generator = torch.Generator().manual_seed(0)
    n = 2000
    seen = Counter(tuple(sample(Fork(), generator)) for _ in range(n))
    for first, p in ((PLEASE, 0.25), (KINDLY, 0.75)):
        for second, q in ((LEFT, 0.1), (RIGHT, 0.9)):
            stderr = math.sqrt(p * q * (1 - p * q) / n)
            assert abs(seen[first, second, STOP] / n - p * q) < 4 * stderr
    assert sum(seen.values()) == n
    assert len(seen) == 4


def test_a_generator_seeded_alike_draws_the_same_text():
    draws = [[sample(Fork(), generator) for _ in range(5)] for generator in (_seeded(3), _seeded(3))]
    assert draws[0] == draws[1]


def test_reachable_states_are_listed_once_and_include_the_end():
    states = reachable_states(Fork())
    assert len(states) == len(set(states)) == 6
    assert ("done", LEFT) in states


def test_tokens_after_the_end_are_refused():
    with pytest.raises(DataError, match=r"token 3 .*already ended"):
        trace(Fork(), [PLEASE, LEFT, STOP, STOP])


def test_prefixes_are_counted_apart_where_states_are_merged():
    # Both polite words lead to one state: 1 empty prefix, 2 of one token, 4 of two, and the 4 texts that have ended.
    assert prefixes_by_length(Fork()) == [1, 2, 4]
    assert count_prefixes(Fork()) == 7


def _seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_a_token_that_cannot_come_is_not_drawn_by_the_smallest_number(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.zeros(shape, dtype=torch.float64))
    assert sample(Fork(), torch.Generator()) == [PLEASE, LEFT, STOP]


SMALL = ArithmeticWorld(modulus=3, steps=1, wordings=2, closings=1, restate=False)
PLAIN = SMALL.process(SMALL.problems(1, 0)[0])
ENDS = EndsOffScript(PLAIN)


def test_it_is_a_process_with_the_sizes_of_the_one_inside():
    assert isinstance(ENDS, Process)
    assert (ENDS.vocab_size, ENDS.horizon, ENDS.initial) == (PLAIN.vocab_size, PLAIN.horizon, PLAIN.initial)


@pytest.mark.parametrize("name", WORLDS)
def test_on_script_nothing_is_changed(name):
    world = WORLDS[name]()
    plain = world.process(world.problems(1, 0)[0])
    ends = EndsOffScript(plain)
    states = reachable_states(ends)
    assert states == reachable_states(plain)
    assert prefixes_by_length(ends) == prefixes_by_length(plain)
    for state in states:
        assert ends.is_terminal(state) == plain.is_terminal(state)
        assert ends.log_probs(state) is plain.log_probs(state) or torch.equal(
            ends.log_probs(state), plain.log_probs(state)
        )
        assert ends.meaning(state) == plain.meaning(state)
        if not ends.is_terminal(state):
            assert role(ends, state) == role(plain, state)
            assert all(ends.step(state, token) == plain.step(state, token) for token in ends.continuations(state))


def test_every_token_that_is_no_continuation_ends_the_text_at_once():
    for state in reachable_states(ENDS):
        if ENDS.is_terminal(state):
            assert ENDS.step(state, END) == state
            continue
        for token in set(range(ENDS.vocab_size)) - set(ENDS.continuations(state)):
            assert ENDS.step(state, token) is OffScript.ENDED


def test_a_text_off_script_is_over_and_stays_so():
    off = OffScript.ENDED
    assert ENDS.is_terminal(off)
    assert ENDS.step(off, END) is off
    assert list(ENDS.continuations(off)) == []
    assert ENDS.meaning(off) not in {PLAIN.meaning(state) for state in reachable_states(PLAIN)}
    assert ENDS.log_probs(off).exp().sum().item() == pytest.approx(1.0)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, PLAIN.vocab_size - 1), max_size=25))
def test_any_tokens_are_over_by_the_first_that_leaves_the_script(tokens):
    state, on_script = ENDS.initial, True
    for token in tokens:
        if not ENDS.is_terminal(state):
            on_script = token in ENDS.continuations(state)
        state = ENDS.step(state, token)
        assert (state is OffScript.ENDED) == (not on_script)


def test_whatever_a_student_writes_it_is_asked_about_prefixes_of_texts_on_script_only():
    layer, asked = {((), ENDS.initial)}, 0
    while layer:
        asked += len(layer)
        children = {
            ((*tokens, token), ENDS.step(state, token)) for tokens, state in layer for token in range(ENDS.vocab_size)
        }
        layer = {(tokens, state) for tokens, state in children if not ENDS.is_terminal(state)}
    assert asked == count_prefixes(PLAIN)


def test_samples_are_those_of_the_process_inside():
    draws = [[sample(process, torch.Generator().manual_seed(s)) for s in range(20)] for process in (PLAIN, ENDS)]
    assert draws[0] == draws[1]


WORLD = ArithmeticWorld(modulus=5, steps=1, wordings=3)
PROCESS = WORLD.process(WORLD.problems(1, seed=0)[0])
PROMPT = (2, 2, 3)


def texts(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [sample(PROCESS, generator) for _ in range(n)]


def test_it_is_a_policy():
    policy = ProcessPolicy(PROCESS)
    assert isinstance(policy, Policy)
    assert isinstance(policy.start([[]]), Decoding)
    assert isinstance(TablePolicy(PROCESS, PROCESS.log_probs), Policy)


def test_following_a_text_token_by_token_is_reading_it_at_once():
    policy = ProcessPolicy(PROCESS, prompt=PROMPT)
    decoding = policy.start([PROMPT] * 4)
    for position, tokens in enumerate(zip(*texts(4), strict=True)):
        read = policy.start([PROMPT + tuple(text[:position]) for text in texts(4)])
        assert torch.equal(decoding.log_probs(), read.log_probs())
        assert torch.equal(decoding.ended(), read.ended())
        decoding = decoding.extend(torch.arange(4), torch.tensor(tokens))
    assert decoding.ended().all()


def test_each_row_is_the_process_at_the_state_of_its_text():
    (text,) = texts(1)
    prefixes = [text[:3], text[:1], []]
    got = ProcessPolicy(PROCESS).start(prefixes).log_probs()
    for row, prefix in zip(got, prefixes, strict=True):
        state = PROCESS.initial
        for token in prefix:
            state = PROCESS.step(state, token)
        assert torch.equal(row, PROCESS.log_probs(state))


def test_rows_may_be_repeated_and_left_out_and_the_first_decoding_stays_usable():
    (text,) = texts(1)
    before = ProcessPolicy(PROCESS).start([[], text[:1]])
    first = before.log_probs().clone()
    after = before.extend(torch.tensor([1, 1]), torch.tensor([text[1], END]))
    assert after.states == (PROCESS.step(before.states[1], text[1]), LOST)
    assert torch.equal(before.log_probs(), first)
    assert before.extend(torch.tensor([], dtype=torch.long), torch.tensor([], dtype=torch.long)).log_probs().shape == (
        0,
        PROCESS.vocab_size,
    )


def test_a_text_is_over_at_the_horizon_and_stays_over():
    wandering = [0] * PROCESS.horizon
    policy = ProcessPolicy(PROCESS)
    assert policy.start([wandering[:-1], wandering, [*wandering, END]]).ended().tolist() == [False, True, True]


def test_a_table_is_read_by_state():
    uniform = torch.full((PROCESS.vocab_size,), 1 / PROCESS.vocab_size, dtype=torch.float64).log()
    table = {PROCESS.initial: uniform}
    policy = TablePolicy(PROCESS, table)
    assert torch.equal(policy.start([[]]).log_probs()[0], uniform)
    with pytest.raises(DataError, match=r"no row for state State\(slot=0, node=\d.* Give log-probabilities for every"):
        policy.start([texts(1)[0][:1]]).log_probs()


def test_a_tensor_is_a_table_where_states_are_integers():
    class Counting:
        vocab_size, horizon, initial = 2, 3, 0

        def log_probs(self, state):
            return torch.tensor([0.5, 0.5], dtype=torch.float64).log()

        def step(self, state, token):
            return state + token

        def is_terminal(self, state):
            return state == 2

    table = torch.tensor([[0.1, 0.9], [0.3, 0.7]], dtype=torch.float64).log()
    got = TablePolicy(Counting(), table).start([[], [1], [1, 1]])
    assert torch.equal(got.log_probs()[:2], table)
    assert got.ended().tolist() == [False, False, True]


def test_what_cannot_be_read_is_refused():
    with pytest.raises(DataError, match="no prefix to start from"):
        ProcessPolicy(PROCESS).start([])
    with pytest.raises(DataError, match=r"prefix 1: begins with \[3, 2\], expected the prompt \[2, 2, 3\]"):
        ProcessPolicy(PROCESS, prompt=PROMPT).start([PROMPT, [3, 2]])
    with pytest.raises(DataError, match="prefix 0: token id 99 is outside 0 to"):
        ProcessPolicy(PROCESS).start([[99]])
    with pytest.raises(DataError, match="student: got int; expected a policy"):
        TablePolicy(PROCESS, 3)
