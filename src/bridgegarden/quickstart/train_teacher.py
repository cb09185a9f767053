"""Train the packaged teacher from the exact process: ``python -m bridgegarden.quickstart.train_teacher --output DIR``.

Each step draws problems, wordings and answers anew, and fits the model to the process's exact next-token distributions
by forward KL. The folder written holds all that `from_pretrained` needs, and a record of how it came about.
"""

import json
import math
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch
import transformers
from transformers import GenerationConfig, LlamaForCausalLM

from bridgegarden.exact.tasks.arithmetic import END, PAD, ArithmeticWorld, Problem, make_problems
from bridgegarden.quickstart.result import TEACHER_SIZE
from bridgegarden.quickstart.teacher import Batch, collate, draw_example, measure_teacher
from bridgegarden.study.students import build_tokenizer, new_llama


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
    problems = make_problems(training.problems, training.seed, world=world)
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
