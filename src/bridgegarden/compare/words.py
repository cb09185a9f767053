"""What was found, in plain sentences made from the numbers."""

from collections.abc import Sequence

from bridgegarden.compare.findings import (
    QUALITIES,
    best,
    difference,
    frontier,
    price,
    qualities,
    summary,
)
from bridgegarden.compare.result import CompareResult, Quantity
from bridgegarden.report.scale import number, plus_minus


def sentences(result: CompareResult) -> list[str]:
    """The findings, the most important first."""
    found = [*_quality(result), *_cost(result), *_drift(result)]
    for run in result.failures:
        found.append(f"{result.label(run.objective)} failed with seed {run.seed}: {run.failure}")
    return found


def percent(value: float, low: float, high: float) -> str:
    """A share with half its interval."""
    mean, half = plus_minus(100 * value, 50 * (high - low))
    return f"{mean} ± {half} %"


def listed(parts: Sequence[str]) -> str:
    """Names in a sentence."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""


def times(ratio: float) -> str:
    """How many times, in words a table can hold."""
    return f"{number(ratio, 2 if ratio < 10 else 3)}×"


def _quality(result: CompareResult) -> list[str]:
    found = []
    for quantity in qualities(result):
        top = best(result, quantity)
        mean = summary(result, top, quantity)
        even = [name for name in result.objectives if name != top and not _better(result, top, name, quantity)]
        told = (
            f"not told apart from it: {listed([result.label(name) for name in even])}"
            if even
            else "every other objective is lower by more than chance explains"
        )
        found.append(
            f"{QUALITIES[quantity].capitalize()}: {result.label(top)} is highest with "
            f"{percent(mean.value, *mean.interval)}; {told}."
        )
    for quantity in qualities(result)[:1]:
        kept = [result.label(name) for name in frontier(result, quantity)]
        found.append(
            f"At its cost or less nothing is better ({QUALITIES[quantity]}, against estimated FLOPs) than "
            f"{listed(kept)}."
        )
    return found


def _cost(result: CompareResult) -> list[str]:
    """Each objective on fixed rows against the baseline; of those on the student's texts each one too."""
    base = result.settings.baseline
    others = [name for name in result.objectives if name != base]
    if base not in result.objectives or not others:
        return []
    found = []
    for kind, on_policy in (("on fixed rows", False), ("on the student's own texts", True)):
        names = [name for name in others if bool(result.rows[name].lmbda) == on_policy]
        if not names:
            continue
        ranges = []
        for field, what in (("seconds", "less time"), ("flops", "fewer FLOPs")):
            ratios = [getattr(price(result, base), field) / getattr(price(result, name), field) for name in names]
            low, high = times(min(ratios)), times(max(ratios))
            ranges.append(f"{low if low == high else f'{low} to {high}'} {what}")
        told = listed([result.label(name) for name in names])
        found.append(f"{told}, {kind}: {ranges[0]} and {ranges[1]} than {result.label(base)}.")
    return found


def _drift(result: CompareResult) -> list[str]:
    signs: dict[str, list[str]] = {"above zero": [], "below zero": [], "not told from zero": []}
    for name in result.objectives:
        low, high = summary(result, name, "exposure_bias").interval
        place = "above zero" if low > 0 else "below zero" if high < 0 else "not told from zero"
        signs[place].append(result.label(name))
    told = "; ".join(f"{place}: {', '.join(names)}" for place, names in signs.items() if names)
    lowest = min(result.objectives, key=lambda name: summary(result, name, "student_loss").value)
    return [
        f"Exposure bias is {told}.",
        f"The lowest loss on a student's own texts, L_dθ, is that of {result.label(lowest)}; it measures likeness to "
        "the teacher, mistakes included.",
    ]


def _better(result: CompareResult, one: str, other: str, quantity: Quantity) -> bool:
    found = difference(result, one, other, quantity)
    return found is not None and found.verdict == "first"
