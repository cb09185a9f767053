"""Training that ends when evaluations stop getting better, and exposure bias in the trainer's log."""

import math
from types import SimpleNamespace

import pytest
import torch
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState

from bridgegarden.causal_lm_policy import CausalLMPolicy
from bridgegarden.data import end_of_turn_ids
from bridgegarden.diagnostics.exposure_bias import exposure_bias
from bridgegarden.diagnostics.rollout import Sampling
from bridgegarden.errors import ConfigError
from bridgegarden.objective.hybrid import HybridObjective
from bridgegarden.objective.soft_weight import StaticWeight
from bridgegarden.statistics import Estimate
from bridgegarden.training.callbacks import (
    SELECT_BY,
    EarlyStopping,
    ExposureBiasCallback,
    as_metrics,
    selection_arguments,
)
from tests.tiny import VOCABULARY, tiny_model
from tests.training.conftest import token_rows

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


pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

PROMPTS = [[1, 2, 3], [4, 5], [6, 7, 8, 9]]
SMALL = {"prompts": PROMPTS, "sampling": Sampling(samples=1, max_new_tokens=6)}


def measured(trainer, name="eval_free_running_loss"):
    return {line["step"]: line[name] for line in trainer.state.log_history if name in line}


def test_it_measures_every_so_many_steps_and_states_its_cost(make_trainer):
    trainer = make_trainer(max_steps=5)
    trainer.add_callback(ExposureBiasCallback(trainer, every=2, **SMALL))
    trainer.train()
    assert list(measured(trainer)) == [2, 4]
    line = next(line for line in trainer.state.log_history if "eval_exposure_bias" in line)
    assert line["eval_exposure_bias"] == pytest.approx(
        line["eval_free_running_loss"] - line["eval_teacher_forced_loss"], abs=1e-6
    )
    assert line["eval_exposure_bias_seconds"] > 0
    assert 0 < line["eval_exposure_bias_tokens"] <= 2 * 3 * 6
    assert line["eval_exposure_bias_stderr"] > 0


def test_what_is_logged_is_what_the_library_measures(make_trainer):
    trainer = make_trainer(max_steps=1)
    callback = ExposureBiasCallback(trainer, every=1, seed=3, **SMALL)
    trainer.add_callback(callback)
    trainer.train()
    tokenizer = trainer._tokenizer
    policies = [
        CausalLMPolicy(model, end_ids=end_of_turn_ids(tokenizer), vocab_size=VOCABULARY)
        for model in (trainer.teacher.model, trainer.model)
    ]
    generator = torch.Generator().manual_seed(3)
    again = exposure_bias(*policies, PROMPTS, Sampling(samples=1, max_new_tokens=6), generator=generator)
    assert measured(trainer)[1] == pytest.approx(again.student_loss.mean)


def test_training_goes_on_as_without_it(make_trainer):
    def losses(with_callback):
        trainer = make_trainer(max_steps=4)
        if with_callback:
            trainer.add_callback(ExposureBiasCallback(trainer, every=1, **SMALL))
        trainer.train()
        return [line["loss"] for line in trainer.state.log_history if "loss" in line], trainer

    plain, _ = losses(False)
    watched, trainer = losses(True)
    assert plain == watched
    assert all("soft_loss" not in line for line in trainer.state.log_history if "eval_exposure_bias" in line)
    assert len([line for line in trainer.state.log_history if "soft_loss" in line]) == 4


def test_the_free_running_loss_falls_when_the_student_learns(make_trainer):
    trainer = make_trainer(
        HybridObjective(soft_weight=StaticWeight(1.0)), max_steps=30, learning_rate=1e-2, logging_steps=30
    )
    eight = Sampling(samples=1, max_new_tokens=8)
    trainer.add_callback(ExposureBiasCallback(trainer, every=29, prompts=PROMPTS * 4, sampling=eight))
    before = ExposureBiasCallback(trainer, prompts=PROMPTS * 4, sampling=eight).measure()
    trainer.train()
    assert measured(trainer)[29] < before.student_loss.mean


