"""The stack's measures against the solver: another road, one student and one problem at a time."""

import pytest
import torch

from bridgegarden.exact import solve
from bridgegarden.exact.process import EndsOffScript, OffScript, Role
from bridgegarden.lab.map.measure import READINGS, VARIETY, held_out, kappa_of_rows, measure, predicted_kappa
from bridgegarden.lab.map.rows import Context, Problems, Worlds, draw_order, draw_rows, features, kinds
from bridgegarden.lab.map.students import Arm, hidden_states, logits_at, new_weights, train
from bridgegarden.objective.hybrid import HybridObjective
from bridgegarden.statistics import spearman
from tests.lab.map.chain_student import OTHER, WORLD, first_token

SEEDS, STEPS = (0, 1, 2), 60
TEACHERS = WORLD, OTHER, WORLD
STACK = Worlds.of(TEACHERS)
PROBLEMS = WORLD.problems(4, 0, split="test")


@pytest.fixture(scope="module")
def stack():
    arms = [
        Arm(objective=HybridObjective.preset(name), learning_rate=0.03, weight_decay=0.01)
        for name in ("hard", "soft", "risk_guided")
    ]
    weights = new_weights(WORLD, 12, SEEDS, len(arms)).map(torch.Tensor.double)
    return train(STACK, draw_rows(STACK, SEEDS, 64), arms, weights, draw_order(SEEDS, 64, STEPS, 16))[STEPS]


def one(weights, seed, arm):
    return weights.map(lambda tensor: tensor[seed : seed + 1, arm : arm + 1])


def row(weights, problem, state, power=1.0):
    """What one student says at a state of the process, over the whole vocabulary."""
    logp = torch.full((len(WORLD.vocabulary),), -torch.inf, dtype=torch.float64)
    if isinstance(state, OffScript):
        return logp.fill_(0.0).log_softmax(0)
    memory, place = state.memory, state.slot
    kind = kinds(WORLD)[2 if place == 2 * WORLD.steps else place % 2]
    context = Context(torch.tensor([memory.value]), torch.tensor([memory.wording + 1]))
    inputs = features(WORLD, Problems.of([problem]))(place, context)
    logits = logits_at(weights, kind.name, hidden_states(weights, inputs[None]))[0, 0, 0]
    first = first_token(kind.name)
    logp[first : first + kind.width] = (power * logits).log_softmax(-1)
    return logp


def solved(weights, seed, problem, power=1.0):
    process = EndsOffScript(TEACHERS[seed].process(problem))
    return solve(process, lambda state: row(weights, problem, state, power))


def right(solution):
    """The probability of all texts that end with every value right, by the state in which they end."""
    return solution.student_probability(lambda state: not isinstance(state, OffScript) and state.memory.right)


@pytest.mark.parametrize(("seed", "arm"), [(0, 0), (1, 1), (2, 2)])
def test_losses_drift_and_right_answers_are_the_solvers(stack, seed, arm):
    found = measure(STACK, stack, PROBLEMS, seeds_at_once=2)
    student = one(stack, seed, arm)
    solutions = [solved(student, seed, problem) for problem in PROBLEMS]
    cool = [solved(student, seed, problem, 2.0) for problem in PROBLEMS]

    def mean(values):
        return sum(values) / len(PROBLEMS)

    shares = [solution.by_role for solution in solutions]
    expected = {
        "teacher_loss": mean([solution.teacher_loss for solution in solutions]),
        "student_loss": mean([solution.student_loss for solution in solutions]),
        "exposure_bias": mean([solution.exposure_bias for solution in solutions]),
        "teacher_loss_bridges": mean([share[Role.BRIDGE].teacher_loss for share in shares]),
        "student_loss_bridges": mean([share[Role.BRIDGE].student_loss for share in shares]),
        "drift_bridges": mean([share[Role.BRIDGE].contribution for share in shares]),
        "drift_gardens": mean([share[Role.GARDEN].contribution for share in shares]),
        "right": mean([right(solution) for solution in solutions]),
        "right_cool": mean([right(solution) for solution in cool]),
    }
    for name, value in expected.items():
        assert getattr(found, name)[seed, arm].item() == pytest.approx(value, rel=1e-9, abs=1e-12), name


def test_the_greedy_answer_is_followed_token_by_token(stack):
    found = measure(STACK, stack, PROBLEMS)
    for seed in range(3):
        for arm in range(3):
            count = 0
            for problem in PROBLEMS:
                process = WORLD.process(problem)
                state, tokens = process.initial, []
                while not process.is_terminal(state):
                    tokens.append(int(row(one(stack, seed, arm), problem, state).argmax()))
                    state = process.step(state, tokens[-1])
                count += WORLD.succeeds(problem, tokens)
            assert found.right_greedy[seed, arm].item() == count / len(PROBLEMS)


def test_variety_is_the_entropy_at_the_teachers_wordings(stack):
    found = measure(STACK, stack, PROBLEMS)
    student = teacher = 0.0
    for problem in PROBLEMS:
        solution = solved(one(stack, 1, 0), 1, problem)
        gardens = torch.tensor([role == Role.GARDEN for role in solution.roles])
        rows, visits = solution.nodes.row[gardens], solution.teacher_visitation[gardens]
        student += (visits @ solution.unrolled.student_entropy[rows]).item()
        teacher += (visits @ solution.unrolled.teacher_entropy[rows]).item()
    assert found.variety[1, 0].item() == pytest.approx(student / teacher, rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "arm"), [(0, 0), (1, 1)])
