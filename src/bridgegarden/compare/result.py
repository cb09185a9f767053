"""What a comparison depends on beside its recipe (objectives by the names of ``--objectives``, seeds, tasks), and what
it found: plain data, written to and read from JSON."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bridgegarden.errors import ConfigError, lookup
from bridgegarden.evaluation.lm_eval import EvaluationOptions
from bridgegarden.study.kept import Plain, StudyResult

Quantity = str
"""``greedy``, ``sampled``, ``teacher_loss``, ``student_loss`` or ``exposure_bias``."""

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
    export: str | None = None
    """The type of GGUF file as which every student is measured; None measures it as it was saved."""
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
        exported = {} if self.export is None else {"export": self.export}
        return {name: tree[name] for name in ("evaluation", "prompts", "samples", "max_new_tokens")} | exported


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
    label_loss: float | None = None
    """Minus the log-probability of the held-out rows' tokens, nats a token; None without such rows."""
    teacher_label_loss: float | None = None
    """The teacher's, on the same tokens; None also where it does not say."""
    known: Mapping[str, float] | None = None
    """Mean probability of the teacher's that is known, on ``teacher_texts`` and ``student_texts``, where it has another
    tokenizer; None where all is."""
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
    translated: bool = False
    """Whether teacher and students have different tokenizers."""


@dataclass(frozen=True, kw_only=True)
class CompareResult(StudyResult):
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
