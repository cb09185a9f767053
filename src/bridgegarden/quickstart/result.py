"""What a run of the quickstart depends on, what it found (plain data, as JSON has it), and what the numbers say."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from bridgegarden.errors import ConfigError, lookup
from bridgegarden.statistics import Estimate, Interval
from bridgegarden.study.arms import OBJECTIVES, LlamaSize, TrainingSettings
from bridgegarden.study.kept import StudyResult
from bridgegarden.terminal import listed

TEACHER_SIZE = LlamaSize(hidden=128, layers=3, heads=4, feed_forward=384)
"""The packaged teacher, 0.65 million parameters."""

STUDENT_SIZE = LlamaSize(hidden=64, layers=2, heads=4, feed_forward=128)
"""The quickstart's student, seven times smaller."""


DEFAULT_OBJECTIVES = ("hard", "soft", "static", "confidence", "entropy")
"""What runs without `--full`."""


@dataclass(frozen=True, kw_only=True)
class QuickstartSettings(TrainingSettings):
    """Everything the numbers depend on besides the packaged teacher and the versions of the libraries."""

    objectives: tuple[str, ...] = DEFAULT_OBJECTIVES
    """Keys of `OBJECTIVES`, in the order of the tables."""

    seeds: tuple[int, ...] = (0,)
    """One training per objective and seed. A seed decides the student's first weights, the data and its order."""

    steps: int = 800
    batch: int = 32
    learning_rate: float = 5e-3

    train_problems: int = 2_000
    """Distinct training problems, each with one answer."""

    test_problems: int = 1_000
    """Held-out problems on which everything is measured, the same for all trainings of a seed."""

    def __post_init__(self) -> None:
        for name in self.objectives:
            lookup(OBJECTIVES, name, field="quickstart.objectives")
        if not self.objectives or not self.seeds:
            raise ConfigError("quickstart: needs at least one objective and one seed.")
        if len({*self.objectives}) != len(self.objectives) or len({*self.seeds}) != len(self.seeds):
            raise ConfigError("quickstart: an objective or a seed is named twice.")
        for name, least in (("steps", 1), ("batch", 1), ("train_problems", 1), ("test_problems", 2)):
            if getattr(self, name) < least:
                raise ConfigError(f"quickstart.{name} must be >= {least}, got {getattr(self, name)}.")
        if not self.learning_rate > 0:
            raise ConfigError(f"quickstart.learning_rate must be > 0, got {self.learning_rate}.")


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
class QuickstartResult(StudyResult):
    """Everything that the table and the report show."""

    settings: QuickstartSettings
    """What was run."""

    runs: tuple[ObjectiveRun, ...]
    """In the order of the settings' objectives, then seeds."""

    teacher: Measured
    """The teacher on the same problems; against itself, so its KLs are 0 and its diversity 1."""

    answer: AnswerView
    """One answer looked at closely."""

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
    """What was seen, in one sentence made from the numbers: every objective, none of them called the best."""
    seeds = len(result.settings.seeds)
    where = f"On {result.settings.test_problems:,} held-out problems" + (
        f" for each of {seeds} seeds" if seeds > 1 else ""
    )
    told = "; ".join(_told(result, name) for name in result.objectives)
    greedy = listed(
        [f"{result.label(name)} {_percent(result.summary(name, 'accuracy_greedy'))}" for name in result.objectives]
    )
    return f"{where}, right of sampled answers and variety kept: {told}. Right when decoded greedily: {greedy}."


def _told(result: QuickstartResult, name: str) -> str:
    accuracy, diversity = (_percent(result.summary(name, field)) for field in ("accuracy_sampled", "diversity"))
    return f"{result.label(name)} {accuracy} and {diversity}"


def _percent(summary: Summary) -> str:
    return f"{100 * summary.mean:.1f} %"
