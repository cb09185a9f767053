"""One student against the exact process, on test problems: exact per problem, and averaged over them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bridgegarden.causal_lm_policy import CausalLMPolicy
from bridgegarden.exact import ExactSolution, solve
from bridgegarden.exact.process import Role
from bridgegarden.exact.vocabulary import END
from bridgegarden.exact.world import World
from bridgegarden.lab.data import LabData, TestProblem
from bridgegarden.lab.example import likeliest_text
from bridgegarden.lab.result import ROLES, Correlations, Measured
from bridgegarden.statistics import spearman


@dataclass(frozen=True, kw_only=True)
class Solved:
    """One test problem, solved for one student."""

    test: TestProblem
    """The problem."""

    solution: ExactSolution
    """All exact quantities."""

    success: float
    """Probability that the student's answer is right."""

    teacher_success: float
    """Probability that the teacher's answer is right."""

    success_greedy: bool
    """Whether the student's likeliest tokens are a right answer."""


def solve_tests(model: PreTrainedModel, data: LabData) -> list[Solved]:
    """Every test problem of `data` solved for `model`."""
    policy = CausalLMPolicy(model, end_ids=[END])
    return [_solve(policy, data.world, test) for test in data.test]


def measured(solved: Sequence[Solved]) -> Measured:
    """Means over problems."""
    solutions = [one.solution for one in solved]
    shares = [one.by_role for one in solutions]
    places = [one.by_position for one in solutions]
    garden_entropy = [_garden_entropy(one) for one in solutions]
    return Measured(
        teacher_loss=_mean([one.teacher_loss for one in solutions]),
        student_loss=_mean([one.student_loss for one in solutions]),
        exposure_bias=_mean([one.exposure_bias for one in solutions]),
        success=_mean([one.success for one in solved]),
        success_greedy=_mean([float(one.success_greedy) for one in solved]),
        teacher_success=_mean([one.teacher_success for one in solved]),
        violation=_mean([one.violation_rate for one in solutions]),
        diversity=sum(student for student, _ in garden_entropy) / sum(teacher for _, teacher in garden_entropy),
        length=_mean([one.student_length for one in solutions]),
        teacher_length=_mean([one.teacher_length for one in solutions]),
        teacher_loss_by_role={role: _mean([share[Role(role)].teacher_loss for share in shares]) for role in ROLES},
        student_loss_by_role={role: _mean([share[Role(role)].student_loss for share in shares]) for role in ROLES},
        exposure_bias_by_role={role: _mean([share[Role(role)].contribution for share in shares]) for role in ROLES},
        teacher_visits_by_role={role: _mean([share[Role(role)].teacher_visits for share in shares]) for role in ROLES},
        teacher_loss_by_position=_mean_curve([place.teacher_loss for place in places]),
        student_loss_by_position=_mean_curve([place.student_loss for place in places]),
        exposure_bias_by_position=_mean_curve([place.contribution for place in places]),
        kappa_all=correlations(solutions, (Role.BRIDGE, Role.GARDEN, Role.FORCED)),
        kappa_choices=correlations(solutions, (Role.BRIDGE, Role.GARDEN)),
    )


def correlations(solutions: Sequence[ExactSolution], roles: Sequence[Role]) -> Correlations:
    """Of kappa with how sure the teacher is, over all prefixes with one of `roles`, weighed by d_T."""
    columns: list[tuple[Tensor, ...]] = []
    for one in solutions:
        here = torch.tensor([role in roles for role in one.roles]) & (one.teacher_visitation > 0)
        rows = one.nodes.row[here]
        columns.append(
            (
                one.teacher_visitation[here],
                one.unrolled.teacher[rows].amax(-1),
                -one.unrolled.teacher_entropy[rows],
                one.state_kappa[here],
                one.student_kappa[here],
            )
        )
    weight, confidence, low_entropy, plain, weighted = (torch.cat(column) for column in zip(*columns, strict=True))
    return Correlations(
        confidence=_correlation(confidence, plain, weight),
        low_entropy=_correlation(low_entropy, plain, weight),
        confidence_weighted=_correlation(confidence, weighted, weight),
        low_entropy_weighted=_correlation(low_entropy, weighted, weight),
    )


def _correlation(first: Tensor, second: Tensor, weight: Tensor) -> float | None:
    found = spearman(first, second, weight).item()
    return None if math.isnan(found) else found


def _solve(policy: CausalLMPolicy, world: World, test: TestProblem) -> Solved:
    solution = solve(test.process, policy, prompt=test.prompt)
    return Solved(
        test=test,
        solution=solution,
        success=solution.student_probability(test.right.__contains__),
        teacher_success=solution.teacher_probability(test.right.__contains__),
        success_greedy=world.succeeds(test.problem, likeliest_text(solution, solution.unrolled.student)),
    )


def _garden_entropy(one: ExactSolution) -> tuple[float, float]:
    """Of student and teacher, summed over the Gardens of the teacher's answer, nats."""
    gardens = torch.tensor([role == Role.GARDEN for role in one.roles])
    rows, visits = one.nodes.row[gardens], one.teacher_visitation[gardens]
    student, teacher = (
        visits @ entropy[rows] for entropy in (one.unrolled.student_entropy, one.unrolled.teacher_entropy)
    )
    return student.item(), teacher.item()


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _mean_curve(curves: Sequence[Tensor]) -> tuple[float, ...]:
    """Position by position; a problem whose answers are shorter counts as nothing from there on."""
    length = max(map(len, curves))
    padded = torch.stack([torch.nn.functional.pad(curve, (0, length - len(curve))) for curve in curves])
    return tuple(padded.mean(0).tolist())
