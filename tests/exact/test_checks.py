"""The checks pass, and would not if the solver were wrong."""

from dataclasses import replace

import torch

from bridgegarden.exact import checks
from bridgegarden.exact.world import WORLDS


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
