"""Nothing more can be written: one line, no model, earlier checkpoints whole; with room the same command goes on."""

import os
import resource
import shutil
import signal

import pytest
from click.testing import CliRunner

from bridgegarden.cli.main import cli
from bridgegarden.run.checkpoints import checkpoints_in, fault_of
from tests.run.killed import ended, in_child, metrics, weights

pytestmark = pytest.mark.slow


@pytest.fixture
def command(recipe, tmp_path):
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    return ["train", str(tmp_path / "recipe.yaml")]


def fails_with_one_line(command, output):
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 2, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"Error: output: nothing more can be written to {output} (")
    assert "run the same command again: it " in last
    assert not (output / "model").exists()
    assert [fault_of(path) for path in checkpoints_in(output / "checkpoints")].count(None) == len(
        checkpoints_in(output / "checkpoints")
    )


def test_files_that_cannot_grow_are_one_line_and_with_room_the_run_goes_on(recipe, whole, command):
    """The weights of a checkpoint fit, the optimiser's state does not."""
    fits = (whole.output / "checkpoints" / "checkpoint-2" / "model.safetensors").stat().st_size

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (fits + 1000, fits + 1000))
        fails_with_one_line(command, recipe.output)

    assert ended(in_child(limited)) == 0
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.output
    assert weights(recipe.output) == weights(whole.output)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_disk_that_is_really_full_keeps_the_checkpoint_before(recipe, whole, command, tmp_path):
    size = sum(path.stat().st_size for path in (whole.output / "checkpoints" / "checkpoint-2").iterdir())
    recipe.output.mkdir()
    if os.system(f"mount -t tmpfs -o size={int(size * 2.4) // 1024}k tmpfs {recipe.output} 2>/dev/null") != 0:
        pytest.skip("mounting is not allowed here")
    try:
        fails_with_one_line(command, recipe.output)
        assert [path.name for path in checkpoints_in(recipe.output / "checkpoints")] == ["checkpoint-4", "checkpoint-2"]
        assert os.system(f"mount -o remount,size={size * 12 // 1024}k {recipe.output}") == 0
        result = CliRunner().invoke(cli, command)
        assert result.exit_code == 0, result.output
        assert "going on from" in result.stderr
        assert weights(recipe.output) == weights(whole.output)
        assert metrics(recipe.output) == metrics(whole.output)
    finally:
        os.system(f"umount {recipe.output}")


def test_a_disk_that_fills_up_while_the_model_is_saved_leaves_no_model(recipe, whole, command, monkeypatch):
    shutil.copytree(whole.output, recipe.output)
    shutil.rmtree(recipe.output / "model")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("bridgegarden.run.save._finish", full)
        fails_with_one_line(command, recipe.output)
    assert not (recipe.output / ".model.partial").exists()
    assert CliRunner().invoke(cli, command).exit_code == 0
    assert weights(recipe.output) == weights(whole.output)
