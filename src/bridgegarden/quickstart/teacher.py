"""What the packaged teacher learned from, and how good it is: answers of the exact process, and its own."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from bridgegarden.causal_lm import cache_argument
from bridgegarden.exact.process import Role, role, sample, trace
from bridgegarden.exact.tasks.arithmetic import END, PAD, ArithmeticWorld, Problem, check_answer, make_problems
from bridgegarden.exact.world import ask
from bridgegarden.statistics import Estimate


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


def kl_by_role(model: PreTrainedModel, examples: Sequence[Example], *, batch: int = 100) -> dict[Role, Tensor]:
    """KL of the exact process to the model, per example and role.

    Returns:
        For each role ``(len(examples),)`` nats, the mean over the example's positions with that role.
    """
    means: dict[Role, list[float]] = {role: [] for role in Role}
    for start in range(0, len(examples), batch):
        part = examples[start : start + batch]
        data = collate(part)
        with torch.inference_mode():
            logits = model(input_ids=data.input_ids, attention_mask=data.attention_mask).logits
        logp = logits[:, :-1][data.answers].double().log_softmax(-1)
        exact = data.log_probs
        kl = torch.where(exact > -math.inf, exact.exp() * (exact - logp), 0.0).sum(-1)
        for example, values in zip(part, kl.split([len(example.answer_ids) for example in part]), strict=True):
            for kind, found in means.items():
                found.append(values[torch.tensor([one == kind for one in example.roles])].mean().item())
    return {kind: torch.tensor(found, dtype=torch.float64) for kind, found in means.items()}


@torch.inference_mode()
def write_answers(
    model: PreTrainedModel, prompts: Sequence[list[int]], *, tokens: int, generator: torch.Generator | None = None
) -> list[list[int]]:
    """The model's answers to `prompts`, at most `tokens` long, cut before the end token.

    Args:
        model: any causal LM of `transformers`.
        prompts: token ids, as generation starts from.
        tokens: most tokens of an answer.
        generator: draws at temperature 1 from the whole distribution; None takes the likeliest token.
    """
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    written = torch.empty(len(prompts), 0, dtype=torch.long)
    ended = torch.zeros(len(prompts), dtype=torch.bool)
    # One that the model makes would have to be read off its output, where it goes by two names.
    named = {cache_argument(model): DynamicCache(config=model.config)}
    while written.shape[1] < tokens and not ended.all():
        output = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, **named)
        logits = output.logits[:, -1].float()
        chosen = logits.argmax(-1, keepdim=True)
        if generator is not None:
            chosen = torch.multinomial(logits.softmax(-1), 1, generator=generator)
        ids = chosen.masked_fill(ended[:, None], END)
        ended = ended | (ids[:, 0] == END)
        written = torch.cat([written, ids], 1)
        mask = torch.cat([mask, torch.ones_like(ids)], 1)
        positions = positions[:, -1:] + 1
    return [row[: row.index(END)] if END in row else row for row in written.tolist()]


def right_answers(
    model: PreTrainedModel,
    world: ArithmeticWorld,
    examples: Sequence[Example],
    *,
    generator: torch.Generator | None = None,
    batch: int = 250,
) -> Tensor:
    """``(len(examples),)`` bool: whether the model's own answer to each problem is right; `generator` as above."""
    right: list[bool] = []
    for start in range(0, len(examples), batch):
        part = examples[start : start + batch]
        horizon = world.process(part[0].problem).horizon
        answers = write_answers(model, [e.prompt_ids for e in part], tokens=horizon, generator=generator)
        right += [check_answer(e.problem, world.decode(a)) for e, a in zip(part, answers, strict=True)]
    return torch.tensor(right)


def measure_teacher(folder: Path, world: ArithmeticWorld, *, problems: int, seed: int) -> dict[str, dict[str, float]]:
    """The saved model on test problems: each quantity with its mean and standard error over problems."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    examples = [draw_example(world, p, generator) for p in make_problems(problems, seed, split="test", world=world)]
    found = {f"kl_{role}": kl for role, kl in kl_by_role(model, examples).items()}
    found["accuracy_greedy"] = right_answers(model, world, examples)
    found["accuracy_sampled"] = right_answers(model, world, examples, generator=generator)
    found["accuracy_process"] = torch.tensor(
        [check_answer(example.problem, world.decode(example.answer_ids)) for example in examples]
    )
    return {name: _mean(values.double()) for name, values in found.items()}


def _mean(values: Tensor) -> dict[str, float]:
    mean, stderr, n = Estimate.over(values)
    return {"mean": float(f"{mean:.4g}"), "stderr": float(f"{stderr:.2g}"), "n": n}
