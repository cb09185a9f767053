"""What is on the map: teachers, students, rows, budgets and arms; how they are trained, and what came of one cell."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from bridgegarden.errors import ConfigError, lookup
from bridgegarden.exact.tasks.chain import TEACHERS
from bridgegarden.study.arms import OBJECTIVES
from bridgegarden.study.kept import Plain

if TYPE_CHECKING:
    from torch import Tensor

    from bridgegarden.lab.map.students import Arm
    from bridgegarden.objective.hybrid import HybridObjective

STUDENTS: Mapping[str, int] = MappingProxyType({"room enough": 20, "too small": 8})
"""Units of each hidden layer."""
ROWS: Mapping[str, int] = MappingProxyType({"few": 160, "many": 2000})
"""Answers of the teacher."""
BUDGETS: Mapping[str, int] = MappingProxyType({"short": 300, "long": 600})
"""Steps."""
FAIRNESS = ("one setting", "tuned by loss", "tuned by right answers")
"""How rate, decay and the step to stop are chosen: alike for all arms, or for each by its held-out L_dT, or by its
held-out right answers."""


@dataclass(frozen=True, kw_only=True)
class MapArm:
    """One column of the map."""

    label: str
    """For a reader."""
    preset: str
    """Of the objective."""
    hard_target: str = "teacher_argmax"
    """The hard label."""
    smoothing: float = 0.0
    """Of the hard label."""
    on_policy: bool = False
    """Whether the student writes the answers that it learns from."""
    weighs_by: Literal["rule", "role", "kappa"] = "rule"
    """What decides the soft weight: the preset's rule; or an oracle, which knows what is a Bridge and labels it hard,
    or knows kappa(s) of a student that was trained on soft labels in the one setting, and weighs by its rank."""

    @property
    def objective(self) -> "HybridObjective":
        """What is minimised."""
        from bridgegarden.objective.hybrid import HybridObjective

        return HybridObjective.preset(self.preset, hard_target=self.hard_target)

    def arm(
        self, learning_rate: float, weight_decay: float, soft_weights: "tuple[Tensor, Tensor] | None" = None
    ) -> "Arm":
        """With a setting, and what an oracle knows."""
        from bridgegarden.lab.map.students import Arm

        return Arm(
            objective=self.objective,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            smoothing=self.smoothing,
            soft_weights=soft_weights,
        )


ARMS: Mapping[str, MapArm] = MappingProxyType(
    {
        **{
            name: MapArm(label=arm.label, preset=arm.preset, hard_target=arm.hard_target)
            for name, arm in OBJECTIVES.items()
        },
        "sharpened": MapArm(label="sharpened soft", preset="sharpened"),
        "soft_risk": MapArm(label="soft with risk", preset="soft_risk"),
        "smoothed": MapArm(label="hard, smoothed", preset="hard", smoothing=0.1),
        "on_policy": MapArm(label="soft, on-policy", preset="soft", on_policy=True),
        "by_role": MapArm(label="oracle, by role", preset="static", weighs_by="role"),
        "by_kappa": MapArm(label="oracle, by kappa", preset="static", weighs_by="kappa"),
    }
)
"""The paper's methods; the baselines that have one part of a hybrid without the mixing; and hybrids that know what
nobody knows outside of a lab."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One place of the map."""

    teacher: str
    """Key of `bridgegarden.exact.tasks.chain.TEACHERS`."""
    student: str
    """Key of `STUDENTS`."""
    rows: str
    """Key of `ROWS`."""
    budget: str
    """Key of `BUDGETS`."""

    @property
    def name(self) -> str:
        """For files and displays."""
        return "-".join((self.teacher, self.student, self.rows, self.budget)).replace(" ", "_")

    @property
    def label(self) -> str:
        """For a reader: teacher, student, rows, training."""
        return f"{self.teacher.replace('_', ' ')}, {self.student}, {self.rows} rows, {self.budget}"


