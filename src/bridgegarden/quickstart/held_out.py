"""How a model does on held-out problems: accuracy, fit by role, variety, exposure bias; and one answer by tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bridgegarden.exact.process import Role, role, trace
from bridgegarden.exact.tasks.arithmetic import (
    END,
    PAD,
    SPECIAL_TOKENS,
    ArithmeticWorld,
    Problem,
    check_answer,
    make_problems,
)
from bridgegarden.objective.soft_weight import ConfidenceWeight, EntropyWeight, StaticWeight
from bridgegarden.objective.support import TeacherSignal
from bridgegarden.quickstart.result import AnswerView, Measured, TokenView, TopTokens
from bridgegarden.quickstart.teacher import prompt_ids, write_answers
from bridgegarden.statistics import Estimate
from bridgegarden.study.arms import OBJECTIVES

BATCH = 250
"""Answers written or scored together."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Test problems, with an answer to each that the teacher sampled."""

    world: ArithmeticWorld
    """Where the problems are from."""

    seed: int
    """Decided the problems, their wordings and everything that is sampled."""

    teacher: PreTrainedModel
    """Scores every model's answers."""

    problems: list[Problem]
    """Distinct, and none of them in the training split."""

    prompts: list[list[int]]
    """Token ids that generation starts from."""

    answers: list[list[int]]
    """The teacher's, sampled at temperature 1, the end token included where it was reached."""

    roles: list[Role]
    """Of every token of `answers`, one after the other."""

    teacher_logp: Tensor
    """``(N, V)`` float64 nats: the teacher before every token of `answers`."""


class PerProblem(NamedTuple):
    """A model's values, one per held-out problem, ``(n,)`` float64. The KLs leave out problems without such a token."""

    right_sampled: Tensor
    """1 where the sampled answer is right."""
    right_greedy: Tensor
    """1 where the likeliest answer is right."""
    kl_bridge: Tensor
    """Mean KL at the Bridges of the teacher's answer."""
    kl_garden: Tensor
    """Mean KL at its Gardens."""
    garden_entropy: Tensor
    """The model's entropy summed over the Gardens of the teacher's answer."""
    teacher_garden_entropy: Tensor
    """The teacher's."""
    teacher_loss: Tensor
    """KL summed over the teacher's answer."""
    student_loss: Tensor
    """KL summed over the model's own answer."""

    def measured(self) -> Measured:
        """Means with standard errors over problems."""
        return Measured(
            accuracy_sampled=Estimate.over(self.right_sampled),
            accuracy_greedy=Estimate.over(self.right_greedy),
            kl_bridge=Estimate.over(self.kl_bridge),
            kl_garden=Estimate.over(self.kl_garden),
            diversity=Estimate.ratio(self.garden_entropy, self.teacher_garden_entropy),
            teacher_loss=Estimate.over(self.teacher_loss),
            student_loss=Estimate.over(self.student_loss),
            exposure_bias=Estimate.over(self.student_loss - self.teacher_loss),
        )


def hold_out(world: ArithmeticWorld, teacher: PreTrainedModel, problems: int, seed: int) -> HeldOut:
    """`problems` test problems with the teacher's answers."""
    drawn = make_problems(problems, seed, split="test", world=world)
    generator = torch.Generator().manual_seed(2 * seed + 1)
    prompts = [prompt_ids(world, world.prompt(problem, generator)) for problem in drawn]
    answers = whole_answers(teacher, world, drawn, prompts, torch.Generator().manual_seed(seed))
    roles: list[Role] = []
    for problem, answer in zip(drawn, answers, strict=True):
        process = world.process(problem)
        roles += [role(process, state) for state in trace(process, answer)]
    return HeldOut(
        world=world,
        seed=seed,
        teacher=teacher,
        problems=drawn,
        prompts=prompts,
        answers=answers,
        roles=roles,
        teacher_logp=answer_log_probs(teacher, prompts, answers),
    )


def examine(model: PreTrainedModel, held_out: HeldOut) -> PerProblem:
    """`model` on every held-out problem. Its own answers are drawn with the random numbers that the teacher's were."""
    world, problems, prompts = held_out.world, held_out.problems, held_out.prompts
    sampled = whole_answers(model, world, problems, prompts, torch.Generator().manual_seed(held_out.seed))
    greedy = whole_answers(model, world, problems, prompts, None)
    logp = answer_log_probs(model, prompts, held_out.answers)
    kl = _kl(held_out.teacher_logp, logp)
    own = _kl(answer_log_probs(held_out.teacher, prompts, sampled), answer_log_probs(model, prompts, sampled))
    gardens = torch.tensor([found == Role.GARDEN for found in held_out.roles])
    return PerProblem(
        right_sampled=_right(world, problems, sampled),
        right_greedy=_right(world, problems, greedy),
        kl_bridge=_mean_where(kl, torch.tensor([found == Role.BRIDGE for found in held_out.roles]), held_out.answers),
        kl_garden=_mean_where(kl, gardens, held_out.answers),
        garden_entropy=_sums(torch.where(gardens, entropy(logp), 0.0), held_out.answers),
        teacher_garden_entropy=_sums(torch.where(gardens, entropy(held_out.teacher_logp), 0.0), held_out.answers),
        teacher_loss=_sums(kl, held_out.answers),
        student_loss=_sums(own, sampled),
    )


