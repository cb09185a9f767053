"""What libraries print while a command runs, and that nothing of it stays switched."""

import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import datasets
import pytest
from huggingface_hub.utils import are_progress_bars_disabled
from transformers.utils import logging as transformers_logging

from bridgegarden.run.quiet import SAID_BETTER, quiet_libraries

ROOT = Path(__file__).parents[2]
HOSTILE = "\x1b[31mred\x07 \u202eback"


@pytest.fixture
def lines(capsys):
    """What has come to the terminal since it was last asked."""
    return lambda: capsys.readouterr().err.splitlines()


@pytest.fixture
def library_handler():
    """A handler that writes to the terminal, as transformers has from its import on."""
    handler = logging.StreamHandler(sys.stderr)
    transformers_logging.add_handler(handler)
    yield handler
    transformers_logging.remove_handler(handler)


def warn(text: str, category: type[Warning]) -> None:
    warnings.simplefilter("always")
    warnings.warn(text, category, stacklevel=1)


@pytest.mark.parametrize("category", [FutureWarning, DeprecationWarning, ResourceWarning])
def test_what_a_programmer_is_warned_of_is_not_shown(category, lines):
    with quiet_libraries(interactive=False):
        warn("`past_key_values` is deprecated. Use `cache` instead.", category)
    assert lines() == []


def test_what_a_user_is_warned_of_is_one_plain_line_once(lines):
    with quiet_libraries(interactive=False):
        for _ in range(2):
            warn(f"no flash attention here:\n  rows are mixed {HOSTILE}", UserWarning)
    (line,) = lines()
    assert line.startswith("test_quiet: no flash attention here: rows are mixed ")
    assert line.isprintable()


def test_what_a_library_logs_is_one_plain_line_once(lines, library_handler):
    with quiet_libraries(interactive=False):
        for _ in range(2):
            logging.getLogger("transformers.models").warning("unknown key\n%s", HOSTILE)
        logging.getLogger("transformers.models").info("nothing of note")
    (line,) = lines()
    assert line.startswith("transformers: unknown key ")
    assert line.isprintable()


def test_a_library_without_a_handler_of_its_own_is_heard_too(monkeypatch, lines):
    # As outside pytest, which listens at the root.
    monkeypatch.setattr(logging.root, "handlers", [])
    with quiet_libraries(interactive=False):
        logging.getLogger("trl.trainer").warning("the prompt is not the beginning of the row")
    assert lines() == ["trl: the prompt is not the beginning of the row"]


@pytest.mark.parametrize("known", SAID_BETTER)
def test_what_we_say_better_is_not_repeated(known, lines, library_handler):
    with quiet_libraries(interactive=False):
        logging.getLogger("transformers.trainer").warning("%s: ['lm_head.weight'].", known)
    assert lines() == []


def test_a_long_message_is_cut(lines, library_handler):
    with quiet_libraries(interactive=False):
        logging.getLogger("transformers").warning("x" * 5000)
    assert len(lines()[0]) < 500


def test_a_log_that_goes_to_a_file_is_as_it_was(tmp_path):
    handler = logging.FileHandler(tmp_path / "log.txt")
    transformers_logging.add_handler(handler)
    try:
        with quiet_libraries(interactive=False):
            logging.getLogger("transformers").warning("%s: 1", SAID_BETTER[0])
    finally:
        transformers_logging.remove_handler(handler)
        handler.close()
    assert SAID_BETTER[0] in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize("interrupted", [False, True])
def test_nothing_stays_switched(interrupted, library_handler):
    def state():
        handlers = [logging.getLogger(name).handlers for name in ("transformers", "datasets", "huggingface_hub")]
        bars = datasets.are_progress_bars_disabled(), transformers_logging.is_progress_bar_enabled()
        return [*map(set, handlers), *bars, are_progress_bars_disabled(), logging.lastResort, warnings.showwarning]

    before = state()
    try:
        with quiet_libraries(interactive=False):
            assert state() != before
            if interrupted:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert state() == before


