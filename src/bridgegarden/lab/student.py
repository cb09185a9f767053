"""One student of the lab: stopped by its own validation loss, then measured exactly against the process that taught it.

Everything is exact for each test problem and averaged over them; one example answer is looked at token by token.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from bridgegarden.causal_lm_policy import CausalLMPolicy
from bridgegarden.exact import ExactSolution, solve
from bridgegarden.exact.process import Role
from bridgegarden.exact.world import END, World
from bridgegarden.lab.result import ROLES, ActionView, Correlations, ExampleView, Measured, TokenView
from bridgegarden.lab.worlds import LabData, TestProblem
from bridgegarden.objective.hybrid import HybridObjective
from bridgegarden.objective.soft_weight import CurriculumWeight
from bridgegarden.statistics import spearman
from bridgegarden.study.arms import LlamaSize, StoppingSettings
from bridgegarden.study.students import Distilled, Untrained, build_tokenizer, distil, new_llama


@dataclass(frozen=True, kw_only=True)
class TrainedStudent(Distilled):
    """A student as it was when its validation loss was lowest, and what it cost."""

    kept_step: int
    """Optimiser steps after which it was kept."""

    validation: tuple[tuple[int, float], ...]
    """Step and validation loss of every look, in nats a token of its own objective."""


def train_student(
    objective: HybridObjective,
    size: LlamaSize,
    seed: int,
    settings: StoppingSettings,
    data: LabData,
    on_step: Callable[[int], None],
) -> TrainedStudent:
    """Distil the exact processes of `data` into a new student. Depends on its arguments and the libraries alone.

    Args:
        objective: what to minimise, on training and validation data alike.
        size: of the student.
        seed: of the first weights and of the order of the rows; objectives of one seed share both.
        settings: steps, batch, rate, and when to stop.
        data: rows and teacher.
        on_step: called with the number of steps done.
    """
    best = _BestStudent(patience=settings.patience, settled=_settled(objective, settings.steps))
    trained = distil(
        Untrained(model=new_llama(data.world, size, seed), tokenizer=build_tokenizer(data.world), seed=seed),
        data.teacher,
        objective,
        data.train,
        settings,
        on_step=on_step,
        held_out=data.validation,
        callbacks=[best],
        per_device_eval_batch_size=64,
        eval_strategy="steps",
        eval_steps=settings.evaluate_every,
        logging_strategy="no",
    )
    trained.model.load_state_dict(best.weights)
    return TrainedStudent(**vars(trained), kept_step=best.step, validation=tuple(best.losses))


def _settled(objective: HybridObjective, steps: int) -> float:
    """The step from which an objective means the same at every look, so that its losses can be compared."""
    rule = objective.soft_weight
    return rule.warmup_ratio * steps if isinstance(rule, CurriculumWeight) else 0.0


class _BestStudent(TrainerCallback):
    """Keeps the weights with the lowest validation loss, and ends training when it has not fallen for a while."""

    def __init__(self, *, patience: int, settled: float) -> None:
        self.patience, self.settled = patience, settled
        self.losses: list[tuple[int, float]] = []
        self.weights: dict[str, Tensor] = {}
        self.step = -1
        self._lowest, self._waited = float("inf"), 0

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        metrics: Mapping[str, float] = kwargs["metrics"]
        loss = metrics["eval_loss"]
        self.losses.append((state.global_step, loss))
        if state.global_step < self.settled:
            return
        if loss < self._lowest:
            model: PreTrainedModel = kwargs["model"]
            self.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
            self._lowest, self._waited, self.step = loss, 0, state.global_step
            return
        self._waited += 1
        if self._waited >= self.patience:
            control.should_training_stop = True


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


def solve_problems(model: PreTrainedModel, world: World, problems: Sequence[TestProblem]) -> list[Solved]:
    """Every one of `problems` solved for `model`."""
    policy = CausalLMPolicy(model, end_ids=[END])
    return [_solve(policy, world, test) for test in problems]


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
        exposure_bias_exits=_mean([one.exit_contribution for one in solutions]),
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


ACTIONS_SHOWN = 8
"""Tokens looked at in one position of an example."""


def view_example(solution: ExactSolution, world: World, prompt: Sequence[int]) -> ExampleView:
    """The teacher's likeliest answer to a solved problem, token by token, its end token left out."""
    written = likeliest_text(solution, solution.unrolled.teacher)
    tokens = written[:-1] if written[-1:] == [END] else written
    views = tuple(_view_token(solution, world, tokens[:place], token) for place, token in enumerate(tokens))
    return ExampleView(prompt=world.decode(prompt), tokens=views)


def likeliest_text(solution: ExactSolution, prob: Tensor) -> list[int]:
    """The text of the likeliest token at each position, its end token included."""
    unrolled = solution.unrolled
    row, tokens = int(unrolled.layers[0]), []
    while not unrolled.over[row] and len(tokens) < len(unrolled.layers):
        tokens.append(int(prob[row].argmax()))
        row = int(unrolled.following[row, tokens[-1]])
    return tokens


def _view_token(solution: ExactSolution, world: World, before: Sequence[int], token: int) -> TokenView:
    node = solution.node_of(before)
    row = int(solution.nodes.row[node])
    teacher, student = solution.unrolled.teacher[row], solution.unrolled.student[row]
    kappa = solution.kappa_at(torch.tensor([node])).squeeze(0)
    on_script = solution.unrolled.world.process.on_script[int(solution.unrolled.state[row])].nonzero().squeeze(-1)
    order = torch.maximum(teacher, student)[on_script].argsort(descending=True)[:ACTIONS_SHOWN]
    return TokenView(
        text=world.vocabulary[token],
        role=solution.roles[node].value,
        confidence=teacher.max().item(),
        entropy=solution.unrolled.teacher_entropy[row].item(),
        kl=solution.loss[node].item(),
        kappa=solution.state_kappa[node].item(),
        weighted_kappa=solution.student_kappa[node].item(),
        actions=tuple(
            ActionView(
                text=world.vocabulary[action],
                teacher=teacher[action].item(),
                student=student[action].item(),
                kappa=kappa[action].item(),
            )
            for action in on_script[order].tolist()
        ),
    )
