"""Training that ends when evaluations stop getting better."""

from types import SimpleNamespace

import pytest
from transformers import EarlyStoppingCallback, TrainerControl, TrainerState

from bridgegarden.training.early_stopping import EarlyStopping

FALLING = [5.0, 4.0, 3.0, 2.0]
CURVES = [
    FALLING,
    [3.0, 3.0, 3.0, 3.0],
    [3.0, 2.0, 2.5, 1.9, 2.6, 2.7, 2.8],
    [3.0, 2.95, 2.9, 2.85, 2.8, 2.75],
    [1.0, float("nan"), 0.9, 0.8],
]


def evaluated(values, *, between=()):
    """The state after evaluations at steps 10, 20, ..., and measurements `between` them."""
    state = TrainerState()
    for index, value in enumerate(values):
        step = 10 * (index + 1)
        state.log_history += [{"step": step, "eval_loss": value, "eval_free_running_loss": value}]
        state.log_history += [{"step": step + 5, "eval_free_running_loss": value} for value in between]
    return state


def arguments(metric="eval_loss", greater=False):
    return SimpleNamespace(
        metric_for_best_model=metric, greater_is_better=greater, load_best_model_at_end=True, eval_strategy="steps"
    )


def stops(callback, args, values, hook="on_evaluate", **options) -> bool:
    control = TrainerControl()
    getattr(callback, hook)(args, evaluated(values, **options), control)
    return control.should_training_stop


@pytest.mark.parametrize("greater", [False, True])
@pytest.mark.parametrize("patience", [1, 2, 3])
@pytest.mark.parametrize("threshold", [0.0, 0.2])
@pytest.mark.parametrize("curve", CURVES, ids=str)
def test_it_stops_where_transformers_own_callback_does(curve, patience, threshold, greater):
    values = [-value for value in curve] if greater else curve
    args, theirs = arguments(greater=greater), EarlyStoppingCallback(patience, threshold)
    state, control = TrainerState(), TrainerControl()
    for count in range(1, len(values) + 1):
        theirs.on_evaluate(args, state, control, {"eval_loss": values[count - 1]})
        # As the trainer does after each evaluation.
        if state.best_metric is None or (values[count - 1] - state.best_metric) * (1 if greater else -1) > 0:
            state.best_metric = values[count - 1]
        assert stops(EarlyStopping(patience, threshold), args, values[:count]) == control.should_training_stop
        if control.should_training_stop:
            break


def test_a_resumed_run_remembers_how_patient_it_was():
    callback = EarlyStopping(2)
    assert not stops(callback, arguments(), [3.0, 3.1])
    assert stops(EarlyStopping(2), arguments(), [3.0, 3.1, 3.2])
    assert stops(EarlyStopping(2), arguments(), [3.0, 3.1, 3.2], hook="on_train_begin")
    assert not stops(EarlyStopping(2), arguments(), [3.0, 3.1], hook="on_train_begin")


@pytest.mark.parametrize("metric", ["free_running_loss", "eval_free_running_loss"])
def test_what_is_measured_between_evaluations_does_not_count(metric):
    assert not stops(EarlyStopping(2), arguments(metric), FALLING, between=[9.0, 9.0])


def test_it_says_when_and_why():
    said: list[str] = []
    state = evaluated([3.0, 2.0, 2.5])
    state.global_step = 30
    EarlyStopping(1, 0.1, say=said.append).on_evaluate(arguments(), state, TrainerControl())
    assert said == ["stopping early at step 30: eval_loss has not fallen by more than 0.1 in 1 evaluation"]
