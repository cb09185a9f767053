"""What a solution says of roles, of success, and of a text's place, and what is refused."""

import pytest
import torch

from bridgegarden import exact
from bridgegarden.errors import ConfigError, DataError, ModelError, NonFiniteError
from bridgegarden.exact import ExactSolution, Role, TablePolicy
from bridgegarden.exact.process import EndsOffScript, OffScript
from bridgegarden.exact.tasks.arithmetic import ArithmeticWorld
from tests.exact.enumeration import random_process


def test_every_shipped_kind_of_position_is_told_by_its_role():
    solution = exact.solve(PROCESS, smoothed)
    by_state = {solution.state(node): role for node, role in enumerate(solution.roles)}
    assert by_state[PROCESS.initial] == Role.GARDEN
    assert set(by_state.values()) == set(Role)
    shares = solution.by_role
    assert sum(share.nodes for share in shares.values()) == len(solution)
    assert sum(share.student_visits for share in shares.values()) == pytest.approx(solution.student_length)
    # All wordings of this world are equally long, so nothing depends on which one is chosen.
    gardens = torch.tensor([role == Role.GARDEN for role in solution.roles])
    assert solution.state_kappa[gardens].abs().max() < 1e-10
    assert solution.state_kappa[~gardens].abs().max() > 0.01


def test_success_is_the_callers_question():
    right = PROCESS.process.problem.result
    solution = exact.solve(PROCESS, smoothed)

    def succeeds(state):
        return PROCESS.is_terminal(state) and state is not OffScript.ENDED and state.memory.value == right

    assert 0 < solution.student_probability(succeeds) < solution.teacher_probability(succeeds) < 1


def test_a_text_is_followed_to_its_node_until_it_is_over():
    process, student = random_process(3, 40, 4, 40, acyclic=True)
    solution = exact.solve(process, student)
    assert solution.state(solution.node_of(())) == 0
    assert solution.prefix(solution.node_of(())) is None
    with pytest.raises(DataError, match=r"the text is over after token \d+ .* Give fewer tokens"):
        solution.node_of([0] * 40)


def test_rows_of_a_few_nodes_are_those_of_the_whole_table():
    process, student = random_process(4, 12, 5, 9)
    solution = exact.solve(process, student)
    some = torch.randperm(len(solution), generator=torch.Generator().manual_seed(0))[:7]
    assert torch.equal(solution.q_at(some), solution.q[some])
    assert torch.equal(solution.kappa_at(some), solution.kappa[some])
    assert torch.allclose(solution.q_bar[some], (solution.q[some] - solution.kappa[some])[:, 0], atol=1e-12)


WORLD = ArithmeticWorld(modulus=3, steps=1, wordings=2, closings=1, restate=False)
PROCESS = EndsOffScript(WORLD.process(WORLD.problems(1, seed=0)[0]))


def smoothed(state):
    """The teacher mixed with uniform noise, the more the larger the value that was written."""
    noise = 0.1 + 0.2 * state.memory.value
    return ((1 - noise) * PROCESS.log_probs(state).exp() + noise / PROCESS.vocab_size).log()


def same(one: ExactSolution, other: ExactSolution):
    assert one.exposure_bias == pytest.approx(other.exposure_bias, abs=1e-12)
    assert one.teacher_loss == pytest.approx(other.teacher_loss, abs=1e-12)
    assert one.violation_rate == pytest.approx(other.violation_rate, abs=1e-12)


def leaving(state, share):
    """The teacher, that leaves the script with probability `share` wherever it can."""
    on_script = torch.zeros(PROCESS.vocab_size, dtype=torch.bool)
    on_script[list(PROCESS.continuations(state))] = True
    teacher = PROCESS.log_probs(state).exp()
    if on_script.all():
        return teacher.log()
    return ((1 - share) * teacher + share * (~on_script).double() / (~on_script).sum()).log()


def test_a_student_that_only_leaves_the_script_owes_all_of_its_exposure_bias_to_that():
    solution = exact.solve(PROCESS, lambda state: leaving(state, 0.1))
    assert solution.exposure_bias < -0.01
    assert solution.exit_contribution == pytest.approx(solution.exposure_bias, abs=1e-12)


def test_a_student_that_stays_on_the_script_owes_nothing_to_leaving_it():
    def wrong(state):
        on_script = torch.zeros(PROCESS.vocab_size, dtype=torch.bool)
        on_script[list(PROCESS.continuations(state))] = True
        # The more noise, the larger the value that was written: its mistakes are dear.
        noise = 0.1 + 0.2 * state.memory.value
        return ((1 - noise) * PROCESS.log_probs(state).exp() + noise * on_script.double() / on_script.sum()).log()

    solution = exact.solve(PROCESS, wrong)
    assert abs(solution.exposure_bias) > 0.01
    assert solution.exit_contribution == 0


