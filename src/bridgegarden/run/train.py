"""``bridgegarden train``: check, load, train, evaluate, save."""

import json
import os
import pickle
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from bridgegarden.errors import ConfigError, Stopped
from bridgegarden.files import write_json
from bridgegarden.recipe import FreeRunningSection, Recipe
from bridgegarden.run.checked import CheckedRun, check_run, training_arguments
from bridgegarden.run.checkpoints import StopSignals, checkpoints_in, put_aside
from bridgegarden.run.models import check_processes, load_model, placed, usable_device
from bridgegarden.run.output import OutputFolder, RunLock, full_disk_is_one_line
from bridgegarden.run.prune import with_student
from bridgegarden.run.quiet import quiet_libraries
from bridgegarden.run.record import FREE_RUNNING, TERMS, TrainSummary, continued_record, finished_record, run_record
from bridgegarden.run.rehearsal import rehearse
from bridgegarden.run.save import (
    HubTarget,
    card_text,
    hub_target,
    publish_trained,
    push,
    remove_checkpoints,
    save_trained,
    set_generation_stops,
)
from bridgegarden.run.step_callbacks import EpochEndBeforeSave, SealCheckpoints, StopWhenAsked
from bridgegarden.run.teachers import CachedByRow, signals_of, teacher_of
from bridgegarden.terminal import stderr_console

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedModel
    from trl.trainer.sft_config import SFTConfig

    from bridgegarden.diagnostics.label_losses import LabelLosses
    from bridgegarden.training.trainer import HybridDistillationTrainer

TENSORBOARD = "TENSORBOARD_LOGGING_DIR"
"""What transformers reads where TensorBoard's files are to lie, when a trainer is made."""


def train(
    recipe: Recipe,
    *,
    stop_in_order: bool = False,
    console: "Console | None" = None,
    callbacks: Sequence[TrainerCallback] = (),
    asked: bool = False,
) -> TrainSummary:
    """Distil the teacher of `recipe` into its student, and save it in the recipe's output folder.

    Nothing is written before models and data have been checked, and ``OUTPUT/model`` only when all is done. A run that
    was interrupted goes on from its newest whole checkpoint, and ends with the weights it would have had; one that is
    finished is only reported.

    Args:
        recipe: what to do.
        stop_in_order: whether SIGINT and SIGTERM let the step be finished and saved; else they are left as they are.
        console: for progress; stderr if None.
        callbacks: of the trainer, beside those that log and show progress.
        asked: whether the teacher is asked about the rows even where hard labels of the data are all that is learnt, so
            that the log says how far from it the student is.

    Raises:
        ConfigError: a setting is wrong, the output folder holds another run, or the disk is full.
        ModelError: the models cannot be used, or not with each other.
        DataError: a row cannot be used.
        NonFiniteError: the loss is not finite.
        Stopped: SIGINT or SIGTERM came, with `stop_in_order`.
    """
    began = time.perf_counter()
    folder = OutputFolder(recipe.output)
    signals = StopSignals()
    with quiet_libraries(interactive=sys.stderr.isatty()), RunLock(folder.lock) as lock, ExitStack() as stack:
        if stop_in_order:
            stack.enter_context(signals)
        arguments = training_arguments(recipe, folder)
        is_main = arguments.process_index == 0
        signals.speaks = is_main
        console = console or stderr_console()
        console.quiet = console.quiet or not is_main
        checkpoint = _found(recipe, folder, lock, arguments, console)
        _check_settings(recipe, arguments, asks=asked or recipe.needs_teacher)
        hub = hub_target(recipe) if is_main else None
        run = with_student(check_run(recipe, folder, arguments, console, asked=asked), console)
        record = continued_record(folder, run_record(run), checkpoint)
        if folder.model.exists():
            return _finished_before(run, record, hub, console)
        if is_main:  # before there is a trainer, which makes its folder
            folder.begin(recipe, record)
            lock.acquire()
        _ask_beforehand(run, console)
        trainer = _trainer(run, console, callbacks)
        with full_disk_is_one_line(folder, is_main=is_main):
            evaluation = _fit(run, trainer, console, signals, checkpoint)
            console.print("saving the student")
            summary = _save(run, trainer, evaluation, record, hub, began)
        if is_main and not run.keeps_checkpoints:
            remove_checkpoints(folder)
        _push(folder, hub, console)
        return summary


