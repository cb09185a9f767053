"""What students differ in: how much they can hold, and the objectives that are compared with each other, by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from bridgegarden.objective.hybrid import HybridObjective


@dataclass(frozen=True, kw_only=True)
class LlamaSize:
    """What decides how much a model can hold."""

    hidden: int
    """Width of the residual stream."""

    layers: int
    """Transformer blocks."""

    heads: int
    """Attention heads; divides `hidden`."""

    feed_forward: int
    """Width inside the feed-forward blocks."""


@dataclass(frozen=True, kw_only=True)
class ComparedObjective:
    """One row of a comparison."""

    label: str
    """For a reader."""

    preset: str
    """Name of `HybridObjective.preset`."""

    hard_target: Literal["teacher_argmax", "data"] = "teacher_argmax"
    """The hard label: the teacher's likeliest token, or the token of the sampled answer."""

    soft_weight: float | None = None
    """A constant soft weight in place of the preset's rule."""

    pure: bool = False
    """Whether it uses labels of one kind alone."""

    def build(self) -> "HybridObjective":
        """The objective itself."""
        from bridgegarden.objective.hybrid import HybridObjective
        from bridgegarden.objective.soft_weight import StaticWeight

        weight = {} if self.soft_weight is None else {"soft_weight": StaticWeight(self.soft_weight)}
        return HybridObjective.preset(self.preset, hard_target=self.hard_target, **weight)


OBJECTIVES: Mapping[str, ComparedObjective] = MappingProxyType(
    {
        "hard": ComparedObjective(label="hard (argmax)", preset="hard", pure=True),
        "hard_data": ComparedObjective(label="hard (data)", preset="hard", hard_target="data", pure=True),
        "soft": ComparedObjective(label="soft", preset="soft", pure=True),
        "static": ComparedObjective(label="static", preset="static"),
        "confidence": ComparedObjective(label="confidence", preset="confidence"),
        "entropy": ComparedObjective(label="entropy", preset="entropy"),
        "curriculum": ComparedObjective(label="curriculum", preset="curriculum"),
        "risk_guided": ComparedObjective(label="risk-guided", preset="risk_guided"),
    }
)
"""The paper's methods, in the order of all tables. Hybrids mix in the teacher's likeliest token."""

LAMBDAS: Mapping[str, ComparedObjective] = MappingProxyType(
    {
        f"static_{weight}": ComparedObjective(label=f"static, λ = {weight}", preset="static", soft_weight=weight)
        for weight in (0.1, 0.3, 0.7, 0.9)
    }
)
"""Further constant soft weights: with hard (0), static (0.5) and soft (1) the sweep over λ. They decide no claim."""

HYBRIDS = tuple(name for name, objective in OBJECTIVES.items() if not objective.pure)
"""Each is a hybrid that the claims are tested on, in its own row."""

ALL_OBJECTIVES: Mapping[str, ComparedObjective] = MappingProxyType({**OBJECTIVES, **LAMBDAS})
"""Everything that can be trained."""
