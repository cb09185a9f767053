"""The checks pass and would not if the solver were wrong; what is proved of labels, against texts written out."""

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from bridgegarden import exact
from bridgegarden.errors import NonFiniteError
from bridgegarden.exact import TabularProcess, checks
from bridgegarden.exact.checks import label_drift
from bridgegarden.exact.tasks import WORLDS
from bridgegarden.objective.divergences import total_variation
from tests.exact.enumeration import loss_of, override, prefixes, random_process, texts, total_loss, writer_of
from tests.exact.test_dynamic_programming import CLOSE, branching, larger_worlds, small_worlds


def test_all_checks_pass_and_name_every_world():
    done = []
    results = checks.run_checks(cases=30, progress=done.append)
    assert [check.name for check in results if not check.passed] == []
    assert all(check.worst <= 1e-10 for check in results)
    assert set(done) <= {check.name for check in results}
    assert all(any(check.name.startswith(world) for check in results) for world in WORLDS)


def test_random_processes_are_of_every_size_from_the_smallest_to_the_largest():
    processes = [checks.random_case(seed).process for seed in range(60)]
    sizes = [(len(process.table), process.vocab_size, process.horizon) for process in processes]
    assert [set(of) for of in zip(*sizes, strict=True)] == [set(range(2, 8)), {2, 3}, set(range(1, 6))]


def test_a_wrong_solution_fails_the_identities():
    case = checks.random_case(3)
    cost = replace(case.solution.cost, values=tuple(value + 1e-6 for value in case.solution.cost.values))
    wrong = replace(case, solution=replace(case.solution, cost=cost))
    failed = {name for name, error in checks.IDENTITIES.items() if error(wrong) > checks.TOLERANCE}
    assert failed >= {
        "kappa has mean zero under the teacher",
        "merging positions and prefixes changes nothing",
        "writing one token once costs its kappa, all texts written out",
    }
    charged = replace(case.solution, student_kappa=case.solution.student_kappa + 1e-6)
    assert checks.IDENTITIES["the contributions sum to exposure bias"](replace(case, solution=charged)) > 1e-7


def test_a_wrong_drift_fails_the_theorem(monkeypatch):
    right = checks.label_drift

    def wrong(solution):
        drift = right(solution)
        return drift._replace(hard=-drift.hard, spread=drift.spread / 2)

    cases = [checks.random_case(seed) for seed in range(20)]
    monkeypatch.setattr(checks, "label_drift", wrong)
    for error in checks.THEOREM.values():
        assert max(error(case) for case in cases) > 1e-3


def test_what_is_not_a_number_passes_nothing():
    assert not checks._check("nothing", [0.0, torch.nan]).passed
    assert not checks._check("nothing", [torch.nan, 0.0]).passed


@given(small_worlds, st.data())
def test_writing_the_likeliest_token_once_changes_the_loss_by_the_drift(world, data):
    process, student = world
    drift = label_drift(exact.solve(process, student)).hard
    solution = exact.solve(process, student)
    loss, teacher = loss_of(process, student), writer_of(process, process.table)
    prefix = data.draw(st.sampled_from(prefixes(process)))
    chance = sum(prob for text, prob in texts(process, teacher) if text[: len(prefix)] == prefix)
    probabilities = teacher(prefix)
    hard = override(process, prefix, probabilities.index(max(probabilities)))
    change = total_loss(process, hard, loss) - total_loss(process, teacher, loss)
    assert change == pytest.approx(chance * drift[solution.node_of(prefix)].item(), **CLOSE)


@given(larger_worlds)
def test_where_the_likeliest_token_is_the_safest_hard_labels_never_drift_more(world):
    solution = exact.solve(*world)
    drift = label_drift(solution)
    teacher = solution.unrolled.teacher[solution.nodes.row]
    chosen = solution.q.gather(1, teacher.argmax(-1, keepdim=True))
    slip = (teacher * (solution.q - chosen)).sum(-1)
    assert torch.allclose(drift.hard, -slip, atol=1e-10)
    assert (drift.hard[drift.safest] <= 1e-12).all()
    deciding = drift.safest & (drift.spread > 1e-6) & (teacher.amax(-1) < 1 - 1e-9)
    assert (drift.hard[deciding] < 0).all()


@given(larger_worlds)
def test_the_drift_is_bounded_by_how_much_the_wording_matters(world):
    solution = exact.solve(*world)
    drift = label_drift(solution)
    certainty = solution.unrolled.teacher[solution.nodes.row].amax(-1)
    assert (drift.hard.abs() <= (1 - certainty) * drift.spread + 1e-12).all()


