"""A comparison with numbers from nowhere, for what is made from results."""

import random
from dataclasses import replace

from bridgegarden.compare.result import (
    CacheCost,
    CompareResult,
    CompareRun,
    CompareSettings,
    Measured,
    PairInfo,
    RowInfo,
    Spent,
)
from bridgegarden.evaluation.lm_eval import EvaluationOptions

SPENT = Spent(
    steps=100,
    seconds=22.0,
    cpu_seconds=20.0,
    teacher_tokens=0,
    student_tokens=160_000,
    prompt_tokens=0,
    generated_tokens=0,
    flops=1e11,
    peak_memory=600_000_000,
)
ON_POLICY = replace(
    SPENT,
    seconds=230.0,
    cpu_seconds=200.0,
    teacher_tokens=170_000,
    student_tokens=170_000,
    prompt_tokens=70_000,
    generated_tokens=90_000,
    flops=4e11,
)
RIGHT = {"soft": 0.6, "confidence": 0.95, "gkd": 0.6}
"""Chance of a right answer."""


def made_up_run(objective: str, seed: int, *, problems: int = 80, prompts: int = 12) -> CompareRun:
    """One training; the same problems and prompts for all."""
    draw = random.Random(f"{objective}{seed}")
    # Nearly as many right with every seed: three of them let only what hardly varies be told apart.
    right = draw.sample(range(problems), round(RIGHT[objective] * problems) + seed % 2)
    sampled = {f"sums/sums/{i}": float(i in right) for i in range(problems)}
    teacher_loss = {str(i): 1 + draw.random() for i in range(prompts)}
    student_loss = {prompt: value + draw.random() for prompt, value in teacher_loss.items()}
    measured = Measured(
        by_unit={
            "greedy": dict.fromkeys(sampled, 1.0),
            "sampled": sampled,
            "teacher_loss": teacher_loss,
            "student_loss": student_loss,
            "accepted": {str(i): 0.8 + 0.1 * draw.random() for i in range(prompts)},
            "accepted_own": {str(i): 0.7 + 0.1 * draw.random() for i in range(prompts)},
            "same_likeliest": {str(i): 0.9 + 0.1 * draw.random() for i in range(prompts)},
            "tokens_a_pass": {str(i): 2 + draw.random() for i in range(prompts)},
            "exposure_bias": {prompt: student_loss[prompt] - teacher_loss[prompt] for prompt in teacher_loss},
        },
        by_task={"sums": {"greedy": 1.0, "sampled": sum(sampled.values()) / problems}},
        entropy_kept=0.9,
        loss=0.4,
        label_loss=1.5 if objective == "hard" else 1.75,
        teacher_label_loss=1.25,
        seconds=5.0,
        cpu_seconds=4.0,
    )
    return CompareRun(
        objective=objective, seed=seed, spent=ON_POLICY if objective == "gkd" else SPENT, measured=measured
    )


def made_up_result(seeds: int = 3) -> CompareResult:
    """Soft labels, a hybrid and GKD."""
    row = RowInfo(label="soft", objective="divergence=forward_kl", lmbda=0.0, asks_teacher=True)
    rows = {
        "soft": row,
        "confidence": replace(row, label="confidence"),
        "gkd": replace(row, label="GKD", objective="divergence=jensen_shannon", lmbda=1.0),
    }
    return CompareResult(
        settings=CompareSettings(
            objectives=tuple(rows),
            seeds=tuple(range(seeds)),
            baseline="gkd",
            evaluation=EvaluationOptions(tasks=("sums",)),
        ),
        recipe="teacher:\n  model: t\n",
        pair=PairInfo(
            teacher="t",
            teacher_parameters=640_000,
            student="s",
            student_parameters=90_000,
            rows=2000,
            row_tokens=51.0,
            row_positions=29.0,
            prompts=12,
            held_out=True,
            device="cpu",
        ),
        rows=rows,
        runs=tuple(made_up_run(name, seed) for name in rows for seed in range(seeds)),
        cache=CacheCost(tokens=100_000, flops=1.2e11, seconds=18.0, cpu_seconds=12.0, sharers=2 * seeds),
        versions={"python": "3.11", "torch": "2.13"},
        commit="abc",
        command="bridgegarden compare my.yaml",
        started="2026-11-26T10:00:00+00:00",
        seconds=600.0,
    )