class Overwrites(TrainerCallback):
    """Makes the student its teacher at step 2, and something worse after."""

    def __init__(self, good, bad):
        self.good, self.bad = good, bad

    def on_step_end(self, args, state, control, model=None, **kwargs):
        model.load_state_dict((self.good if state.global_step == 2 else self.bad).state_dict())


@pytest.mark.parametrize("select_by", SELECT_BY)
def test_the_best_checkpoint_is_kept_by_it(make_trainer, select_by):
    teacher, bad = tiny_model("llama", 264, seed=1), tiny_model("llama", 264, seed=5)
    trainer = make_trainer(
        teacher=teacher,
        student=tiny_model("llama", 264, seed=2),
        evaluate=token_rows(4),
        max_steps=3,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        **selection_arguments(select_by),
    )
    trainer.add_callback(Overwrites(teacher, bad))
    trainer.add_callback(ExposureBiasCallback(trainer, **SMALL))
    trainer.train()
    values = measured(trainer, f"eval_{select_by}")
    assert list(values) == [1, 2, 3]
    assert trainer.state.best_metric == min(values.values())
    best = min(values, key=lambda step: values[step])
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    if select_by == "free_running_loss":
        assert values[2] == pytest.approx(0.0, abs=1e-5)
        assert best == 2
        weight = next(iter(teacher.parameters()))
        torch.testing.assert_close(next(iter(trainer.model.parameters())), weight)
        assert trainer.evaluate()["eval_free_running_loss"] == pytest.approx(0.0, abs=1e-5), "measured anew"


def test_prompts_come_from_the_evaluation_data(make_trainer):
    trainer = make_trainer(evaluate=token_rows(5))
    rows = trainer.eval_dataset
    found = ExposureBiasCallback(trainer).prompts
    assert len(found) == 5
    for prompt, ids, labels in zip(found, rows["input_ids"], rows["labels"], strict=True):
        assert list(prompt) == ids[: len(prompt)]
        assert labels[len(prompt)] != -100
        assert set(labels[: len(prompt)]) == {-100}


def test_what_cannot_work_is_refused(make_trainer):
    trainer = make_trainer()
    with pytest.raises(ConfigError, match="every must be >= 1 or None, got 0"):
        ExposureBiasCallback(trainer, every=0, **SMALL)
    with pytest.raises(ConfigError, match="pass `prompts`; there is no single evaluation data set"):
        ExposureBiasCallback(trainer)
    with pytest.raises(ConfigError, match=r"select_by: unknown name 'exposure'.*free_running_loss"):
        selection_arguments("exposure")


def test_keeping_the_worst_checkpoint_is_refused(make_trainer):
    # What transformers sets by itself for a metric whose name does not end in "loss".
    trainer = make_trainer(metric_for_best_model="exposure_bias")
    assert trainer.args.greater_is_better
    with pytest.raises(ConfigError, match="exposure_bias with greater_is_better=True keeps the worst"):
        ExposureBiasCallback(trainer, **SMALL)


def test_adapters_are_measured_with_the_model_they_are_on(make_trainer):
    from peft import LoraConfig

    trainer = make_trainer(peft_config=LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted = ExposureBiasCallback(trainer, **SMALL).measure().student_loss.mean
    with trainer.model.disable_adapter():
        bare = ExposureBiasCallback(trainer, **SMALL).measure().student_loss.mean
    assert math.isfinite(adapted)
    assert adapted != bare


def test_what_is_unknown_is_left_out_of_the_log_and_a_loss_never_is():
    """An infinite standard error says that nothing is known; a number that is not finite elsewhere is a finding."""
    result = SimpleNamespace(
        exposure_bias=Estimate(2.0, math.inf, 4),
        teacher_loss=Estimate(1.0, 0.5, 4),
        student_loss=Estimate(math.inf, 0.5, 4),
        generated_tokens=7,
    )
    found = as_metrics(result, 1.0)
    assert "eval_exposure_bias_stderr" not in found
    assert found["eval_exposure_bias"] == 2.0
    assert found["eval_free_running_loss"] == math.inf
    assert found["eval_free_running_loss_stderr"] == 0.5