@given(larger_worlds)
def test_in_a_garden_neither_drifts_and_soft_labels_alone_lose_nothing(world):
    process, student = world
    # Every token leads to the same state: whatever is written only words it.
    garden = process.following[:, :1].expand_as(process.following)
    process = TabularProcess(process.table, garden, process.terminal, horizon=process.horizon)
    solution = exact.solve(process, student)
    drift = label_drift(solution)
    assert drift.hard.abs().max() < 1e-12
    assert drift.spread.max() < 1e-12
    teacher = solution.unrolled.teacher[solution.nodes.row]
    onehot = torch.zeros_like(teacher).scatter(1, teacher.argmax(-1, keepdim=True), 1.0)
    lost = total_variation(teacher.log(), onehot.log())
    assert (lost[teacher.amax(-1) < 1 - 1e-9] > 0).all()
    assert total_variation(teacher.log(), teacher.log()).max() == 0


@given(larger_worlds)
def test_hard_labels_cost_less_in_all_exactly_where_the_drift_outweighs_the_misfit(world):
    solution = exact.solve(*world)
    drift = label_drift(solution)
    teacher = solution.unrolled.teacher[solution.nodes.row]
    onehot = torch.zeros_like(teacher).scatter(1, teacher.argmax(-1, keepdim=True), 1.0)
    misfit = total_variation(teacher.log(), onehot.log())
    hard = misfit + (onehot * solution.q).sum(-1)
    soft = (teacher * solution.q).sum(-1)
    clear = (hard - soft).abs() > 1e-9
    assert ((hard < soft) == (-drift.hard > misfit))[clear].all()


@given(small_worlds, st.integers(0, 2**32 - 1))
def test_a_writer_that_is_hard_where_that_helps_loses_less_than_the_teacher(world, seed):
    process, student = world
    solution = exact.solve(process, student)
    drift = label_drift(solution).hard
    picked = torch.rand(len(solution), generator=torch.Generator().manual_seed(seed)) < 0.7
    helped = (drift < 0) & picked
    teacher, loss = writer_of(process, process.table), loss_of(process, student)

    def hybrid(tokens):
        probabilities = teacher(tokens)
        if not helped[solution.node_of(tokens)]:
            return probabilities
        likeliest = probabilities.index(max(probabilities))
        return [float(token == likeliest) for token in range(process.vocab_size)]

    promised = 0.0
    for text, prob in texts(process, hybrid):
        nodes = [solution.node_of(text[:t]) for t in range(len(text))]
        promised += prob * sum(drift[node].item() for node in nodes if helped[node])
    gain = total_loss(process, hybrid, loss) - total_loss(process, teacher, loss)
    assert gain == pytest.approx(promised, **CLOSE)
    assert gain <= 1e-12


@given(st.integers(0, 2**32 - 1))
def test_with_two_tokens_a_high_kappa_of_the_state_means_that_hard_is_better(seed):
    process, student = random_process(seed, 8, 2, 9, zeros=0.0)
    solution = exact.solve(process, student, actions="all")
    drift = label_drift(solution).hard
    clear = (solution.state_kappa.abs() > 1e-9) & (drift.abs() > 1e-9)
    assume(clear.any())
    assert ((solution.state_kappa > 0) == (drift < 0))[clear].all()


def test_with_three_tokens_a_high_kappa_of_the_state_may_go_with_a_risky_likeliest_token():
    p = torch.tensor([0.50, 0.49, 0.01], dtype=torch.float64)
    # After token a one more token follows, at which the student loses exactly Q(s, a) nats.
    certain = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    kept = torch.tensor([-1.0, 0.0, -10.0], dtype=torch.float64).exp()
    student = torch.stack([p, *(torch.tensor([k, (1 - k) / 2, (1 - k) / 2]) for k in kept), certain]).log()
    following = torch.tensor([[1, 2, 3]] + [[4, 4, 4]] * 4)
    table = torch.stack([p, certain, certain, certain, certain]).log()
    process = TabularProcess(table, following, torch.tensor([False] * 4 + [True]), horizon=2)
    solution = exact.solve(process, student, actions="all")
    start = solution.node_of(())
    assert solution.q[start].tolist() == pytest.approx([1, 0, 10])
    assert solution.state_kappa[start].item() == pytest.approx(9.2)
    assert label_drift(solution).hard[start].item() == pytest.approx(0.4)


def test_infinite_losses_are_refused():
    with pytest.raises(NonFiniteError, match="Use a bounded divergence"):
        label_drift(exact.solve(*branching([1.0, 0.0])))


@pytest.mark.parametrize("name", ["_identity", "_mean_kappa", "_merging", "_bounded", "_hybrid"])
def test_a_world_fails_if_one_of_its_identities_does(monkeypatch, name):
    monkeypatch.setattr(checks, name, lambda case: 1.0)
    assert all(error >= 1.0 for error in checks._world_errors(WORLDS["control"](), 0))