def whole_answers(
    model: PreTrainedModel,
    world: ArithmeticWorld,
    problems: Sequence[Problem],
    prompts: Sequence[list[int]],
    generator: torch.Generator | None,
) -> list[list[int]]:
    """The answers of `model`, each with its end token unless the horizon cut it off; `generator` as `write_answers`."""
    horizon = world.process(problems[0]).horizon
    answers: list[list[int]] = []
    for start in range(0, len(prompts), BATCH):
        answers += write_answers(model, prompts[start : start + BATCH], tokens=horizon, generator=generator)
    return [answer if len(answer) == horizon else [*answer, END] for answer in answers]


@torch.inference_mode()
def answer_log_probs(model: PreTrainedModel, prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> Tensor:
    """``(N, V)`` float64 nats: `model` before each of the N answer tokens, one answer after the other."""
    found = []
    for start in range(0, len(prompts), BATCH):
        pairs = list(zip(prompts[start : start + BATCH], answers[start : start + BATCH], strict=True))
        width = max(len(prompt) + len(answer) for prompt, answer in pairs)
        ids = torch.tensor([prompt + answer + [PAD] * (width - len(prompt + answer)) for prompt, answer in pairs])
        logits = model(input_ids=ids, attention_mask=(ids != PAD).long(), use_cache=False).logits
        for row, (prompt, answer) in enumerate(pairs):
            first = len(prompt) - 1
            found.append(logits[row, first : first + len(answer)].double().log_softmax(-1))
    return torch.cat(found)


def entropy(logp: Tensor) -> Tensor:
    """``(*batch, V)`` nats to ``(*batch,)`` nats."""
    return -torch.where(logp > -torch.inf, logp.exp() * logp, 0.0).sum(-1)


def _kl(teacher_logp: Tensor, logp: Tensor) -> Tensor:
    return (teacher_logp.exp() * (teacher_logp - logp)).sum(-1)


def _right(world: ArithmeticWorld, problems: Sequence[Problem], answers: Sequence[list[int]]) -> Tensor:
    right = [check_answer(problem, world.decode(answer)) for problem, answer in zip(problems, answers, strict=True)]
    return torch.tensor(right, dtype=torch.float64)


def _sums(values: Tensor, answers: Sequence[list[int]]) -> Tensor:
    """Sum over the tokens of each answer."""
    owner = torch.repeat_interleave(torch.tensor([len(answer) for answer in answers]))
    return torch.zeros(len(answers), dtype=torch.float64).index_add_(0, owner, values.double())


def _mean_where(values: Tensor, mask: Tensor, answers: Sequence[list[int]]) -> Tensor:
    """Mean over the tokens of each answer where `mask` holds; answers without any are left out."""
    counts = _sums(mask, answers)
    return (_sums(torch.where(mask, values, 0.0), answers) / counts)[counts > 0]


TOP = 5
"""How many of the likeliest tokens are kept."""

RULES = {"static": StaticWeight(), "confidence": ConfidenceWeight(), "entropy": EntropyWeight()}
"""Soft weights that depend on the position at most."""

PREFERRED_WRITER = "confidence"
"""Whose answer is shown, if it was trained."""


def view_answer(students: Mapping[str, PreTrainedModel], held_out: HeldOut) -> AnswerView:
    """An answer to the first held-out problem, sampled from one of `students` (keys of `OBJECTIVES`)."""
    writer = PREFERRED_WRITER if PREFERRED_WRITER in students else next(iter(students))
    problem, prompt = held_out.problems[0], held_out.prompts[0]
    generator = torch.Generator().manual_seed(held_out.seed)
    answer = whole_answers(students[writer], held_out.world, [problem], [prompt], generator)[0]
    process = held_out.world.process(problem)
    roles = [role(process, state) for state in trace(process, answer)]
    teacher_logp = answer_log_probs(held_out.teacher, [prompt], [answer])
    logps = {name: answer_log_probs(student, [prompt], [answer]) for name, student in students.items()}
    signal = TeacherSignal.from_logits(teacher_logp)
    weights = {name: rule(signal) for name, rule in RULES.items()}
    vocabulary = held_out.world.vocabulary
    views = [
        TokenView(
            text=vocabulary[token],
            role=roles[position].value,
            soft_weights={name: weight[position].item() for name, weight in weights.items()},
            teacher_top=_top(teacher_logp[position], vocabulary),
            student_tops={name: _top(logp[position], vocabulary) for name, logp in logps.items()},
            student_surprise={name: -logp[position, token].item() for name, logp in logps.items()},
        )
        for position, token in enumerate(answer)
        if token != END
    ]
    asked = held_out.world.decode([token for token in prompt if token >= len(SPECIAL_TOKENS)])
    return AnswerView(prompt=asked, tokens=tuple(views), written_by=OBJECTIVES[writer].label)


def _top(logp: Tensor, vocabulary: tuple[str, ...]) -> TopTokens:
    probabilities, ids = logp.exp().topk(TOP)
    return tuple((vocabulary[i], p) for i, p in zip(ids.tolist(), probabilities.tolist(), strict=True))
