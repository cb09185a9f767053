"""Problems with an answer drawn from the exact process, as token ids beside what the process would have said."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bridgegarden.exact.process import Role, role, sample, trace
from bridgegarden.exact.tasks.arithmetic import PAD, ArithmeticWorld, Problem
from bridgegarden.exact.vocabulary import ask


@dataclass(frozen=True, kw_only=True)
class Example:
    """One problem, one wording of it, one answer."""

    problem: Problem
    """What is asked."""

    prompt_ids: list[int]
    """The conversation up to and including the assistant's mark, as the chat template renders it."""

    answer_ids: list[int]
    """The answer, its end token included."""

    log_probs: Tensor
    """``(len(answer_ids), V)`` float64 nats: the exact process before each answer token."""

    roles: list[Role]
    """What each answer token decides."""


def prompt_ids(world: ArithmeticWorld, prompt: str) -> list[int]:
    """The ids that generation starts from."""
    return ask(world.encode(prompt))


def draw_example(world: ArithmeticWorld, problem: Problem, generator: torch.Generator) -> Example:
    """A wording of `problem` and an answer, slips included."""
    process = world.process(problem)
    prompt = world.prompt(problem, generator)
    answer = sample(process, generator)
    states = trace(process, answer)
    return Example(
        problem=problem,
        prompt_ids=prompt_ids(world, prompt),
        answer_ids=answer,
        log_probs=torch.stack([process.log_probs(state) for state in states]),
        roles=[role(process, state) for state in states],
    )


class Batch(NamedTuple):
    """Examples side by side, padded on the right: B sequences of T tokens."""

    input_ids: Tensor
    """``(B, T)``."""

    attention_mask: Tensor
    """``(B, T)``, 0 on padding."""

    answers: Tensor
    """``(B, T - 1)`` bool: whether position t predicts an answer token."""

    log_probs: Tensor
    """``(N, V)`` float64 nats for the N positions where `answers` holds, in order."""


def collate(examples: Sequence[Example]) -> Batch:
    """`examples` as one batch."""
    width = max(len(example.prompt_ids) + len(example.answer_ids) for example in examples)
    input_ids = torch.full((len(examples), width), PAD)
    attention_mask = torch.zeros_like(input_ids)
    answers = torch.zeros(len(examples), width - 1, dtype=torch.bool)
    for row, example in enumerate(examples):
        start, end = len(example.prompt_ids), len(example.prompt_ids) + len(example.answer_ids)
        input_ids[row, :end] = torch.tensor(example.prompt_ids + example.answer_ids)
        attention_mask[row, :end] = 1
        answers[row, start - 1 : end - 1] = True
    return Batch(input_ids, attention_mask, answers, torch.cat([example.log_probs for example in examples]))
