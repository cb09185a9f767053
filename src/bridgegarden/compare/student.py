"""One student of a comparison: trained as ``bridgegarden train`` does, on the clock; its answers and its drift."""

import contextlib
import dataclasses
import gc
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from rich.console import Console

from bridgegarden.causal_lm_policy import CausalLMPolicy
from bridgegarden.compare.across import drift_across, losses_by_prompt
from bridgegarden.compare.findings import drafts_by_prompt
from bridgegarden.compare.pair import Pair, PairFlops, Work, seeded
from bridgegarden.compare.result import CompareSettings, Measured, Spent
from bridgegarden.data import end_of_turn_ids
from bridgegarden.diagnostics.exposure_bias import exposure_bias
from bridgegarden.diagnostics.rollout import Sampling
from bridgegarden.evaluation.lm_eval import evaluate_model, prepare_tasks
from bridgegarden.evaluation.results import SHARES, Evaluation
from bridgegarden.export.gguf_file import gguf_export
from bridgegarden.preflight import ModelFacts, ModelReference, load_facts
from bridgegarden.recipe import Recipe, build_objective
from bridgegarden.recipe.training import QuantisedSection
from bridgegarden.run.models import load_model, placed
from bridgegarden.run.prompts import Prompts, PromptSource, read_prompts
from bridgegarden.run.record import TrainSummary
from bridgegarden.run.train import held_out_terms, train
from bridgegarden.study.arms import ComparedRow
from bridgegarden.study.students import Clock
from bridgegarden.training.on_policy import OnPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WITHOUT = ("load_best_model_at_end", "metric_for_best_model", "greater_is_better", "eval_steps", "save_steps")
"""Settings that mean nothing in a comparison, where every student is taken as it is after the last step; nor is it
watched on its way there (`free_running`), which would be part of its cost."""


def run_recipe(
    recipe: Recipe,
    row: ComparedRow,
    seed: int,
    *,
    steps: int,
    cache: Path | None,
    output: Path,
    export: str | None = None,
) -> Recipe:
    """`recipe` for one training of the comparison.

    Args:
        recipe: the comparison's.
        row: what is minimised.
        seed: of the student, the order of the rows and what is sampled.
        steps: optimiser steps.
        cache: the teacher's signals; None for rows that ask it as they go.
        output: folder of the run.
        export: the type of file as which students are measured, and for which some rows are trained.
    """
    recipe = seeded(recipe, seed)
    kept = {name: value for name, value in recipe.training.arguments.items() if name not in WITHOUT}
    arguments = {**kept, "max_steps": steps, "seed": seed, "eval_strategy": "no", "save_strategy": "no"}
    on_policy = None
    if row.on_policy:
        on_policy = dataclasses.replace(recipe.on_policy or OnPolicy(lmbda=row.lmbda), lmbda=row.lmbda)
    training = dataclasses.replace(recipe.training, arguments=arguments, early_stopping=None)
    if row.for_file:
        training = dataclasses.replace(training, quantised=QuantisedSection(kind=cast(Any, export)))
    return dataclasses.replace(
        recipe,
        teacher=dataclasses.replace(recipe.teacher, cache=None if cache is None else str(cache)),
        objective=row.objective,
        on_policy=on_policy,
        free_running=None,
        training=training,
        output=output,
    )


