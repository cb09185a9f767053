"""What a run of the lab depends on: worlds, regimes, objectives, seeds, and how students are trained and measured."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from bridgegarden.errors import ConfigError
from bridgegarden.registry import lookup
from bridgegarden.study.arms import LAMBDAS, OBJECTIVES, LlamaSize
from bridgegarden.study.kept import Plain


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
class LabSettings(Plain):
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
    """Optimiser steps of a training, at most."""

    batch: int = 16
    """Answers per step."""

    learning_rate: float = 5e-3
    """Peak of AdamW's rate: a linear rise over the first 5 % of the steps, then a cosine to zero."""

    evaluate_every: int = 25
    """Steps between two looks at the validation loss. The student with the lowest is kept."""

    patience: int = 4
    """Looks without a lower validation loss after which a training ends."""

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
