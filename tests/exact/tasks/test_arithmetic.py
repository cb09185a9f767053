"""The arithmetic world: what is written, what is right, what is hidden (nothing), and what belongs to which split."""

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bridgegarden.errors import ConfigError
from bridgegarden.exact.process import Process, Role, role, sample, trace
from bridgegarden.exact.tasks import arithmetic as words
from bridgegarden.exact.tasks.arithmetic import ArithmeticWorld, Operation, Problem, check_answer
from bridgegarden.exact.world import END, LOST, split_of
from tests.exact.walk import reachable_states, success_rate

WORLD = ArithmeticWorld()
PROBLEM = Problem(modulus=7, start=3, operations=(Operation("plus", 6), Operation("times", 4), Operation("minus", 2)))


def answer(world, problem, generator):
    return world.decode(sample(world.process(problem), generator))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def entropy(log_probs):
    p = log_probs.exp()
    return -torch.where(p > 0, p * log_probs, 0.0).sum().item()


def test_the_result_is_ordinary_arithmetic_reduced():
    assert PROBLEM.result == ((3 + 6) * 4 - 2) % 7


def test_the_process_of_a_problem_is_a_process():
    assert isinstance(WORLD.process(PROBLEM), Process)


@pytest.mark.parametrize("world", [WORLD, ArithmeticWorld(modulus=3, steps=1, wordings=1, slip_rate=0.0)])
def test_every_state_has_a_distribution_over_its_continuations(world):
    process = world.process(world.problems(1, 0)[0])
    for state in [*reachable_states(process), LOST]:
        logp = process.log_probs(state)
        assert logp.shape == (process.vocab_size,)
        assert logp.dtype == torch.float64
        assert logp.exp().sum().item() == pytest.approx(1.0, abs=1e-12)
        assert set(logp.exp().nonzero()[:, 0].tolist()) <= set(process.continuations(state))


def test_the_likeliest_answer_is_right_for_every_problem():
    for problem in ArithmeticWorld().problems(300, 0, split="test"):
        process = WORLD.process(problem)
        state, tokens = process.initial, []
        while not process.is_terminal(state):
            tokens.append(int(process.log_probs(state).argmax()))
            state = process.step(state, tokens[-1])
        assert len(tokens) <= process.horizon
        assert check_answer(problem, WORLD.decode(tokens))


def test_sampled_answers_are_right_as_often_as_the_slips_allow():
    # Five running values must come out unslipped; two slips that cancel are rarer than the interval is wide.
    problems = ArithmeticWorld().problems(1000, 0)
    generator = seeded()
    right = sum(check_answer(problem, answer(WORLD, problem, generator)) for problem in problems) / len(problems)
    assert abs(right - 0.9**5) < 4 * math.sqrt(0.9**5 * (1 - 0.9**5) / len(problems))


def test_without_slips_every_answer_is_right():
    world = ArithmeticWorld(slip_rate=0.0)
    generator = seeded()
    assert all(check_answer(problem, answer(world, problem, generator)) for problem in world.problems(100, 0))


def test_after_a_slip_the_narration_goes_on_from_the_wrong_value():
    process = WORLD.process(PROBLEM)
    state = process.initial
    for word in WORLD.encode("We begin at 5. Then plus 6 gives"):
        state = process.step(state, word)
    logp = process.log_probs(state)
    assert WORLD.vocabulary[int(logp.argmax())] == str((5 + 6) % 7)
    assert logp.max().exp().item() == pytest.approx(0.9)
    others = logp.exp()[list(WORLD.value_ids)].sort().values[:-1]
    assert others.tolist() == pytest.approx([0.1 / 6] * 6)


def test_values_and_operators_are_bridges_and_wordings_are_not():
    generator = seeded()
    for problem in ArithmeticWorld().problems(50, 0):
        process = WORLD.process(problem)
        tokens = sample(process, generator)
        for token, state in zip(tokens, trace(process, tokens), strict=True):
            exact = WORLD.vocabulary[token].isdigit() or WORLD.vocabulary[token] in words.OPERATORS
            assert (role(process, state) == Role.BRIDGE) == exact
            if role(process, state) == Role.GARDEN:
                assert entropy(process.log_probs(state)) > 0
            if role(process, state) == Role.FORCED:
                assert entropy(process.log_probs(state)) == 0


def test_an_answer_leaves_several_nats_to_its_wording():
    process = WORLD.process(PROBLEM)
    tokens = sample(process, seeded())
    spread = {Role.BRIDGE: 0.0, Role.GARDEN: 0.0, Role.FORCED: 0.0}
    for state in trace(process, tokens):
        spread[role(process, state)] += entropy(process.log_probs(state))
    assert spread[Role.GARDEN] > 10
    assert spread[Role.BRIDGE] < 3


def test_nothing_is_hidden_the_problem_can_be_read_off_its_prompt():
    generator = seeded()
    for problem in ArithmeticWorld().problems(200, 1):
        prompt = WORLD.prompt(problem, generator)
        steps = re.findall(rf"({'|'.join(words.OPERATORS)}) (\d+)", prompt)
        start = re.search(r"\d+", prompt)
        modulus = re.search(r"modulo (\d+)\?", prompt)
        assert start is not None
        assert modulus is not None
        assert problem == Problem(
            modulus=int(modulus[1]),
            start=int(start[0]),
            operations=tuple(Operation(operator, int(operand)) for operator, operand in steps),
        )


