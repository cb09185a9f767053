"""Ctrl-C and SIGTERM: the step is finished and saved, and the same command goes on."""

import os
import signal

import pytest
from click.testing import CliRunner

from bridgegarden.cli.main import cli
from bridgegarden.errors import Stopped
from bridgegarden.run.train import StopSignals, train
from bridgegarden.training.trainer import HybridDistillationTrainer
from tests.run.killed import metrics, weights


@pytest.fixture
def signalled(monkeypatch):
    """Let a signal come in the middle of a step."""

    def at(step: int, number: int, times: int = 1):
        compute_loss, sent = HybridDistillationTrainer.compute_loss, []

        def interrupted(self, *args, **kwargs):
            loss = compute_loss(self, *args, **kwargs)
            if self.model.training and self.state.global_step + 1 == step and not sent:
                sent.append(step)
                for _ in range(times):
                    os.kill(os.getpid(), number)
            return loss

        monkeypatch.setattr(HybridDistillationTrainer, "compute_loss", interrupted)

    return at


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_the_step_and_the_same_command_goes_on_to_the_same_bits(
    recipe, whole, signalled, monkeypatch, tmp_path, number, status
):
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    command = ["train", str(tmp_path / "recipe.yaml")]
    signalled(5, number)
    result = CliRunner().invoke(cli, command)
    monkeypatch.undo()
    assert result.exit_code == status
    checkpoint = recipe.output / "checkpoints" / "checkpoint-5"
    assert result.stderr.splitlines()[-1] == (
        f"Error: stopped at step 5 of 10, which is saved ({checkpoint}). The same command goes on."
    )
    assert not (recipe.output / "model").exists()
    assert (checkpoint / "seal.json").exists()
    again = CliRunner().invoke(cli, command)
    assert again.exit_code == 0, again.output
    assert f"going on from {checkpoint}" in again.stderr
    assert weights(recipe.output) == weights(whole.output)
    assert metrics(recipe.output) == metrics(whole.output)


def test_the_second_signal_ends_the_run_at_once(recipe, signalled):
    signalled(5, signal.SIGTERM, times=2)
    with pytest.raises(Stopped, match=r"^stopped by SIGTERM\. The same command goes on\.$"):
        train(recipe, stop_in_order=True)
    assert sorted(path.name for path in (recipe.output / "checkpoints").glob("c*")) == ["checkpoint-2", "checkpoint-4"]


def test_outside_training_a_signal_ends_the_run_at_once_and_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Stopped) as stopped, StopSignals():
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.status == 143
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_the_first_signal_during_training_only_asks(capfd):
    with StopSignals() as signals:
        signals.can_wait = True
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.asked == signal.SIGINT
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGINT)
    assert capfd.readouterr().err == "SIGINT: finishing this step and saving it. Once more to stop at once.\n"


def test_workers_leave_the_signal_to_their_parent():
    with StopSignals() as signals:
        signals._process = os.getpid() + 1
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.asked is None
