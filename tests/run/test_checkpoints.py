import io
import json
import os
import pickle
import shutil

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from bridgegarden.cli.main import cli
from bridgegarden.run.checkpoints import checkpoints_in, fault_of, put_aside, seal
from bridgegarden.run.train import train
from tests.run.killed import ended, in_child, metrics, weights


@pytest.fixture
def checkpoint(tmp_path):
    """As the trainer writes one, without the seal."""
    path = tmp_path / "checkpoint-7"
    path.mkdir()
    save_file({"weight": torch.arange(100.0)}, path / "model.safetensors")
    torch.save({"state": torch.arange(1000.0)}, path / "optimizer.pt")
    (path / "trainer_state.json").write_text('{"global_step": 7}')
    return path


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_checkpoint_is_gone_on_from_only_with_its_seal(checkpoint):
    fault = fault_of(checkpoint)
    assert fault is not None
    assert "has no seal.json, so that a part of it may be missing" in fault.reason
    seal(checkpoint)
    assert fault_of(checkpoint) is None


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "trainer_state.json"])
@pytest.mark.parametrize("harm", [cut, flip, os.remove])
def test_any_change_to_any_file_of_a_sealed_checkpoint_is_found(checkpoint, name, harm):
    seal(checkpoint)
    harm(checkpoint / name)
    fault = fault_of(checkpoint)
    assert fault is not None
    assert name in fault.reason or "not written to its end" in fault.reason


@pytest.mark.parametrize(
    "state",
    [
        '{"global_step": 8}',
        '{"global_step": "7"}',
        '{"global_step": 7, "x": 1}',
        '{"global_step": 7, "log_history": 3}',
    ],
)
def test_a_state_that_the_trainer_does_not_write_is_a_fault(checkpoint, state):
    (checkpoint / "trainer_state.json").write_text(state)
    seal(checkpoint)
    fault = fault_of(checkpoint)
    assert fault is not None
    assert "trainer_state.json is not what the trainer writes" in fault.reason
    assert not fault.torn


SEALS = ["", "[]", "{}", '{"files": {"model.safetensors": 3}}', '{"files": {"a": {"bytes": "1", "crc32": 1}}}']


@pytest.mark.parametrize("content", [*SEALS, "[" * 100_000])
def test_a_seal_that_cannot_be_read_is_a_fault(checkpoint, content):
    (checkpoint / "seal.json").write_text(content)
    fault = fault_of(checkpoint)
    assert fault is not None
    assert "seal.json cannot be read" in fault.reason


@pytest.mark.parametrize("name", ["a" * 5000, "a/../\\u0000"])
def test_a_seal_with_a_name_that_no_file_has_is_a_fault(checkpoint, name):
    (checkpoint / "seal.json").write_text(f'{{"files": {{"{name}": {{"bytes": 1, "crc32": 1}}}}}}')
    fault = fault_of(checkpoint)
    assert fault is not None
    assert "cannot be read" in fault.reason


def test_checkpoints_are_folders_with_a_number(tmp_path):
    for name in ("checkpoint-5", "checkpoint-10", "checkpoint-x", "checkpoint-", "checkpoint--1", "other-3"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-99").write_text("")
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-10", "checkpoint-5"]


def test_what_was_damaged_is_kept_and_what_was_never_whole_is_not(checkpoint):
    again = checkpoint.with_name("checkpoint-8")
    shutil.copytree(checkpoint, again)
    (checkpoint.with_name("damaged-checkpoint-7")).mkdir()
    seal(checkpoint)
    flip(checkpoint / "optimizer.pt")
    fault = fault_of(checkpoint)
    assert fault is not None
    assert put_aside(fault) == checkpoint.with_name("damaged-checkpoint-7-2")
    cut(again / "trainer_state.json")
    fault = fault_of(again)
    assert fault is not None
    assert put_aside(fault) is None
    assert {path.name for path in checkpoint.parent.iterdir()} == {"damaged-checkpoint-7", "damaged-checkpoint-7-2"}


@pytest.fixture
def interrupted(recipe, whole, tmp_path):
    """A run with checkpoints at steps 2, 4, 6, 8 and 10 that has not got its model; and the command that goes on."""
    shutil.copytree(whole.output, recipe.output)
    shutil.rmtree(recipe.output / "model")
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    return ["train", str(tmp_path / "recipe.yaml")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "harm", "reason"),
    [
        ("model.safetensors", cut, "model.safetensors has"),
        ("optimizer.pt", flip, "optimizer.pt does not hold what was written"),
        ("trainer_state.json", cut, "was not written to its end"),
    ],
)
def test_a_damaged_checkpoint_is_said_and_the_one_before_is_gone_on_from(
    interrupted, recipe, whole, name, harm, reason
):
    checkpoints = recipe.output / "checkpoints"
    for step in (10, 8):
        harm(checkpoints / f"checkpoint-{step}" / name)
    result = CliRunner().invoke(cli, interrupted)
    assert result.exit_code == 0, result.output
    assert f"{checkpoints / 'checkpoint-10'}: {reason}" in result.stderr
    assert f"{checkpoints / 'checkpoint-8'}: {reason}" in result.stderr
    assert f"going on from {checkpoints / 'checkpoint-6'}" in result.stderr
    assert weights(recipe.output) == weights(whole.output)
    assert metrics(recipe.output) == metrics(whole.output)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors"])
