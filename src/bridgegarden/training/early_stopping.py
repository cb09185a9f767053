"""Training that ends when evaluations stop getting better."""

from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class EarlyStopping(TrainerCallback):
    """Ends training after `patience` evaluations in a row that were not better than the best before them.

    The measure is ``metric_for_best_model`` of the training arguments. As transformers' ``EarlyStoppingCallback``, but
    counted from what was logged and not from what was seen: a run that is resumed stops where it would have stopped.
    """

    def __init__(self, patience: int, threshold: float = 0.0, say: Callable[[str], None] | None = None) -> None:
        """
        Args:
            patience: evaluations, >= 1.
            threshold: what counts as better is better by more than this, >= 0.
            say: is told, in a sentence, when and why training ends.
        """
        self.patience, self.threshold, self._say = patience, threshold, say

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._stop_if_due(args, state, control)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._stop_if_due(args, state, control)

    def _stop_if_due(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        assert args.metric_for_best_model is not None  # the recipe sees to it
        name = f"eval_{args.metric_for_best_model.removeprefix('eval_')}"
        values = _measured(state, name)
        if evaluations_without_gain(values, greater=bool(args.greater_is_better), gain=self.threshold) < self.patience:
            return
        control.should_training_stop = True
        if self._say is not None and state.is_world_process_zero:
            by = f" by more than {self.threshold:g}" if self.threshold else ""
            better = "risen" if args.greater_is_better else "fallen"
            self._say(
                f"stopping early at step {state.global_step}: {name} has not {better}{by} in {self.patience} "
                f"evaluation{'' if self.patience == 1 else 's'}"
            )


def evaluations_without_gain(values: Sequence[float], *, greater: bool, gain: float) -> int:
    """How many of the last `values` were in a row not better, by more than `gain`, than the best before each."""
    best, count = None, 0
    for value in values:
        ahead = best is None or (value > best if greater else value < best)
        count = 0 if best is None or (ahead and abs(value - best) > gain) else count + 1
        best = value if ahead else best
    return count


def _measured(state: TrainerState, name: str) -> list[float]:
    """The values of `name` at evaluations; it may have been measured between them, too."""
    evaluated = {entry["step"] for entry in state.log_history if "eval_loss" in entry}
    by_step = {entry["step"]: float(entry[name]) for entry in state.log_history if name in entry}
    return [value for step, value in by_step.items() if step in evaluated]
