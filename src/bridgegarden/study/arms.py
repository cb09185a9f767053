"""What students differ in: how much they can hold, and the objectives that are compared with each other, by name.

The lab and the quickstart train with `OBJECTIVES`; a comparison on a recipe knows these, and more: other divergences,
and texts that the student writes itself (`compared_rows`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from bridgegarden.errors import ConfigError, unknown_name
from bridgegarden.recipe import ObjectiveSection
from bridgegarden.study.kept import Plain

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
class TrainingSettings(Plain):
    """How a tiny student is trained."""

    steps: int
    """Optimiser steps of a training, at most."""
    batch: int
    """Answers a step."""
    learning_rate: float
    """Peak of AdamW's rate: a linear rise over the first 5 % of the steps, then a cosine to zero."""


@dataclass(frozen=True, kw_only=True)
class StoppingSettings(TrainingSettings):
    """The same, and when a training ends before its last step."""

    evaluate_every: int
    """Steps between two looks at the validation loss. The student with the lowest is kept."""
    patience: int
    """Looks without a lower validation loss after which a training ends."""


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


HYBRID, ON_POLICY = "hybrid:", "on_policy:"
"""Before the name of a divergence: in the place of the forward KL of `static`. Before a row: on the student's texts."""


DATA_ROWS = ("sft", "seqkd")
"""Rows whose labels are the data's own: the teacher is not asked."""


PRESETS = {
    **{name: objective.label for name, objective in OBJECTIVES.items() if name != "hard_data"},
    "hard": "hard",
    "sharpened": "sharpened soft",
    "soft_risk": "soft with risk",
}
"""Presets and their labels: data's own labels have names of their own here. Hybrids mix in the teacher's likeliest
token."""

DIVERGENCES: dict[str, tuple[str, dict[str, float]]] = {
    "reverse_kl": ("reverse KL", {}),
    "jensen_shannon": ("Jensen-Shannon", {}),
    "skewed_forward_kl": ("skewed forward KL", {}),
    "skewed_reverse_kl": ("skewed reverse KL", {}),
    "total_variation": ("total variation", {}),
    "adaptive_kl": ("adaptive KL", {}),
    "alpha_beta": ("alpha-beta (0.2, 0.7)", {"alpha": 0.2, "beta": 0.7}),
}
"""Soft losses beside the forward KL, which is `soft`: label and options. Alpha and beta are ABKD's usual ones."""


ALIASES = {
    "gkd": ("on_policy:jensen_shannon", "GKD", 1.0),
    "gkd_half": ("on_policy:jensen_shannon", "GKD, half on-policy", 0.5),
    "on_policy_hybrid": ("on_policy:static", "on-policy hybrid", 1.0),
}
"""Names of the field: the row, its label, and the share of batches that the student answers."""


DEFAULT = ("sft", "hard", "soft", "static", "confidence", "entropy", "curriculum", "risk_guided")
"""Without ``--objectives``: what trains from a teacher that is asked once."""


@dataclass(frozen=True, kw_only=True)
class ComparedRow:
    """One row of the comparison."""

    name: str
    """As it was asked for."""
    label: str
    """For a reader."""
    objective: ObjectiveSection
    """What is minimised."""
    lmbda: float = 0.0
    """Share of the batches whose answers the student writes, in [0, 1]."""

    @property
    def on_policy(self) -> bool:
        """Whether the student writes, so that the teacher has to be there."""
        return self.lmbda > 0

    @property
    def asks_teacher(self) -> bool:
        """Whether the teacher's distribution is part of the loss."""
        return self.name not in DATA_ROWS

    @property
    def reads_cache(self) -> bool:
        """Whether that distribution can be read from disk."""
        return self.asks_teacher and not self.on_policy

    @property
    def file_name(self) -> str:
        """The name as part of a path."""
        return self.name.replace(":", "-")


def known_rows() -> tuple[str, ...]:
    """Every name, in the order of the tables; ``on_policy:`` goes before any of the teacher's rows."""
    hybrids = [HYBRID + name for name in DIVERGENCES]
    return (*DATA_ROWS, *PRESETS, *DIVERGENCES, *hybrids, *ALIASES, "recipe")


def compared_rows(names: Sequence[str], base: ObjectiveSection) -> tuple[ComparedRow, ...]:
    """The rows called `names`.

    Args:
        names: each once.
        base: the recipe's objective: its temperature holds for every row, and ``recipe`` is all of it.

    Raises:
        ConfigError: an unknown name, one that is there twice, or none.
    """
    if not names:
        raise ConfigError(f"--objectives names nothing. Known: {', '.join(known_rows())}.")
    twice = [name for place, name in enumerate(names) if name in names[:place]]
    if twice:
        raise ConfigError(f"--objectives: {twice[0]!r} is there twice.")
    if set(DATA_ROWS) <= set(names):
        raise ConfigError(
            "--objectives: sft and seqkd are both hard labels of the data, which here is the same data. Name one; for "
            "the other, compare again with other data (--set data.train=ANSWERS)."
        )
    return tuple(_row(name, base) for name in names)


def _row(name: str, base: ObjectiveSection) -> ComparedRow:
    if name in ALIASES:
        target, label, lmbda = ALIASES[name]
        return replace(_row(target, base), name=name, label=label, lmbda=lmbda)
    if name.startswith(ON_POLICY):
        inner = name.removeprefix(ON_POLICY)
        if inner in DATA_ROWS or inner in ALIASES or inner.startswith(ON_POLICY):
            raise ConfigError(
                f"--objectives: {name!r}: {inner} cannot be put on the student's own texts; what can: "
                f"{', '.join((*PRESETS, *DIVERGENCES))}."
            )
        row = _row(inner, base)
        return replace(row, name=name, label=f"on-policy {row.label}", lmbda=1.0)
    label, fields = _off_policy(name)
    section = base if fields is None else ObjectiveSection(temperature=base.temperature, **fields)
    return ComparedRow(name=name, label=label, objective=section)


def _off_policy(name: str) -> tuple[str, dict[str, Any] | None]:
    """Label and settings of a row on fixed data; None is the recipe's own."""
    if name == "recipe":
        return "the recipe's", None
    if name in DATA_ROWS:
        return {"sft": "SFT", "seqkd": "SeqKD"}[name], {"preset": "hard", "hard_target": "data"}
    if name in PRESETS:
        return PRESETS[name], {"preset": name}
    divergence = name.removeprefix(HYBRID)
    if divergence not in DIVERGENCES:
        raise unknown_name(name, [*known_rows(), *(ON_POLICY + row for row in PRESETS)], field="--objectives")
    label, options = DIVERGENCES[divergence]
    fields = {"divergence": divergence, "divergence_options": options or None}
    if name.startswith(HYBRID):
        return f"hybrid {label}", {"preset": "static", **fields}
    return label, {"preset": "soft", **fields}


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
