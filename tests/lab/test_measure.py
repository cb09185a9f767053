"""What is computed of a trained student, against sampling it."""

from functools import lru_cache

import pytest
import torch

from bridgegarden.exact.process import Role, role
from bridgegarden.exact.tasks import WORLDS
from bridgegarden.exact.world import END
from bridgegarden.lab.result import LabSettings
from bridgegarden.lab.student import measured, solve_problems, train_student, view_example
from bridgegarden.lab.worlds import draw_data
from bridgegarden.statistics import Estimate
from bridgegarden.study.arms import ALL_OBJECTIVES, LlamaSize

ANSWERS = 1_500


@lru_cache
def study():
    """A student that has half learned its world, and what is exactly true of it."""
    data = draw_data(WORLDS["dialogue"](), 0, train=120, validation=8, test=2)
    settings = LabSettings(worlds=("dialogue",), steps=75)
    size = LlamaSize(hidden=24, layers=1, heads=2, feed_forward=48)
    model = train_student(ALL_OBJECTIVES["soft"].build(), size, 0, settings, data, lambda step: None).model
    return data, model, solve_problems(model, data.world, data.test)


@torch.no_grad()
def roll_out(model, data, test, writer):
    """Answers that `writer` ("student" or "teacher") writes to one problem: sums of KL, successes and violations.

    Plain forwards over whole texts, one process for each, nothing shared with the solver.
    """
    generator = torch.Generator().manual_seed(1)
    process = data.world.process(test.problem)
    states, texts = [process.initial] * ANSWERS, torch.tensor([test.prompt] * ANSWERS)
    alive, off = torch.ones(ANSWERS, dtype=torch.bool), torch.zeros(ANSWERS, dtype=torch.bool)
    sums, by_role = torch.zeros(ANSWERS, dtype=torch.float64), {r: torch.zeros(ANSWERS).double() for r in Role}
    for _ in range(process.horizon):
        student = model(input_ids=texts).logits[:, -1].double().log_softmax(-1)
        teacher = torch.stack([process.log_probs(state) for state in states])
        kl = torch.where(teacher > -torch.inf, teacher.exp() * (teacher - student), 0.0).sum(-1)
        sums += torch.where(alive, kl, 0.0)
        for index in alive.nonzero().squeeze(-1).tolist():
            by_role[role(process, states[index])][index] += kl[index]
        prob = (student if writer == "student" else teacher).exp()
        tokens = torch.multinomial(prob, 1, generator=generator).squeeze(-1)
        for index in alive.nonzero().squeeze(-1).tolist():
            token = int(tokens[index])
            if token not in process.continuations(states[index]):
                off[index], alive[index] = True, False
            states[index] = process.step(states[index], token)
            if process.is_terminal(states[index]):
                alive[index] = False
        texts = torch.cat([texts, tokens[:, None]], 1)
    answers = [row[: row.index(END) + 1] if END in row else row for row in texts[:, len(test.prompt) :].tolist()]
    right = [float(data.world.succeeds(test.problem, answer)) for answer in answers]
    return {"loss": sums, "right": right, "off": off.double(), **by_role}


def agrees(samples, exact):
    estimate = Estimate.over(samples)
    assert abs(estimate.mean - exact) < 4 * estimate.stderr + 1e-9, (estimate, exact)


@pytest.mark.slow
def test_what_is_solved_agrees_with_sampling_the_student():
    data, model, solved = study()
    sampled = roll_out(model, data, data.test[0], "student")
    exact = measured(solved[:1])
    assert 0.02 < exact.violation < 0.98
    agrees(sampled["loss"], exact.student_loss)
    agrees(sampled["right"], exact.success)
    agrees(sampled["off"], exact.violation)
    for name, value in exact.student_loss_by_role.items():
        agrees(sampled[Role(name)], value)


def test_what_is_solved_agrees_with_sampling_the_teacher():
    data, model, solved = study()
    sampled = roll_out(model, data, data.test[0], "teacher")
    exact = measured(solved[:1])
    agrees(sampled["loss"], exact.teacher_loss)
    agrees(sampled["right"], exact.teacher_success)
    assert sampled["off"].sum() == 0
    for name, value in exact.teacher_loss_by_role.items():
        agrees(sampled[Role(name)], value)


def test_greedy_success_is_that_of_writing_the_likeliest_tokens():
    data, model, solved = study()
    for one in solved:
        text = torch.tensor([one.test.prompt])
        for _ in range(one.test.process.horizon):
            text = torch.cat([text, model(input_ids=text).logits[:, -1:].argmax(-1)], 1)
        answer = text[0, len(one.test.prompt) :].tolist()
        answer = answer[: answer.index(END) + 1] if END in answer else answer
        assert one.success_greedy == data.world.succeeds(one.test.problem, answer)


def test_means_are_over_problems():
    _, _, solved = study()
    both, one, other = measured(solved), measured(solved[:1]), measured(solved[1:])
    for name in ("teacher_loss", "student_loss", "exposure_bias", "success", "violation", "length"):
        assert getattr(both, name) == pytest.approx((getattr(one, name) + getattr(other, name)) / 2)
    assert len(both.teacher_loss_by_position) == solved[0].test.process.horizon
    assert min(one.diversity, other.diversity) <= both.diversity <= max(one.diversity, other.diversity)


def test_forced_positions_have_no_kappa_and_count_only_where_they_are_asked_for():
    _, _, solved = study()
    solution = solved[0].solution
    forced = torch.tensor([role is Role.FORCED for role in solution.roles])
    assert solution.state_kappa[forced].abs().max() < 1e-9
    assert solution.state_kappa[~forced].abs().max() > 1e-3
    found = measured(solved)
    assert found.kappa_all != found.kappa_choices


def test_the_example_is_the_teachers_likeliest_answer():
    data, _, solved = study()
    view = view_example(solved[0].solution, data.world, solved[0].test.prompt)
    answer = [data.world.ids[token.text] for token in view.tokens]
    assert data.world.succeeds(solved[0].test.problem, [*answer, END])
    assert {token.role for token in view.tokens} == {"bridge", "garden", "forced"}
    for token in view.tokens:
        assert token.actions[0].teacher == pytest.approx(token.confidence)
        assert sum(action.teacher for action in token.actions) == pytest.approx(1.0)
        assert token.kl >= 0
        if len(token.actions) < 8:
            assert sum(action.kappa for action in token.actions) == pytest.approx(token.kappa, abs=1e-9)
