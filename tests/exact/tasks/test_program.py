"""The program world: the same two tokens are a Bridge after ``sub (`` and a Garden after ``add (``."""

import math
import re
from itertools import pairwise

import pytest
import torch

from bridgegarden.exact.process import Role, role, sample, trace
from bridgegarden.exact.tasks.program import (
    ASKED_COMPARATORS,
    ASKED_OPERATORS,
    IT,
    Computation,
    Condition,
    ProgramWorld,
    Specification,
    parse,
    run,
)
from bridgegarden.exact.world import END, UNKNOWN
from tests.exact.walk import success_rate, texts

WORLD = ProgramWorld()
LONG = ProgramWorld(assignments=2, branches=2)
PROBLEM = Specification(
    variables=("a", "b"),
    computations=(Computation("sub", "b", "a"),),
    tests=(Condition(">", 2, "a"),),
    otherwise=IT,
)
SUM = Specification(
    variables=("a", "b"), computations=(Computation("add", "a", "b"),), tests=PROBLEM.tests, otherwise="b"
)
ANSWER = "t1 = sub ( b, a ) ; if t1 > 2 : return a ; return t1"


def whole(text, world=WORLD):
    return [*world.encode(text), END]


def after(text, problem=PROBLEM, world=WORLD):
    process = world.process(problem)
    state = process.initial
    for token in world.encode(text):
        state = process.step(state, token)
    return process, state


def test_a_specification_is_done_by_its_own_program():
    for a in range(-3, 4):
        for b in range(-3, 4):
            assert run(PROBLEM.program(), {"a": a, "b": b}) == (a if b - a > 2 else b - a)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (ANSWER, True),
        (ANSWER.replace("t1", "w1"), True),
        (ANSWER.replace(" ;", " # next ;", 1), True),
        ("t1 = sub ( b, a ) ; if t1 < 3 : return t1 ; return a", True),  # another way to say the same
        (ANSWER.replace("b, a", "a, b"), False),
        (ANSWER.replace("sub", "add"), False),
        (ANSWER.replace(">", "<"), False),
        (ANSWER.replace("2", "3"), False),
        (ANSWER.replace("return a", "return b"), False),
        (ANSWER.replace("return t1", "return b"), False),
        (ANSWER.replace("return t1", "return u1"), False),  # has no value
        (ANSWER.removesuffix(" ; return t1"), False),
    ],
)
def test_a_program_succeeds_if_running_it_gives_what_was_asked(text, right):
    assert WORLD.succeeds(PROBLEM, whole(text)) is right


def test_a_program_that_does_not_end_or_holds_unknown_words_fails():
    tokens = whole(ANSWER)
    assert not WORLD.succeeds(PROBLEM, tokens[:-1])
    assert not WORLD.succeeds(PROBLEM, [*tokens, END])
    assert not WORLD.succeeds(PROBLEM, [*tokens[:-1], UNKNOWN, END])


def test_operands_may_change_places_in_a_sum():
    assert WORLD.succeeds(SUM, whole("t1 = add ( b, a ) ; if t1 > 2 : return a ; return b"))


def test_roles_at_the_named_places_of_a_difference():
    process = WORLD.process(PROBLEM)
    tokens = whole(ANSWER)
    found = {}
    for token, state in zip(tokens, trace(process, tokens), strict=True):
        found.setdefault(role(process, state), []).append(WORLD.vocabulary[token])
    assert found[Role.BRIDGE] == ["sub", "b", ">", "2", "a", "t1"]
    assert found[Role.GARDEN] == ["t1", ";"]


def test_the_order_of_operands_is_a_garden_after_add_and_a_bridge_after_sub():
    for operator, expected in (("add", Role.GARDEN), ("mul", Role.GARDEN), ("sub", Role.BRIDGE)):
        process, state = after(f"t1 = {operator} (")
        assert role(process, state) == expected
        first = {WORLD.vocabulary[token] for token in process.continuations(state)}
        assert first == {"a", "b"}
        process, state = after(f"t1 = {operator} ( b ,")
        assert [WORLD.vocabulary[token] for token in process.continuations(state)] == ["a"]


def test_the_order_of_operands_slips_where_it_matters_and_is_free_where_it_does_not():
    process, state = after("t1 = sub (")
    assert process.log_probs(state)[WORLD.ids["b"]].exp().item() == pytest.approx(0.9)
    process, state = after("t1 = add (", SUM)
    assert process.log_probs(state)[WORLD.ids["a"]].exp().item() == pytest.approx(0.6)