@dataclass(frozen=True, kw_only=True)
class MapSettings(Plain):
    """Everything that the numbers depend on besides the worlds' own tables and the libraries' versions."""

    teachers: tuple[str, ...] = ("perfect", "unsure", "slips", "wrong_in_places")
    """Keys of `TEACHERS`."""
    students: tuple[str, ...] = tuple(STUDENTS)
    """Keys of `STUDENTS`."""
    rows: tuple[str, ...] = tuple(ROWS)
    """Keys of `ROWS`."""
    budgets: tuple[str, ...] = tuple(BUDGETS)
    """Keys of `BUDGETS`."""
    arms: tuple[str, ...] = tuple(ARMS)
    """Keys of `ARMS`."""
    seeds: int = 64
    """Students of every arm, setting and cell."""
    tuning_seeds: int = 16
    """Students by which a setting is judged."""
    learning_rates: tuple[float, ...] = (2e-2, 5e-2, 1e-1)
    """To choose from: AdamW's peak, after a rise over the first 5 % of the steps, before a cosine to zero."""
    weight_decays: tuple[float, ...] = (0.01, 0.1, 0.5)
    """To choose from."""
    stops: tuple[float, ...] = (0.5, 1.0)
    """To choose from: shares of the budget after which to stop."""
    fixed_rate: float = 5e-2
    """Where all arms have one setting."""
    fixed_decay: float = 0.01
    """Likewise; they then train to the end."""
    batch: int = 16
    """Answers a step."""
    validation_problems: int = 64
    """Problems by which a setting is judged."""
    test_problems: int = 96
    """Problems on which students are measured, exactly."""

    def __post_init__(self) -> None:
        known = {"teachers": TEACHERS, "students": STUDENTS, "rows": ROWS, "budgets": BUDGETS, "arms": ARMS}
        for name, names in known.items():
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ConfigError(f"map.{name}: expected at least one, and none twice; got {list(values)}.")
            for value in values:
                lookup(names, value, field=f"map.{name}")
        for name in ("seeds", "tuning_seeds"):
            if getattr(self, name) < 2:
                raise ConfigError(
                    f"map.{name} must be at least 2, for a spread between them; got {getattr(self, name)}."
                )
        if (
            self.fixed_rate not in self.learning_rates
            or self.fixed_decay not in self.weight_decays
            or 1.0 not in self.stops
        ):
            raise ConfigError(
                "map: the one setting of all arms (fixed_rate, fixed_decay, the whole budget) must be one of those "
                "that are chosen from."
            )
        if missing := {"hard", "soft"}.difference(self.arms):
            raise ConfigError(f"map.arms: {', '.join(sorted(missing))} is needed: the others are compared with it.")

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All places, the teachers slowest."""
        combined = product(self.teachers, self.students, self.rows, self.budgets)
        return tuple(Cell(teacher=t, student=s, rows=r, budget=b) for t, s, r, b in combined)


QUICK = MapSettings(students=("too small",), rows=("few",), budgets=("short",), seeds=16, tuning_seeds=4)
"""What three minutes of two processors are enough for."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How an arm was trained."""

    learning_rate: float
    """Peak of AdamW's rate."""
    weight_decay: float
    """Of all matrices."""
    steps: int
    """After which training stopped; the schedule is that of the whole budget."""
    held_out_loss: float
    """L_dT on validation problems, mean over the tuning seeds."""
    held_out_right: float
    """The share of them answered rightly, token by likeliest token."""


@dataclass(frozen=True, kw_only=True)
class CellRun:
    """What came of one cell."""

    cell: Cell
    """Where."""
    settings: Mapping[str, Mapping[str, Setting]]
    """By `FAIRNESS`, then arm."""
    measures: Mapping[str, Mapping[str, Mapping[str, tuple[float, ...]]]]
    """By `FAIRNESS`, arm and name of a measure: one number for each seed."""
    kappa: Mapping[str, Mapping[str, Mapping[str, tuple[float, ...]]]]
    """Of soft labels' students, by `FAIRNESS`: how well a predictor tells kappa in a reading; one number a seed."""
    students: int
    """Trained for it."""
    cpu_seconds: float
    """Processor time of it all."""
