"""The negative control: wordings and nothing else."""

import pytest
import torch

from bridgegarden.errors import ConfigError
from bridgegarden.exact.process import Role, prefixes_by_length, role, sample, trace
from bridgegarden.exact.tasks.control import ControlWorld, Request
from bridgegarden.exact.world import END, UNKNOWN
from tests.exact.walk import reachable_states

WORLD = ControlWorld()


@pytest.mark.parametrize("wordings", [1, 2, 4])
def test_no_state_is_a_bridge_and_every_sentence_has_five_gardens(wordings):
    world = ControlWorld(wordings=wordings, sentences=3)
    process = world.process(world.problems(1, 0)[0])
    states = [state for state in reachable_states(process) if not process.is_terminal(state)]
    assert Role.BRIDGE not in {role(process, state) for state in states}
    tokens = sample(process, torch.Generator().manual_seed(0))
    gardens = sum(role(process, state) == Role.GARDEN for state in trace(process, tokens))
    assert gardens == (0 if wordings == 1 else 15)


def test_the_number_of_texts_is_that_of_independent_wordings():
    process = ControlWorld(sentences=1, wordings=3).process(Request(person=0, topic=0, tone=0, hour=1))
    assert prefixes_by_length(process)[-1] == 3**5


def test_the_tone_decides_what_is_likely_and_nothing_else_does():
    problem = Request(person=1, topic=2, tone=0, hour=3)
    process = WORLD.process(problem)
    first = process.log_probs(process.initial)
    assert first[WORLD.ids["Well"]].exp().item() == pytest.approx(0.5)
    for other in (Request(person=0, topic=2, tone=0, hour=3), Request(person=1, topic=5, tone=0, hour=9)):
        assert WORLD.process(other).log_probs(process.initial).equal(first)
    likeliest = [
        WORLD.vocabulary[
            int(WORLD.process(Request(person=1, topic=2, tone=tone, hour=3)).log_probs(process.initial).argmax())
        ]
        for tone in range(4)
    ]
    assert likeliest == ["Well", "Oh", "Now", "Indeed"]


def test_any_text_on_script_succeeds_and_no_other():
    generator = torch.Generator().manual_seed(0)
    problem = WORLD.problems(1, 0)[0]
    tokens = sample(WORLD.process(problem), generator)
    assert WORLD.succeeds(problem, tokens)
    assert not WORLD.succeeds(problem, tokens[:-1])
    assert not WORLD.succeeds(problem, [UNKNOWN, *tokens[1:]])
    assert not WORLD.succeeds(problem, [*tokens[:5], END])


def test_the_prompt_names_person_tone_hour_and_topic():
    prompt = WORLD.prompt(Request(person=0, topic=1, tone=2, hour=7), torch.Generator().manual_seed(0))
    assert prompt.endswith("Ida warmly at 7 about the garden.")


MOST = {"people": 8, "topics": 8, "tones": 4, "hours": 24, "sentences": 6, "wordings": 4, "prompt_wordings": 3}


@pytest.mark.parametrize("size", MOST)
def test_every_size_goes_from_one_to_what_there_are_words_for(size):
    for number in (1, MOST[size]):
        world = ControlWorld(**{size: number})
        assert UNKNOWN not in world.encode(world.prompt(world.problems(1, 0)[0], torch.Generator()))
    for number in (0, MOST[size] + 1):
        with pytest.raises(ConfigError, match=f"{size}.*{number}"):
            ControlWorld(**{size: number})
