"""The dialogue world: names, things and days are Bridges, how they are put is not."""

import re

import pytest
import torch

from bridgegarden.exact.process import Role, role, sample, trace
from bridgegarden.exact.tasks import dialogue as words
from bridgegarden.exact.tasks.dialogue import DialogueWorld, Item, Message
from bridgegarden.exact.world import END, digits
from tests.exact.walk import success_rate

WORLD = DialogueWorld()
TWO = DialogueWorld(items=2)
PROBLEM = Message(sender=1, recipient=0, items=(Item(thing=1, day=5, offset=3, direction=0),))
ANSWER = "Dear Anna, the parcel is on Tuesday. See you Tuesday."


def whole(text, world=WORLD):
    return [*world.encode(text), END]


def test_three_days_after_saturday_is_tuesday_and_before_it_wednesday():
    item = PROBLEM.items[0]
    assert words.DAYS[item.falls_on(7)] == "Tuesday"
    assert words.DAYS[item._replace(direction=1).falls_on(7)] == "Wednesday"
    assert item._replace(day=3).falls_on(4) == 2


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (ANSWER, True),
        ("Good morning Anna, the parcel comes next Tuesday. Please answer Tuesday.", True),
        (ANSWER.replace("Anna", "Ben"), False),
        (ANSWER.replace("parcel", "visit"), False),
        (ANSWER.replace("on Tuesday", "on Monday"), False),
        (ANSWER.replace("you Tuesday", "you Monday"), False),
        (ANSWER.replace("Tuesday", "Monday"), False),
        (ANSWER[:-1], False),
        ("Anna, the parcel is on Tuesday.", False),
    ],
)
def test_a_message_has_to_be_right_in_everything_it_tells(text, right):
    assert WORLD.succeeds(PROBLEM, whole(text)) is right


def test_names_things_and_days_are_bridges_and_wordings_are_not():
    exact = {*words.PEOPLE, *words.THINGS, *words.DAYS}
    generator = torch.Generator().manual_seed(0)
    for problem in TWO.problems(20, 0):
        process = TWO.process(problem)
        tokens = sample(process, generator)
        for token, state in zip(tokens, trace(process, tokens), strict=True):
            assert (role(process, state) == Role.BRIDGE) == (TWO.vocabulary[token] in exact)


def test_the_first_word_the_link_and_the_farewell_are_gardens():
    process = WORLD.process(PROBLEM)
    roles = [role(process, state) for state in trace(process, whole(ANSWER))]
    gardens = [place for place, found in enumerate(roles) if found == Role.GARDEN]
    text = whole(ANSWER)
    assert [WORLD.vocabulary[text[place]] for place in gardens] == ["Dear", "is", "See"]


def test_a_wrong_last_day_is_repeated_as_it_was_written():
    process = WORLD.process(PROBLEM)
    state = process.initial
    for token in WORLD.encode(ANSWER.replace("on Tuesday", "on Friday").removesuffix(" Tuesday.")):
        state = process.step(state, token)
    prob = process.log_probs(state).exp()
    assert prob[WORLD.ids["Friday"]].item() == pytest.approx(0.9)
    assert prob[WORLD.ids["Tuesday"]].item() == pytest.approx(0.1 / 6)


@pytest.mark.parametrize(("world", "bridges"), [(WORLD, 4), (TWO, 6)])
def test_success_takes_every_bridge_without_a_slip(world, bridges):
    problem = world.problems(1, 0)[0]
    world = DialogueWorld(people=3, things=2, days=3, items=world.items, wordings=1)
    problem = world.problems(1, 0)[0]
    assert success_rate(world, problem) == pytest.approx(0.9**bridges, abs=1e-12)


def test_nothing_is_hidden_the_problem_can_be_read_off_its_prompt():
    generator = torch.Generator().manual_seed(0)
    for problem in TWO.problems(100, 0):
        prompt = TWO.prompt(problem, generator)
        found = re.search(r"from (\w+) to (\w+)", prompt, re.IGNORECASE)
        assert found is not None
        assert [words.PEOPLE.index(name) for name in found.groups()] == [problem.sender, problem.recipient]
        items = re.findall(r"the (\w+) \w+ (\d) days? (\w+) (\w+)", prompt)
        assert problem.items == tuple(
            Item(words.THINGS.index(thing), words.DAYS.index(day), int(offset), words.DIRECTIONS.index(direction))
            for thing, offset, direction, day in items
        )


def test_nobody_writes_to_themselves_and_all_problems_are_different():
    small = DialogueWorld(people=3, things=2, days=2)
    everything = [small.problem_of(digits(code, small.radices)) for code in range(3 * 2 * 2 * 2 * 1 * 2)]
    assert len(set(everything)) == len(everything)
    assert all(problem.sender != problem.recipient for problem in everything)
    assert {(problem.sender, problem.recipient) for problem in everything} == {
        (a, b) for a in range(3) for b in range(3) if a != b
    }
