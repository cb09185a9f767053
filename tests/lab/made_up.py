"""A lab result whose numbers nobody measured, for tests of what reads and shows it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from bridgegarden.lab.result import (
    ActionView,
    Correlations,
    ExampleView,
    LabResult,
    LabRun,
    LabSettings,
    Measured,
    TokenView,
    Training,
)
from bridgegarden.study.arms import ALL_OBJECTIVES

SHAPES = {
    "hard": (31.0, 2.5, 0.93, 0.0, 0.02),
    "hard_data": (1.3, 0.6, 0.55, 1.0, 0.06),
    "soft": (1.0, 0.5, 0.60, 0.99, 0.05),
    "static": (3.2, 0.3, 0.78, 0.7, 0.03),
    "confidence": (2.4, 0.2, 0.94, 0.83, 0.02),
    "entropy": (6.5, 0.1, 0.93, 0.58, 0.02),
    "curriculum": (1.1, 0.55, 0.61, 0.99, 0.05),
    "risk_guided": (3.3, 0.35, 0.78, 0.7, 0.03),
    "static_0.1": (9.0, 0.4, 0.9, 0.2, 0.02),
    "static_0.3": (5.0, 0.35, 0.85, 0.5, 0.03),
    "static_0.7": (2.0, 0.4, 0.7, 0.85, 0.04),
    "static_0.9": (1.2, 0.45, 0.65, 0.95, 0.05),
}
"""L_dT, exposure bias, success, diversity, violation."""

SHARES = {"bridge": 0.3, "garden": 0.65, "forced": 0.05}
"""Of every loss, by role."""

Change = Callable[[str, str, str, int, Measured], Measured]


def made_up_measured(objective: str, seed: int = 0) -> Measured:
    """Numbers of one student, a little different for every seed."""
    loss, bias, success, diversity, violation = SHAPES[objective]
    off = 1 + 0.02 * math.sin(7 * seed + len(objective))
    loss, bias = loss * off, bias * off
    return Measured(
        teacher_loss=loss,
        student_loss=loss + bias,
        exposure_bias=bias,
        exposure_bias_exits=-0.2 * bias,
        success=success * off if success * off < 1 else success,
        success_greedy=0.97,
        teacher_success=0.6,
        violation=violation * off,
        diversity=diversity * off,
        length=17.2,
        teacher_length=17.5,
        teacher_loss_by_role={role: loss * share for role, share in SHARES.items()},
        student_loss_by_role={role: (loss + bias) * share for role, share in SHARES.items()},
        exposure_bias_by_role={role: bias * share for role, share in SHARES.items()},
        teacher_visits_by_role={"bridge": 5.0, "garden": 8.0, "forced": 4.5},
        teacher_loss_by_position=tuple(loss * (k + 1) / 171 for k in range(18)),
        student_loss_by_position=tuple((loss + bias) * (k + 1) / 171 for k in range(18)),
        exposure_bias_by_position=tuple(bias / 18 for _ in range(18)),
        kappa_all=Correlations(
            confidence=0.2 * off, low_entropy=0.25 * off, confidence_weighted=-0.1 * off, low_entropy_weighted=0.0
        ),
        kappa_choices=Correlations(
            confidence=0.6 * off, low_entropy=0.62 * off, confidence_weighted=0.3 * off, low_entropy_weighted=None
        ),
    )


def made_up_example(objective: str) -> ExampleView:
    """Two tokens; the second is text that a page must escape."""
    bias = SHAPES[objective][1]
    actions = (
        ActionView(text="3", teacher=0.9, student=0.7, kappa=-0.1 * bias),
        ActionView(text="<b>", teacher=0.1, student=0.2, kappa=0.9 * bias),
    )
    token = TokenView(
        text="3",
        role="bridge",
        confidence=0.9,
        entropy=0.325,
        kl=0.1,
        kappa=0.8 * bias,
        weighted_kappa=0.11 * bias,
        actions=actions,
    )
    garden = replace(token, text="<b>", role="garden", confidence=0.5, entropy=0.69, kappa=0.01, weighted_kappa=0.0)
    return ExampleView(prompt="Start with 3 <plus> 4?", tokens=(token, garden))


def made_up_result(
    *,
    worlds: tuple[str, ...] = ("arithmetic", "control"),
    seeds: tuple[int, ...] = (0, 1, 2),
    sweep: bool = True,
    change: Change | None = None,
    settings: Mapping[str, object] | None = None,
) -> LabResult:
    """A whole result; `change` may replace what a run measured, given world, regime, objective and seed."""
    plan = LabSettings(worlds=worlds, seeds=seeds, sweep=sweep, **(settings or {}))
    runs = []
    for world in worlds:
        for arm in plan.arms:
            for seed in seeds:
                measured = made_up_measured(arm.objective, seed)
                if change is not None:
                    measured = change(world, arm.regime, arm.objective, seed, measured)
                training = Training(
                    steps=300,
                    kept_step=275,
                    validation=((25, 1.5), (275, 0.4), (300, 0.41)),
                    seconds=5.5,
                    cpu_seconds=4.9,
                    measuring_seconds=2.5,
                )
                runs.append(
                    LabRun(
                        world=world,
                        regime=arm.regime,
                        objective=arm.objective,
                        seed=seed,
                        measured=measured,
                        training=training,
                        example=made_up_example(arm.objective),
                    )
                )
    return LabResult(
        settings=plan,
        runs=tuple(runs),
        versions={"python": "3.11.7", "bridgegarden": "0.1.0", "torch": "2.13.0+cpu"},
        commit="680626a",
        command="bridgegarden lab run --world all",
        started="2026-11-24T05:00:00+00:00",
        seconds=2400.0,
    )


assert set(SHAPES) == set(ALL_OBJECTIVES)