def train_one(
    recipe: Recipe, pair: Pair, flops: PairFlops, *, on_step: Callable[[int], None]
) -> tuple[TrainSummary, Spent]:
    """Train as `recipe` (of :func:`run_recipe`) says; what an interrupted attempt left in its folder goes first.

    Raises:
        BridgegardenError: as ``bridgegarden train``.
    """
    shutil.rmtree(recipe.output, ignore_errors=True)
    clock = Clock(on_step)
    _forget_peak()
    summary = train(recipe, console=Console(quiet=True), callbacks=[clock], asked=True)
    cost, counts = summary.cost, pair.counts
    # Rows of the data that were learnt from: those that the student did not answer.
    fixed = summary.steps * pair.rows_a_step - cost.answers
    positions = cost.generated_tokens + fixed * counts.positions
    work = Work(
        student_tokens=cost.student_tokens,
        student_positions=positions,
        teacher_tokens=cost.teacher_tokens,
        teacher_positions=positions * counts.teacher_positions / counts.positions if cost.teacher_tokens else 0,
        generated_tokens=cost.generated_tokens,
        prompt_tokens=cost.prompt_tokens,
        ranked=build_objective(recipe.objective).ranks is not None,
    )
    spent = Spent(
        steps=summary.steps,
        seconds=clock.seconds,
        cpu_seconds=clock.cpu_seconds,
        teacher_tokens=cost.teacher_tokens,
        student_tokens=cost.student_tokens,
        prompt_tokens=cost.prompt_tokens,
        generated_tokens=cost.generated_tokens,
        flops=flops.training(work),
        peak_memory=summary.peak_memory,
    )
    return summary, spent


def _forget_peak() -> None:
    """Let the process' peak of memory start from what it holds now; where that cannot be, it is the peak so far."""
    gc.collect()
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        pass


GENERATOR_SEED = 0
"""Of the texts behind exposure bias: the same for all students, so that what is drawn cancels in differences."""


@dataclass(frozen=True, kw_only=True)
class Meter:
    """What every student is measured with; made once in a process. Holds no model while students are trained."""

    pair: Pair
    settings: CompareSettings
    prompts: Prompts
    device: str

    @classmethod
    def of(cls, pair: Pair, settings: CompareSettings) -> "Meter":
        """Read the prompts."""
        return cls(pair=pair, settings=settings, prompts=read_held_out(pair, settings), device=device_of(pair))

    def measure(self, folder: Path, held_out: Mapping[str, float] | Recipe) -> Measured:
        """The student in `folder`.

        Args:
            folder: of the trained model.
            held_out: its terms on held-out rows, empty without such rows; or the recipe of its training, where those
                are still to be found.
        """
        wall, cpu = time.perf_counter(), time.process_time()
        facts = load_facts(ModelReference(role="student", model=str(folder), dtype=self.pair.recipe.student.dtype))
        if self.settings.export is not None:
            facts = exported(folder, facts, self.settings.export, self.pair.endings.stops)
        with _silent():  # transformers draws a bar for every file
            model = self._load(facts)
        by_unit, known = self._drift(model)
        by_task = {}
        if self.settings.evaluation is not None:
            # Tasks keep what a model answered, so each student gets its own.
            prepared = prepare_tasks(self.settings.evaluation, quiet=True)
            # lm-eval draws a bar for every task of every student.
            with _silent():
                found = evaluate_model(
                    model, facts.tokenizer, self.settings.evaluation, name=folder.parent.name, prepared=prepared
                )
            scores, by_task = scores_of(found)
            by_unit |= scores
        # Where tokenizers differ, of the teacher's entropy and of its loss a part alone is known.
        if isinstance(held_out, Recipe):
            held_out = held_out_terms(held_out, model)
        kept = (None, None) if known else [held_out.get(name) for name in ("student_entropy", "teacher_entropy")]
        return Measured(
            by_unit=by_unit,
            by_task=by_task,
            entropy_kept=kept[0] / kept[1] if kept[0] is not None and kept[1] else None,
            loss=held_out.get("loss"),
            label_loss=held_out.get("student_label_loss"),
            teacher_label_loss=None if known else held_out.get("teacher_label_loss"),
            known=known,
            seconds=time.perf_counter() - wall,
            cpu_seconds=time.process_time() - cpu,
        )

    def _drift(self, model: "PreTrainedModel") -> tuple[dict[str, dict[str, float]], dict[str, float] | None]:
        """By prompt; and how much of the teacher is known, where its tokenizer is another one."""
        sampling = Sampling(samples=self.settings.samples, max_new_tokens=self.settings.max_new_tokens)
        generator = torch.Generator().manual_seed(GENERATOR_SEED)
        teacher = self._load(self.pair.teacher)
        if self.pair.tokens is not None:
            return drift_across(self.pair, teacher, model, self.prompts, sampling, generator)
        lead, own = (
            CausalLMPolicy(one, end_ids=_end_ids(self.pair), vocab_size=self.pair.vocab_size)
            for one in (teacher, model)
        )
        found = exposure_bias(lead, own, self.prompts.ids, sampling, generator=generator)
        return losses_by_prompt(found) | drafts_by_prompt(found), None

    def _load(self, facts: ModelFacts) -> "PreTrainedModel":
        return placed(load_model(facts), self.device)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stderr(nowhere):
        yield