def _check_settings(recipe: Recipe, arguments: "SFTConfig", *, asks: bool) -> None:
    """Find out whether this machine can do what `recipe` sets, before a model is looked at."""
    if asks:
        usable_device(recipe.teacher.device, "teacher.device")
    check_processes(recipe, arguments.world_size)
    rehearse(recipe, arguments)


def _ask_beforehand(run: CheckedRun, console: "Console") -> None:
    """Whatever is not to be in memory beside the student, and is in no cache that the recipe names."""
    from bridgegarden.run.cache import ask_before_training

    source = teacher_of(run.recipe)
    if run.preflight.asked and isinstance(source, CachedByRow):
        ask_before_training(source, run.preflight, run.data, console)


def _save(
    run: CheckedRun,
    trainer: "HybridDistillationTrainer",
    evaluation: Mapping[str, float],
    record: Mapping[str, Any],
    hub: HubTarget | None,
    began: float,
) -> TrainSummary:
    """The model, its card and its record, in place when all are whole; every process has to ask."""
    card = card_text(run, _newest(trainer, ""), evaluation, hub)
    save_trained(trainer, run.folder, run.preflight, card)
    summary = _finished_now(run, trainer, evaluation, time.perf_counter() - began)
    if run.is_main:
        write_json(run.folder.record, finished_record(record, summary))
        publish_trained(run.folder)
    return summary


def _found(
    recipe: Recipe, folder: OutputFolder, lock: RunLock, arguments: "SFTConfig", console: "Console"
) -> Path | None:
    """The checkpoint to go on from, in a folder that is this recipe's and nobody else's; locked by the main process."""
    # The others find what the first process leaves.
    with arguments.main_process_first(local=False, desc="checking the output folder"):
        if arguments.process_index == 0:
            lock.acquire()
        folder.check(recipe)
        return _checkpoint(folder, arguments, console)


def _checkpoint(folder: OutputFolder, arguments: "SFTConfig", console: "Console") -> Path | None:
    """The checkpoint to go on from. Newer ones that are no good are taken out of the way, and the user is told."""
    from rich.text import Text

    if folder.model.exists():
        return None
    if arguments.save_only_model and checkpoints_in(folder.checkpoints):
        said = "checkpoints hold the weights alone (training.save_only_model): training begins anew"
        console.print(said, soft_wrap=True)
        return None
    checkpoint, faults = folder.usable_checkpoint()
    for fault in faults:
        aside = put_aside(fault)
        kept = "" if aside is None else f" and is put aside as {aside.name}"
        console.print(Text(f"{fault.checkpoint}: {fault.reason}; it is not used{kept}"), soft_wrap=True)
    if checkpoint is not None:
        console.print(Text(f"going on from {checkpoint}"), soft_wrap=True)
    elif faults:
        console.print("there is no earlier checkpoint: training begins anew")
    return checkpoint


def _push(folder: OutputFolder, hub: HubTarget | None, console: "Console") -> None:
    """Publish the finished model where it is asked for, once."""
    record = json.loads(folder.record.read_text(encoding="utf-8")) if hub is not None else {}
    if hub is None or "published" in record:
        return
    console.print(f"publishing the student as {hub.repo}", markup=False, soft_wrap=True)
    write_json(folder.record, record | {"published": push(folder.model, hub)})


def _finished_before(
    run: CheckedRun, record: Mapping[str, Any], hub: HubTarget | None, console: "Console"
) -> TrainSummary:
    """What came of a run that is there already, as it was written down."""
    from rich.text import Text

    from bridgegarden.teacher.foreign_values import read_as
    from bridgegarden.training.measured import Cost

    folder = run.folder
    try:
        cost = read_as(Cost, record["cost"], "cost")
    except ValueError as error:
        raise ConfigError(f"{folder.record}: damaged ({error}). {folder.model} is finished and as it was.") from error
    if run.is_main and not run.keeps_checkpoints:
        remove_checkpoints(folder)
    _push(folder, hub, console)
    console.print(
        Text(
            f"{folder.path} holds the finished model of this recipe ({record['finished']}); nothing is left to do. To "
            "train again, set another output (--set output=FOLDER), or remove that folder."
        ),
        soft_wrap=True,
    )
    return TrainSummary(
        steps=record["steps"],
        training=record["training"],
        evaluation=record["evaluation"],
        free_running=record["free_running"],
        tokens_per_second=record["tokens_per_second"],
        wall_seconds=record["wall_seconds"],
        peak_memory=record["peak_memory_bytes"],
        cost=cost,
        model=folder.model,
        output=folder.path,
        is_main=run.is_main,
    )


