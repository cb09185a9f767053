"""What a comparison depends on beside its recipe."""

from dataclasses import dataclass, field
from typing import Any, Literal

from bridgegarden.errors import ConfigError
from bridgegarden.evaluation.lm_eval import EvaluationOptions
from bridgegarden.registry import lookup
from bridgegarden.study.kept import Plain

Budget = Literal["steps", "compute"]


@dataclass(frozen=True, kw_only=True)
class CompareSettings(Plain):
    """How objectives are compared."""

    objectives: tuple[str, ...]
    """Names of `bridgegarden.compare.rows`, in the order of the tables."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One training per objective and seed."""
    budget: Budget = "steps"
    """What is equal: optimiser steps, or estimated operations."""
    baseline: str
    """The objective that costs and qualities are held against."""
    evaluation: EvaluationOptions | None = field(default_factory=EvaluationOptions)
    """Which tasks quality is measured on; None is none."""
    prompts: int = 64
    """Held-out prompts that exposure bias is measured on, >= 2."""
    samples: int = 4
    """Texts of each prompt, by teacher and student, >= 1."""
    max_new_tokens: int = 256
    """Most tokens of such a text, >= 1."""
    keep_models: bool = True
    """Whether trained students stay on disk once they are measured."""

    def __post_init__(self) -> None:
        if not self.seeds or len({*self.seeds}) != len(self.seeds):
            raise ConfigError(f"compare: needs seeds, each once; got {list(self.seeds)}.")
        lookup(dict.fromkeys(self.objectives), self.baseline, field="--baseline")
        for name, least in (("prompts", 2), ("samples", 1), ("max_new_tokens", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"compare: {name} must be >= {least}, got {getattr(self, name)}.")

    @property
    def measuring(self) -> dict[str, Any]:
        """What decides how a student is measured."""
        tree = self.to_dict()
        return {name: tree[name] for name in ("evaluation", "prompts", "samples", "max_new_tokens")}


def default_baseline(objectives: tuple[str, ...]) -> str:
    """The first objective on the student's own texts, which cost most; else the first.

    Raises:
        ConfigError: there is none.
    """
    if not objectives:
        raise ConfigError(
            "--objectives names nothing; expected names separated by commas, such as soft,confidence,gkd."
        )
    costly = (name for name in objectives if name.startswith(("gkd", "on_policy")))
    return next(costly, objectives[0])
