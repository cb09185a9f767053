"""What a run of the lab depends on (worlds, regimes, objectives, seeds, how students are trained and measured), and
what it found: plain data, ready for a table, a report, or JSON."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from bridgegarden.errors import ConfigError, lookup
from bridgegarden.study.arms import LAMBDAS, OBJECTIVES, LlamaSize, StoppingSettings
from bridgegarden.study.kept import StudyResult

RoleName = Literal["bridge", "garden", "forced"]
"""Values of :class:`bridgegarden.exact.process.Role`."""


ByRole = Mapping[str, float]
"""A value for each :data:`RoleName`."""


ROLES: tuple[RoleName, ...] = ("bridge", "garden", "forced")
"""In the order of all tables."""


def _size(hidden: int, layers: int) -> LlamaSize:
    return LlamaSize(hidden=hidden, layers=layers, heads=4, feed_forward=2 * hidden)


@dataclass(frozen=True, kw_only=True)
class StudentSizes:
    """What is small and what is large depends on how much a world asks of its reader."""

    small: LlamaSize
    """Learns the Gardens, and the Bridges in part, from as many answers as the lab has."""

    large: LlamaSize
    """Learns everything."""


STUDENTS: Mapping[str, StudentSizes] = MappingProxyType(
    {
        "dialogue": StudentSizes(small=_size(16, 2), large=_size(48, 2)),
        "arithmetic": StudentSizes(small=_size(32, 2), large=_size(48, 2)),
        "program": StudentSizes(small=_size(16, 1), large=_size(32, 2)),
        "control": StudentSizes(small=_size(16, 1), large=_size(32, 2)),
    }
)
"""For every world; chosen by what soft labels alone can teach."""


@dataclass(frozen=True, kw_only=True)
class Regime:
    """How much a student can hold, how much it sees, and how good its teacher is."""

    label: str
    """For a reader."""

    student: Literal["small", "large"]
    """Which of `STUDENTS`."""

    answers: int
    """Training problems, each with one answer that the teacher wrote."""

    slip_rate: float
    """Probability with which the teacher writes something wrong at a Bridge, in [0, 1)."""


MANY, FEW, SLIPS = 320, 120, 0.1


REGIMES: Mapping[str, Regime] = MappingProxyType(
    {
        "small": Regime(label="small student", student="small", answers=MANY, slip_rate=0.0),
        "few": Regime(label="few answers", student="large", answers=FEW, slip_rate=0.0),
        "slips": Regime(label="teacher slips", student="large", answers=MANY, slip_rate=SLIPS),
        "ample": Regime(label="no limit", student="large", answers=MANY, slip_rate=0.0),
    }
)
"""One limit at a time, and none; the first has every objective."""


SWEPT_OBJECTIVES = ("hard", "soft", "static", "confidence", "entropy")
"""What is trained in the other regimes."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Trainings of one objective in one regime, one for each seed."""

    regime: str
    """Key of `REGIMES`."""

    objective: str
    """Key of `ALL_OBJECTIVES`."""


