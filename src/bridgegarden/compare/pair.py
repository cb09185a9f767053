"""What all runs of a comparison share: the recipe, its models without weights, its rows, and what training costs."""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from bridgegarden.data import load_rows
from bridgegarden.data.teacher_prompt import TEACHER_IDS
from bridgegarden.errors import ConfigError
from bridgegarden.preflight import Endings, ModelFacts
from bridgegarden.preflight.flops import ForwardFlops, StepFlops, forward_flops
from bridgegarden.recipe import Recipe, build_lora_config, build_objective
from bridgegarden.run.pair import recipe_pair, student_reference, translating
from bridgegarden.run.prune import made_student
from bridgegarden.run.teachers import teacher_of
from bridgegarden.study.arms import FOR_FILE, ComparedRow
from bridgegarden.teacher.cache.shard import Document, documents_of
from bridgegarden.teacher.cache.spec import weights_fingerprint
from bridgegarden.teacher.translated import as_read, check_translated_objective

if TYPE_CHECKING:
    from datasets import Dataset

    from bridgegarden.run.rows import RunData
    from bridgegarden.teacher.tokenizer_pair import TokenizerPair

SEED = "{seed}"
"""In ``student.model``: stands for the seed, so that each has a student of its own."""

WRITTEN_BY = "generated_by"
"""The column by which rows are known to be the teacher's answers."""


@dataclass(frozen=True, kw_only=True)
class RowCounts:
    """The training rows in numbers; means over rows."""

    rows: int
    """How many."""
    tokens: float
    """Tokens of a row."""
    positions: float
    """Supervised positions of a row: its answer."""
    distinct_tokens: int
    """Tokens of all different rows, for training and evaluation: what the teacher reads to fill a cache."""
    distinct_positions: int
    """Supervised positions of these."""
    teacher_tokens: float
    """Tokens of a row as the teacher reads it, which may be in a tokenizer of its own."""
    teacher_positions: float
    """Supervised positions of these."""

    @property
    def prompt(self) -> float:
        """Tokens of a prompt."""
        return self.tokens - self.positions

    @classmethod
    def of(cls, data: "RunData") -> "RowCounts":
        """Count the rows of a recipe."""
        asked = {name: _as_teacher_reads(rows, name) for name, rows in data.by_name.items()}
        train, read = list(documents_of(data.train)), list(documents_of(asked["train"]))
        held_out = [] if data.evaluation is None else list(documents_of(asked["evaluation"]))
        distinct: dict[bytes, Document] = {document.key: document for document in (*read, *held_out)}
        return cls(
            rows=len(train),
            tokens=float(np.mean([len(document.ids) for document in train])),
            positions=float(np.mean([document.positions for document in train])),
            distinct_tokens=sum(len(document.ids) for document in distinct.values()),
            distinct_positions=sum(document.positions for document in distinct.values()),
            teacher_tokens=float(np.mean([len(document.ids) for document in read])),
            teacher_positions=float(np.mean([document.positions for document in read])),
        )


def _as_teacher_reads(rows: "Dataset", name: str) -> "Dataset":
    return as_read(rows, name) if TEACHER_IDS in rows.column_names else rows


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A checked recipe."""

    recipe: Recipe
    """With every path as it is to be opened."""
    teacher: ModelFacts
    student: ModelFacts
    """Of the first seed; the others have to be of the same make."""
    endings: Endings
    """The tokenizer and chat template, and where a turn ends."""
    vocab_size: int
    """Tokens that both models share; the student's, where the teacher has others."""
    tokens: "TokenizerPair | None"
    """How the teacher reads what the student does, where their tokenizers differ."""
    counts: RowCounts
    fingerprints: dict[str, Any]
    """Of the rows and the teacher's weights."""

    @property
    def steps(self) -> int:
        """Optimiser steps of every run, as the recipe says."""
        return int(self.recipe.training.arguments["max_steps"])

    @property
    def rows_a_step(self) -> int:
        """Rows behind one optimiser step."""
        arguments = self.recipe.training.arguments
        return arguments["per_device_train_batch_size"] * int(arguments.get("gradient_accumulation_steps") or 1)


