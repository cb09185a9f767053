"""How fast exposure bias and kappa are measured: tokens scored per second, against the ways they are usually written.

    python benchmarks/diagnose.py [--texts 16] [--prompt 64] [--new 64] [--naive 16]

Random Llama models of two sizes, V = 32,000, one thread. All routes write texts of the same length from the same
prompts, and score the forward KL of teacher and student before every token.

* ours: both models in lockstep with their caches, a batch at a time;
* generate, forward of every prefix: ``generate`` for one text, then both models on each of its prefixes (timed on the
  first ``--naive`` tokens of one text, and on evenly spread ones, so that their prefixes are of average length);
* generate, one forward: ``generate`` for the whole batch, then both models on the whole texts, dense logits of both.
"""

import argparse
import platform
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from bridgegarden.causal_lm_policy import CausalLMPolicy
from bridgegarden.diagnostics.kappa import KappaSettings, measure_kappa
from bridgegarden.diagnostics.rollout import roll_out
from bridgegarden.objective.divergences import forward_kl

VOCABULARY, END = 32_000, 2


def model(hidden: int, layers: int, seed: int) -> LlamaForCausalLM:
    """Frozen, float32."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        max_position_embeddings=2048,
        eos_token_id=None,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def timed(work: Callable[[], int]) -> tuple[int, float, float]:
    """Tokens scored, seconds of processor and of wall."""
    cpu, wall = time.process_time(), time.perf_counter()
    tokens = work()
    return tokens, time.process_time() - cpu, time.perf_counter() - wall


def generate(writer: LlamaForCausalLM, ids: torch.Tensor, new: int) -> torch.Tensor:
    """Sampled at temperature 1 from the whole distribution, exactly `new` tokens."""
    settings = GenerationConfig(
        do_sample=True, top_k=0, max_new_tokens=new, min_new_tokens=new, eos_token_id=END, pad_token_id=END
    )
    mask = torch.ones_like(ids)
    out: Any = writer.generate(ids, attention_mask=mask, generation_config=settings)  # pyright: ignore
    return out


def every_prefix(
    teacher: LlamaForCausalLM,
    student: LlamaForCausalLM,
    writer: LlamaForCausalLM,
    prompt: torch.Tensor,
    new: int,
    k: int,
) -> tuple[int, float, float]:
    """One text; the scoring of `k` prefixes stands for that of all `new`, the writing is whole."""
    _, cpu, wall = timed(lambda: generate(writer, prompt, new).numel())
    text = generate(writer, prompt, new)
    ends = [prompt.shape[1] + round((i + 0.5) * new / k) for i in range(k)]

    def score() -> int:
        with torch.no_grad():
            for end in ends:
                p, q = (one(text[:, :end], use_cache=False).logits[:, -1].log_softmax(-1) for one in (teacher, student))
                forward_kl(p, q)
        return k

    _, scoring_cpu, scoring_wall = timed(score)
    return new, cpu + scoring_cpu * new / k, wall + scoring_wall * new / k


def main() -> None:
    """Time every route and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--naive", type=int, default=16, help="prefixes timed for the slow route")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    teacher, student = model(512, 6, 0), model(256, 4, 1)
    policies = [CausalLMPolicy(one, end_ids=[END]) for one in (teacher, student)]
    prompts = torch.randint(3, VOCABULARY, (arguments.texts, arguments.prompt))
    rows, new = prompts.tolist(), arguments.new
    uniforms = torch.rand(len(rows), 1, new, dtype=torch.float64)

    def lockstep(writer: int) -> int:
        texts = roll_out(policies[0], [policies[1]], rows, writer=policies[writer], uniforms=uniforms)
        return int(texts.lengths.sum())

    def one_forward(writer: LlamaForCausalLM) -> int:
        text = generate(writer, prompts, new)
        with torch.no_grad():
            p, q = (
                one(text[:, :-1], use_cache=False).logits[:, arguments.prompt - 1 :].log_softmax(-1)
                for one in (teacher, student)
            )
            return forward_kl(p, q).numel()

    texts = roll_out(policies[0], [policies[1]], rows, writer=policies[1], uniforms=uniforms)
    settings = KappaSettings(budget=10_000, rounds=4, top=2, limit=4, choose="random", max_rows=32)

    def kappa() -> int:
        generator = torch.Generator().manual_seed(0)
        return measure_kappa(policies[0], policies[1], texts, settings, generator=generator).generated_tokens

    lockstep(0)
    routes = {
        "exposure bias, student writes: ours": timed(lambda: lockstep(1)),
        "  generate, one forward": timed(lambda: one_forward(student)),
        "  generate, forward of every prefix": every_prefix(
            teacher, student, student, prompts[:1], new, arguments.naive
        ),
        "exposure bias, teacher writes: ours": timed(lambda: lockstep(0)),
        "  generate, one forward ": timed(lambda: one_forward(teacher)),
        "  generate, forward of every prefix ": every_prefix(
            teacher, student, teacher, prompts[:1], new, arguments.naive
        ),
        "kappa: ours": timed(kappa),
        # A continuation from the middle of a text: its prefix is the prompt and half of the text.
        "  generate, forward of every prefix  ": every_prefix(
            teacher, student, teacher, torch.cat([prompts[:1], prompts[:1, : new // 2]], 1), new // 2, arguments.naive
        ),
    }
    print(f"{platform.machine()}, torch {torch.__version__}, one thread; {arguments}")
    print("| route | tokens | CPU s | wall s | tokens per CPU second |\n|---|---|---|---|---|")
    for name, (tokens, cpu, wall) in routes.items():
        print(f"| {name.rstrip()} | {tokens} | {cpu:.2f} | {wall:.2f} | {tokens / cpu:,.1f} |", flush=True)


if __name__ == "__main__":
    main()
