"""What a diagnosis says in plain words, the same on the page and on a terminal."""

import math
import re

from bridgegarden.diagnostics.advise import Advice, Bootstrapped
from bridgegarden.diagnostics.diagnosis import Diagnosis, StudentDiagnosis
from bridgegarden.diagnostics.exposure_bias import StudentDifference
from bridgegarden.diagnostics.kappa import Kind
from bridgegarden.statistics import Estimate, Interval
from bridgegarden.table import number, plus_minus, span
from bridgegarden.terminal import counted

GLOSSARY = {
    "exposure bias": (
        "A student learns on its teacher's texts and is used on its own. Its exposure bias is the loss summed over "
        "texts it wrote itself, minus the loss summed over the teacher's texts from the same prompts, in nats a text: "
        "what drifting costs. It can be negative, where a student's own texts are easier for it; a low one alone is no "
        "merit."
    ),
    "loss l(s)": (
        "How far the student's next-token distribution is from the teacher's at one place: KL(teacher ‖ student) "
        "unless another divergence was asked for. Always at temperature 1, in nats."
    ),
    "kappa": (
        "What one token costs later: the student's loss summed over what follows it, when the teacher goes on writing, "
        "minus the same for a token that the teacher draws. Positive: that token leads to where the student fits "
        "badly. κ(s), of a place, is the sum over the likeliest tokens of both models."
    ),
    "Bridge, Garden": (
        "A place whose 95 % interval of κ(s) lies above the threshold is a Bridge: its token must be exact. One whose "
        "interval lies below is a Garden: it may vary. The rest is undecided; a larger budget decides more."
    ),
    "contribution": (
        "What a place adds to exposure bias: kappa of each token that could come next, weighted with how likely the "
        "student is to take it. Summed over all places of the student's texts it is the exposure bias, exactly."
    ),
    "soft weight λ": (
        "How much of the training loss at a place comes from the teacher's whole distribution; the rest from one "
        "token. Static: the same everywhere. Confidence: 1 − max p. Entropy: H(p) / log V."
    ),
    "ExAccErr": (
        "Exposure bias up to a length, in per cent of what the student loses on the teacher's texts up to there (Arora "
        "et al., 2022). 0 %: no drift."
    ),
    "surprise": "Minus the log-probability of the token that was written, in nats: 0 is expected, 2.3 one in ten.",
}
"""Terms and what they mean."""


SPACE = "\N{NO-BREAK SPACE}"
"""Between what must stay on one line."""
MINUS = re.compile(r"(?<![\w.])-(?=\d)")


def measured(estimate: Estimate, unit: str = "") -> str:
    """A mean with half its 95 % interval: ``1.23 ± 0.05``."""
    low, high = estimate.interval()
    mean, half = plus_minus(estimate.mean, (high - low) / 2)
    return f"{mean}{SPACE}±{SPACE}{half}{unit}"


def ranged(interval: Interval) -> str:
    """Both ends of an interval."""
    return span(interval, lambda value: number(value, 3))


def bootstrapped(statistic: Bootstrapped, *, least: float = -math.inf, most: float = math.inf) -> tuple[str, str]:
    """A statistic and its interval, cut where no value can be; dashes where there is none."""
    value = "–" if statistic.value is None else number(statistic.value, 2)
    if statistic.interval is None:
        return value, "–"
    low, high = (min(max(end, least), most) for end in statistic.interval)
    return value, span((low, high), lambda end: number(end, 2))


def bias_words(student: StudentDiagnosis) -> str:
    """Whether the student drifts, as far as the interval says; follows its name."""
    bias = student.exposure_bias
    side = bias.exposure_bias.interval().side()
    size = f"{measured(bias.exposure_bias)} nats a text"
    fit = f"on top of {number(bias.teacher_loss.mean)} on the teacher's"
    if side > 0:
        return f"drifts: on its own texts it loses {size} more, {fit}."
    if side < 0:
        return f"loses less on its own texts than on the teacher's: {size}. They are easier for it."
    return f"does not drift as far as can be seen: {size}, {fit}; the interval holds zero."


def agreement_words(student: StudentDiagnosis) -> str | None:
    """Whether the attribution adds up to the exposure bias; None without one."""
    attribution = student.attribution
    if attribution is None:
        return None
    found = f"the parts add up to {measured(attribution.total)} nats a text, measured directly it is "
    found += measured(attribution.direct)
    if attribution.agrees:
        return f"Both ways agree: {found}. Their difference, {measured(attribution.gap)}, could be chance."
    return (
        f"The two ways do not agree: {found}. Their difference, {measured(attribution.gap)}, is more than chance "
        "explains one time in twenty, so read the parts with care; more prompts and a larger budget tell."
    )


def advice_words(advice: Advice | None) -> tuple[str, str]:
    """Which rule suits, and why; or what is missing to say."""
    if advice is None:
        return "No advice.", "Not measured: interrupted before."
    rule = {None: "No advice yet.", "static": "Take a static rule."}.get(
        advice.recommended, f"Take the {advice.recommended} rule."
    )
    caveat = "" if advice.representative else " The positions were picked, so they do not stand for the texts."
    return rule, MINUS.sub("\N{MINUS SIGN}", advice.reason) + caveat


def kind_words(student: StudentDiagnosis) -> str:
    """How many places are Bridges and Gardens."""
    kappa = student.kappa
    if kappa is None:
        return "not measured"
    counts = {kind: kappa.count(kind) for kind in Kind}
    return (
        f"{counted(counts[Kind.BRIDGE], 'Bridge')}, {counted(counts[Kind.GARDEN], 'Garden')} and "
        f"{counts[Kind.UNDECIDED]:,} undecided of {counted(len(kappa.positions), 'measured place')}"
    )


def difference_words(difference: StudentDifference) -> str:
    """Which of two students is below the other."""
    return f"{difference.lower} is lower" if difference.lower else "no difference to be seen"


MEASURES = {
    "exposure_bias": "exposure bias",
    "student_loss": "loss on own texts",
    "teacher_loss": "loss on the teacher's texts",
}
"""What is compared between students."""


def thanks_to(diagnosis: Diagnosis) -> str:
    """What a diagnosis took, in one line."""
    cost = diagnosis.findings.cost
    per_second = cost.distributions / cost.seconds if cost.seconds > 0 else 0.0
    return (
        f"{cost.written:,} tokens written and {cost.distributions:,} next-token distributions in "
        f"{duration_words(cost.seconds)} ({number(per_second)} a second)"
    )


def duration_words(seconds: float) -> str:
    """``8 s``, ``12 min``, ``2.1 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
