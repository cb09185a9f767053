import io

import pytest
from lm_eval.api import model, task
from lm_eval.models import huggingface

from bridgegarden.evaluation import progress
from bridgegarden.evaluation.progress import Bar, our_bars
from bridgegarden.terminal import plain_console


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch):
    """A terminal in place of stderr."""
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    monkeypatch.setattr(progress, "stderr_console", lambda: plain_console(file=stream, force_terminal=True))
    return stream


def test_a_bar_gives_back_what_it_goes_through_and_says_what_is_done(terminal):
    assert list(Bar(["a", "b"], desc="running programs")) == ["a", "b"]
    assert "running programs" in terminal.getvalue()
    assert "2/2" in terminal.getvalue()


def test_lm_eval_s_words_become_ours(terminal):
    bar = Bar(total=8, desc="Running generate_until requests")
    bar.update(8)
    bar.close()
    assert "writing answers" in terminal.getvalue()
    assert "generate_until" not in terminal.getvalue()


def test_elsewhere_there_is_a_plain_line_now_and_then(capsys):
    bar = Bar(total=4, desc="Running loglikelihood requests")
    bar.update()
    assert capsys.readouterr().err == ""
    bar._display.every = 0.0
    bar.update()
    assert capsys.readouterr().err.startswith("weighing answers: 2 of 4")


def test_one_that_is_disabled_shows_nothing(terminal):
    assert list(Bar([1], desc="x", disable=True)) == [1]
    assert terminal.getvalue() == ""


def test_lm_eval_s_bars_are_ours_and_end_with_it_also_when_it_fails(terminal):
    theirs = task.tqdm, model.tqdm, huggingface.tqdm

    def fail():
        with our_bars():
            assert list(task.tqdm([1], total=1)) == [1]
            assert terminal.getvalue() == ""
            huggingface.tqdm(total=3, desc="Running generate_until requests")
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        fail()
    assert (task.tqdm, model.tqdm, huggingface.tqdm) == theirs
    assert not progress._open
    # The cursor is shown again.
    assert terminal.getvalue().endswith("\x1b[?25h")