def test_a_temporary_has_to_be_called_by_the_name_it_was_given():
    for name in WORLD.temporaries(0):
        process, state = after(f"{name} = sub ( b, a ) ; if")
        assert [WORLD.vocabulary[token] for token in process.continuations(state)] == [name]
        process, state = after(f"{name} = sub ( b, a ) ; if {name} > 2 : return")
        assert {WORLD.vocabulary[token] for token in process.continuations(state)} == {"a", "b", name}


def test_names_comments_and_commuted_operands_have_no_meaning():
    process, one = after("t1 = add ( a, b ) ; if t1 > 2", SUM)
    for text in ("u1 = add ( a, b ) ; if u1 > 2", "t1 = add ( b, a ) # so ; if t1 > 2"):
        assert process.meaning(after(text, SUM)[1]) == process.meaning(one)
    for text in ("t1 = mul ( a, b ) ; if t1 > 2", "t1 = add ( a, b ) ; if t1 < 2", "t1 = add ( a, b ) ; if t1 > 3"):
        assert process.meaning(after(text, SUM)[1]) != process.meaning(one)


def test_texts_of_one_meaning_return_the_same():
    world = ProgramWorld(variables=2, constants=2, wordings=2)
    problem = world.problems(1, 5)[0]
    process = world.process(problem)
    seen = {}
    for tokens, _ in texts(process):
        program = parse([world.vocabulary[token] for token in tokens[:-1]], problem.variables)
        table = tuple(run(program, {"a": a, "b": b}) for a in range(-3, 4) for b in range(-3, 4))
        memory = process.read(tokens)
        assert memory is not None
        assert seen.setdefault(process.matters(memory), table) == table
    assert len(seen) > 100


def test_success_takes_every_bridge_without_a_slip_but_for_programs_that_come_to_the_same():
    # Another comparator, constant and both returns at once can say the same; so can another constant after `mul`.
    world = ProgramWorld(variables=3, constants=3, wordings=1)
    problems = [problem for problem in world.problems(60, 0) if problem.computations[0].operator != "mul"]
    for problem in problems[:25]:
        bridges = 6 if problem.computations[0].operator == "sub" else 5
        assert 0.9**bridges - 1e-12 < success_rate(world, problem) < 0.9**bridges + 3e-4
    assert success_rate(world, SUM) > 0.9**5 + 1e-6


@pytest.mark.parametrize("world", [WORLD, LONG])
def test_nothing_is_hidden_the_problem_can_be_read_off_its_prompt(world):
    generator = torch.Generator().manual_seed(0)
    operators = {word: name for name, word in ASKED_OPERATORS.items()}
    comparators = {word: name for name, word in ASKED_COMPARATORS.items()}
    for problem in world.problems(100, 0):
        prompt = world.prompt(problem, generator)
        computed = re.findall(rf"(\w+) ({'|'.join(operators)}) (\w+)", prompt)
        tested = re.findall(rf"({'|'.join(comparators)}) (\d) return (\w+)", prompt)
        assert problem.computations == tuple(Computation(operators[word], x, y) for x, word, y in computed)
        assert problem.tests == tuple(Condition(comparators[word], int(c), value) for word, c, value in tested)
        assert problem.otherwise == re.findall(r"return (\w+)\.", prompt)[-1]


@pytest.mark.parametrize("world", [WORLD, LONG])
def test_problems_say_nothing_twice_and_return_nothing_they_were_going_to_return_anyway(world):
    for problem in world.problems(200, 0):
        values = [*(test.value for test in problem.tests), problem.otherwise]
        assert all(one != two for one, two in pairwise(values))
        assert set(values) <= {*problem.variables, IT}
        for place, (_, *operands) in enumerate(problem.computations):
            assert len(set(operands)) == 2
            assert (IT in operands) == (place > 0)


def test_sampled_long_programs_are_programs_and_mostly_right():
    generator = torch.Generator().manual_seed(0)
    steady = ProgramWorld(assignments=3, branches=2, slip_rate=0.0)
    for problem in steady.problems(50, 0):
        assert steady.succeeds(problem, sample(steady.process(problem), generator))
    problems = LONG.problems(200, 0)
    right = sum(LONG.succeeds(problem, sample(LONG.process(problem), generator)) for problem in problems) / 200
    # Between 8 and 10 Bridges and a few programs that come to the same.
    assert 0.9**12 < right < 0.9**8 + 4 * math.sqrt(0.25 / 200)