def check_recipe(recipe: Recipe, rows: Sequence[ComparedRow]) -> None:
    """Make sure that `recipe` can be compared on, before anything is read.

    Raises:
        ConfigError: the teacher is on a server, the number of steps or the rows to compare on are left open, or this is
            one of several processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "compare: trains one student after the other on one device, and was started as one of "
            f"{os.environ['WORLD_SIZE']} processes. Start it without accelerate launch or torchrun."
        )
    if not recipe.teacher.judges_any_text:
        raise ConfigError(
            f"{recipe.teacher.is_silent} at what students write, which on-policy objectives and exposure bias need. "
            "Compare with a teacher.model of this machine, or train by each objective "
            "(bridgegarden train RECIPE --set objective.preset=NAME --set output=FOLDER) and evaluate the students."
        )
    if recipe.teacher.prompt is not None:
        raise ConfigError(
            "teacher.prompt: compare has the teacher judge what students write after the rows' own prompts. Compare "
            "without it (--set teacher.prompt=null), or train each objective with `bridgegarden train`."
        )
    if int(recipe.training.arguments.get("max_steps") or -1) < 1:
        raise ConfigError(
            "training.max_steps: a comparison is at equal steps, so the recipe must say how many. Add "
            "--set training.max_steps=N."
        )
    if recipe.training.arguments.get("packing") and any(row.on_policy for row in rows):
        raise ConfigError("training.packing: packed rows have no prompts to write from; set it to false.")
    if any(row.name.removeprefix(FOR_FILE) == "seqkd" for row in rows):
        _check_written_by_teacher(recipe)


def check_pair(
    recipe: Recipe, seeds: Sequence[int], console: Console | None = None, rows: Sequence[ComparedRow] = ()
) -> tuple[Pair, "RunData"]:
    """Models and rows of `recipe`, checked and counted, with the rows. What is not defined for a pair with different
    tokenizers is refused. A student that is cut out of the teacher is made, and `console` told of it.

    Raises:
        ConfigError: the recipe, or one of `rows`, does not go with such a pair.
        ModelError: the models cannot be used, or not with each other.
        DataError: a row cannot be used.
    """
    watched = dataclasses.replace(recipe, free_running=None)  # no training of a comparison is
    checked = translating(recipe_pair(seeded(watched, seeds[0]), translates=True), watched)
    for row in rows if checked.translates else ():
        _check_translated(row)
    data = teacher_of(recipe).rows(checked)
    student = made_student(recipe, checked, data, console or Console(quiet=True))
    teacher = checked.teacher
    assert teacher is not None  # `check_recipe` refuses a server
    of_teacher = teacher.reference
    weights = weights_fingerprint(Path(of_teacher.location)) if of_teacher.is_local else teacher.commit
    pair = Pair(
        recipe=recipe,
        teacher=teacher,
        student=student,
        endings=checked.endings,
        vocab_size=checked.match.vocab_size,
        tokens=checked.tokens,
        counts=RowCounts.of(data),
        fingerprints={**data.fingerprints, "teacher": weights},
    )
    return pair, data


def _check_translated(row: ComparedRow) -> None:
    objective = build_objective(row.objective)
    if objective.learns_data_alone:
        return
    try:
        check_translated_objective(objective)
    except ConfigError as error:
        raise ConfigError(f"--objectives {row.name}: {error}") from error


def placed(recipe: Recipe, source: str) -> Recipe:
    """`recipe` of the file `source` with a student for each seed looked for beside the file, as other models are; or
    with the folder of the one that is cut out of the teacher, which all trainings begin with."""
    if recipe.student.from_ is not None:
        section = dataclasses.replace(recipe.student, folder=str(recipe.student_folder))
        return dataclasses.replace(recipe, student=section)
    name = recipe.student.model
    beside = Path(source).expanduser().resolve().parent / name
    if SEED not in name or not Path(source).expanduser().is_file() or not _any_seed(beside):
        return recipe
    return dataclasses.replace(recipe, student=dataclasses.replace(recipe.student, model=str(beside)))


def seeded(recipe: Recipe, seed: int) -> Recipe:
    """`recipe` with the student of `seed`."""
    name = recipe.student.model.replace(SEED, str(seed))
    return dataclasses.replace(recipe, student=dataclasses.replace(recipe.student, model=name))


def student_fingerprint(recipe: Recipe, seed: int) -> str:
    """Which weights the student of `seed` begins with: of a folder its content, of a name on the hub that name."""
    student = student_reference(seeded(recipe, seed))
    if not student.is_local:
        return f"{student.model}@{student.revision}"
    return weights_fingerprint(Path(student.location))


def _any_seed(beside: Path) -> bool:
    return any(beside.parent.glob(beside.name.replace(SEED, "*")))


def _check_written_by_teacher(recipe: Recipe) -> None:
    for source in recipe.data.sources:
        rows = load_rows(source.path, split=source.split or recipe.data.split, limit=1)
        if WRITTEN_BY in rows.column_names:
            continue
        raise ConfigError(
            f"--objectives seqkd: trains on answers that the teacher wrote, and rows of {source.path} do not say "
            f"that it did (no column {WRITTEN_BY!r}). Let it answer (bridgegarden generate RECIPE), then compare with "
            "--set data.train=ANSWERS. Hard labels of this data are called sft."
        )


@dataclass(frozen=True, kw_only=True)
class Work:
    """Tokens and positions of one training."""

    student_tokens: float
    """Read by the student, forward and backward."""
    student_positions: float
    """Of these, supervised: only they are projected to the vocabulary."""
    teacher_tokens: float = 0.0
    """Read by a teacher that is asked as training goes on."""
    teacher_positions: float = 0.0
    """Of these, supervised."""
    generated_tokens: float = 0.0
    """Written by the student."""
    prompt_tokens: float = 0.0
    """Read by the student before it wrote them."""
    ranked: bool = False
    """Whether positions are ranked before they are learnt from: both heads once more, without gradients."""


@dataclass(frozen=True, kw_only=True)
class PairFlops:
    """What a token costs each of the two models."""

    teacher: ForwardFlops
    student: ForwardFlops
    learning: StepFlops
    """Of the student, forward and backward."""
    context: float
    """Tokens that a token attends to, on average."""
    teacher_context: float
    """The same of the teacher's."""

    @classmethod
    def of(cls, pair: Pair) -> "PairFlops":
        """Of the models and rows of a recipe.

        Raises:
            ModelError: a model has layers whose operations cannot be counted.
        """
        lora = pair.recipe.student.lora
        learning = StepFlops.of(
            pair.student,
            lora=None if lora is None else build_lora_config(lora),
            gradient_checkpointing=bool(pair.recipe.training.arguments.get("gradient_checkpointing")),
        )
        return cls(
            teacher=forward_flops(pair.teacher.config),
            student=learning.forward,
            learning=learning,
            context=(pair.counts.tokens + 1) / 2,
            teacher_context=(pair.counts.teacher_tokens + 1) / 2,
        )

    def training(self, work: Work) -> float:
        """Operations of a training."""
        student = self.student.layers(self.context)
        learning = self.learning
        learnt = learning.layers(self.context) * work.student_tokens + learning.head * work.student_positions
        written = student * (work.prompt_tokens + work.generated_tokens) + self.student.head * work.generated_tokens
        ranked = self.student.head * work.student_positions + self.teacher.head * work.teacher_positions
        asked = self._asked(work.teacher_tokens, work.teacher_positions)
        return learnt + written + asked + (ranked if work.ranked else 0.0)

    def cache(self, pair: Pair) -> float:
        """Operations of asking the teacher once about every row."""
        return self._asked(pair.counts.distinct_tokens, pair.counts.distinct_positions)

    def _asked(self, tokens: float, positions: float) -> float:
        return self.teacher.layers(self.teacher_context) * tokens + self.teacher.head * positions


