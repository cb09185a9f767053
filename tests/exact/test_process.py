"""Roles, sampling and replay on worlds small enough to work out by hand."""

import math
from collections import Counter

import pytest
import torch

from bridgegarden.errors import DataError
from bridgegarden.exact.process import (
    Process,
    Role,
    count_prefixes,
    prefixes_by_length,
    reachable_states,
    role,
    sample,
    trace,
)

END, LEFT, RIGHT, PLEASE, KINDLY = range(5)


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
        return {"polite": (PLEASE, KINDLY), "turn": (LEFT, RIGHT)}.get(state[0], (END,))

    def meaning(self, state):
        return state[1]


def test_a_plain_class_with_the_methods_is_a_process():
    assert isinstance(Fork(), Process)


def test_roles_follow_from_what_the_tokens_lead_to():
    states = trace(Fork(), [PLEASE, LEFT, END])
    assert [role(Fork(), state) for state in states] == [Role.GARDEN, Role.BRIDGE, Role.FORCED]


def test_samples_have_the_frequencies_of_the_process():
    generator = torch.Generator().manual_seed(0)
    n = 2000
    seen = Counter(tuple(sample(Fork(), generator)) for _ in range(n))
    for first, p in ((PLEASE, 0.25), (KINDLY, 0.75)):
        for second, q in ((LEFT, 0.1), (RIGHT, 0.9)):
            stderr = math.sqrt(p * q * (1 - p * q) / n)
            assert abs(seen[first, second, END] / n - p * q) < 4 * stderr
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
        trace(Fork(), [PLEASE, LEFT, END, END])


def test_prefixes_are_counted_apart_where_states_are_merged():
    # Both polite words lead to one state: 1 empty prefix, 2 of one token, 4 of two, and the 4 texts that have ended.
    assert prefixes_by_length(Fork()) == [1, 2, 4]
    assert count_prefixes(Fork()) == 7


def _seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_a_token_that_cannot_come_is_not_drawn_by_the_smallest_number(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.zeros(shape, dtype=torch.float64))
    assert sample(Fork(), torch.Generator()) == [PLEASE, LEFT, END]