@dataclass(frozen=True, kw_only=True)
class LabSettings(StoppingSettings):
    """Everything the numbers depend on besides the worlds' own sizes and the versions of the libraries."""

    worlds: tuple[str, ...]
    """Names of worlds, in the order of the tables."""

    objectives: tuple[str, ...] = tuple(OBJECTIVES)
    """Keys of `OBJECTIVES`."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """One training of every arm per seed. It decides the first weights, the problems, the answers and their order."""

    sweep: bool = True
    """Whether the other regimes and the further constant soft weights are trained too."""

    steps: int = 450
    batch: int = 16
    learning_rate: float = 5e-3
    evaluate_every: int = 25
    patience: int = 4

    validation_problems: int = 32
    """Problems that decide when to stop."""

    test_problems: int = 12
    """Problems on which everything is computed exactly."""

    def __post_init__(self) -> None:
        for name in self.worlds:
            lookup(STUDENTS, name, field="lab.worlds")
        for name in self.objectives:
            lookup(OBJECTIVES, name, field="lab.objectives")
        for name in ("worlds", "objectives", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ConfigError(f"lab.{name}: expected at least one, and none twice; got {list(values)}.")
        for name in ("steps", "batch", "evaluate_every", "patience", "validation_problems", "test_problems"):
            if getattr(self, name) < 1:
                raise ConfigError(f"lab.{name} must be >= 1, got {getattr(self, name)}.")
        if self.steps % self.evaluate_every:
            raise ConfigError(
                f"lab.steps must be a multiple of lab.evaluate_every, so that the last step is looked at; got "
                f"{self.steps} and {self.evaluate_every}."
            )
        if not self.learning_rate > 0:
            raise ConfigError(f"lab.learning_rate must be > 0, got {self.learning_rate}.")

    @property
    def arms(self) -> tuple[Arm, ...]:
        """What is trained in every world: the main regime first."""
        main, *others = REGIMES
        arms = [Arm(regime=main, objective=name) for name in self.objectives]
        if self.sweep:
            arms += [Arm(regime=main, objective=name) for name in LAMBDAS]
            swept = [name for name in SWEPT_OBJECTIVES if name in self.objectives]
            arms += [Arm(regime=regime, objective=name) for regime in others for name in swept]
        return tuple(arms)


@dataclass(frozen=True, kw_only=True)
class Correlations:
    """Spearman's rank correlation of kappa(s) with how sure the teacher is, over positions of its own answers.

    Positions weigh as often as the teacher comes to them. Above 0: kappa is higher where the teacher is surer. None
    where either side is the same everywhere.
    """

    confidence: float | None
    """kappa(s), the sum over all tokens that keep the text on script, with max p."""

    low_entropy: float | None
    """The same kappa(s) with minus the entropy of p."""

    confidence_weighted: float | None
    """sum_a q(a|s) kappa(a|s), what exposure bias is made of, with max p."""

    low_entropy_weighted: float | None
    """The same with minus the entropy of p."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One student against the exact process: means over test problems of exact quantities. Losses in nats an answer."""

    teacher_loss: float
    """L_dT: KL(p || q) summed over the teacher's answers."""

    student_loss: float
    """L_dtheta: the same over the student's own answers; total inference loss."""

    exposure_bias: float
    """L_dtheta - L_dT. Its sign is kept: below 0 the student's own states are easier for it, which is no success."""

    exposure_bias_exits: float
    """Of `exposure_bias`, what leaving the script causes: such an answer ends, and pays nothing more."""

    success: float
    """Probability that an answer sampled from the student is right."""

    success_greedy: float
    """Share of problems to which the student's likeliest tokens are a right answer."""

    teacher_success: float
    """Probability that the teacher's answer is right."""

    violation: float
    """Probability that an answer sampled from the student leaves the script, which ends it."""

    diversity: float
    """Entropy of the student over entropy of the teacher, summed over the Gardens of the teacher's answers."""

    length: float
    """Expected tokens of the student's answer."""

    teacher_length: float
    """Expected tokens of the teacher's answer."""

    teacher_loss_by_role: ByRole
    """`teacher_loss` by what the position decides."""

    student_loss_by_role: ByRole
    """`student_loss` by what the position decides."""

    exposure_bias_by_role: ByRole
    """`exposure_bias` by the role of the position whose token causes it: sum_s d_theta(s) sum_a q(a|s) kappa(a|s)."""

    teacher_visits_by_role: ByRole
    """Expected positions of the teacher's answer."""

    teacher_loss_by_position: tuple[float, ...]
    """`teacher_loss` by number of tokens before."""

    student_loss_by_position: tuple[float, ...]
    """`student_loss` by number of tokens before."""

    exposure_bias_by_position: tuple[float, ...]
    """`exposure_bias` by the position that causes it."""

    kappa_all: Correlations
    """Over all positions."""

    kappa_choices: Correlations
    """Over Bridges and Gardens alone; a forced position has kappa(s) = 0 whatever the student."""

    @property
    def error_by_role(self) -> ByRole:
        """L_dtheta by role: the fit at positions of a role on the teacher's answers, and the drift they cause."""
        return {name: self.teacher_loss_by_role[name] + self.exposure_bias_by_role[name] for name in ROLES}

    @property
    def kl_by_role(self) -> Mapping[str, float | None]:
        """Mean KL at a position of each role on the teacher's answers, nats; None where there is no such position."""
        visits = self.teacher_visits_by_role
        return {name: self.teacher_loss_by_role[name] / visits[name] if visits[name] else None for name in ROLES}


