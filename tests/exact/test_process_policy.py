"""A world followed token by token says what the world says."""

import pytest
import torch

from bridgegarden.errors import DataError
from bridgegarden.exact.process import sample
from bridgegarden.exact.process_policy import ProcessPolicy, TablePolicy
from bridgegarden.exact.tasks.arithmetic import END, LOST, ArithmeticWorld, make_problems
from bridgegarden.policy import Decoding, Policy

WORLD = ArithmeticWorld(modulus=5, steps=1, wordings=3)
PROCESS = WORLD.process(make_problems(1, seed=0, world=WORLD)[0])
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