def test_what_leaving_causes_is_the_bill_that_is_not_paid():
    """A text ends where it leaves, so Q is 0 there: minus the probability of leaving times the teacher's bill."""
    solution = exact.solve(PROCESS, smoothed)
    unpaid = 0.0
    for node in range(len(solution)):
        state = solution.state(node)
        outside = [token for token in range(PROCESS.vocab_size) if token not in PROCESS.continuations(state)]
        leaves = smoothed(state).exp()[outside].sum().item()
        unpaid += solution.student_visitation[node].item() * leaves * solution.q_bar[node].item()
    assert solution.exit_contribution == pytest.approx(-unpaid, abs=1e-12)
    assert solution.exit_contribution < min(0.0, solution.exposure_bias)


def test_function_mapping_and_policy_give_the_same_solution():
    by_function = exact.solve(PROCESS, smoothed)
    states = {by_function.state(node) for node in range(len(by_function))}
    same(by_function, exact.solve(PROCESS, {state: smoothed(state) for state in states}))
    same(by_function, exact.solve(PROCESS, TablePolicy(PROCESS, smoothed, prompt=(3, 4)), prompt=(3, 4)))
    assert abs(by_function.exposure_bias) > 0.1


def test_a_process_made_into_arrays_once_serves_many_students():
    world = exact.tabulate(PROCESS)
    for student in (smoothed, PROCESS.log_probs, TablePolicy(PROCESS, smoothed)):
        solution = exact.solve(world, student)
        same(solution, exact.solve(PROCESS, student))
        assert solution.state(solution.node_of(())) == PROCESS.initial


def test_a_tensor_is_read_by_row_and_rows_that_no_text_comes_to_are_not_looked_at():
    process, student = random_process(0, 6, 3, 4)
    spoiled = student.clone()
    spoiled[process.terminal] = torch.nan
    same(exact.solve(process, student), exact.solve(process, spoiled))
    same(exact.solve(process, student), exact.solve(process, lambda state: student[state]))


def test_a_student_in_float32_is_normalised_so_that_the_identity_still_closes():
    process, student = random_process(1, 30, 50, 20)
    solution = exact.solve(process, student.float())
    assert solution.identity_error < 1e-10
    assert solution.exposure_bias == pytest.approx(exact.solve(process, student).exposure_bias, rel=1e-4)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda row: row + 0.1, r"student, state 0: the next-token distribution sums to 1\.10517; expected"),
        (lambda row: row.index_fill(0, torch.tensor([1]), torch.nan), "student, state 0: .*contains NaN"),
        (lambda row: row[:-1], r"student, state 0: got shape \(2,\), expected \(3,\)"),
        (lambda row: row.tolist(), "student, state 0: got list, expected a tensor"),
    ],
)
def test_a_row_that_is_no_distribution_is_refused_by_the_name_of_its_state(spoil, message):
    process, student = random_process(0, 6, 3, 4)
    with pytest.raises(DataError, match=message):
        exact.solve(process, lambda state: spoil(student[state]))


def test_what_is_no_student_is_refused():
    process, student = random_process(0, 6, 3, 4)
    with pytest.raises(DataError, match=r"the table has shape \(5, 3\), expected \(states, V\) = \(6, 3\)"):
        exact.solve(process, student[:5])
    with pytest.raises(DataError, match="student: has no row for state 0"):
        exact.solve(process, {})
    with pytest.raises(DataError, match="student: got str; expected a policy"):
        exact.solve(process, "student")
    with pytest.raises(ModelError, match="got a model, expected a policy"):
        exact.solve(process, torch.nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="a student given by state reads no prompt"):
        exact.solve(process, student, prompt=[1])
    with pytest.raises(
        ConfigError, match=r"exact\.actions: unknown set 'some'\. Known: continuations, teacher_support"
    ):
        exact.solve(process, student, actions="some")


def test_a_divergence_that_is_not_a_number_is_refused():
    process, student = random_process(0, 6, 3, 4)
    with pytest.raises(NonFiniteError, match="near state 0: the divergence is not a number"):
        exact.solve(process, student, divergence=lambda p, q: (p - q).sum(-1) * torch.nan)


def test_a_world_that_is_too_large_is_refused_before_it_is_built():
    class Counting:
        """Its states are all texts."""

        vocab_size, horizon, initial = 3, 30, ()
        log_probs = staticmethod(lambda state: torch.full((3,), 1 / 3, dtype=torch.float64).log())
        step = staticmethod(lambda state, token: (*state, token))
        is_terminal = staticmethod(lambda state: False)
        continuations = staticmethod(lambda state: (0, 1, 2))
        meaning = staticmethod(lambda state: state)

    with pytest.raises(ConfigError, match="the process has at least 103 states, the limit max_nodes is 100"):
        exact.solve(Counting(), Counting.log_probs, max_nodes=100)
