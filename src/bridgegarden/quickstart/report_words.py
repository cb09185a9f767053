"""Words of the quickstart's report: numbers with their intervals, and what the terms mean."""

import math
from collections.abc import Callable

from bridgegarden.quickstart.result import QuickstartResult
from bridgegarden.report.scale import number

GLOSSARY = {
    "hard label": "One token as the target: the teacher's likeliest (argmax), or the one in the data.",
    "soft label": "The teacher's whole next-token distribution as the target.",
    "soft weight λ": (
        "How much of the loss at a position comes from the soft label, 0 to 1; the hard label gets the rest. Static: "
        "the same everywhere. Confidence: 1 − max p. Entropy: H(p) / log V. Curriculum: grows during training. "
        "Risk-guided: static, and the hard term weighs more where the student's own values call it risky."
    ),
    "Bridge": "A position that decides what the text means from here on, such as a digit. A slip spoils what follows.",
    "Garden": "A position where many words would do. A student that keeps the teacher's diversity may vary here.",
    "diversity kept": "Entropy of the student over entropy of the teacher, at the Gardens of the teacher's answers.",
    "KL": "Kullback-Leibler divergence from teacher to student, in nats: 0 where both expect the same.",
    "exposure bias": (
        "The student's KL to the teacher summed over answers it wrote itself, minus the same over the teacher's "
        "answers to the same problems. It is what drifting costs once the student runs by itself."
    ),
    "surprise": "Minus the log-probability of the token that was written, in nats: 0 is expected, 2.3 one in ten.",
    "sampled, greedy": "Drawn from the model's distribution at temperature 1, or the likeliest token at each place.",
}


def percent(share: float) -> str:
    """A share from 0 to 1."""
    return f"{number(share * 100, 3 if abs(share) >= 0.1 else 2)} %"


def plus_minus(mean: float, half: float) -> tuple[str, str]:
    """A mean and half its interval, both to the second digit of the latter, at most 5 places after the point."""
    places = min(max(1 - math.floor(math.log10(float(f"{half:.2g}"))), 0), 5) if half > 0 else 1
    return f"{mean:,.{places}f}".replace("-", "\N{MINUS SIGN}"), f"{half:,.{places}f}"


def span(interval: tuple[float, float], write: Callable[[float], str]) -> str:
    """Both ends of an interval."""
    low, high = (write(end) for end in interval)
    return f"{low.removesuffix(' %')} to {high}"


def interval_words(result: QuickstartResult) -> str:
    """What the intervals are, and over what."""
    summary = result.summary(result.objectives[0], "accuracy_sampled")
    what = f"the {summary.n} seeds" if summary.units == "seeds" else f"the {summary.n:,} problems of the only seed"
    return f"95 % t-intervals over {what}"