@dataclass(frozen=True, kw_only=True)
class Training:
    """What became of a training, and what it cost."""

    steps: int
    """Optimiser steps until it ended."""

    kept_step: int
    """Steps after which the student was kept: its validation loss was lowest."""

    validation: tuple[tuple[int, float], ...]
    """Step and validation loss, nats a token of the own objective; not comparable between objectives."""

    seconds: float
    """Wall time of the training."""

    cpu_seconds: float
    """Processor time of the training."""

    measuring_seconds: float
    """Processor time of the exact measurement."""


@dataclass(frozen=True, kw_only=True)
class ActionView:
    """One token that might have been written."""

    text: str
    """As written. Untrusted: escape it."""

    teacher: float
    """Its probability under the teacher."""

    student: float
    """Its probability under the student."""

    kappa: float
    """kappa(a|s), nats."""


@dataclass(frozen=True, kw_only=True)
class TokenView:
    """One position of an example answer, and what is exactly true there."""

    text: str
    """As written. Untrusted: escape it."""

    role: RoleName
    """What the choice of this token decides, read off the process."""

    confidence: float
    """max p."""

    entropy: float
    """Of p, nats."""

    kl: float
    """KL(p || q), nats."""

    kappa: float
    """kappa(s): the sum over all tokens that keep the text on script, nats."""

    weighted_kappa: float
    """sum_a q(a|s) kappa(a|s), nats."""

    actions: tuple[ActionView, ...]
    """Tokens that keep the text on script, the likeliest under either model first; at most eight."""


@dataclass(frozen=True, kw_only=True)
class ExampleView:
    """The teacher's likeliest answer to one test problem, seen with one student."""

    prompt: str
    """The problem in words."""

    tokens: tuple[TokenView, ...]
    """The answer, its end token left out."""


@dataclass(frozen=True, kw_only=True)
class LabRun:
    """One student: trained with one objective from one seed in one regime of one world."""

    world: str
    """Key of `bridgegarden.exact.tasks.WORLDS`."""

    regime: str
    """Key of `bridgegarden.lab.result.REGIMES`."""

    objective: str
    """Key of `bridgegarden.study.arms.ALL_OBJECTIVES`."""

    seed: int
    """Decided the first weights, the problems, the answers and their order; shared by all objectives of a regime."""

    measured: Measured
    """On test problems."""

    training: Training
    """How it was trained."""

    example: ExampleView
    """One test problem; the same for all objectives of a world, regime and seed."""


@dataclass(frozen=True, kw_only=True)
class LabResult(StudyResult):
    """Everything that tables and report show."""

    settings: LabSettings
    """What was run."""

    runs: tuple[LabRun, ...]
    """By world, regime, objective (in the orders of settings, `REGIMES` and `ALL_OBJECTIVES`), then seed."""

    @property
    def worlds(self) -> tuple[str, ...]:
        """In the order of the tables."""
        return self.settings.worlds

    def regimes(self, world: str) -> tuple[str, ...]:
        """Regimes that were run in `world`, in the order of the tables."""
        return tuple(dict.fromkeys(run.regime for run in self.runs if run.world == world))

    def objectives(self, world: str, regime: str) -> tuple[str, ...]:
        """Objectives that were run there, in the order of the tables."""
        found = (run.objective for run in self.runs if (run.world, run.regime) == (world, regime))
        return tuple(dict.fromkeys(found))

    def runs_of(self, world: str, regime: str, objective: str) -> tuple[LabRun, ...]:
        """One run per seed; none if it was not run."""
        key = world, regime, objective
        return tuple(run for run in self.runs if (run.world, run.regime, run.objective) == key)

    def values(self, world: str, regime: str, objective: str, quantity: Callable[[Measured], float]) -> list[float]:
        """`quantity` of each seed."""
        return [quantity(run.measured) for run in self.runs_of(world, regime, objective)]
