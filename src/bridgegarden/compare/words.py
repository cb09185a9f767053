"""What was found, in plain sentences made from the numbers."""

from collections.abc import Sequence

from bridgegarden.compare.findings import (
    QUALITIES,
    Mean,
    asking_time,
    best,
    difference,
    entropy_kept,
    frontier,
    price,
    qualities,
    summary,
)
from bridgegarden.compare.result import CompareResult, Quantity
from bridgegarden.report.scale import number, share_parts


def sentences(result: CompareResult) -> list[str]:
    """The findings, the most important first."""
    found = [*_quality(result), *_cost(result), *_drift(result)]
    for run in result.failures:
        found.append(f"{result.label(run.objective)} failed with seed {run.seed}: {run.failure}")
    return found


def percent(value: float, low: float, high: float) -> str:
    """A share with half its interval; or with what it may be where all were right or wrong."""
    mean, rest = share_parts(value, (low, high))
    return f"{mean} {rest} %" if rest.startswith("±") else f"{mean} % ({rest} %)"


def listed(parts: Sequence[str]) -> str:
    """Names in a sentence."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""


def times(ratio: float) -> str:
    """How many times, in words a table can hold."""
    return f"{number(ratio, 2 if ratio < 10 else 3)}×"


def times_less(ratios: Sequence[float], less: str = "") -> str:
    """How many times less something costs.

    Args:
        ratios: of the other's cost to its own; one, or the ends of a range.
        less: the word for it; where a ratio is below one the word is ``more``, and the number its inverse.
    """
    low, high = min(ratios), max(ratios)
    if low < 1 < high:
        return f"{times(1 / low)} more to {times(high)} {less or 'less'}"
    ends = [times(ratio) for ratio in ((low, high) if low >= 1 else (1 / high, 1 / low))]
    return f"{' to '.join(dict.fromkeys(ends))} {less if low >= 1 else 'more'}".rstrip()


def _quality(result: CompareResult) -> list[str]:
    found = [_highest(result, quantity) for quantity in qualities(result)]
    for quantity in qualities(result)[:1]:
        kept = [result.label(name) for name in frontier(result, quantity)]
        found.append(
            f"At its cost or less nothing is better ({QUALITIES[quantity]}, against estimated FLOPs) than "
            f"{listed(kept)}."
        )
    return found


def _highest(result: CompareResult, quantity: Quantity) -> str:
    """Which objective has the highest mean, what it kept of the teacher's entropy, and which may be as good."""
    top = best(result, quantity)
    mean, kept = summary(result, top, quantity), entropy_kept(result, top)
    others = [name for name in result.objectives if name != top]
    even = [name for name in others if not _better(result, top, name, quantity)]
    told = f"not told apart from it: {listed([result.label(name) for name in even])}"
    if not even:
        told = "every other objective is lower by more than chance explains"
    elif len(even) == len(others):
        return f"{QUALITIES[quantity].capitalize()}: no objective is told apart from the highest, {_share(mean)}."
    entropy = "" if kept is None else f" and keeps {100 * kept:.0f} % of the teacher's entropy"
    return f"{QUALITIES[quantity].capitalize()}: {result.label(top)} is highest with {_share(mean)}{entropy}; {told}."


def _share(mean: Mean) -> str:
    return percent(mean.value, *mean.interval)


def _cost(result: CompareResult) -> list[str]:
    """What objectives on fixed rows save against the baseline; what others take beside it."""
    base = result.settings.baseline
    others = [name for name in result.objectives if name != base]
    if base not in result.objectives or not others:
        return []
    found = []
    fixed = [name for name in others if not result.rows[name].lmbda]
    if fixed:
        time = times_less(_ratios(result, "seconds", base, fixed), "less")
        flops = times_less(_ratios(result, "flops", base, fixed), "fewer")
        found.append(
            f"On fixed rows a training takes {time} time and {flops} FLOPs than {result.label(base)}"
            f"{_with_teacher(result)}."
        )
    for name in others:
        if result.rows[name].lmbda:
            time, flops = (1 / _ratios(result, field, base, [name])[0] for field in ("seconds", "flops"))
            label = result.label(name)
            found.append(
                f"{label[0].upper()}{label[1:]} takes {times(time)} the time and {times(flops)} the FLOPs of "
                f"{result.label(base)}."
            )
    return found


def _ratios(result: CompareResult, field: str, base: str, names: Sequence[str]) -> list[float]:
    """How many times less than `base` each of `names` costs."""
    return [getattr(price(result, base), field) / getattr(price(result, name), field) for name in names]


def _with_teacher(result: CompareResult) -> str:
    """Whether asking the teacher is counted in what a training on fixed rows takes."""
    if result.cache is None or not result.cache.sharers:
        return ""
    if asking_time(result) is None:
        return "; its share of asking the teacher is in the FLOPs, and not in the time, which the cache does not say"
    return ", with its share of asking the teacher"


def _drift(result: CompareResult) -> list[str]:
    signs: dict[str, list[str]] = {"above zero": [], "below zero": [], "not told from zero": []}
    for name in result.objectives:
        side = summary(result, name, "exposure_bias").interval.side()
        place = ("not told from zero", "above zero", "below zero")[side]
        signs[place].append(result.label(name))
    told = "; ".join(f"{place}: {', '.join(names)}" for place, names in signs.items() if names)
    if len(signs["not told from zero"]) == len(result.objectives):
        told = "not told from zero for any objective"
    lowest = min(result.objectives, key=lambda name: summary(result, name, "student_loss").value)
    return [
        f"Exposure bias is {told}.",
        f"The lowest loss on a student's own texts, L_dθ, is that of {result.label(lowest)}; it measures likeness to "
        "the teacher, mistakes included.",
    ]


def _better(result: CompareResult, one: str, other: str, quantity: Quantity) -> bool:
    found = difference(result, one, other, quantity)
    return found is not None and found.verdict == "first"
