"""Problems and answers of a study."""

import pytest
import torch

from bridgegarden.causal_lm_policy import CausalLMPolicy
from bridgegarden.errors import ConfigError
from bridgegarden.exact import solve
from bridgegarden.exact.process import EndsOffScript, count_prefixes, trace
from bridgegarden.exact.tasks import WORLDS
from bridgegarden.exact.world import END
from bridgegarden.lab.worlds import describe_worlds, draw_data, tabulated
from bridgegarden.objective.alignment import IGNORE, SupervisedPositions
from bridgegarden.study.arms import LlamaSize
from bridgegarden.study.students import new_llama


def test_every_world_is_described():
    views = {view.name: view for view in describe_worlds()}
    assert list(views) == list(WORLDS)
    for view in views.values():
        assert view.bridges + view.gardens + view.forced <= view.longest
        assert 500 <= view.prefixes <= 4_000
        assert view.answer.count("[") == view.bridges
        assert view.prompt in view.text()
    assert views["control"].bridges == 0
    assert views["dialogue"].bridges > 0


@pytest.mark.parametrize("name", WORLDS)
def test_prefixes_are_as_many_as_a_student_is_evaluated_on(name):
    world = WORLDS[name]()
    (problem,) = world.problems(1, 0, split="test")
    student = new_llama(world, LlamaSize(hidden=8, layers=1, heads=1, feed_forward=8), 0)
    prompt = world.prompt_ids(problem, torch.Generator().manual_seed(0))
    process = world.process(problem)
    solution = solve(EndsOffScript(process), CausalLMPolicy(student, end_ids=[END]), prompt=prompt)
    assert count_prefixes(process) == len(solution)


def texts(rows):
    return [tuple(ids) for ids in rows["input_ids"]]


def draw(name="dialogue", seed=0, **counts):
    return draw_data(WORLDS[name](), seed, **{"train": 12, "validation": 5, "test": 3, **counts})


def prompts(rows):
    return {tuple(ids[: labels.count(IGNORE)]) for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True)}


def test_no_prompt_is_in_two_splits():
    data = draw(train=100, validation=20, test=20)
    sets = [prompts(data.train), prompts(data.validation), {test.prompt for test in data.test}]
    assert [len(found) for found in sets] == [100, 20, 20]
    assert len(set().union(*sets)) == 140


def test_the_seed_decides_everything_and_the_number_of_answers_only_itself():
    one, same, more, other = draw(), draw(), draw(train=20), draw(seed=1)
    assert texts(one.train) == texts(same.train)
    assert texts(one.validation) == texts(more.validation)
    assert [test.prompt for test in one.test] == [test.prompt for test in more.test]
    assert texts(one.train) != texts(other.train)


@pytest.mark.parametrize("name", WORLDS)
def test_the_teacher_gives_the_process_at_every_supervised_token_and_nowhere_else(name):
    data = draw(name)
    problems = data.world.problems(12, 0, split="train")
    for problem, ids, labels in zip(problems, data.train["input_ids"], data.train["labels"], strict=True):
        start = labels.count(IGNORE)
        assert labels == [IGNORE] * start + ids[start:]
        assert ids[-1] == END
        positions = SupervisedPositions.from_labels(torch.tensor([labels]))
        inputs = {"input_ids": torch.tensor([ids])}
        signal = data.teacher.at(positions, inputs, vocab_size=data.teacher.width, exponents=())
        process = data.world.process(problem)
        expected = torch.stack([process.log_probs(state) for state in trace(process, ids[start:])])
        torch.testing.assert_close(signal.logp, expected.float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", WORLDS)
def test_states_tell_right_answers_from_wrong_ones(name):
    """Every text of a small world that ends on script, against the world's own judgement of its tokens."""
    world = WORLDS[name]()
    (problem,) = world.problems(1, 3, split="test")
    test = tabulated(world, problem, [1])
    process = test.process
    stack, judged = [(process.initial, ())], 0
    while stack and judged < 2_000:
        state, tokens = stack.pop()
        for token in process.continuations(state):
            following = process.step(state, token)
            if process.is_terminal(following):
                judged += 1
                assert (following in test.right) == world.succeeds(problem, [*tokens, token])
            else:
                stack.append((following, (*tokens, token)))
    assert judged > 5


def test_a_world_with_too_few_problems_is_refused():
    with pytest.raises(ConfigError, match="asked for 5000 train problems"):
        draw(train=5000)