def exported(folder: Path, facts: ModelFacts, kind: str, stops: Sequence[int]) -> ModelFacts:
    """The student in `folder` as the GGUF file of type `kind` that is written of it here, for transformers to read.

    Raises:
        ModelError: llama.cpp would compute or read something else.
    """
    path = folder.parent / "export" / f"student-{kind}.gguf"
    path.parent.mkdir(exist_ok=True)
    gguf_export(folder.parent.name, load_model(facts), facts.tokenizer, stops).write(path, kind)
    # In whole numbers: in fewer bits what the file holds would be rounded once more.
    as_file = dataclasses.replace(facts.reference, model=str(path.parent), gguf_file=path.name, dtype="float32")
    return dataclasses.replace(facts, reference=as_file)


def read_held_out(pair: Pair, settings: CompareSettings) -> Prompts:
    """Prompts of the evaluation rows, or of the training rows where there are none.

    Raises:
        DataError: fewer than two can be used.
    """
    configs = [facts.config.get_text_config() for facts in (pair.teacher, pair.student)]
    windows = [getattr(config, "max_position_embeddings", None) for config in configs]
    window = min((window for window in windows if window is not None), default=None)
    return read_prompts(
        PromptSource.of_recipe(pair.recipe.data),
        pair.endings.tokenizer,
        room=None if window is None else window - settings.max_new_tokens,
        vocab_size=pair.vocab_size,
        limit=settings.prompts,
        asked=None if pair.tokens is None else pair.tokens.tokenizer,
    )


def scores_of(found: Evaluation) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Scores by problem, and means by group, each for greedy and drawn answers.

    Of a task with several metrics the first that is a share counts; answers chosen by likelihood count as greedy.
    """
    by_unit: dict[str, dict[str, float]] = {}
    taken = set()
    listed = {(line["task"], line["decoding"], line["filter"]) for line in found.problems}
    for score in found.scores:
        place = score.task, score.decoding
        if place in taken or not score.metric.startswith(SHARES) or (*place, score.filter) not in listed:
            continue
        taken.add(place)
        values = found.by_problem(score.task, score.metric, decoding=score.decoding, filter_name=score.filter)
        group = score.part_of or score.task
        quantity = by_unit.setdefault("sampled" if score.decoding == "sampled" else "greedy", {})
        quantity.update({f"{group}/{score.task}/{problem}": value for problem, value in values.items()})
    by_task: dict[str, dict[str, float]] = {}
    for quantity, values in by_unit.items():
        for group in dict.fromkeys(name.partition("/")[0] for name in values):
            own = [value for name, value in values.items() if name.partition("/")[0] == group]
            by_task.setdefault(group, {})[quantity] = sum(own) / len(own)
    return by_unit, by_task


def device_of(pair: Pair) -> str:
    """Where students are."""
    on_cpu = bool(pair.recipe.training.arguments.get("use_cpu")) or not torch.cuda.is_available()
    return "cpu" if on_cpu else "cuda"


def _end_ids(pair: Pair) -> tuple[int, ...]:
    """Tokens at which a text of either model is over."""
    ids = [*pair.endings.stops, *end_of_turn_ids(pair.teacher.tokenizer, pair.teacher.generation_config)]
    return tuple(token for token in dict.fromkeys(ids) if token < pair.vocab_size)
