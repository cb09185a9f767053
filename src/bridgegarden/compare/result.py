"""What a comparison depends on beside its recipe (objectives by the names of ``--objectives``, seeds, tasks), and what
it found: plain data, written to and read from JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from bridgegarden.errors import ConfigError, lookup, unknown_name
from bridgegarden.evaluation.lm_eval import EvaluationOptions
from bridgegarden.recipe import ObjectiveSection
from bridgegarden.study.kept import Plain

Quantity = str
"""``greedy``, ``sampled``, ``teacher_loss``, ``student_loss`` or ``exposure_bias``."""


HYBRID, ON_POLICY = "hybrid:", "on_policy:"
"""Before the name of a divergence: in the place of the forward KL of `static`. Before a row: on the student's texts."""


DATA_ROWS = ("sft", "seqkd")
"""Rows whose labels are the data's own: the teacher is not asked."""


PRESETS = {
    "hard": "hard",
    "soft": "soft",
    "static": "static",
    "confidence": "confidence",
    "entropy": "entropy",
    "curriculum": "curriculum",
    "risk_guided": "risk-guided",
    "sharpened": "sharpened soft",
    "soft_risk": "soft with risk",
}
"""Presets and their labels. Hybrids mix in the teacher's likeliest token."""


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


Budget = Literal["steps", "compute"]


@dataclass(frozen=True, kw_only=True)
class CompareSettings(Plain):
    """How objectives are compared."""

    objectives: tuple[str, ...]
    """Names of `bridgegarden.compare.result`, in the order of the tables."""
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


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What one training cost; the evaluation afterwards is not in it."""

    steps: int
    """Optimiser steps."""
    seconds: float
    """Wall time."""
    cpu_seconds: float
    """Processor time of the process; on an idle CPU the same."""
    teacher_tokens: int
    """Through a teacher that was asked as training went on; none from a cache."""
    student_tokens: int
    """Through the student, forward and backward."""
    prompt_tokens: int
    """Through the student's forward before it began to write."""
    generated_tokens: int
    """Written by the student."""
    flops: float
    """Estimated operations of all that."""
    peak_memory: int
    """Bytes, at most: of the GPU, or of the process with its libraries where there is none."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A trained student, by problem and prompt, so that students can be compared one by one."""

    by_unit: Mapping[Quantity, Mapping[str, float]]
    """Quality by problem (``GROUP/TASK/PROBLEM``, in [0, 1]), losses and exposure bias by prompt (nats a text)."""
    by_task: Mapping[str, Mapping[Quantity, float]]
    """Mean quality of each task or group."""
    entropy_kept: float | None
    """Student's entropy over teacher's on held-out rows; None without such rows."""
    loss: float | None
    """The own objective on held-out rows, nats a token; not comparable between objectives."""
    seconds: float
    """Wall time of measuring."""
    cpu_seconds: float
    """Processor time of measuring."""


@dataclass(frozen=True, kw_only=True)
class CompareRun:
    """One training of one objective from one seed."""

    objective: str
    """As named in the settings."""
    seed: int
    """Of the order of the rows and of what is sampled; and of the first weights, where the recipe has such students."""
    spent: Spent | None
    """None if the training failed."""
    measured: Measured | None
    """None if the training failed."""
    failure: str | None = None
    """Why it failed."""


@dataclass(frozen=True, kw_only=True)
class RowInfo:
    """What a row is."""

    label: str
    """For a reader."""
    objective: str
    """Every field of the objective, on one line."""
    lmbda: float
    """Share of the batches that the student answers."""
    asks_teacher: bool
    """Whether the teacher's distribution is part of the loss."""


@dataclass(frozen=True, kw_only=True)
class CacheCost:
    """What asking the teacher once about all rows cost."""

    tokens: int
    """Tokens it read."""
    flops: float
    """Estimated operations."""
    seconds: float | None
    """Wall time of filling the cache, loading the teacher not included; None if the cache does not say."""
    cpu_seconds: float | None
    """Processor time of the same; None if the cache does not say."""
    sharers: int
    """Trainings of this comparison that read it."""


@dataclass(frozen=True, kw_only=True)
class PairInfo:
    """The models and rows in numbers."""

    teacher: str
    teacher_parameters: int
    student: str
    student_parameters: int
    rows: int
    """Training rows."""
    row_tokens: float
    """Mean tokens of a row."""
    row_positions: float
    """Mean supervised tokens of a row."""
    prompts: int
    """Prompts behind exposure bias."""
    held_out: bool
    """Whether they are no training rows."""
    device: str
    """Where students were: ``cpu`` or ``cuda``."""


@dataclass(frozen=True, kw_only=True)
class CompareResult(Plain):
    """Everything that tables and report show."""

    settings: CompareSettings
    recipe: str
    """The recipe as YAML."""
    pair: PairInfo
    rows: Mapping[str, RowInfo]
    """By the names of the settings, in their order."""
    runs: tuple[CompareRun, ...]
    """By row, then seed."""
    cache: CacheCost | None
    """None if no row reads one."""
    versions: Mapping[str, str]
    commit: str | None
    """Git commit that the working directory was at; None outside a repository."""
    command: str
    """What gives the same numbers on the same machine."""
    started: str
    """ISO 8601, UTC."""
    seconds: float
    """Wall time of the whole; runs kept from an earlier time cost nothing here."""
    memo: dict[tuple, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    """What was made from the numbers by resampling, which tables, words and charts all ask for."""

    @property
    def objectives(self) -> tuple[str, ...]:
        """Rows with at least one training that did not fail, in the order of the tables."""
        return tuple(name for name in self.settings.objectives if self.runs_of(name))

    @property
    def failures(self) -> tuple[CompareRun, ...]:
        """Trainings that failed."""
        return tuple(run for run in self.runs if run.failure is not None)

    def label(self, objective: str) -> str:
        """How a reader calls `objective`."""
        return self.rows[objective].label

    def runs_of(self, objective: str) -> dict[int, CompareRun]:
        """By seed, those that did not fail."""
        return {run.seed: run for run in self.runs if run.objective == objective and run.failure is None}
