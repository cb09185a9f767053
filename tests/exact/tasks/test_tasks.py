"""What holds in every world, at the size of the lab and at any other."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bridgegarden.errors import ConfigError
from bridgegarden.exact.process import (
    Process,
    Role,
    count_prefixes,
    prefixes_by_length,
    role,
    sample,
    trace,
)
from bridgegarden.exact.tasks import WORLDS
from bridgegarden.exact.tasks.arithmetic import ArithmeticWorld
from bridgegarden.exact.tasks.chain import ChainWorld
from bridgegarden.exact.tasks.control import ControlWorld
from bridgegarden.exact.tasks.dialogue import DialogueWorld
from bridgegarden.exact.tasks.program import ProgramWorld
from bridgegarden.exact.world import ASSISTANT, END, SPECIAL_TOKENS, UNKNOWN, USER, World
from tests.exact.walk import reachable_states, success_rate, texts

TINY = {
    "dialogue": DialogueWorld(people=2, things=2, days=2, wordings=2),
    "arithmetic": ArithmeticWorld(modulus=3, steps=1, wordings=2, closings=1, restate=False),
    "program": ProgramWorld(variables=2, constants=2, wordings=1),
    "control": ControlWorld(sentences=1, wordings=2),
}

ANY_WORLD = st.one_of(
    st.builds(
        DialogueWorld,
        people=st.integers(2, 8),
        things=st.integers(2, 8),
        days=st.integers(2, 7),
        items=st.integers(1, 4),
        wordings=st.integers(1, 4),
        prompt_wordings=st.integers(1, 3),
        slip_rate=st.floats(0, 0.9),
    ),
    st.builds(
        ArithmeticWorld,
        modulus=st.integers(3, 97),
        steps=st.integers(1, 8),
        wordings=st.integers(1, 8),
        closings=st.integers(1, 3),
        prompt_wordings=st.integers(1, 4),
        restate=st.booleans(),
        slip_rate=st.floats(0, 0.9),
    ),
    st.builds(
        ProgramWorld,
        variables=st.integers(2, 6),
        assignments=st.integers(1, 4),
        branches=st.integers(1, 4),
        constants=st.integers(2, 9),
        wordings=st.integers(1, 4),
        prompt_wordings=st.integers(1, 3),
        slip_rate=st.floats(0, 0.9),
    ),
    st.builds(
        ControlWorld,
        people=st.integers(1, 8),
        topics=st.integers(3, 8),
        tones=st.integers(1, 4),
        hours=st.integers(8, 24),
        sentences=st.integers(1, 6),
        wordings=st.integers(1, 4),
        prompt_wordings=st.integers(1, 3),
    ),
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=list(WORLDS))
def world(request):
    return WORLDS[request.param]()


def test_a_world_is_called_what_the_table_calls_it():
    assert {name: make().name for name, make in WORLDS.items()} == {name: name for name in WORLDS}


def test_worlds_and_their_processes_have_what_the_protocols_ask_for(world):
    assert isinstance(world, World)
    assert isinstance(world.process(world.problems(1, 0)[0]), Process)


def test_every_reachable_state_has_a_distribution_over_its_continuations(world):
    for problem in world.problems(2, 0):
        process = world.process(problem)
        for state in reachable_states(process):
            logp = process.log_probs(state)
            assert logp.dtype == torch.float64
            assert logp.shape == (process.vocab_size,) == (len(world.vocabulary),)
            assert logp.exp().sum().item() == pytest.approx(1.0, abs=1e-12)
            allowed = process.continuations(state)
            assert len(set(allowed)) == len(allowed) > 0
            assert set(logp.exp().nonzero()[:, 0].tolist()) <= set(allowed)


def test_a_teacher_that_slips_can_write_everything_that_is_on_script(world):
    process = world.process(world.problems(1, 0)[0])
    copied = set() if world.name != "arithmetic" else {"operator", "operand"}
    assert not copied & {slot.name for slot in process.slots}
    for state in reachable_states(process):
        assert (process.log_probs(state)[list(process.continuations(state))] > -math.inf).all()


def test_only_the_control_has_no_bridge_and_all_have_gardens(world):
    for problem in world.problems(3, 1):
        process = world.process(problem)
        roles = {role(process, state) for state in reachable_states(process) if not process.is_terminal(state)}
        assert Role.GARDEN in roles
        assert (Role.BRIDGE in roles) == (world.name != "control")


def test_a_lab_problem_has_few_enough_prefixes_to_ask_a_student_about_all(world):
    for problem in world.problems(8, 0):
        process = world.process(problem)
        assert 500 <= count_prefixes(process) <= 4000
        assert 10 <= process.horizon <= 25


def test_the_lab_has_hundreds_of_problems_to_learn_from_and_dozens_to_test_on(world):
    found = {
        split: world.problems(n, 0, split=split) for split, n in (("train", 300), ("validation", 40), ("test", 40))
    }
    assert {split: len(set(problems)) for split, problems in found.items()} == {
        "train": 300,
        "validation": 40,
        "test": 40,
    }


@pytest.mark.parametrize("tiny", TINY.values(), ids=TINY)
def test_prefixes_are_counted_as_if_they_were_listed(tiny):
    process = tiny.process(tiny.problems(1, 0)[0])
    written = [tuple(tokens) for tokens, _ in texts(process)]
    listed = {tokens[:length] for tokens in written for length in range(len(tokens))}
    by_length = [sum(len(prefix) == length for prefix in listed) for length in range(process.horizon)]
    assert len(set(written)) == len(written)
    assert prefixes_by_length(process) == by_length
    assert count_prefixes(process) == len(listed)
    assert max(map(len, written)) == process.horizon


@pytest.mark.parametrize("tiny", TINY.values(), ids=TINY)
def test_success_depends_on_what_was_written_only_through_the_last_state(tiny):
    problem = tiny.problems(1, 0)[0]
    written = list(texts(tiny.process(problem)))
    assert math.fsum(prob for _, prob in written) == pytest.approx(1.0, abs=1e-12)
    right = math.fsum(prob for tokens, prob in written if tiny.succeeds(problem, tokens))
    assert success_rate(tiny, problem) == pytest.approx(right, abs=1e-12)


def test_the_horizon_is_the_length_of_the_longest_text(world):
    for problem in world.problems(5, 0):
        process = world.process(problem)
        assert len(prefixes_by_length(process)) == process.horizon


def test_sampled_texts_are_on_script_end_and_succeed_as_often_as_they_should(world):
    generator = seeded()
    problems = world.problems(8, 0)
    expected = [success_rate(world, problem) for problem in problems]
    draws, right = 50, 0
    for problem in problems:
        process = world.process(problem)
        for _ in range(draws):
            tokens = sample(process, generator)
            for token, state in zip(tokens, trace(process, tokens), strict=True):
                assert token in process.continuations(state)
            assert tokens[-1] == END
            right += world.succeeds(problem, tokens)
    stderr = math.sqrt(sum(draws * p * (1 - p) for p in expected)) + 1e-9
    assert abs(right - draws * sum(expected)) < 4 * stderr


def test_without_slips_every_text_succeeds():
    for name, make in WORLDS.items():
        world = make() if name == "control" else make(slip_rate=0.0)
        assert [success_rate(world, problem) for problem in world.problems(4, 0)] == pytest.approx([1.0] * 4, abs=1e-12)


def test_the_likeliest_text_succeeds_and_cut_or_foreign_texts_do_not(world):
    for problem in world.problems(30, 0, split="test"):
        process = world.process(problem)
        tokens, state = [], process.initial
        while not process.is_terminal(state):
            tokens.append(int(process.log_probs(state).argmax()))
            state = process.step(state, tokens[-1])
        assert world.succeeds(problem, tokens)
        assert not world.succeeds(problem, [])
        assert not world.succeeds(problem, tokens[:3])
        assert not world.succeeds(problem, [UNKNOWN] * 5)


def test_what_is_written_for_one_problem_is_wrong_for_most_others(world):
    generator = seeded()
    problems = world.problems(40, 0)
    answers = [sample(world.process(problem), generator) for problem in problems]
    crossed = [world.succeeds(p, a) for p in problems for a, q in zip(answers, problems, strict=True) if p != q]
    assert sum(crossed) / len(crossed) == 1.0 if world.name == "control" else sum(crossed) / len(crossed) < 0.35


def test_no_two_problems_share_a_prompt_and_a_prompt_ends_where_the_answer_starts(world):
    generator = seeded()
    asked = {}
    for problem in [*world.problems(300, 0), *world.problems(300, 1), *world.problems(40, 0, split="test")]:
        prompt = tuple(world.prompt_ids(problem, generator))
        assert asked.setdefault(prompt, problem) == problem
        assert prompt[0] == USER
        assert prompt[-2:] == (END, ASSISTANT)
        assert list(prompt[1:-2]) == world.encode(world.decode(prompt))
        assert UNKNOWN not in prompt


def test_text_survives_the_round_trip_through_ids(world):
    generator = seeded()
    for problem in world.problems(50, 0):
        answer = sample(world.process(problem), generator)
        assert world.encode(world.decode(answer)) == answer[:-1]
        prompt = world.prompt(problem, generator)
        assert world.decode(world.encode(prompt)) == prompt


def test_every_token_of_the_vocabulary_can_occur(world):
    # A word that nothing uses would still be an output of the student, and part of what entropy is divided by.
    generator = seeded()
    used = set()
    for problem in world.problems(300, 0):
        used |= set(world.prompt_ids(problem, generator))
        process = world.process(problem)
        for state in trace(process, sample(process, generator)):
            used |= set(process.continuations(state))
    unused = {world.vocabulary[token] for token in set(range(len(world.vocabulary))) - used}
    assert unused == {SPECIAL_TOKENS[0], SPECIAL_TOKENS[UNKNOWN]}


def test_splits_share_no_problem_whatever_the_seeds(world):
    drawn = {
        split: set(world.problems(40, seed, split=split)) for seed, split in enumerate(("train", "validation", "test"))
    }
    everything = set(world.problems(300, 7))
    assert not drawn["validation"] & everything
    assert not drawn["test"] & everything
    assert not drawn["validation"] & drawn["test"]
    assert world.problems(40, 3) == world.problems(40, 3) != world.problems(40, 4)


def test_more_problems_than_there_are_is_refused(world):
    with pytest.raises(
        ConfigError, match=rf"{world.name}: asked for 100000 test problems, but .* give \d+\. Ask for fewer"
    ):
        world.problems(100_000, 0, split="test")


@settings(deadline=None, max_examples=40)
@given(ANY_WORLD, st.integers(0, 1000))
def test_any_size_makes_a_world_whose_texts_are_on_script_and_at_most_as_long_as_the_horizon(world, seed):
    problem = world.problems(1, seed)[0]
    process = world.process(problem)
    tokens = sample(process, seeded(seed))
    assert len(tokens) <= process.horizon
    assert tokens[-1] == END
    assert process.read(tokens) is not None
    assert world.encode(world.decode(tokens)) == tokens[:-1]
    assert UNKNOWN not in world.prompt_ids(problem, seeded(seed))
    assert len(world.vocabulary) == len(set(world.vocabulary))
    for state in trace(process, tokens):
        assert process.log_probs(state).exp().sum().item() == pytest.approx(1.0, abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(list(TINY)), st.data())
def test_any_tokens_can_be_followed_and_nonsense_is_lost_until_the_end_token(name, data):
    world = TINY[name]
    process = world.process(world.problems(1, 0)[0])
    state, lost = process.initial, False
    for token in data.draw(st.lists(st.integers(0, len(world.vocabulary) - 1), max_size=30)):
        ended = process.is_terminal(state)
        lost = lost or (not ended and token not in process.continuations(state))
        state = process.step(state, token)
        assert process.log_probs(state).exp().sum().item() == pytest.approx(1.0, abs=1e-12)
        assert lost == (process.meaning(state) == "off script")
        if lost and not process.is_terminal(state):
            assert list(process.continuations(state)) == [END]


@pytest.mark.parametrize(
    ("small", "large"),
    [
        (DialogueWorld(items=1), DialogueWorld(items=2)),
        (ArithmeticWorld(steps=1), ArithmeticWorld(steps=2)),
        (ArithmeticWorld(restate=False), ArithmeticWorld(restate=True)),
        (ProgramWorld(assignments=1), ProgramWorld(assignments=2)),
        (ProgramWorld(branches=1), ProgramWorld(branches=2)),
        (ControlWorld(sentences=1), ControlWorld(sentences=2)),
    ],
)
def test_some_sizes_lengthen_the_texts(small, large):
    horizons = [world.process(world.problems(1, 0)[0]).horizon for world in (small, large)]
    assert horizons[0] < horizons[1]


@pytest.mark.parametrize(
    ("small", "large"),
    [
        (DialogueWorld(people=2), DialogueWorld(people=3)),
        (DialogueWorld(things=2), DialogueWorld(things=3)),
        (DialogueWorld(days=2), DialogueWorld(days=3)),
        (DialogueWorld(wordings=1), DialogueWorld(wordings=2)),
        (ArithmeticWorld(modulus=3), ArithmeticWorld(modulus=5)),
        (ArithmeticWorld(wordings=3), ArithmeticWorld(wordings=4)),
        (ProgramWorld(constants=2), ProgramWorld(constants=3)),
        (ProgramWorld(wordings=2), ProgramWorld(wordings=3)),
        (ControlWorld(wordings=1), ControlWorld(wordings=2)),
    ],
)
def test_some_sizes_widen_vocabulary_and_branching(small, large):
    assert len(small.vocabulary) < len(large.vocabulary)
    counts = [count_prefixes(world.process(world.problems(1, 0)[0])) for world in (small, large)]
    assert counts[0] < counts[1]


@pytest.mark.parametrize(
    ("make", "setting"),
    [
        (DialogueWorld, {"people": 1}),
        (DialogueWorld, {"days": 8}),
        (DialogueWorld, {"slip_rate": 1.0}),
        (ArithmeticWorld, {"closings": 0}),
        (ArithmeticWorld, {"prompt_wordings": 5}),
        (ArithmeticWorld, {"steps": 2.5}),
        (ProgramWorld, {"constants": 1}),
        (ProgramWorld, {"branches": 0}),
        (ProgramWorld, {"slip_rate": math.nan}),
        (ControlWorld, {"tones": 5}),
    ],
)
def test_sizes_out_of_range_are_refused(make, setting):
    field = next(iter(setting))
    with pytest.raises(ConfigError, match=rf"{make.name}\.{field} must be .*got {setting[field]}"):
        make(**setting)


@pytest.mark.parametrize(
    ("world", "other"),
    [
        (DialogueWorld(people=2), DialogueWorld(people=8)),
        (DialogueWorld(), DialogueWorld(items=2)),
        (ProgramWorld(variables=2), ProgramWorld(variables=6)),
        (ProgramWorld(), ProgramWorld(branches=2)),
        (ControlWorld(hours=2), ControlWorld(hours=24)),
    ],
)
def test_a_problem_of_another_world_is_refused(world, other):
    problem = max(other.problems(50, 0), key=str)
    with pytest.raises(ConfigError, match=rf"{world.name}: .* does not fit"):
        world.process(problem)


@pytest.mark.parametrize(
    "world",
    [
        DialogueWorld(people=2, things=2, days=2, items=1, wordings=1, prompt_wordings=1),
        DialogueWorld(people=2, things=2, days=3, items=2, wordings=2, prompt_wordings=2),
        ArithmeticWorld(modulus=3, steps=1, wordings=2, closings=1, prompt_wordings=1, restate=False),
        ArithmeticWorld(modulus=3, steps=2, wordings=1, closings=3, prompt_wordings=2, restate=True),
        ArithmeticWorld(modulus=3, steps=2, wordings=3, closings=2, prompt_wordings=1, restate=True),
        ControlWorld(people=2, topics=2, tones=2, hours=2, wordings=2, prompt_wordings=2),
        ChainWorld(modulus=3, steps=1, wordings=2),
    ],
    ids=lambda world: f"{world.name}-{world.wordings}-{world.prompt_wordings}",
)
def test_a_vocabulary_has_the_words_that_can_be_said_and_no_others(world):
    generator = torch.Generator().manual_seed(0)
    said = set()
    for split in ("train", "validation", "test"):
        count = 1
        while count <= 64:
            try:
                problems = world.problems(count, 0, split=split)
            except ConfigError:
                break
            count *= 2
        for problem in problems:
            process = world.process(problem)
            for _ in range(4):
                said.update(world.prompt_ids(problem, generator))
            for state in reachable_states(process):
                if not process.is_terminal(state):
                    said.update(process.continuations(state))
    assert UNKNOWN not in said
    assert {world.vocabulary[token] for token in set(range(len(world.vocabulary))) - said} == {
        "<|pad|>",
        "<|unknown|>",
    }
