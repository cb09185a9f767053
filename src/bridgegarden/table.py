"""How numbers and tables are written: rounded to what is known, the same everywhere."""

import math
from collections.abc import Callable

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
