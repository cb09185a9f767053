"""One answer, token by token: its roles, and what teacher and students thought."""

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bridgegarden.exact.process import role, trace
from bridgegarden.exact.tasks.arithmetic import END, SPECIAL_TOKENS
from bridgegarden.objective.soft_weight import ConfidenceWeight, EntropyWeight, StaticWeight
from bridgegarden.objective.support import TeacherSignal
from bridgegarden.quickstart.held_out import HeldOut, answer_log_probs, whole_answers
from bridgegarden.quickstart.result import AnswerView, TokenView, TopTokens
from bridgegarden.study.arms import OBJECTIVES

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