def test_the_temperature_of_equal_variety_gives_that_variety_and_the_right_answers_of_it(stack, seed, arm):
    """By a search of its own, over the solver's nodes."""
    (problem,) = PROBLEMS[:1]
    found = measure(STACK, stack, [problem])
    student = one(stack, seed, arm)

    def varied(power):
        solution = solved(student, seed, problem, power)
        gardens = torch.tensor([role == Role.GARDEN for role in solution.roles])
        rows, visits = solution.nodes.row[gardens], solution.teacher_visitation[gardens]
        return (visits @ solution.unrolled.student_entropy[rows]) / (visits @ solution.unrolled.teacher_entropy[rows])

    low, high = 0.05, 20.0
    for _ in range(14):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if varied(middle) > VARIETY else (low, middle)
    assert varied(low).item() == pytest.approx(VARIETY, abs=1e-3)
    expected = right(solved(student, seed, problem, low))
    assert found.right_as_varied[seed, arm].item() == pytest.approx(expected, rel=0.01)
    assert abs(found.right_as_varied - found.right)[seed, arm] > 1e-3


def test_a_held_out_look_is_part_of_the_measures(stack):
    loss, greedy = held_out(STACK, stack, PROBLEMS)
    found = measure(STACK, stack, PROBLEMS)
    torch.testing.assert_close(loss, found.teacher_loss)
    torch.testing.assert_close(greedy, found.right_greedy)


def test_the_parts_of_the_exposure_bias_are_all_of_it(stack):
    found = measure(STACK, stack, WORLD.problems(32, 1, split="test"))
    torch.testing.assert_close(found.drift_bridges + found.drift_gardens, found.exposure_bias, rtol=0, atol=1e-12)
    assert found.exposure_bias.abs().min() > 1e-4


def test_a_student_that_says_what_the_teacher_says_loses_nothing_and_is_right_as_often():
    teacher = WORLD.process(PROBLEMS[0])
    solution = solve(EndsOffScript(teacher), EndsOffScript(teacher).log_probs)
    assert solution.student_loss == pytest.approx(0.0, abs=1e-12)
    assert right(solution) == pytest.approx(0.6**WORLD.steps)


@pytest.mark.parametrize("seed", [0, 1])
def test_how_well_kappa_is_predicted_is_what_the_solvers_kappa_gives(stack, seed):
    """Another road to kappa, over the solver's own nodes."""
    found = predicted_kappa(STACK, one_arm(stack, 1), PROBLEMS)
    columns = {
        "confidence": [],
        "low entropy": [],
        **{reading: [] for reading in READINGS[:3]},
        "weight": [],
        "end": [],
    }
    for problem in PROBLEMS:
        student = one(stack, seed, 1)
        process = EndsOffScript(TEACHERS[seed].process(problem))
        table = lambda state, problem=problem, student=student: row(student, problem, state)  # noqa: E731
        solution = solve(process, table)
        support = solve(process, table, actions="teacher_support")
        for node, role in enumerate(solution.roles):
            if (weight := solution.teacher_visitation[node].item()) == 0:
                continue
            at = int(solution.nodes.row[node])
            columns["confidence"].append(solution.unrolled.teacher[at].max().item())
            columns["low entropy"].append(-solution.unrolled.teacher_entropy[at].item())
            columns["every token"].append(solution.state_kappa[node].item())
            columns["the teacher's tokens"].append(support.state_kappa[node].item())
            columns["the student's tokens"].append(solution.student_kappa[node].item())
            columns["weight"].append(weight)
            columns["end"].append(role == Role.FORCED)
    table = {name: torch.tensor(values, dtype=torch.float64) for name, values in columns.items()}
    choices = ~table["end"].bool()
    for (predictor, reading), values in found.items():
        which = choices if reading in READINGS[:3] else torch.ones_like(choices)
        kappa = table["every token" if reading == READINGS[3] else reading]
        expected = spearman(table[predictor][which], kappa[which], table["weight"][which]).item()
        assert values[seed].item() == pytest.approx(expected, abs=1e-6), (predictor, reading)
    # One of the teachers could write every token, so that two readings are one.
    assert len({round(values[seed].item(), 6) for values in found.values()}) == (8, 6)[seed]


def one_arm(weights, arm):
    return weights.map(lambda tensor: tensor[:, arm : arm + 1])


def test_kappa_of_a_row_is_the_solvers_at_each_of_its_positions(stack):
    rows = draw_rows(STACK, SEEDS, 5)
    wordings, values = kappa_of_rows(STACK, one_arm(stack, 1), rows)
    for seed, number in ((0, 0), (1, 3), (2, 4)):
        problem = WORLD.problems(5, SEEDS[seed], split="train")[number]
        solution = solved(one(stack, seed, 1), seed, problem)
        tokens = []
        for step in range(WORLD.steps):
            node = solution.node_of(tokens)
            assert wordings[seed, number, step].item() == pytest.approx(solution.state_kappa[node].item(), abs=1e-9)
            tokens.append(WORLD.first_wording + int(rows.wordings[seed, number, step]))
            node = solution.node_of(tokens)
            assert values[seed, number, step].item() == pytest.approx(solution.state_kappa[node].item(), abs=1e-9)
            tokens.append(WORLD.first_value + int(rows.values[seed, number, step]))
