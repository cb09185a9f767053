"""What a run adds to a trainer's steps: checkpoints are sealed, epochs end before they are saved, signals obeyed."""

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from bridgegarden.errors import Stopped
from bridgegarden.run.checkpoints import PREFIX, StopSignals, seal


class SealCheckpoints(TrainerCallback):
    """Every checkpoint is sealed as soon as all processes have written theirs."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if args.world_size > 1:
            torch.distributed.barrier()
        if args.process_index == 0:
            seal(_at_step(args, state))


class EpochEndBeforeSave(TrainerCallback):
    """What is due at the end of an epoch is done before its last step is saved, rather than after.

    A run that is resumed from there goes on with the next epoch: what came after the checkpoint would be left out.
    Add it after the trainer's own callbacks.
    """

    def __init__(self) -> None:
        self._evaluated: int | None = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        at_end = state.global_step >= state.max_steps or float(state.epoch or 0).is_integer()
        if not (control.should_save and at_end):
            return
        if args.logging_strategy == IntervalStrategy.EPOCH:
            control.should_log = True
        if args.eval_strategy == IntervalStrategy.EPOCH and args.eval_delay <= (state.epoch or 0):
            control.should_evaluate = True

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._evaluated = state.global_step

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._evaluated == state.global_step:
            control.should_evaluate = False


class StopWhenAsked(TrainerCallback):
    """A run that is asked to stop saves the step it is at, and ends with :class:`~bridgegarden.errors.Stopped`.

    The processes of a distributed run agree on the step.
    """

    def __init__(self, signals: StopSignals) -> None:
        self._signals = signals
        self._number = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._signals.can_wait = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._signals.can_wait = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._number = self._signals.asked or 0
        if args.world_size > 1:
            number = torch.tensor(self._number, device=args.device)
            torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
            self._number = int(number)
        if self._number:
            if args.save_only_model:
                raise Stopped(self._number)
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._number:
            name = _at_step(args, state)
            raise Stopped(
                self._number,
                f"stopped at step {state.global_step} of {state.max_steps}, which is saved ({name}). The same command "
                "goes on.",
            )


def _at_step(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"{PREFIX}{state.global_step}"
