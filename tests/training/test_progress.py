import io
import json
import math

import pytest
import torch
from rich.console import Console
from transformers import TrainerControl, TrainerState, TrainingArguments

from bridgegarden.training.progress import MetricsLog, ProgressDisplay, terms_text

TERMS = {"loss": 2.5, "soft_loss": 0.5, "hard_loss": 4.5, "risk_loss": 0.0, "soft_weight": 0.5}
LOGS = TERMS | {"tokens_per_second": 1234.5, "epoch": 0.5}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    return TrainingArguments(output_dir=str(tmp_path_factory.mktemp("out")), report_to=[], use_cpu=True)


def play(display, arguments, steps=4, log_every=2):
    """A run of `steps` steps as the trainer tells its callbacks about it."""
    state, control = TrainerState(max_steps=steps), TrainerControl()
    display.on_train_begin(arguments, state, control)
    for step in range(1, steps + 1):
        state.global_step = step
        display.on_step_end(arguments, state, control)
        if step % log_every == 0:
            display.on_log(arguments, state, control, logs=LOGS)
    display.on_prediction_step(arguments, state, control, eval_dataloader=[1, 2])
    display.on_log(arguments, state, control, logs={f"eval_{name}": value for name, value in TERMS.items()})
    display.on_log(arguments, state, control, logs={"train_runtime": 1.0, "train_loss": 2.5})


def test_without_a_terminal_there_is_one_plain_line_per_log(arguments):
    stream = io.StringIO()
    with ProgressDisplay(Console(file=stream, width=20)) as display:
        play(display, arguments)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("step 2/4  loss 2.5  soft 0.5  hard 4.5  soft weight 0.500  1,234 tokens/s")
    assert lines[1].startswith("step 4/4  loss 2.5")
    assert lines[2] == "evaluation at step 4/4: loss 2.5  soft 0.5  hard 4.5  soft weight 0.500"
    assert "\x1b" not in stream.getvalue()


def test_a_terminal_shows_a_bar_with_the_terms(arguments):
    stream = Terminal()
    with ProgressDisplay(Console(file=stream, force_terminal=True, width=100)) as display:
        play(display, arguments)
    assert "4/4" in stream.getvalue()
    assert "hard 4.5" in stream.getvalue()
    assert "evaluation at step 4/4" in stream.getvalue()


def test_an_interruption_gives_the_terminal_back(arguments):
    stream = Terminal()

    def interrupted():
        with ProgressDisplay(Console(file=stream, force_terminal=True)) as display:
            play(display, arguments)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert stream.getvalue().rstrip().endswith("\x1b[?25h")  # the cursor is shown again


def test_other_processes_of_a_distributed_run_say_nothing(arguments):
    stream = io.StringIO()
    with ProgressDisplay(Console(file=stream)) as display:
        state = TrainerState(max_steps=4, is_world_process_zero=False)
        display.on_log(arguments, state, TrainerControl(), logs=LOGS)
    assert stream.getvalue() == ""


def test_a_risk_term_is_shown_when_there_is_one():
    assert "risk" not in terms_text(LOGS)
    assert "risk 0.25" in terms_text(LOGS | {"risk_loss": 0.25})


def lines(path):
    return [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]


def test_each_log_is_on_disk_at_once_as_a_line_of_valid_json(arguments, tmp_path):
    log, state = MetricsLog(tmp_path / "metrics.jsonl"), TrainerState(max_steps=4)
    log.on_train_begin(arguments, state, TrainerControl())
    state.global_step = 2
    values = {"loss": math.nan, "grad_norm": math.inf, "soft_loss": torch.tensor(0.5), "epoch": 1}
    log.on_log(arguments, state, TrainerControl(), logs=values)
    (line,) = lines(log.path)
    assert line["step"] == 2
    assert (line["loss"], line["grad_norm"], line["soft_loss"]) == (None, None, 0.5)
    log.close()


def test_a_new_run_begins_a_new_file_and_a_resumed_one_keeps_what_its_checkpoint_knows_of(arguments, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 2, "time": 1.5, "loss": 3.0}\n{"step": 2, "time": 1.7, "eval_loss": 4.0}\n{"step": 4, "lo'
    )
    log, state = MetricsLog(path), TrainerState(max_steps=8, global_step=3)
    state.log_history = [{"loss": 3.0, "step": 2}]
    log.on_train_begin(arguments, state, TrainerControl())
    log.on_log(arguments, state, TrainerControl(), logs={"loss": 1.0})
    log.close()
    assert [(line["step"], line["loss"]) for line in lines(path)] == [(2, 3.0), (3, 1.0)]
    assert lines(path)[0]["time"] == 1.5
    state.log_history = []
    log.on_train_begin(arguments, state, TrainerControl())
    log.close()
    assert lines(path) == []


def test_lines_that_are_lost_or_of_another_attempt_are_made_anew(arguments, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "time": 1.5, "eval_loss": 3.0}\n{"step": 3, "time"')
    log, state = MetricsLog(path), TrainerState(max_steps=8, global_step=4)
    state.log_history = [{"loss": math.nan, "step": 2}, {"loss": 2.0, "step": 3}, {"loss": 1.0, "step": 4}]
    log.on_train_begin(arguments, state, TrainerControl())
    log.close()
    assert [(line["step"], line["loss"], line["time"]) for line in lines(path)] == [
        (2, None, None),
        (3, 2.0, None),
        (4, 1.0, None),
    ]


def test_the_last_step_is_always_logged(arguments, tmp_path):
    log, state, control = MetricsLog(tmp_path / "m"), TrainerState(max_steps=3, global_step=2), TrainerControl()
    log.on_step_end(arguments, state, control)
    assert not control.should_log
    state.global_step = 3
    log.on_step_end(arguments, state, control)
    assert control.should_log
