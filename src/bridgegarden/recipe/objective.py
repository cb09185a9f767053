"""From the recipe's words to a :class:`~bridgegarden.objective.hybrid.HybridObjective`."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, cast

from bridgegarden.errors import ConfigError, lookup, unknown_name
from bridgegarden.recipe.values import coerce, section_from

if TYPE_CHECKING:
    from bridgegarden.objective.divergences import Divergence
    from bridgegarden.objective.hybrid import HybridObjective
    from bridgegarden.objective.soft_weight import SoftWeight

OPTION_RANGES: Mapping[tuple[str, str], tuple[float, float]] = MappingProxyType(
    {
        ("jensen_shannon", "beta"): (0.0, 1.0),
        ("skewed_forward_kl", "skew"): (0.0, 1.0),
        ("skewed_reverse_kl", "skew"): (0.0, 1.0),
        ("alpha_beta", "alpha"): (-32.0, 32.0),
        ("alpha_beta", "beta"): (-32.0, 32.0),
        ("adaptive_kl", "mu"): (0.0, float("inf")),
    }
)
"""Divergence options that are not free, with both ends included."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveSection:
    """What is minimised: a preset, then any field that differs from it. Null is the preset's value."""

    preset: str | None = None
    """``hard``, ``soft``, ``static``, ``confidence``, ``entropy``, ``curriculum``, ``risk_guided``,
    ``sharpened`` or ``soft_risk``."""
    divergence: str | None = None
    """The soft loss, by its name in :mod:`bridgegarden.objective.divergences`."""
    divergence_options: Mapping[str, Any] | None = None
    """Options of `divergence`, such as ``{skew: 0.1}``."""
    soft_weight: float | str | Mapping[str, Any] | None = None
    """A number in [0, 1], the name of a rule, or a rule with its fields, such as ``{rule: entropy, kind: power}``."""
    kd_ratio: float | None = None
    """The usual name of a soft weight that is a number."""
    hard_target: Literal["teacher_argmax", "data"] | None = None
    """The hard label: the teacher's likeliest token, or the token in the data."""
    temperature: float | None = None
    """Loss temperature, > 0. Not the temperature of sampling."""
    sharpening: float | None = None
    """Exponent > 0 of the soft target, the teacher's p^g over its sum; above 1 a surer teacher."""
    risk_alpha: float | None = None
    """Weight of the risk term, >= 0."""
    risk_weight: Literal["hard", "own"] | None = None
    """Whether the risk term belongs to the hard label and its weight, as in the paper, or is there whatever the soft
    weight."""

    def __post_init__(self) -> None:
        build_objective(self)


def build_objective(section: "ObjectiveSection") -> "HybridObjective":
    """The objective a recipe describes: its preset with the fields that are given.

    Raises:
        ConfigError: an unknown name, a value out of range, or two settings that contradict each other.
    """
    from bridgegarden.objective.hybrid import HybridObjective

    given: dict[str, Any] = {
        name: value
        for name in ("hard_target", "temperature", "sharpening", "risk_alpha", "risk_weight")
        if (value := getattr(section, name)) is not None
    }
    if section.divergence is not None:
        given["divergence"] = _divergence(section.divergence, section.divergence_options or {})
    elif section.divergence_options:
        raise ConfigError("objective.divergence_options: name the divergence they belong to in objective.divergence.")
    if section.soft_weight is not None and section.kd_ratio is not None:
        raise ConfigError("objective: kd_ratio is a soft_weight that is a number; give one of the two.")
    weight = section.soft_weight if section.kd_ratio is None else section.kd_ratio
    if weight is not None:
        given["soft_weight"] = _soft_weight(weight)
    return HybridObjective(**given) if section.preset is None else HybridObjective.preset(section.preset, **given)


def describe_objective(objective: "HybridObjective") -> str:
    """Every field of an objective, on one line."""
    divergence: Any = objective.divergence
    if isinstance(divergence, partial):
        options = ", ".join(f"{key}={value}" for key, value in divergence.keywords.items())
        name = f"{divergence.func.__name__}({options})"
    else:
        name = divergence.__name__
    rest = [f"{f.name}={getattr(objective, f.name)}" for f in fields(objective) if f.name != "divergence"]
    return ", ".join([f"divergence={name}", *rest])


def _divergence(name: str, options: Mapping[str, Any]) -> "Divergence":
    from bridgegarden.objective.divergences import DIVERGENCES

    function = lookup(DIVERGENCES, name, field="objective.divergence")
    place = "objective.divergence_options"
    known = dict(list(inspect.signature(function).parameters.items())[2:])
    for key in options:
        if not known:
            raise ConfigError(f"{place}: {name} has no options, got {key!r}; leave them out.")
        if key not in known:
            raise unknown_name(key, known, field=place, kind=f"option of {name}")
    for key, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and key not in options:
            raise ConfigError(f"{place}: {name} needs {key!r}; it has no default.")
    values = {key: _option(name, key, value) for key, value in options.items()}
    return cast("Divergence", partial(function, **values)) if values else function


def _option(name: str, key: str, value: Any) -> float:
    place = f"objective.divergence_options.{key}"
    number = coerce(value, float, place)
    low, high = OPTION_RANGES.get((name, key), (float("-inf"), float("inf")))
    if not low <= number <= high:
        raise ConfigError(f"{place} of {name} must be in [{low:g}, {high:g}], got {number:g}.")
    return number


def _soft_weight(weight: float | str | Mapping[str, Any]) -> "SoftWeight":
    from bridgegarden.objective.soft_weight import SOFT_WEIGHTS, StaticWeight

    place = "objective.soft_weight"
    if isinstance(weight, (int, float)):
        return StaticWeight(value=float(weight))
    if isinstance(weight, str):
        return section_from(lookup(SOFT_WEIGHTS, weight, field=place), {}, place)
    if "rule" not in weight:
        raise ConfigError(f"{place}: key 'rule' is missing; it names one of {', '.join(SOFT_WEIGHTS)}.")
    rule = lookup(SOFT_WEIGHTS, coerce(weight["rule"], str, f"{place}.rule"), field=f"{place}.rule")
    return section_from(rule, {key: value for key, value in weight.items() if key != "rule"}, place)