def _finished_now(
    run: CheckedRun, trainer: "HybridDistillationTrainer", evaluation: Mapping[str, float], wall_seconds: float
) -> TrainSummary:
    """What came of the run that has just been saved; every process has to ask."""
    return TrainSummary(
        steps=trainer.state.global_step,
        training=_newest(trainer, ""),
        evaluation=evaluation,
        free_running=_free_running(trainer),
        tokens_per_second=_speed(trainer),
        wall_seconds=wall_seconds,
        peak_memory=_peak_memory(),
        cost=trainer.cost,
        model=run.folder.model,
        output=run.folder.path,
        is_main=run.is_main,
    )


def held_out_terms(recipe: Recipe, student: "PreTrainedModel") -> dict[str, float]:
    """What a run of `recipe` finds on its held-out rows, of another model in its student's place, as it is.

    Args:
        recipe: of the run, which has made its folder.
        student: such as one that was read from a file.

    Returns:
        The terms of the objective, as in the run's last evaluation; none where there are no such rows.
    """
    from rich.console import Console

    folder, console = OutputFolder(recipe.output), Console(quiet=True)
    whole = replace(
        recipe,
        student=replace(recipe.student, lora=None),
        training=replace(recipe.training, quantised=None),
        free_running=None,
    )
    with quiet_libraries(interactive=False):
        run = check_run(whole, folder, training_arguments(whole, folder), console, asked=True)
        if run.data.evaluation is None:
            return {}
        trainer = _trainer(run, console, (), student)
        trainer.evaluate()
        remove_checkpoints(folder)
        return _newest(trainer, "eval_")


def _trainer(
    run: CheckedRun,
    console: "Console",
    callbacks: Sequence[TrainerCallback],
    student: "PreTrainedModel | None" = None,
) -> "HybridDistillationTrainer":
    """The trainer with the teacher loaded unless it is cached, and the student unless it is given."""
    from rich.text import Text
    from transformers import PrinterCallback

    from bridgegarden.training.trainer import HybridDistillationTrainer

    teacher = signals_of(run.recipe, run.preflight, lambda line: console.print(Text(line), soft_wrap=True))
    console.print(Text(f"loading student {run.preflight.student.reference.model}"), soft_wrap=True)
    if run.quantised is not None:
        console.print(f"its weights are rounded to those of a GGUF file of type {run.quantised} in every forward")
    if student is None:
        student = load_model(run.preflight.student, spread=True)
    # Before training, so that the trainer can save checkpoints.
    set_generation_stops(student, run.preflight.endings.stops)
    with _trackers_write_to(run.folder.logs):
        trainer = HybridDistillationTrainer(
            student,
            teacher,
            run.objective,
            run.arguments,
            train_dataset=run.data.train,
            eval_dataset=run.data.evaluation,
            processing_class=run.preflight.endings.tokenizer,
            peft_config=run.lora,
            on_policy=run.recipe.on_policy,
            loss_kernel=run.recipe.training.loss_kernel,
            quantised=run.quantised,
        )
    trainer.remove_callback(PrinterCallback)
    for callback in callbacks:
        trainer.add_callback(callback)
    if run.on_policy_text is not None:
        console.print(Text(f"the student answers batches itself: {run.on_policy_text}"), soft_wrap=True)
    if run.recipe.free_running is not None:
        _watch(run, trainer, run.recipe.free_running, console)
    return trainer


@contextmanager
def _trackers_write_to(folder: Path) -> Iterator[None]:
    """Have TensorBoard's files in `folder`, unless the user has said where; else they lie among the checkpoints, which
    go when the run has ended."""
    given = os.environ.get(TENSORBOARD)
    os.environ[TENSORBOARD] = given or str(folder)
    try:
        yield
    finally:
        if given is None:
            del os.environ[TENSORBOARD]


def _watch(
    run: CheckedRun, trainer: "HybridDistillationTrainer", section: FreeRunningSection, console: "Console"
) -> None:
    """Have the student's loss on its own texts measured; a teacher that is not in memory is loaded for it."""
    from rich.text import Text

    from bridgegarden.training.callbacks import SAMPLING, ExposureBiasCallback

    teacher = None
    if run.recipe.teacher.kind == "cached" or not run.preflight.asked:
        assert run.preflight.teacher is not None
        console.print(
            Text(f"loading teacher {run.recipe.teacher.model}, which judges the student's own texts"), soft_wrap=True
        )
        teacher = placed(load_model(run.preflight.teacher), run.recipe.teacher.device or trainer.accelerator.device)
    trainer.add_callback(
        ExposureBiasCallback(
            trainer,
            every=section.every,
            teacher=teacher,
            limit=section.prompts,
            sampling=replace(
                SAMPLING,
                samples=section.samples,
                temperature=section.temperature,
                max_new_tokens=section.max_new_tokens,
            ),
        )
    )


