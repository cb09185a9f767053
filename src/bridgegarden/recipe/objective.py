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
    from bridgegarden.objective.methods import MixedDivergence
    from bridgegarden.objective.soft_weight import SoftWeight

OPTION_RANGES: Mapping[tuple[str, str], tuple[float, float]] = MappingProxyType(
    {
        ("jensen_shannon", "beta"): (0.0, 1.0),
        ("skewed_forward_kl", "skew"): (0.0, 1.0),
        ("skewed_reverse_kl", "skew"): (0.0, 1.0),
        ("alpha_beta", "alpha"): (-32.0, 32.0),
        ("alpha_beta", "beta"): (-32.0, 32.0),
        ("adaptive_kl", "mu"): (0.0, float("inf")),
        ("head_tail_kl", "mu"): (0.0, 1.0),
        ("lk_hybrid", "eta"): (0.0, float("inf")),
    }
)
"""Divergence options that are not free, with both ends included."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveSection:
    """What is minimised: a preset, then any field that differs from it. Null is the preset's value."""

    preset: str | None = None
    """The name of a method, of :mod:`bridgegarden.objective.methods` or of an installed package; docs/methods.md."""
    divergence: str | Mapping[str, Any] | None = None
    """The soft loss, by its name in :mod:`bridgegarden.objective.divergences`; or two of them that a rule mixes at each
    position, such as ``{first: reverse_kl, second: forward_kl, rule: confidence, how: mix}``."""
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
    position_weight: str | Mapping[str, Any] | None = None
    """What all terms of a position are multiplied with: the name of a rule, or a rule with its fields, such as
    ``{rule: early_positions, share: 0.3}``."""

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
    if isinstance(section.divergence, Mapping):
        if section.divergence_options:
            raise ConfigError("objective.divergence_options: two divergences have options of their own, beside `name`.")
        given["divergence"] = _mixed_divergence(section.divergence)
    elif section.divergence is not None:
        given["divergence"] = _divergence(section.divergence, section.divergence_options or {})
    elif section.divergence_options:
        raise ConfigError("objective.divergence_options: name the divergence they belong to in objective.divergence.")
    if section.soft_weight is not None and section.kd_ratio is not None:
        raise ConfigError("objective: kd_ratio is a soft_weight that is a number; give one of the two.")
    weight = section.soft_weight if section.kd_ratio is None else section.kd_ratio
    if weight is not None:
        given["soft_weight"] = _soft_weight(weight)
    if section.position_weight is not None:
        from bridgegarden.objective.position_weight import POSITION_WEIGHTS

        given["position_weight"] = _rule(section.position_weight, POSITION_WEIGHTS, "objective.position_weight")
    return HybridObjective(**given) if section.preset is None else HybridObjective.preset(section.preset, **given)


def describe_objective(objective: "HybridObjective") -> str:
    """Every field of an objective, on one line."""
    told = {f.name: getattr(objective, f.name) for f in fields(objective)}
    told["divergence"] = _named(told["divergence"])
    if told["position_weight"] is None:
        del told["position_weight"]
    return ", ".join(f"{name}={value}" for name, value in told.items())


def _named(divergence: Any) -> str:
    """A divergence as a reader of a recipe calls it."""
    from bridgegarden.objective.methods import MixedDivergence

    if isinstance(divergence, MixedDivergence):
        first, second = _named(divergence.first), _named(divergence.second)
        return f"{divergence.how}(first={first}, second={second}, rule={divergence.rule})"
    if isinstance(divergence, partial):
        options = ", ".join(f"{key}={value}" for key, value in divergence.keywords.items())
        return f"{divergence.func.__name__}({options})"
    return getattr(divergence, "__name__", repr(divergence))


def _mixed_divergence(written: Mapping[str, Any]) -> "MixedDivergence":
    from bridgegarden.objective.methods import MixedDivergence
    from bridgegarden.objective.soft_weight import SOFT_WEIGHTS

    place = "objective.divergence"
    given: dict[str, Any] = {}
    for key, value in written.items():
        if key in ("first", "second"):
            options = dict(value) if isinstance(value, Mapping) else {"name": value}
            if "name" not in options:
                raise ConfigError(f"{place}.{key}: key 'name' is missing; it names the divergence.")
            name = coerce(options.pop("name"), str, f"{place}.{key}")
            given[key] = _divergence(name, options, field=f"{place}.{key}", place=f"{place}.{key}")
        elif key == "rule":
            given[key] = _rule(value, SOFT_WEIGHTS, f"{place}.rule")
        elif key == "how":
            given[key] = coerce(value, Literal["mix", "add"], f"{place}.how")
        else:
            raise unknown_name(key, ("first", "second", "rule", "how"), field=place, kind="key")
    return MixedDivergence(**given)


def _divergence(
    name: str,
    options: Mapping[str, Any],
    *,
    field: str = "objective.divergence",
    place: str = "objective.divergence_options",
) -> "Divergence":
    from bridgegarden.objective.divergences import DIVERGENCES

    function = lookup(DIVERGENCES, name, field=field)
    known = dict(list(inspect.signature(function).parameters.items())[2:])
    for key in options:
        if not known:
            raise ConfigError(f"{place}: {name} has no options, got {key!r}; leave them out.")
        if key not in known:
            raise unknown_name(key, known, field=place, kind=f"option of {name}")
    for key, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and key not in options:
            raise ConfigError(f"{place}: {name} needs {key!r}; it has no default.")
    values = {key: _option(name, key, value, f"{place}.{key}") for key, value in options.items()}
    return cast("Divergence", partial(function, **values)) if values else function


def _option(name: str, key: str, value: Any, place: str) -> float:
    number = coerce(value, float, place)
    low, high = OPTION_RANGES.get((name, key), (float("-inf"), float("inf")))
    if not low <= number <= high:
        raise ConfigError(f"{place} of {name} must be in [{low:g}, {high:g}], got {number:g}.")
    return number


def _soft_weight(weight: float | str | Mapping[str, Any]) -> "SoftWeight":
    from bridgegarden.objective.soft_weight import SOFT_WEIGHTS, StaticWeight

    if isinstance(weight, (int, float)):
        return StaticWeight(value=float(weight))
    return _rule(weight, SOFT_WEIGHTS, "objective.soft_weight")


def _rule(written: str | Mapping[str, Any], known: Mapping[str, type["SoftWeight"]], place: str) -> "SoftWeight":
    if isinstance(written, str):
        return section_from(lookup(known, written, field=place), {}, place)
    if not isinstance(written, Mapping) or "rule" not in written:
        raise ConfigError(f"{place}: key 'rule' is missing; it names one of {', '.join(known)}.")
    rule = lookup(known, coerce(written["rule"], str, f"{place}.rule"), field=f"{place}.rule")
    return section_from(rule, {key: value for key, value in written.items() if key != "rule"}, place)