def test_a_newest_checkpoint_that_lost_a_file_with_the_power_is_not_gone_on_from(interrupted, recipe, name):
    checkpoints = recipe.output / "checkpoints"
    (checkpoints / "checkpoint-10" / "seal.json").unlink()
    (checkpoints / "checkpoint-10" / name).unlink()
    result = CliRunner().invoke(cli, interrupted)
    assert result.exit_code == 0, result.output
    assert "checkpoint-10: has no seal.json" in result.stderr
    assert f"going on from {checkpoints / 'checkpoint-8'}" in result.stderr
    assert (checkpoints / "damaged-checkpoint-10").is_dir()


class Planted:
    """What a pickle may do when it is loaded."""

    def __reduce__(self):
        return os.mkdir, ("planted",)


def test_a_checkpoint_that_holds_code_is_refused_and_the_code_not_run(interrupted, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = recipe.output / "checkpoints" / "checkpoint-10"
    torch.save({"state": Planted()}, checkpoint / "optimizer.pt")
    seal(checkpoint)
    result = CliRunner().invoke(cli, interrupted)
    assert result.exit_code == 2, result.output
    assert "holds Python objects that training never writes" in result.stderr
    assert not (tmp_path / "planted").exists()
    pickle.load(io.BytesIO(pickle.dumps(Planted())))
    assert (tmp_path / "planted").exists()


def test_lost_and_torn_lines_of_the_log_are_made_anew(recipe, whole, interrupted):
    log = recipe.output / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:2]) + lines[2][:10])
    assert ended(in_child(lambda: train(recipe))) == 0
    assert metrics(recipe.output) == metrics(whole.output)
    assert json.loads(log.read_text().splitlines()[0])["time"] is not None


def test_a_byte_of_the_log_that_is_no_text_costs_its_line_alone(recipe, whole, interrupted):
    log = recipe.output / "metrics.jsonl"
    log.write_bytes(b"\xff" + log.read_bytes()[1:])
    assert ended(in_child(lambda: train(recipe))) == 0
    assert metrics(recipe.output) == metrics(whole.output)


def test_a_second_run_in_the_same_folder_is_refused(interrupted, recipe):
    from bridgegarden.run.output import RunLock

    lock = recipe.output / "checkpoints" / ".lock"

    def second():
        result = CliRunner().invoke(cli, interrupted)
        assert result.exit_code == 2
        assert f"another run is at work in {recipe.output}" in result.stderr

    with RunLock(lock) as held:
        held.acquire()
        assert ended(in_child(second)) == 0
    RunLock(lock).acquire()


def test_workers_that_outlive_a_killed_run_do_not_keep_the_next_one_out(tmp_path):
    from bridgegarden.run.output import RunLock

    with RunLock(tmp_path / ".lock") as held:
        held.acquire()
        reader, writer = os.pipe()
        worker = in_child(lambda: os.read(reader, 1))
        held.release()
        with RunLock(tmp_path / ".lock") as next_one:
            next_one.acquire()
        os.write(writer, b".")
        assert ended(worker) == 0
