"""Axes: from values to pixels, with round numbers to write beside them."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from bridgegarden.errors import DataError


class Reading(NamedTuple):
    """A value and the interval it is known to."""

    value: float
    """The best guess."""

    low: float
    """Where the interval begins, <= value."""

    high: float
    """Where it ends, >= value."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What a chart measures along one direction."""

    label: str
    """Name and unit."""

    log: bool = False
    """Equal ratios at equal distances; what is not above zero is drawn at the axis' low end."""

    percent: bool = False
    """Write 0.5 as 50 %."""

    include: tuple[float, ...] = ()
    """Values the axis must reach, such as 0."""

    least: float = -math.inf
    """Smallest possible value; intervals are cut there."""

    most: float = math.inf
    """Largest possible value; intervals are cut there."""

    whole: bool = False
    """Ticks at whole numbers alone: what is counted."""


class Scale(NamedTuple):
    """An axis laid between two pixels."""

    axis: Axis
    low: float
    """Value at `start`."""
    high: float
    """Value at `end`."""
    start: float
    """Pixel."""
    end: float
    """Pixel."""

    def at(self, value: float) -> float:
        """The pixel of `value`, kept inside the axis."""
        low, high, value = self.low, self.high, min(max(value, self.low), self.high)
        if self.axis.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values inside the axis, at most about `most` of them."""
        found = _log_ticks(self.low, self.high, most) if self.axis.log else _linear_ticks(self.low, self.high, most)
        return [value for value in found if value == round(value)] if self.axis.whole else found

    def text(self, value: float) -> str:
        """`value` as written beside a tick."""
        return f"{number(value * 100)} %" if self.axis.percent else number(value)


def scale(axis: Axis, readings: Iterable[Reading], start: float, end: float) -> Scale:
    """An axis that holds `readings`, with a little air.

    Raises:
        DataError: a value is not finite, or none is positive on a logarithmic axis.
    """
    readings = list(readings)
    values = [value for reading in readings for value in reading] + list(axis.include)
    if not values or not all(map(math.isfinite, values)):
        raise DataError(f"Chart axis {axis.label!r}: expected finite values, got {values}.")
    if axis.log:
        low, high = _log_ends(axis, values, [reading.value for reading in readings])
    else:
        low, high = min(values), max(values)
        air = 0.06 * (high - low or abs(high) or 1.0)
        low, high = low - air, high + air
    low, high = max(low, axis.least), min(high, axis.most)
    return Scale(axis, low, high, start, end)


def _log_ends(axis: Axis, values: list[float], centres: list[float]) -> tuple[float, float]:
    positive = [value for value in centres if value > 0]
    if not positive:
        raise DataError(f"Chart axis {axis.label!r}: a logarithmic axis needs a value above zero, got {values}.")
    # An interval that reaches down to almost zero must not stretch the axis over empty decades.
    floor = min(positive) / 10
    low, high = min(max(value, floor) for value in values), max(values)
    air = max((high / low) ** 0.05, 1.15)
    return low / air, high * air


def _linear_ticks(low: float, high: float, most: int) -> list[float]:
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) + 0.0 for index in range(first, last + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [round(f * 10.0**d, 15) for d in decades for f in factors if low <= f * 10.0**d <= high]
        if len(ticks) <= most:
            return ticks
    return ticks[:: math.ceil(len(ticks) / most)]


_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float, digits: int = 3) -> str:
    """`value` for a reader, rounded to `digits` significant digits, with a real minus sign."""
    rounded = float(f"{value:.{digits}g}")
    if rounded != 0 and not 1e-4 <= abs(rounded) < 1e6:
        mantissa, exponent = f"{rounded:.{digits - 1}e}".split("e")
        text = f"{float(mantissa):g} × 10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
    else:
        decimals = max(digits - 1 - math.floor(math.log10(abs(rounded))), 0) if rounded else 0
        text = f"{rounded:.{decimals}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    return text.replace("-", "\N{MINUS SIGN}")


def plus_minus(mean: float, half: float) -> tuple[str, str]:
    """A mean and half its interval, both to the second digit of the latter, at most 5 places after the point."""
    places = min(max(1 - math.floor(math.log10(float(f"{half:.2g}"))), 0), 5) if half > 0 else 1
    return f"{mean:,.{places}f}".replace("-", "\N{MINUS SIGN}"), f"{half:,.{places}f}"


def share_parts(mean: float, interval: tuple[float, float]) -> tuple[str, str]:
    """A share and what it may be, in per cent without the sign: ``61.2``, ``± 4.1``.

    At 0 and 1 it can be wrong on one side only: ``100.0``, ``≥ 73.5``.
    """
    low, high = interval
    if mean in (0.0, 1.0) and low < high:
        return f"{100 * mean:.1f}", f"≤ {100 * high:.2g}" if mean == 0 else f"≥ {100 * low:.3g}"
    shown, half = plus_minus(100 * mean, 50 * (high - low))
    return shown, f"± {half}"


def span(interval: tuple[float, float], write: Callable[[float], str]) -> str:
    """Both ends of an interval."""
    low, high = (write(end) for end in interval)
    return f"{low.removesuffix(' %')} to {high}"
