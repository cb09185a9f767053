"""What a run of the quickstart found: plain data, written to and read from JSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from bridgegarden.quickstart.settings import QuickstartSettings
from bridgegarden.statistics import Estimate, Interval
from bridgegarden.study.kept import Plain

TopTokens = tuple[tuple[str, float], ...]
"""Likeliest tokens and their probabilities, in falling order."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A model on the held-out problems. Standard errors are over problems. Everything in nats that is not a share."""

    accuracy_sampled: Estimate
    """Share of right answers, 0 to 1, sampled at temperature 1."""

    accuracy_greedy: Estimate
    """Share of right answers, 0 to 1, taking the likeliest token."""

    kl_bridge: Estimate
    """KL(teacher || model) in nats a token at the Bridges of the teacher's answers; mean per problem first."""

    kl_garden: Estimate
    """The same at the Gardens."""

    diversity: Estimate
    """Entropy of the model over entropy of the teacher at the Gardens of the teacher's answers; 1 keeps all."""

    teacher_loss: Estimate
    """L_dT: KL(teacher || model) summed over an answer that the teacher wrote, nats per answer."""

    student_loss: Estimate
    """L_dtheta: the same on the model's own answers to the same problems."""

    exposure_bias: Estimate
    """L_dtheta - L_dT, paired by problem, nats per answer. Its sign is kept."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveRun:
    """One student, trained with one objective from one seed."""

    objective: str
    """Key of `bridgegarden.study.arms.OBJECTIVES`."""

    label: str
    """For a reader."""

    hard_target: str
    """``teacher_argmax`` or ``data``; says nothing where the objective is soft alone."""

    seed: int
    """Decided the first weights, the data and its order."""

    measured: Measured
    """On held-out problems."""

    seconds: float
    """Wall time of the training alone."""

    cpu_seconds: float
    """Processor time of the training alone: what it costs on an idle machine."""

    tokens: int
    """Tokens that the student read in training, prompts and repetitions counted."""

    teacher_tokens: int
    """Tokens at which the teacher was asked what it expects: once, for all objectives of the seed together."""

    final_loss: float
    """Mean objective over the last steps, nats a token. Not comparable between objectives."""


@dataclass(frozen=True, kw_only=True)
class TokenView:
    """One token of a written answer, and what the models thought before it was written."""

    text: str
    """As written. Untrusted: escape it."""

    role: Literal["bridge", "garden", "forced"]
    """What the choice of this token decides, read off the process."""

    soft_weights: Mapping[str, float]
    """Soft weight of each rule here: static, confidence, entropy."""

    teacher_top: TopTokens
    """Of the teacher."""

    student_tops: Mapping[str, TopTokens]
    """Of each objective's student."""

    student_surprise: Mapping[str, float]
    """Minus log-probability of this token under each objective's student, nats."""


@dataclass(frozen=True, kw_only=True)
class AnswerView:
    """One answer to one held-out problem, token by token."""

    prompt: str
    """The problem in words."""

    tokens: tuple[TokenView, ...]
    """The answer, its end token left out."""

    written_by: str
    """Label of the objective whose student wrote it, sampled at temperature 1."""


class Summary(NamedTuple):
    """One quantity of one objective over everything that was run."""

    mean: float
    """Over seeds and problems."""
    interval: Interval
    """95 % interval from the t-distribution."""
    stderr: float
    """Standard error over `units`."""
    n: int
    """Number of `units`."""
    units: Literal["seeds", "problems"]
    """What the interval is over: seeds where there are two or more, else the problems of the only one."""


@dataclass(frozen=True, kw_only=True)
class QuickstartResult(Plain):
    """Everything that the table and the report show."""

    settings: QuickstartSettings
    """What was run."""

    runs: tuple[ObjectiveRun, ...]
    """In the order of the settings' objectives, then seeds."""

    teacher: Measured
    """The teacher on the same problems; against itself, so its KLs are 0 and its diversity 1."""

    answer: AnswerView
    """One answer looked at closely."""

    versions: Mapping[str, str]
    """Of Python, the platform and the packages that decide the numbers."""

    command: str
    """What gives the same numbers on the same machine."""

    started: str
    """ISO 8601, UTC."""

    seconds: float
    """Wall time of the whole."""

    full: bool
    """Whether it was the whole comparison."""

    @property
    def objectives(self) -> tuple[str, ...]:
        """Objectives that were run, in the order of the tables."""
        return tuple(dict.fromkeys(run.objective for run in self.runs))

    @property
    def teacher_tokens(self) -> int:
        """Tokens at which the teacher was asked, once for all students of a seed."""
        return sum(run.teacher_tokens for run in self.runs_of(self.objectives[0]))

    def label(self, objective: str) -> str:
        """How a reader calls `objective`."""
        return self.runs_of(objective)[0].label

    def runs_of(self, objective: str) -> tuple[ObjectiveRun, ...]:
        """One run per seed."""
        return tuple(run for run in self.runs if run.objective == objective)

    def summary(self, objective: str, quantity: str) -> Summary:
        """`quantity` (a field of `Measured`) of `objective`, over seeds if there are several."""
        estimates: list[Estimate] = [getattr(run.measured, quantity) for run in self.runs_of(objective)]
        over_seeds = len(estimates) > 1
        estimate = Estimate.over([estimate.mean for estimate in estimates]) if over_seeds else estimates[0]
        units = "seeds" if over_seeds else "problems"
        interval = estimate.interval()
        if quantity.startswith("accuracy") and {one.mean for one in estimates} in ({0.0}, {1.0}):
            # No student was right, or wrong, once: the problems say how rare that may still be.
            interval = estimates[0].share_interval()
        return Summary(estimate.mean, interval, estimate.stderr, estimate.n, units)