CHILD = '''
"""Runs commands with our own lines sent elsewhere: whatever is left on stderr is somebody else's."""
import io, sys
from bridgegarden import terminal
terminal.stderr_console = lambda: terminal.plain_console(file=io.StringIO(), force_terminal=False)

def run(*arguments):
    from bridgegarden.cli.main import cli
    print("#", *arguments, flush=True)
    cli(list(arguments), standalone_mode=False)

def train(output, *overrides):
    run("train", "recipe.yaml", *(part for text in (f"output={output}", *overrides) for part in ("--set", text)))

def interrupted(*overrides):
    """The training as it is left by an interrupt after its third step."""
    from transformers import TrainerCallback
    from bridgegarden.recipe import load_recipe
    from bridgegarden.run.train import train

    class Interrupt(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise KeyboardInterrupt
    try:
        train(load_recipe("recipe.yaml", overrides), callbacks=[Interrupt()])
    except KeyboardInterrupt:
        return
    raise AssertionError("it was not interrupted")

if __name__ == "__main__":
    exec(sys.stdin.read())
'''
ON_A_PAIR = """
run("plan", "recipe.yaml")
run("train", "recipe.yaml", "--audit")
interrupted("training.save_steps=2")
run("train", "recipe.yaml", "--set", "training.save_steps=2")
train("adapted", "student.lora={r: 2}", "training.packing=true")
train("own", "objective.preset=soft", "objective.hard_target=teacher_argmax", "data.eval=eval.jsonl",
    "on_policy={lmbda: 1.0, max_new_tokens: 4}", "free_running={every: 2, prompts: 2, max_new_tokens: 2}",
    "training.gradient_checkpointing=true")
run("cache", "build", "recipe.yaml", "--set", "teacher.cache=cache")
run("generate", "recipe.yaml", "--output", "answers.jsonl", "--limit", "4", "--max-new-tokens", "4", "--keep-truncated")
run("diagnose", "recipe.yaml", "--output", "diagnosis", "--limit", "4", "--max-new-tokens", "4", "--budget", "1000")
run("evaluate", "out/model", "--output", "scores", "--tasks", "bridgegarden_arithmetic", "--limit", "2")
"""
IN_WORKERS = """
from pathlib import Path
from rich.console import Console
from bridgegarden.compare.run import compare
from bridgegarden.compare.result import CompareSettings
from bridgegarden.lab.run import lab
from bridgegarden.lab.result import LabSettings
from bridgegarden.quickstart.run import quickstart
from bridgegarden.quickstart.result import QuickstartSettings

silent = Console(quiet=True)
tiny = dict(steps=3, batch=4, objectives=("hard", "entropy"))
few = QuickstartSettings(train_problems=12, test_problems=8, **tiny)
quickstart(Path("q"), workers=2, console=silent, settings=few)
few = LabSettings(worlds=("control",), seeds=(0,), sweep=False, evaluate_every=3, validation_problems=4,
    test_problems=1, **tiny)
lab(Path("lab"), few, command="typed", console=silent, workers=2)
rows = CompareSettings(objectives=("soft", "on_policy:soft"), seeds=(0, 1), baseline="soft", evaluation=None,
    prompts=2, samples=1, max_new_tokens=8)
compare("recipe.yaml", rows, command="typed", output=Path("compared"), console=silent, workers=2)
"""


@pytest.mark.slow
@pytest.mark.parametrize("commands", [ON_A_PAIR, IN_WORKERS], ids=["in place", "in workers"])
def test_no_command_lets_a_library_speak(commands, write_recipe, tmp_path):
    write_recipe("qwen2")  # with tied weights
    (tmp_path / "child.py").write_text(CHILD)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    done = subprocess.run(
        [sys.executable, "child.py"], input=commands, cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", done.stdout


def test_python_shows_its_warnings_where_it_was_asked_to(monkeypatch):
    monkeypatch.setattr(sys, "warnoptions", ["default"])
    before = warnings.showwarning
    with quiet_libraries(interactive=False):
        assert warnings.showwarning is before
