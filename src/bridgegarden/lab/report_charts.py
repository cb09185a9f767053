"""The charts of the lab's report."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from bridgegarden.lab.findings import difference
from bridgegarden.lab.result import LabResult, Measured
from bridgegarden.lab.tables import interval_words, label
from bridgegarden.report.charts import WIDE, Dot, Row, Shape, dot_plot
from bridgegarden.report.curves import Curve, CurvePoint, curve_chart
from bridgegarden.report.scale import Axis, Reading, number
from bridgegarden.statistics import Effect
from bridgegarden.study.arms import LAMBDAS

CHOICES: Mapping[str, tuple[str, Shape]] = {"bridge": ("at Bridges", "square"), "garden": ("at Gardens", "ring")}
"""Roles in which there is something to choose, as charts show them."""

SWEEP: Mapping[float, str] = {
    0.0: "hard",
    **{weight: name for name, weight in sorted((n, o.soft_weight) for n, o in LAMBDAS.items()) if weight is not None},
    0.5: "static",
    1.0: "soft",
}
"""Objective of every constant soft weight."""

CURVES = ("soft", "hard", "confidence", "entropy")
"""Four curves can be told apart; these are drawn if they were run."""


class Optimum(NamedTuple):
    """Where along the sweep the error of a role is lowest."""

    weight: float
    """The soft weight with the lowest mean."""
    seeds: int
    """In how many seeds it is the lowest."""


def main_regime(result: LabResult, world: str) -> str:
    """The regime in which everything was trained: the one that charts show."""
    return result.regimes(world)[0]


def sweep_weights(result: LabResult, world: str) -> dict[float, str]:
    """Soft weights that were run in `world`, in rising order, with their objectives; empty if there was no sweep."""
    run = result.objectives(world, main_regime(result, world))
    if not any(name in run for name in LAMBDAS):
        return {}
    return {weight: SWEEP[weight] for weight in sorted(SWEEP) if SWEEP[weight] in run}


def optimum(result: LabResult, world: str, role: str) -> Optimum:
    """The soft weight at which the inference error of `role` is lowest."""
    regime = main_regime(result, world)
    weights = sweep_weights(result, world)
    values = {w: result.values(world, regime, name, error_of(role)) for w, name in weights.items()}
    best = min(values, key=lambda weight: sum(values[weight]))
    lowest = [min(values, key=lambda weight: values[weight][at]) for at in range(len(values[best]))]
    return Optimum(best, lowest.count(best))


def error_of(role: str) -> Callable[[Measured], float]:
    """The inference error of `role` as a quantity."""
    return lambda measured: measured.error_by_role[role]


def roles_of(result: LabResult, world: str) -> list[str]:
    """Bridge and garden, each if there is such a position in `world`."""
    runs = [run for run in result.runs if run.world == world]
    return [role for role in CHOICES if any(run.measured.teacher_visits_by_role[role] > 0 for run in runs)]


def role_chart(result: LabResult, world: str, objectives: Mapping[str, str], about: str, size: int = WIDE) -> Markup:
    """Inference error at Bridges and at Gardens, one row for each of `objectives` (name to what is written)."""
    regime, roles = main_regime(result, world), roles_of(result, world)
    rows = [
        Row(
            name=name,
            dots=tuple(
                _dot(f"{name}, {CHOICES[role][0]}", difference(result, world, regime, objective, None, error_of(role)))
                for role in roles
            ),
        )
        for objective, name in objectives.items()
    ]
    values = [dot.reading.value for row in rows for dot in row.dots]
    log = min(values) > 0 and max(values) > 20 * min(values)
    return dot_plot(
        rows,
        axis=Axis(
            label=f"error, nats an answer{', logarithmic' if log else ''} →", log=log, include=() if log else (0.0,)
        ),
        series=[CHOICES[role] for role in roles],
        about=about,
        size=size,
    )


def position_chart(result: LabResult, world: str, size: int = WIDE) -> Markup:
    """Exposure bias by the position that causes it, one curve for each of at most four objectives."""
    regime = main_regime(result, world)
    curves = [_curve(result, world, regime, objective) for objective in curve_objectives(result, world)]
    return curve_chart(
        curves,
        x=Axis(label="tokens written before →", whole=True),
        y=Axis(label="↑ exposure bias, nats", include=(0.0,)),
        about=f"Exposure bias by position in the world {world}.",
        size=size,
    )


def curve_objectives(result: LabResult, world: str) -> list[str]:
    """Those of `CURVES` that were run, filled up with others to four."""
    run = [name for name in result.objectives(world, main_regime(result, world)) if name not in LAMBDAS]
    return [name for name in dict.fromkeys([*CURVES, *run]) if name in run][:4]


def _curve(result: LabResult, world: str, regime: str, objective: str) -> Curve:
    runs = result.runs_of(world, regime, objective)
    length = min(len(run.measured.exposure_bias_by_position) for run in runs)
    points = [(at, difference(result, world, regime, objective, None, _bias_at(at))) for at in range(length)]
    name = label(objective)
    return Curve(
        name=name,
        points=tuple(
            CurvePoint(at, _reading(effect), f"{_words(name, effect)}\nafter {at} tokens") for at, effect in points
        ),
        sure=length,
    )


def _bias_at(position: int) -> Callable[[Measured], float]:
    return lambda measured: measured.exposure_bias_by_position[position]


def _dot(name: str, effect: Effect) -> Dot:
    return Dot(reading=_reading(effect), about=_words(name, effect))


def _words(name: str, effect: Effect) -> str:
    mean = number(effect.mean or 0.0)
    return f"{name}\n{mean} nats" + (f" ({interval_words(effect)})" if effect.interval is not None else "")


def _reading(effect: Effect) -> Reading:
    # These quantities exist in every run, so the mean does.
    mean = effect.mean or 0.0
    return Reading(mean, *(effect.interval or (mean, mean)))


def labels(objectives: Sequence[str]) -> dict[str, str]:
    """Objectives with their names for a reader."""
    return {objective: label(objective) for objective in objectives}