def expected_work(pair: Pair, row: ComparedRow, steps: int) -> Work:
    """Of a training of `steps` steps, if the student's answers are as long as those of the data."""
    rows, counts = steps * pair.rows_a_step, pair.counts
    asked = row.on_policy
    return Work(
        student_tokens=rows * counts.tokens,
        student_positions=rows * counts.positions,
        teacher_tokens=rows * counts.teacher_tokens * asked,
        teacher_positions=rows * counts.teacher_positions * asked,
        generated_tokens=rows * counts.positions * row.lmbda,
        prompt_tokens=rows * counts.prompt * row.lmbda,
        ranked=build_objective(row.objective).ranks is not None,
    )


def steps_of(pair: Pair, flops: PairFlops, row: ComparedRow, *, sharers: int) -> int:
    """Steps of `row` that cost what the recipe's steps cost on fixed data, the teacher's cache included.

    Args:
        pair: the recipe.
        flops: of its models.
        row: which objective.
        sharers: trainings that read one cache; each carries its share.
    """
    if not row.on_policy:
        return pair.steps
    fixed = ComparedRow(name="", label="", objective=row.objective)
    budget = flops.training(expected_work(pair, fixed, pair.steps))
    budget += flops.cache(pair) / sharers if sharers else 0.0
    return max(1, int(budget / flops.training(expected_work(pair, row, 1))))
