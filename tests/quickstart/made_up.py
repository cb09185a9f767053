"""A quickstart result whose numbers nobody measured, for tests of what shows it."""

import math

from bridgegarden.quickstart.result import (
    AnswerView,
    Measured,
    ObjectiveRun,
    QuickstartResult,
    QuickstartSettings,
    TokenView,
)
from bridgegarden.statistics import Estimate
from bridgegarden.study.arms import OBJECTIVES

SHAPES = {
    "hard": (0.88, 0.02, 0.31, 5.2, 2.9),
    "hard_data": (0.56, 0.97, 0.06, 0.011, 0.4),
    "soft": (0.53, 0.995, 0.02, 0.003, 0.15),
    "static": (0.62, 0.86, 0.05, 0.27, 0.3),
    "confidence": (0.85, 0.93, 0.22, 0.09, 1.1),
    "entropy": (0.81, 0.985, 0.19, 0.014, 0.9),
    "curriculum": (0.66, 0.9, 0.07, 0.2, -0.2),
    "risk_guided": (0.64, 0.87, 0.055, 0.25, 0.28),
}
"""Sampled accuracy, diversity, KL at Bridges, KL at Gardens, exposure bias."""

WORDS = [
    ("let", "garden"), ("us", "garden"), ("begin", "garden"), ("with", "forced"), ("3", "bridge"), (".", "forced"),
    ("first", "garden"), (",", "forced"), ("add", "bridge"), ("5", "bridge"), (",", "forced"), ("which", "garden"),
    ("makes", "garden"), ("1", "bridge"), (".", "forced"), ("next", "garden"), (",", "forced"), ("multiply", "bridge"),
    ("by", "forced"), ("4", "bridge"), (",", "forced"), ("giving", "garden"), ("us", "garden"), ("4", "bridge"),
    (".", "forced"), ("so", "garden"), ("the", "forced"), ("answer", "garden"), ("is", "forced"), ("4", "bridge"),
    (".", "forced"),
]  # fmt: skip


def measured(name: str, seed: int = 0, problems: int = 1000) -> Measured:
    """Numbers of one run, a little different for every seed."""
    accuracy, diversity, bridge, garden, bias = SHAPES[name]

    def near(value: float, share: float = 0.03) -> Estimate:
        off = 1 + 2 * share * math.sin(7 * seed + len(name) + 90 * value)
        return Estimate(value * off, max(abs(value) * share, 1e-4), problems)

    accuracy = near(accuracy, 0.01).mean
    return Measured(
        accuracy_sampled=Estimate(accuracy, math.sqrt(accuracy * (1 - accuracy) / problems), problems),
        accuracy_greedy=Estimate(0.98, 0.006, problems),
        kl_bridge=near(bridge),
        kl_garden=near(garden),
        diversity=near(diversity, 0.01),
        teacher_loss=near(9 * bridge + 12 * garden),
        student_loss=near(9 * bridge + 12 * garden + bias),
        exposure_bias=near(bias, 0.15),
    )


def answer(names: tuple[str, ...], words: list[tuple[str, str]]) -> AnswerView:
    """Tokens whose models are surer at Bridges."""
    tokens = []
    for index, (text, role) in enumerate(words):
        first = {"bridge": 0.9, "garden": 0.35, "forced": 0.998}[role]
        others = ("7", "then", "<b>")
        shares = (first, (1 - first) * 0.6, (1 - first) * 0.25, (1 - first) * 0.1)
        top = tuple(zip((text, *others), shares, strict=True))
        surprise = {name: -math.log(first) * (1 + 0.3 * math.sin(index + 5 * k)) for k, name in enumerate(names)}
        weights = {"static": 0.5, "confidence": 1 - first, "entropy": (1 - first) ** 2 * 0.8}
        tokens.append(
            TokenView(
                text=text,
                role=role,
                soft_weights=weights,
                teacher_top=top,
                student_tops=dict.fromkeys(names, top),
                student_surprise=surprise,
            )
        )
    prompt = "start with 3, then add 5, then multiply by 4. what is the result modulo 7?"
    return AnswerView(prompt=prompt, tokens=tuple(tokens), written_by=OBJECTIVES[names[-1]].label)


def made_up_result(
    *,
    objectives: tuple[str, ...] = ("hard", "soft", "static", "confidence", "entropy"),
    seeds: tuple[int, ...] = (0,),
    words: list[tuple[str, str]] = WORDS,
) -> QuickstartResult:
    """A whole result."""
    runs = tuple(
        ObjectiveRun(
            objective=name,
            label=OBJECTIVES[name].label,
            hard_target=OBJECTIVES[name].hard_target,
            seed=seed,
            measured=measured(name, seed),
            seconds=31.4,
            cpu_seconds=30.2,
            tokens=812_345,
            teacher_tokens=61_234,
            final_loss=0.217,
        )
        for name in objectives
        for seed in seeds
    )
    zero, one = Estimate(0.0, 0.0, 1000), Estimate(1.0, 0.0, 1000)
    teacher = Measured(
        accuracy_sampled=Estimate(0.603, 0.0155, 1000),
        accuracy_greedy=one,
        kl_bridge=zero,
        kl_garden=zero,
        diversity=one,
        teacher_loss=zero,
        student_loss=zero,
        exposure_bias=zero,
    )
    return QuickstartResult(
        settings=QuickstartSettings(objectives=objectives, seeds=seeds),
        runs=runs,
        teacher=teacher,
        answer=answer(objectives, words),
        versions={"python": "3.11.7", "bridgegarden": "0.1.0", "torch": "2.13.0+cpu", "transformers": "5.23.0"},
        command="bridgegarden quickstart" + (" --full" if len(seeds) > 1 else ""),
        started="2026-11-24T03:10:00+00:00",
        seconds=204.0,
        full=len(seeds) > 1,
    )
