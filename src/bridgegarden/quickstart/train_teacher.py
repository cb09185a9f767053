"""Train the packaged teacher from the exact process: ``python -m bridgegarden.quickstart.train_teacher --output DIR``.

Each step draws problems, wordings and answers anew, and fits the model to the process's exact next-token distributions
by forward KL. The folder written holds all that `from_pretrained` needs, and a record of how it came about and how good
it is.
"""

import json
import math
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import click
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaForCausalLM, PreTrainedModel

from bridgegarden.exact.process import Role, role, sample, trace
from bridgegarden.exact.tasks.arithmetic import ArithmeticWorld, Problem
from bridgegarden.exact.world import END, PAD
from bridgegarden.quickstart.result import TEACHER_SIZE
from bridgegarden.quickstart.student import prompt_ids, right_answers, whole_answers
from bridgegarden.statistics import Estimate
from bridgegarden.study.students import build_tokenizer, new_llama


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


@dataclass(frozen=True, kw_only=True)
class TeacherTraining:
    """Everything the teacher depends on besides the world."""

    seed: int = 0
    """Seeds the weights, the problems, their wordings and the answers."""

    steps: int = 1200
    """Optimiser steps."""

    batch: int = 32
    """Problems per step."""

    problems: int = 20_000
    """Distinct training problems to draw from."""

    learning_rate: float = 3e-3
    """Peak of AdamW's rate: a linear rise over the first 5 % of the steps, then a cosine to zero."""


def train(
    training: TeacherTraining, world: ArithmeticWorld, say: Callable[[str], None]
) -> tuple[LlamaForCausalLM, list[tuple[int, float]]]:
    """The trained model and its loss curve: (step, mean KL in nats over the steps since the last entry)."""
    model = new_llama(world, TEACHER_SIZE, training.seed)
    problems = world.problems(training.problems, training.seed)
    generator = torch.Generator().manual_seed(training.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=training.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, training.steps))
    curve: list[tuple[int, float]] = []
    recent: list[float] = []
    for step in range(1, training.steps + 1):
        loss = process_kl(model, _draw_batch(world, problems, training.batch, generator))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        recent.append(loss.item())
        if step % 50 == 0 or step == training.steps:
            curve.append((step, round(sum(recent) / len(recent), 5)))
            recent.clear()
            say(f"step {step}/{training.steps}: KL {curve[-1][1]:.4f} nats a token")
    return model.eval(), curve


def process_kl(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    """KL of the exact process to the model, mean over answer tokens; positions before the answer are not projected."""
    hidden = model.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
    logp = model.lm_head(hidden[:, :-1][batch.answers]).log_softmax(-1)
    exact = batch.log_probs.float()
    return torch.where(exact > -math.inf, exact.exp() * (exact - logp), 0.0).sum(-1).mean()


def _draw_batch(world: ArithmeticWorld, problems: list[Problem], size: int, generator: torch.Generator) -> Batch:
    chosen = torch.randint(len(problems), (size,), generator=generator).tolist()
    return collate([draw_example(world, problems[index], generator) for index in chosen])


def _rate(step: int, steps: int) -> float:
    warmup = max(1, steps // 20)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def save_teacher(model: LlamaForCausalLM, world: ArithmeticWorld, output: Path) -> None:
    """Write weights (bfloat16), configuration, tokenizer and generation settings. The model stays in bfloat16."""
    model.generation_config = GenerationConfig(
        eos_token_id=END, pad_token_id=PAD, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=64
    )
    model.bfloat16().save_pretrained(output)
    build_tokenizer(world).save_pretrained(output)


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


def measure_teacher(folder: Path, world: ArithmeticWorld, *, problems: int, seed: int) -> dict[str, dict[str, float]]:
    """The saved model on test problems: each quantity with its mean and standard error over problems."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    examples = [draw_example(world, p, generator) for p in world.problems(problems, seed, split="test")]
    found = {f"kl_{role}": kl for role, kl in kl_by_role(model, examples).items()}
    asked, prompts = [one.problem for one in examples], [one.prompt_ids for one in examples]
    for name, drawn in (("greedy", None), ("sampled", generator)):
        found[f"accuracy_{name}"] = right_answers(world, asked, whole_answers(model, world, asked, prompts, drawn))
    found["accuracy_process"] = right_answers(world, asked, [one.answer_ids for one in examples])
    return {name: _mean(values.double()) for name, values in found.items()}


def _mean(values: Tensor) -> dict[str, float]:
    mean, stderr, n = Estimate.over(values)
    return {"mean": float(f"{mean:.4g}"), "stderr": float(f"{stderr:.2g}"), "n": n}


@click.command()
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder to write.")
@click.option("--steps", type=int, default=TeacherTraining.steps, show_default=True, help="Optimiser steps.")
@click.option("--seed", type=int, default=TeacherTraining.seed, show_default=True, help="Seeds everything random.")
def main(output: Path, steps: int, seed: int) -> None:
    """Train the quickstart's teacher on one thread and write it to --output with its training record."""
    torch.set_num_threads(1)
    training, world = TeacherTraining(steps=steps, seed=seed), ArithmeticWorld()
    started = time.perf_counter()
    model, curve = train(training, world, lambda line: click.echo(line, err=True))
    seconds = time.perf_counter() - started
    save_teacher(model, world, output)
    record = {
        "command": f"python -m bridgegarden.quickstart.train_teacher --output DIR --steps {steps} --seed {seed}",
        "world": asdict(world),
        "training": asdict(training) | {"size": asdict(TEACHER_SIZE)},
        "parameters": model.num_parameters(),
        "seconds": round(seconds, 1),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "held_out": measure_teacher(output, world, problems=1000, seed=seed + 1),
        "loss_curve": curve,
    }
    (output / "training_record.json").write_text(json.dumps(record, indent=1) + "\n")
    click.echo(json.dumps(record["held_out"], indent=1))


if __name__ == "__main__":
    main()
