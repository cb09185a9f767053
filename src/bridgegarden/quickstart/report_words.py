"""Words of the quickstart's report: numbers with their intervals, and what the terms mean."""

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


def interval_words(result: QuickstartResult) -> str:
    """What the intervals are, and over what."""
    summary = result.summary(result.objectives[0], "accuracy_sampled")
    what = f"the {summary.n} seeds" if summary.units == "seeds" else f"the {summary.n:,} problems of the only seed"
    return f"95 % t-intervals over {what}"
