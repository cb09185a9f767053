"""What students differ in: how much they can hold, and the objectives that are compared with each other, by name.

The lab and the quickstart train with `OBJECTIVES`; a comparison on a recipe knows every method
(`bridgegarden.objective.methods`), and more: hybrids of other divergences, and texts that the student writes itself
(`compared_rows`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from bridgegarden.errors import ConfigError, unknown_name
from bridgegarden.recipe import ObjectiveSection, build_objective
from bridgegarden.study.kept import Plain

if TYPE_CHECKING:
    from bridgegarden.objective.hybrid import HybridObjective
    from bridgegarden.objective.methods import Method


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
FOR_FILE = "quantised:"
"""Before any row: trained for the file of few bits as which students are measured."""


DATA_ROWS = ("sft", "seqkd")
"""Rows whose labels are the data's own: the teacher is not asked."""


ALIASES = {
    "gkd": ("on_policy:jensen_shannon", "GKD", 1.0),
    "gkd_half": ("on_policy:jensen_shannon", "GKD, half on-policy", 0.5),
    "on_policy_hybrid": ("on_policy:static", "on-policy hybrid", 1.0),
}
"""Names of the field: the row, its label, and the share of batches that the student answers."""


DEFAULT = ("sft", "hard", "soft", "static", "confidence", "entropy", "curriculum", "risk_guided")
"""Without ``--objectives``: what trains from a teacher that is asked once."""

ALL = "all"
"""In the place of names: :func:`all_rows`."""


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
    for_file: bool = False
    """Whether the student is trained for the file as which it is measured."""

    @property
    def on_policy(self) -> bool:
        """Whether the student writes, so that the teacher has to be there."""
        return self.lmbda > 0

    @property
    def asks_teacher(self) -> bool:
        """Whether the teacher's distribution is part of the loss."""
        return not build_objective(self.objective).learns_data_alone

    @property
    def reads_cache(self) -> bool:
        """Whether that distribution can be read from disk."""
        return self.asks_teacher and not self.on_policy

    @property
    def file_name(self) -> str:
        """The name as part of a path."""
        return self.name.replace(":", "-")


def methods() -> "Mapping[str, Method]":
    """Every method by the name of its row."""
    from bridgegarden.objective.methods import METHODS

    return METHODS


def divergences() -> dict[str, "Method"]:
    """The methods that are soft labels with another divergence than the forward KL, and nothing else."""
    return {name: m for name, m in methods().items() if m.fields.keys() == {"divergence", "soft_weight"}}


def known_rows() -> tuple[str, ...]:
    """Every name, in the order of the tables; ``on_policy:`` goes before any of the teacher's rows."""
    hybrids = [HYBRID + name for name in divergences()]
    return (*DATA_ROWS, *methods(), *hybrids, *ALIASES, "recipe")


def all_rows() -> tuple[str, ...]:
    """Every method: on fixed data, and, where its paper has the student write, on the student's texts, too."""
    written = [ON_POLICY + name for name, method in methods().items() if method.on_policy]
    return ("sft", *methods(), "gkd", ON_POLICY + "reverse_kl", "on_policy_hybrid", *written)


def named_rows(names: tuple[str, ...]) -> tuple[str, ...]:
    """`names`, or every method where they are :data:`ALL`.

    Raises:
        ConfigError: there is a name beside it.
    """
    if ALL not in names:
        return names
    if len(names) > 1:
        raise ConfigError("--objectives: 'all' is every method; name nothing beside it.")
    return all_rows()


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
    if name.startswith(FOR_FILE):
        inner = name.removeprefix(FOR_FILE)
        if inner.startswith(FOR_FILE):
            raise ConfigError(f"--objectives: {name!r} says {FOR_FILE} twice.")
        row = _row(inner, base)
        return replace(row, name=name, label=f"quantised {row.label}", for_file=True)
    if name in ALIASES:
        target, label, lmbda = ALIASES[name]
        return replace(_row(target, base), name=name, label=label, lmbda=lmbda)
    if name.startswith(ON_POLICY):
        inner = name.removeprefix(ON_POLICY)
        row = None if inner in ALIASES or inner.startswith(ON_POLICY) else _row(inner, base)
        if row is None or build_objective(row.objective).learns_data_tokens:
            fit = [known for known, method in methods().items() if method.fields.get("hard_target") != "data"]
            raise ConfigError(
                f"--objectives: {name!r}: {inner} cannot be put on the student's own texts; what can: {', '.join(fit)}."
            )
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
    if name in methods():
        return methods()[name].label, {"preset": name}
    method = divergences().get(name.removeprefix(HYBRID)) if name.startswith(HYBRID) else None
    if method is None:
        raise unknown_name(name, [*known_rows(), *(ON_POLICY + row for row in methods())], field="--objectives")
    return f"hybrid {method.label}", {"preset": name.removeprefix(HYBRID), "soft_weight": 0.5}


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
