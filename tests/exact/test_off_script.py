"""Ending a text where it leaves the script: what is changed, and what is not."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bridgegarden.exact.off_script import EndsOffScript, OffScript
from bridgegarden.exact.process import Process, count_prefixes, prefixes_by_length, reachable_states, role, sample
from bridgegarden.exact.tasks.arithmetic import ArithmeticWorld
from bridgegarden.exact.vocabulary import END
from bridgegarden.exact.world import WORLDS

WORLD = ArithmeticWorld(modulus=3, steps=1, wordings=2, closings=1, restate=False)
PLAIN = WORLD.process(WORLD.problems(1, 0)[0])
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
