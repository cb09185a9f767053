import pytest
import torch

from bridgegarden.causal_lm_policy import CausalLMPolicy
from bridgegarden.exact import solve
from bridgegarden.exact.process import EndsOffScript
from bridgegarden.exact.tasks import WORLDS
from bridgegarden.exact.world import END
from bridgegarden.lab.worlds import count_prefixes, describe_worlds
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