def _fit(
    run: CheckedRun,
    trainer: "HybridDistillationTrainer",
    console: "Console",
    signals: StopSignals,
    checkpoint: Path | None,
) -> dict[str, float]:
    """Train, in sight of the user; the metrics on held-out rows after the last step, empty if there are none."""
    from bridgegarden.training.callbacks import EarlyStopping, HardOnlyCheck, TeacherCheck
    from bridgegarden.training.progress import MetricsLog, ProgressDisplay

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    log = MetricsLog(run.folder.metrics)
    for callback in (log, SealCheckpoints(), StopWhenAsked(signals), EpochEndBeforeSave()):
        trainer.add_callback(callback)
    trainer.add_callback(TeacherCheck(trainer, partial(_tell_losses, console)))
    trainer.add_callback(HardOnlyCheck(partial(_warn, console)))
    stopping = run.recipe.training.early_stopping
    if stopping is not None:
        trainer.add_callback(EarlyStopping(stopping.patience, stopping.threshold, say=console.print))
    try:
        with ProgressDisplay(console) as display:
            trainer.add_callback(display)
            _train(run, trainer, signals, checkpoint)
            if run.data.evaluation is None:
                return {}
            evaluated = _newest_entry(trainer, "eval_loss").get("step") == trainer.state.global_step
            # The best model, if it was asked for, has replaced the last one since.
            if not evaluated or run.arguments.load_best_model_at_end:
                trainer.evaluate()
            return _newest(trainer, "eval_")
    finally:
        log.close()


def _tell_losses(console: "Console", losses: "LabelLosses") -> None:
    """Whether the teacher knows the rows better than the student does, before any hour is spent on it."""
    from rich.text import Text

    console.print(Text(str(losses)), soft_wrap=True)
    if losses.teacher_is_worse:
        _warn(console, losses.warning)


def _warn(console: "Console", what: str) -> None:
    from rich.text import Text

    console.print(Text.assemble(("warning: ", "yellow"), what), soft_wrap=True)


def _train(
    run: CheckedRun, trainer: "HybridDistillationTrainer", signals: StopSignals, checkpoint: Path | None
) -> None:
    """The steps that are left, after `checkpoint` if there is one."""
    if checkpoint is not None:
        # Its result is in the checkpoint.
        run.arguments.eval_on_start = False
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"output: {checkpoint} holds Python objects that training never writes, and which are not loaded. Remove "
            "it to go on from the one before."
        ) from error
    except RuntimeError as error:
        # A signal to the whole group of processes ends the data loader's workers, whose absence is noticed mid-step.
        if signals.asked is None or "DataLoader worker" not in str(error):
            raise
        raise Stopped(signals.asked) from error
    finally:
        signals.can_wait = False


def _newest(trainer: "HybridDistillationTrainer", prefix: str) -> dict[str, float]:
    """The newest logged terms, without `prefix`, times and bookkeeping."""
    entry = _newest_entry(trainer, f"{prefix}loss")
    return {term: float(entry[prefix + term]) for term in TERMS if prefix + term in entry}


def _free_running(trainer: "HybridDistillationTrainer") -> dict[str, float]:
    """The newest measurement on the student's own texts; empty if there is none."""
    entry = _newest_entry(trainer, f"eval_{FREE_RUNNING[0]}")
    return {name: float(entry[f"eval_{name}"]) for name in FREE_RUNNING if f"eval_{name}" in entry}


def _newest_entry(trainer: "HybridDistillationTrainer", key: str) -> dict[str, Any]:
    return next((entry for entry in reversed(trainer.state.log_history) if key in entry), {})


def _speed(trainer: "HybridDistillationTrainer") -> float | None:
    speeds = [entry["tokens_per_second"] for entry in trainer.state.log_history if "tokens_per_second" in entry]
    return statistics.median(speeds) if speeds else None


def _peak_memory() -> int:
    """Bytes: the GPU's since training began, or the process's where there is none."""

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
