"""What a run of the quickstart depends on. `--full` compares all of the lab's `OBJECTIVES`."""

from dataclasses import dataclass

from bridgegarden.errors import ConfigError
from bridgegarden.registry import lookup
from bridgegarden.study.arms import OBJECTIVES
from bridgegarden.study.kept import Plain

DEFAULT_OBJECTIVES = ("hard", "soft", "static", "confidence", "entropy")
"""What runs without `--full`."""


@dataclass(frozen=True, kw_only=True)
class QuickstartSettings(Plain):
    """Everything the numbers depend on besides the packaged teacher and the versions of the libraries."""

    objectives: tuple[str, ...] = DEFAULT_OBJECTIVES
    """Keys of `OBJECTIVES`, in the order of the tables."""

    seeds: tuple[int, ...] = (0,)
    """One training per objective and seed. A seed decides the student's first weights, the data and its order."""

    steps: int = 800
    """Optimiser steps of each training."""

    batch: int = 32
    """Answers per step."""

    learning_rate: float = 5e-3
    """Peak of AdamW's rate: a linear rise over the first 5 % of the steps, then a cosine to zero."""

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