def test_prompts_and_answers_are_worded_in_many_ways():
    generator = seeded()
    assert len({WORLD.prompt(PROBLEM, generator) for _ in range(200)}) > 100
    assert len({answer(WORLD, PROBLEM, generator) for _ in range(200)}) > 190


def test_text_survives_the_round_trip_through_ids():
    generator = seeded()
    for problem in ArithmeticWorld().problems(100, 2):
        for text in (WORLD.prompt(problem, generator), answer(WORLD, problem, generator)):
            assert WORLD.decode(WORLD.encode(text)) == text


@given(st.lists(st.integers(0, len(WORLD.vocabulary) - 1), max_size=60))
def test_any_tokens_can_be_replayed_and_nonsense_is_lost_until_the_end_token(tokens):
    process = WORLD.process(PROBLEM)
    state = process.initial
    for token in tokens:
        before, state = state, process.step(state, token)
        if before == LOST:
            assert process.is_terminal(state) if token == END else state == LOST
    assert process.log_probs(LOST)[END].item() == 0.0


def test_splits_share_no_problem_whatever_the_seeds():
    splits = {
        split: ArithmeticWorld().problems(600, seed, split=split)
        for seed, split in enumerate(("train", "validation", "test"))
    }
    for split, problems in splits.items():
        assert len(set(problems)) == 600
        assert {split_of(problem) for problem in problems} == {split}
    assert not set(splits["train"]) & set(ArithmeticWorld().problems(600, 0, split="test"))


def test_problems_depend_on_the_seed_alone():
    assert ArithmeticWorld().problems(50, 3) == ArithmeticWorld().problems(50, 3)
    assert ArithmeticWorld().problems(50, 3) != ArithmeticWorld().problems(50, 4)


def test_more_problems_than_there_are_is_refused():
    tiny = ArithmeticWorld(modulus=3, steps=1)
    with pytest.raises(ConfigError, match=r"asked for 100 test problems.*modulus 3 and 1 steps"):
        tiny.problems(100, 0, split="test")


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("Then minus 2 gives 6. The answer is 6.", True),
        ("We begin at 3. Our number becomes 6!", True),
        ("The answer is 5. So we have 6.", True),
        ("The answer is 6. So we have 5.", False),
        ("Then minus 2 gives 6.", False),
        ("The answer is 66.", False),
        ("The answer is", False),
        ("", False),
    ],
)
def test_the_last_stated_answer_decides(text, right):
    assert PROBLEM.result == 6
    assert check_answer(PROBLEM, text) is right


@pytest.mark.parametrize(
    "setting", [{"modulus": 2}, {"steps": 0}, {"wordings": 9}, {"slip_rate": 1.0}, {"slip_rate": math.nan}]
)
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ConfigError, match=f"arithmetic.{next(iter(setting))} must be"):
        ArithmeticWorld(**setting)


def test_a_problem_of_another_world_is_refused():
    with pytest.raises(ConfigError, match="modulus 7 and 3 steps, the world 7 and 2"):
        ArithmeticWorld(steps=2).process(PROBLEM)


@pytest.mark.parametrize("wordings", [1, 2, 8])
def test_the_number_of_wordings_bounds_every_garden(wordings):
    world = ArithmeticWorld(wordings=wordings)
    for slot in world.slots:
        if slot.tree is not None:
            assert sum(child == -1 for node in slot.tree.children for child in node.values()) <= wordings


@pytest.mark.parametrize(
    "table", [words.START, words.OPENING, words.LINKING, words.CLOSING, words.ANSWER, words.PROMPT_QUESTION]
)
def test_weights_of_a_table_add_up_and_fall(table):
    weights = list(table.values())
    assert sum(weights) == pytest.approx(1.0)
    assert weights == sorted(weights, reverse=True)


def test_without_restating_an_answer_gives_results_alone_worked_out_from_the_problem():
    world = ArithmeticWorld(restate=False, closings=1)
    process = world.process(PROBLEM)
    state = process.initial
    for token in world.encode("Then 2. Next 5."):
        state = process.step(state, token)
    state = process.step(state, world.ids["Now"])
    logp = process.log_probs(state)
    assert world.vocabulary[int(logp.argmax())] == str((5 - 2) % 7)
    bridges = [role(process, at) for at in trace(process, sample(process, seeded()))].count(Role.BRIDGE)
    assert bridges == world.steps + 1
    assert not {"gives", "We", "begin"} <= set(world.vocabulary)


def test_one_result_and_its_repetition_are_right_unless_one_slip_mends_the_other():
    world = ArithmeticWorld(modulus=5, steps=1, restate=False, wordings=1)
    # Right twice, or a wrong result and then, among four wrong repetitions of it, the right answer by accident.
    expected = 0.9**2 + 0.1 * 0.1 / 4
    for problem in world.problems(5, 0):
        assert success_rate(world, problem) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("closings", [1, 2, 3])
def test_closings_bound_the_ways_to_end_a_sentence(closings):
    world = ArithmeticWorld(closings=closings, wordings=4)
    process = world.process(PROBLEM)
    state = process.initial
    for token in world.encode("We begin at 3"):
        state = process.step(state, token)
    assert set(process.continuations(state)) == {world.ids[mark] for mark in list(words.CLOSING)[:closings]}
