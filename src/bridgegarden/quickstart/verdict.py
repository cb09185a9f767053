"""What the numbers say about accuracy against variety: which objectives nothing beats, and one sentence."""

from collections.abc import Sequence
from typing import NamedTuple

from bridgegarden.quickstart.result import QuickstartResult, Summary
from bridgegarden.study.arms import OBJECTIVES


def beats(result: QuickstartResult, one: str, other: str) -> bool:
    """Whether objective `one` does better than `other` at both sampled accuracy and diversity.

    Both means must be higher, and at least one of the two by more than chance explains: its 95 % intervals do not
    overlap. (Intervals that do not overlap are a stricter test than one of the difference.) Nothing beats itself, and
    no two objectives beat each other. Diversity beyond the teacher's own counts as all of it: it is noise, not variety.
    """
    pairs = [
        (_shares(result.summary(one, quantity)), _shares(result.summary(other, quantity)))
        for quantity in ("accuracy_sampled", "diversity")
    ]
    return all(a.mean > b.mean for a, b in pairs) and any(a.low > b.high for a, b in pairs)


class _Shares(NamedTuple):
    mean: float
    low: float
    high: float


def _shares(summary: Summary) -> _Shares:
    return _Shares(*(min(value, 1.0) for value in (summary.mean, summary.interval.low, summary.interval.high)))


def frontier(result: QuickstartResult) -> tuple[str, ...]:
    """The objectives that no other `beats`, in the order of the tables. Never empty."""
    return tuple(
        objective
        for objective in result.objectives
        if not any(beats(result, other, objective) for other in result.objectives)
    )


def finding(result: QuickstartResult) -> str:
    """What was seen, in one sentence made from the numbers."""
    kept = frontier(result)
    pure = [name for name in result.objectives if OBJECTIVES[name].pure]
    hybrids = [name for name in result.objectives if not OBJECTIVES[name].pure]
    seeds = len(result.settings.seeds)
    where = f"On {result.settings.test_problems:,} held-out problems" + (
        f" for each of {seeds} seeds" if seeds > 1 else ""
    )
    numbers = _listed([_told(result, name) for name in pure])
    best = [name for name in hybrids if name in kept]
    if not hybrids:
        return f"{where}, {numbers}."
    start = f"{where}, {numbers}; " if pure else f"{where}, "
    if not best:
        beaten = _listed([f"{result.label(name)} is beaten at both by {_beaten_by(result, name)}" for name in hybrids])
        return f"{start}no hybrid is on the frontier of accuracy and variety: {beaten}."
    told = _listed([_told(result, name, verb=False) for name in best])
    are = "is" if len(best) == 1 else "are"
    return f"{start}{told} {are} on the frontier of accuracy and variety: nothing compared here does better at both."


def _told(result: QuickstartResult, name: str, *, verb: bool = True) -> str:
    accuracy, diversity = (_percent(result.summary(name, field)) for field in ("accuracy_sampled", "diversity"))
    if verb:
        return f"{result.label(name)} answers {accuracy} right and keeps {diversity} of the teacher's variety"
    return f"{result.label(name)} ({accuracy} right, {diversity} of the variety)"


def _beaten_by(result: QuickstartResult, name: str) -> str:
    return next(result.label(other) for other in result.objectives if beats(result, other, name))


def _percent(summary: Summary) -> str:
    return f"{100 * summary.mean:.1f} %"


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""
